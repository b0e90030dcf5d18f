"""The offline job: a language model writes the atomic intents of every event kind of a log.

Kinds are found, their prompts rendered and keyed; what earlier runs answered is reused, the rest is asked in chunks by
the engine. Every finished chunk is a file, so the job can be killed at any point and started again. It ends in
`answers.parquet`, `dead_letters.parquet`, `manifest.json` and `report.html`.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from airserve.artifacts import ANSWERS_FILE, DEAD_LETTERS_FILE, MANIFEST_FILE, REPORT_FILE
from airserve.contract import CONTRACT_VERSION
from airserve.data.sources import MemorySettings, Source, bounded_duckdb, find_source
from airserve.errors import DataError, UserError
from airserve.files import write_json
from airserve.intents.answers import Tokens, locked, model_identity
from airserve.intents.engine_vllm import vllm_version
from airserve.intents.html_report import write_report
from airserve.intents.prompt import PROMPT_VERSION
from airserve.intents.ray_pool import run_ray
from airserve.intents.settings import GenerateSettings
from airserve.intents.store import Counts, JobStore
from airserve.intents.workers import PoolResult, disk_error, is_disk_full, run_pool
from airserve.progress import Progress

SMALLEST_CHUNK = 128
WORTH_A_WORKER = 500
"""Prompts that justify the start of another engine, 25 s of a core."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobInput:
    """What the job reads."""

    data: str
    """Folder (or fsspec URL) with `items.*` and `behaviours.*`."""
    items: str | None = None
    """File, glob or folder in place of the one in `data`."""
    behaviours: str | None = None
    """File, glob or folder in place of the one in `data`."""
    limit: int | None = None
    """Ask only this many kinds, the most frequent."""
    memory: MemorySettings = field(default_factory=MemorySettings)

    def sources(self) -> tuple[Source, Source]:
        """Find both tables.

        Raises:
            DataError: if one is missing.
        """
        items = find_source(self.items) if self.items else find_source(self.data, "items")
        events = find_source(self.behaviours) if self.behaviours else find_source(self.data, "behaviours")
        return items, events


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
    refused: int
    """Prompts that the engine would not take, now or earlier; asked again with `--ask-refused`."""
    unanswered: int
    """Prompts that broke the engine; a later run asks them again."""
    dead_letters: int
    """Prompts without a usable answer: see `dead_letters.parquet`."""
    dead_share: float
    """Of all prompts."""
    foreign_events: int
    """Events on items that are not among the items; left out."""
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


def generate(source: JobInput, out: Path, settings: GenerateSettings) -> GenerateReport:
    """Answer every event kind of a log and write answers, dead letters, manifest and report.

    Args:
        source: items and behaviours.
        out: folder of the job; holds the answers of earlier runs.
        settings: model and engine.

    Raises:
        DataError: for data that is not in the documented format.
        ArtifactError: for a model folder or an earlier part that cannot be used.
        UserError: if another job holds the folder, or the disk is full.
        EngineError: if the engine does not start, or fails again and again.
    """
    try:
        with locked(out), bounded_duckdb(source.memory) as connection:
            return _run(JobStore(connection, out), source, settings)
    except OSError as error:
        if is_disk_full(error):
            raise disk_error(str(error), out) from error
        raise


def job_identity(settings: GenerateSettings) -> str:
    """Identity of the model that answers; a server's model by its name, unless `model` is a folder here."""
    if settings.engine == "openai" and not settings.is_local:
        return f"hub:{settings.served_model or settings.model}"
    return model_identity(settings.model)


