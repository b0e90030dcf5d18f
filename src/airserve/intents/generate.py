"""The offline job: a language model writes the atomic intents of every event kind of a log.

Kinds are found, their prompts rendered and keyed; what earlier runs answered is reused, the rest is asked in chunks by
one or more vLLM processes. Every finished chunk is a file, so the job can be killed at any point and started again. It
ends in `answers.parquet` and `manifest.json`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from airserve.contract import CONTRACT_VERSION
from airserve.data.schema import load_behaviours, load_items, write_parquet
from airserve.errors import DataError, UserError
from airserve.intents.answers import content_keys, locked, model_identity, read_parts
from airserve.intents.engine_vllm import Question, vllm_version
from airserve.intents.event_kinds import EventKinds, event_kinds
from airserve.intents.prompt import PROMPT_VERSION, render, segment_text
from airserve.intents.settings import GenerateSettings
from airserve.intents.workers import PoolResult, Task, run_pool
from airserve.progress import Progress

ANSWERS_FILE = "answers.parquet"
MANIFEST_FILE = "manifest.json"
SMALLEST_CHUNK = 128
WORTH_A_WORKER = 500
"""Prompts that justify the start of another engine, 25 s of a core."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerateReport:
    """What a run did; also the manifest."""

    event_kinds: int
    unique_prompts: int
    valid_share: float
    """Of the event kinds."""
    reused: int
    """Prompts that earlier runs answered."""
    new: int
    """Prompts asked by this run."""
    retried: int
    """Of all prompts, those that were asked twice."""
    unanswered: int
    """Prompts that broke the engine; a later run asks them again."""
    seconds: float
    engine_start_s: float
    prompts_per_s: float | None
    """Of the new prompts, engine start left out; None when nothing was new."""
    output_tokens_per_s: float | None
    output_tokens_mean: float
    prompt_tokens_mean: float
    prefix_hit_share: float
    """Prompt tokens that came from the prefix cache, over all prompts."""
    model: str
    model_identity: str
    prompt_version: str
    vllm_version: str | None
    contract_version: int
    settings: dict[str, Any]


def generate(data: Path, out: Path, settings: GenerateSettings, *, limit: int | None = None) -> GenerateReport:
    """Answer every event kind of a log and write `answers.parquet` and `manifest.json`.

    Args:
        data: folder with `items.parquet` and `behaviours.parquet`.
        out: folder of the job; holds the answers of earlier runs.
        settings: model and engine.
        limit: ask only this many kinds, the most frequent.

    Raises:
        DataError: for data that is not in the documented format.
        ArtifactError: for a model folder or an earlier part that cannot be used.
        UserError: if another job holds the folder.
        EngineError: if vLLM does not start, or fails again and again.
    """
    start = time.monotonic()
    with locked(out):
        identity = model_identity(settings.model)
        found, keys, missing = _plan(data, out, settings, identity, limit)
        asked_at = time.monotonic()
        pool = _ask(missing, settings, out)
        working_s = time.monotonic() - asked_at - pool.engine_ready_s
        answers, figures = _join(found, keys, frozenset(missing), read_parts(out))
        report = GenerateReport(
            event_kinds=answers.num_rows,
            unique_prompts=len(set(keys)),
            valid_share=round(float(answers.column("valid").to_numpy(zero_copy_only=False).mean()), 5),
            reused=len(set(keys)) - len(missing),
            new=len(missing),
            retried=int(figures["retried"]),
            unanswered=pool.unanswered,
            seconds=round(time.monotonic() - start, 2),
            engine_start_s=round(pool.engine_ready_s, 2),
            prompts_per_s=round(len(missing) / working_s, 1) if missing else None,
            output_tokens_per_s=round(float(figures["new_tokens"]) / working_s, 1) if missing else None,
            output_tokens_mean=round(float(figures["output_mean"]), 2),
            prompt_tokens_mean=round(float(figures["prompt_mean"]), 2),
            prefix_hit_share=round(float(figures["cached"]), 4),
            model=settings.model,
            model_identity=identity,
            prompt_version=PROMPT_VERSION,
            vllm_version=vllm_version(),
            contract_version=CONTRACT_VERSION,
            settings=asdict(settings),
        )
        write_parquet(answers, out / ANSWERS_FILE)
        _write_json(asdict(report), out / MANIFEST_FILE)
    return report


