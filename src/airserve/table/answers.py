"""The LLM's answers as the tables are built from: ids in memory, texts read again and again from the file.

An answer's texts take some hundred bytes, its ids 24, so a table of any size is built from what is streamed here; the
vocabulary, which grows with what can be said and not with the log, is what stays in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airserve import contract
from airserve.artifact_schemas import ANSWERS_SCHEMA, SEGMENT_COLUMN
from airserve.errors import DataError
from airserve.table.format import kind_keys

ID_COLUMNS = ("item_id", "action", SEGMENT_COLUMN, "valid")
PATHS = "paths"
WRITTEN_BY = "offline/generate_intents.py"
BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class AnswerPaths:
    """The paths of each answer that is kept, read from the file on every iteration."""

    path: Path
    kept: npt.NDArray[np.bool_]
    """Of each row of the file."""

    def __iter__(self) -> Iterator[list[list[str]]]:
        start = 0
        for batch in _batches(self.path, (PATHS,)):
            yield from batch.column(PATHS).filter(pa.array(self.kept[start : start + batch.num_rows])).to_pylist()
            start += batch.num_rows


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The valid answers, one an event kind, in the order of the file."""

    rows: npt.NDArray[np.int64]
    """Catalogue rows."""
    actions: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]
    paths: AnswerPaths
    n_asked: int
    """Rows of the file, invalid ones too."""
    n_foreign: int
    """Valid answers about items that are not in the catalogue; left out."""


def read_answers(path: Path, items: npt.NDArray[np.int64]) -> Answers:
    """Read the ids of `answers.parquet` for a catalogue.

    Args:
        path: the file.
        items: item ids, ascending.

    Raises:
        DataError: for a missing column, a null, an unknown action, a negative segment, or a kind that comes twice.
    """
    rows, actions, segments, kept, n_valid = [], [], [], [], 0
    names = pa.array(list(contract.ACTIONS))
    numbers = np.array(list(contract.ACTIONS.values()), dtype=np.int64)
    for batch in _batches(path, ID_COLUMNS, also=(PATHS,)):
        valid = batch.column("valid").to_numpy(zero_copy_only=False)
        ids = batch.column("item_id").to_numpy()
        place = np.minimum(np.searchsorted(items, ids), max(len(items) - 1, 0))
        wanted = valid & (items[place] == ids if len(items) else np.zeros(len(ids), dtype=bool))
        action = pc.index_in(batch.column("action"), value_set=names)
        if action.null_count:
            got = batch.column("action").filter(pc.is_null(action))[0].as_py()
            expected = f"one of {', '.join(contract.ACTIONS)}"
            raise DataError(f"{path}: action", expected=expected, got=repr(got), remedy="map it")
        n_valid += int(valid.sum())
        kept.append(wanted)
        rows.append(place[wanted] + contract.FIRST_ITEM_ROW)
        actions.append(numbers[action.to_numpy()[wanted]])
        segments.append(batch.column(SEGMENT_COLUMN).to_numpy()[wanted].astype(np.int64))
    mask = _joined(kept, np.bool_)
    answers = Answers(
        rows=_joined(rows, np.int64),
        actions=_joined(actions, np.int64),
        segments=_joined(segments, np.int64),
        paths=AnswerPaths(path=path, kept=mask),
        n_asked=len(mask),
        n_foreign=n_valid - int(mask.sum()),
    )
    _check(path, answers)
    return answers


def _check(path: Path, answers: Answers) -> None:
    lowest = int(answers.segments.min(initial=0))
    if lowest < 0:
        raise DataError(f"{path}: {SEGMENT_COLUMN}", expected=">= 0", got=str(lowest), remedy="use 0 for unknown")
    n_segments = 1 + int(answers.segments.max(initial=0))
    keys = np.sort(kind_keys(answers.rows, answers.actions, answers.segments, n_segments))
    if (keys[1:] == keys[:-1]).any():
        raise DataError(str(path), expected="each event kind once", got="a kind twice", remedy="keep one of them")


def _joined(parts: list[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    joined: npt.NDArray[Any] = np.concatenate([np.zeros(0, dtype=kind), *parts]).astype(kind)
    return joined


def _batches(path: Path, read: Sequence[str], also: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Read columns of the answers in pieces, cast to `ANSWERS_SCHEMA`, without nulls; `also` must exist, unread."""
    wanted = pa.schema([ANSWERS_SCHEMA.field(name) for name in read])
    columns = [ANSWERS_SCHEMA.field(name) for name in (*read, *also)]
    try:
        with pq.ParquetFile(path) as file:
            missing = [field.name for field in columns if field.name not in file.schema_arrow.names]
            if missing:
                expected = f"a column {missing[0]}"
                raise DataError(str(path), expected=expected, got="none", remedy=f"run {WRITTEN_BY}")
            for batch in file.iter_batches(BATCH, columns=list(read)):
                rows = pa.Table.from_batches([batch]).select(list(read)).cast(wanted)
                for name in read:
                    if rows[name].null_count:
                        got = f"{rows[name].null_count} nulls"
                        raise DataError(f"{path}: {name}", expected="a value in every row", got=got, remedy="fill")
                yield from rows.combine_chunks().to_batches()
    except (OSError, pa.ArrowException) as error:
        expected = ", ".join(f"{field.name} {field.type}" for field in columns)
        got = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        expected = f"a Parquet file with {expected}"
        raise DataError(str(path), expected=expected, got=got, remedy=f"run {WRITTEN_BY}") from None