def _run(store: JobStore, source: JobInput, settings: GenerateSettings) -> GenerateReport:
    start = time.monotonic()
    identity = job_identity(settings)
    items, events = source.sources()
    counts = store.load(items, events, settings, identity, source.limit)
    if not counts.event_kinds:
        raise DataError(source.data, expected="items or events", got="none", remedy="check the tables, and --limit")
    if counts.foreign_events:
        log.warning("%d events are on items that %s does not have; left out", counts.foreign_events, items.location)
    log.info(
        "%d event kinds, %d prompts: %d answered before, %d to ask",
        counts.event_kinds,
        counts.unique_prompts,
        counts.unique_prompts - counts.missing,
        counts.missing,
    )
    asked_at, tokens_before = time.monotonic(), store.output_tokens()
    pool = _ask(store, counts, settings, identity)
    working_s = max(time.monotonic() - asked_at - pool.engine_ready_s, 1e-9)
    store.read_answers()
    store.write_answers(store.folder / ANSWERS_FILE)
    dead = store.write_dead_letters(store.folder / DEAD_LETTERS_FILE, pool.unanswered)
    figures = store.figures()
    new = counts.missing
    report = GenerateReport(
        event_kinds=counts.event_kinds,
        unique_prompts=counts.unique_prompts,
        valid_share=round(figures["valid"], 5),
        reused=counts.unique_prompts - new,
        new=new,
        retried=int(figures["retried"]),
        refused=int(figures["refused"]),
        unanswered=len(pool.unanswered),
        dead_letters=dead,
        dead_share=round(dead / max(counts.unique_prompts, dead, 1), 6),
        foreign_events=counts.foreign_events,
        seconds=round(time.monotonic() - start, 2),
        engine_start_s=round(pool.engine_ready_s, 2),
        prompts_per_s=round(new / working_s, 1) if new else None,
        output_tokens_per_s=round((store.output_tokens() - tokens_before) / working_s, 1) if new else None,
        output_tokens_mean=round(figures["output_mean"], 2),
        prompt_tokens_mean=round(figures["prompt_mean"], 2),
        prefix_hit_share=round(figures["cached"], 4),
        model=settings.model,
        model_identity=identity,
        prompt_version=PROMPT_VERSION,
        vllm_version=vllm_version(),
        contract_version=CONTRACT_VERSION,
        settings=asdict(settings),
    )
    write_json(store.folder / MANIFEST_FILE, asdict(report))
    write_report(store.connection, asdict(report), store.folder / REPORT_FILE)
    return report


def _ask(store: JobStore, counts: Counts, settings: GenerateSettings, identity: str) -> PoolResult:
    if not counts.missing:
        return PoolResult()
    if settings.engine != "openai" and vllm_version() is None:
        raise UserError("vllm", expected="an installed vLLM", got="none", remedy="install requirements/main.lock")
    workers = 1 if settings.engine == "openai" else min(settings.workers, -(-counts.missing // WORTH_A_WORKER))
    settings = replace(settings, workers=workers)
    per_worker = -(-counts.missing // (2 * workers))
    tasks = store.tasks(min(settings.chunk, max(per_worker, SMALLEST_CHUNK)))
    logs = "below Ray's own folder" if settings.engine == "ray" else str(store.folder / "worker-*.log")
    log.info("starting %s with %s; its logs are %s", settings.engine, settings.model, logs)
    with ExitStack() as stack:
        meter = _Meter(settings.engine, counts.missing, stack)
        if settings.engine == "ray":
            result = run_ray(tasks, settings, identity, store.folder, meter)
        else:
            result = run_pool(tasks, settings, store.folder, meter)
    for error in result.errors:
        log.warning("a worker failed, the job went on: %s", error)
    if result.unanswered:
        log.warning("%d prompts break the engine; they are left without an answer", len(result.unanswered))
    return result


class _Meter:
    """What a person sees of the run: prompts and tokens per second, prefix-cache hits, time left."""

    def __init__(self, engine: str, prompts: int, stack: ExitStack) -> None:
        self.engine = engine
        self.stack = stack
        self.progress = Progress("writing intents", prompts, "rows")
        self.tokens = Tokens()
        self.started_s = time.monotonic()

    def ready(self) -> None:
        # From here on, so that the time left is not told from the engine's start.
        log.info("%s is up", self.engine)
        self.started_s = time.monotonic()
        self.stack.enter_context(self.progress)

    def advance(self, prompts: int) -> None:
        self.progress.advance(prompts)

    def count(self, tokens: Tokens) -> None:
        self.tokens += tokens
        spent_s = max(time.monotonic() - self.started_s, 1e-9)
        hits = self.tokens.cached / max(self.tokens.prompt, 1)
        self.progress.note = f"{self.tokens.output / spent_s:,.0f} tok/s {hits:.0%} hit"
