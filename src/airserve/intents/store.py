"""The job's working tables: kinds, prompts, their keys, what is answered and what is not.

They live in DuckDB with bounded memory. Prompts pass through Python in batches, once, to be rendered and keyed; nothing
here holds all of them. What is written is ordered and cut into row groups of one size, so that the same answers give
the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from airserve.artifact_schemas import ANSWERS_SCHEMA, DEAD_LETTERS_SCHEMA, PARTS_SCHEMA
from airserve.artifacts import PARTS_FOLDER
from airserve.data.sources import Source
from airserve.errors import ArtifactError
from airserve.files import atomic_path
from airserve.intents.answers import content_keys
from airserve.intents.engines import Question, Task
from airserve.intents.event_kinds import load_kinds
from airserve.intents.prompt import clean_title, render, segment_text
from airserve.intents.settings import GenerateSettings

BATCH = 16_384
ROW_GROUP = 131_072
EMPTY_TITLE = "empty title"
INVALID_ANSWER = "invalid answer"
NO_ANSWER = "no answer: the engine failed"
REASON = (
    f"CASE WHEN p.empty THEN '{EMPTY_TITLE}' WHEN a.error <> '' THEN a.error "
    f"WHEN a.key IS NOT NULL THEN '{INVALID_ANSWER}' "
    f"ELSE coalesce(s.what, '{NO_ANSWER}') END"
)
"""Why a prompt (`keyed p`) with the answer `known a` or the refusal `said s` is a dead letter."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sizes of a job."""

    event_kinds: int
    unique_prompts: int
    """Distinct keys, those of empty titles left out."""
    missing: int
    """Distinct keys without an answer."""
    foreign_events: int
    """Events on items that are not known; left out."""