def _plan(
    data: Path, out: Path, settings: GenerateSettings, identity: str, limit: int | None
) -> tuple[EventKinds, list[str], dict[str, Question]]:
    """Find the kinds, key their prompts, and say which have no answer yet."""
    items = load_items(data)
    found = event_kinds(items, load_behaviours(data, items), limit=limit)
    if not found.kinds.num_rows:
        raise DataError(str(data), expected="items or events", got="none", remedy="check the tables, and --limit")
    questions = [
        Question(action=row["action"], segment_text=segment_text(row["user_segment"]), title=row["text"])
        for row in found.prompts.to_pylist()
    ]
    prompts = [render(question.action, question.segment_text, question.title) for question in questions]
    keys = content_keys(prompts, settings, identity)
    known = frozenset(read_parts(out).column("key").to_pylist())
    missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
    log.info(
        "%d event kinds, %d prompts: %d answered before, %d to ask",
        found.kinds.num_rows,
        len(set(keys)),
        len(set(keys)) - len(missing),
        len(missing),
    )
    return found, keys, missing


def _ask(missing: dict[str, Question], settings: GenerateSettings, out: Path) -> PoolResult:
    if not missing:
        return PoolResult()
    if vllm_version() is None:
        raise UserError("vllm", expected="an installed vLLM", got="none", remedy="install requirements/main.lock")
    keys = tuple(missing)
    settings = replace(settings, workers=min(settings.workers, -(-len(keys) // WORTH_A_WORKER)))
    per_worker = -(-len(keys) // (2 * settings.workers))
    size = min(settings.chunk, max(per_worker, SMALLEST_CHUNK))
    tasks = [
        Task(keys=keys[at : at + size], questions=tuple(missing[key] for key in keys[at : at + size]))
        for at in range(0, len(keys), size)
    ]
    log.info("starting vLLM %s with %s; its logs are %s", vllm_version(), settings.model, out / "worker-*.log")
    progress = Progress("writing intents", len(keys), "prompts")
    with ExitStack() as stack:

        def on_ready() -> None:
            # From here on, so that the time left is not told from the engine's start.
            log.info("vLLM is up")
            stack.enter_context(progress)

        result = run_pool(tasks, settings, out, on_ready=on_ready, advance=progress.advance)
    for error in result.errors:
        log.warning("a vLLM worker failed and was restarted: %s", error)
    if result.unanswered:
        log.warning("%d prompts break the engine; they are left without an answer", result.unanswered)
    return result


def _join(
    found: EventKinds, keys: list[str], asked: frozenset[str], parts: pa.Table
) -> tuple[pa.Table, dict[str, Any]]:
    """Give every kind its answer; returns the answers' table and figures over its prompts."""
    prompts = found.prompts.append_column("key", pa.array(keys, type=pa.string()))
    with duckdb.connect() as connection:
        connection.register("kinds", found.kinds)
        connection.register("prompts", prompts)
        connection.register("parts", parts)
        connection.register("asked", pa.table({"key": pa.array(sorted(asked), type=pa.string())}))
        connection.execute("CREATE TEMP TABLE known AS SELECT DISTINCT ON (key) * FROM parts ORDER BY key")
        answers = connection.sql(
            """
            SELECT k.item_id, k.action, k.user_segment, k.text, coalesce(a.paths, []) AS paths,
                   coalesce(a.valid, false) AS valid, coalesce(a.raw, '') AS raw
            FROM kinds k JOIN prompts p USING (prompt_id) LEFT JOIN known a USING (key)
            ORDER BY k.item_id, k.action, k.user_segment
            """
        ).to_arrow_table()
        figures = connection.sql(
            """
            SELECT coalesce(sum(retried::INT), 0) AS retried, coalesce(avg(output_tokens), 0) AS output_mean,
                   coalesce(avg(prompt_tokens), 0) AS prompt_mean,
                   coalesce(sum(cached_tokens) / sum(prompt_tokens), 0) AS cached,
                   coalesce(sum(output_tokens) FILTER (key IN (SELECT key FROM asked)), 0) AS new_tokens
            FROM known WHERE key IN (SELECT key FROM prompts)
            """
        ).to_arrow_table()
    return answers, figures.to_pylist()[0]


def _write_json(value: dict[str, Any], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