class JobStore:
    """Working tables of one run.

    Args:
        connection: of `data.sources.bounded_duckdb`.
        folder: the job's folder, with the parts of earlier runs; need not exist.
    """

    def __init__(self, connection: Any, folder: Path) -> None:
        self.connection = connection
        self.folder = folder

    def load(
        self, items: Source, log: Source, settings: GenerateSettings, identity: str, limit: int | None = None
    ) -> Counts:
        """Find the kinds, key their prompts, and see which of them have an answer.

        Raises:
            DataError: for data that is not in the documented format.
            ArtifactError: for a part that cannot be read.
        """
        foreign = load_kinds(self.connection, items, log, limit=limit)
        self._key_prompts(settings, identity)
        self.read_answers(refused=not settings.ask_refused)
        kinds, unique, missing = self._row(
            """
            SELECT (FROM kinds SELECT count(*)), (FROM keyed SELECT count(DISTINCT key) FILTER (NOT empty)),
                   (FROM keyed ANTI JOIN known USING (key) SELECT count(DISTINCT key) FILTER (NOT empty))
            """
        )
        return Counts(event_kinds=kinds, unique_prompts=unique, missing=missing, foreign_events=foreign)

    def _key_prompts(self, settings: GenerateSettings, identity: str) -> None:
        writer = self.connection.cursor()
        writer.execute("CREATE TABLE keyed (prompt_id BIGINT, key VARCHAR, empty BOOLEAN)")
        for rows in self._batches("SELECT prompt_id, action, user_segment, text FROM prompts ORDER BY prompt_id"):
            columns = rows.to_pydict()
            prompts = [
                render(action, segment_text(segment), title)
                for action, segment, title in zip(
                    columns["action"], columns["user_segment"], columns["text"], strict=True
                )
            ]
            keyed = pa.table(
                {
                    "prompt_id": columns["prompt_id"],
                    "key": content_keys(prompts, settings, identity),
                    "empty": [not clean_title(title) for title in columns["text"]],
                }
            )
            writer.register("batch", keyed)
            writer.execute("INSERT INTO keyed SELECT * FROM batch")
            writer.unregister("batch")
        writer.close()

    def read_answers(self, *, refused: bool = True) -> None:
        """Take in every part of the folder as the table `known`, one row a key; an answer wins over a refusal.

        Args:
            refused: also take in the prompts that the engine refused.

        Raises:
            ArtifactError: naming a part that cannot be read.
        """
        parts = sorted((self.folder / PARTS_FOLDER).glob("[0-9a-f]*.parquet"))
        columns = ", ".join(PARTS_SCHEMA.names[:-1])
        self.connection.register("no_parts", PARTS_SCHEMA.empty_table())
        source = "no_parts"
        if parts:
            files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in parts)
            # The union also has `error`, which the oldest parts have not.
            source = f"(FROM no_parts UNION ALL BY NAME FROM read_parquet([{files}], union_by_name = true))"
        try:
            self.connection.execute(
                f"""
                CREATE OR REPLACE TABLE known AS SELECT DISTINCT ON (key) {columns}, coalesce(error, '') AS error
                FROM {source} WHERE {str(refused).lower()} OR coalesce(error, '') = ''
                ORDER BY key, coalesce(error, '')
                """
            )
        except duckdb.Error as error:
            raise _bad_part(parts, error) from error

    def tasks(self, size: int) -> Iterator[Task]:
        """Give what has no answer in chunks of `size`, the most frequent first; may be read once, lazily."""
        query = """
            SELECT key, action, user_segment, text FROM (
                SELECT DISTINCT ON (key) key, prompt_id FROM keyed ANTI JOIN known USING (key)
                WHERE NOT empty ORDER BY key, prompt_id
            ) JOIN prompts USING (prompt_id) ORDER BY prompt_id
        """
        for rows in self._batches(query, size):
            columns = rows.to_pydict()
            questions = zip(columns["action"], columns["user_segment"], columns["text"], strict=True)
            yield Task(
                keys=tuple(columns["key"]),
                questions=tuple(
                    Question(action=action, segment_text=segment_text(segment), title=title)
                    for action, segment, title in questions
                ),
            )

    def write_answers(self, path: Path) -> None:
        """Write `ANSWERS_SCHEMA`: every kind with its answer, ordered by item, action and segment."""
        self._write(
            """
            SELECT k.item_id, k.action, k.user_segment, k.text, coalesce(a.paths, []) AS paths,
                   coalesce(a.valid, false) AS valid, coalesce(a.raw, '') AS raw
            FROM kinds k JOIN keyed p USING (prompt_id) LEFT JOIN known a ON a.key = p.key AND NOT p.empty
            ORDER BY k.item_id, k.action, k.user_segment
            """,
            ANSWERS_SCHEMA,
            path,
        )

    def write_dead_letters(self, path: Path, errors: Mapping[str, str]) -> int:
        """Write every prompt without a usable answer, `DEAD_LETTERS_SCHEMA`.

        Args:
            path: the Parquet file.
            errors: by key, what the engine said of prompts that got no answer.

        Returns:
            how many.
        """
        said = pa.table(
            {"key": pa.array(list(errors), pa.string()), "what": pa.array(list(errors.values()), pa.string())}
        )
        self.connection.register("said_rows", said)
        self.connection.execute("CREATE OR REPLACE TABLE said AS SELECT * FROM said_rows")
        return self._write(
            f"""
            SELECT p.key, q.action, q.user_segment, q.text,
                   {REASON} AS reason, coalesce(a.raw, '') AS raw
            FROM keyed p JOIN prompts q USING (prompt_id) LEFT JOIN known a ON a.key = p.key AND NOT p.empty
            LEFT JOIN said s ON s.key = p.key
            WHERE p.empty OR a.valid IS NOT true ORDER BY p.prompt_id
            """,
            DEAD_LETTERS_SCHEMA,
            path,
        )

    def figures(self) -> dict[str, float]:
        """Figures over the answered prompts: `valid` (kinds), `retried`, `refused`, token means, `cached` share."""
        names = ("valid", "retried", "refused", "output_mean", "prompt_mean", "cached")
        row = self._row(
            """
            SELECT (SELECT coalesce(avg((a.valid IS true)::INT), 0) FROM kinds JOIN keyed p USING (prompt_id)
                    LEFT JOIN known a ON a.key = p.key AND NOT p.empty),
                   coalesce(sum(retried::INT), 0), count(*) FILTER (error <> ''),
                   coalesce(avg(output_tokens) FILTER (error = ''), 0),
                   coalesce(avg(prompt_tokens) FILTER (error = ''), 0),
                   coalesce(sum(cached_tokens) / sum(prompt_tokens), 0)
            FROM known WHERE key IN (SELECT key FROM keyed)
            """
        )
        return dict(zip(names, map(float, row), strict=True))

    def output_tokens(self) -> int:
        """Tokens written in all answers to this job's prompts."""
        (total,) = self._row(
            "SELECT coalesce(sum(output_tokens), 0)::BIGINT FROM known WHERE key IN (SELECT key FROM keyed)"
        )
        return int(total)

    def _row(self, query: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.connection.execute(query).fetchall()[0]
        return row

    def _batches(self, query: str, size: int = BATCH) -> Iterator[pa.Table]:
        """Rows of a query as tables of exactly `size` rows, the last one less."""
        reader = self.connection.cursor().sql(query).to_arrow_reader(max(size, 2048))
        left: pa.Table | None = None
        for batch in reader:
            rows = pa.Table.from_batches([batch])
            left = rows if left is None else pa.concat_tables([left, rows])
            while left.num_rows >= size:
                yield left.slice(0, size).combine_chunks()
                left = left.slice(size)
        if left is not None and left.num_rows:
            yield left.combine_chunks()

    def _write(self, query: str, schema: pa.Schema, path: Path) -> int:
        """Write a query's rows; returns how many."""
        rows = 0
        with atomic_path(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for table in self._batches(query, ROW_GROUP):
                writer.write_table(table.cast(schema), row_group_size=ROW_GROUP)
                rows += table.num_rows
        return rows


def _bad_part(parts: list[Path], error: Exception) -> ArtifactError:
    for path in parts:
        try:
            pq.read_table(path, schema=PARTS_SCHEMA)
        except (pa.ArrowInvalid, OSError) as reason:
            error, parts = reason, [path]
            break
    return ArtifactError(
        str(parts[0]),
        expected="a part written by generate_intents",
        got=str(error).splitlines()[0],
        remedy="delete it; the next run asks for its answers again",
    )
