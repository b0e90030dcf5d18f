"""What a run would cost, before it starts: kinds, prompts, tokens, hours. Nothing is written to the job's folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from airserve.artifacts import MANIFEST_FILE
from airserve.data.sources import bounded_duckdb
from airserve.errors import UserError
from airserve.intents.generate import JobInput, job_identity
from airserve.intents.prompt import render
from airserve.intents.settings import GenerateSettings
from airserve.intents.store import JobStore

SAMPLE = 256
"""Prompts whose tokens are counted."""
USUAL_OUTPUT_TOKENS = 40.0
"""Of an answer of one to three paths, where no earlier run says better."""
CHARS_PER_TOKEN = 4.0
"""English text, where no tokenizer is at hand."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The price of a run."""

    event_kinds: int
    unique_prompts: int
    new_prompts: int
    """Those without an answer; what the run would ask."""
    foreign_events: int
    prompt_tokens_mean: float
    output_tokens_mean: float
    estimated_prompt_tokens: int
    """Of the new prompts; nearly all are found in the prefix cache."""
    estimated_output_tokens: int
    rate_prompts_per_s: float | None
    rate_from: str
    """`given`, `measured` (the folder's last run) or `unknown`."""
    hours: float | None
    model_identity: str


def plan(source: JobInput, out: Path, settings: GenerateSettings, *, rate: float | None = None) -> Plan:
    """Price a run.

    Args:
        source: items and behaviours.
        out: the job's folder, for the answers and the rate of earlier runs; only read.
        settings: model and engine.
        rate: prompts per second; None takes the last run's.

    Raises:
        DataError: for data that is not in the documented format.
        UserError: for a rate that is not above 0.
    """
    if rate is not None and not rate > 0:
        raise UserError("--rate", expected="more than 0 prompts/s", got=str(rate), remedy="raise it or leave it out")
    identity = job_identity(settings)
    items, events = source.sources()
    earlier = _earlier(out)
    with bounded_duckdb(source.memory) as connection:
        store = JobStore(connection, out)
        counts = store.load(items, events, settings, identity, source.limit)
        figures = store.figures()
        first = next(store.tasks(SAMPLE), None)
    sample = [render(one.action, one.segment_text, one.title) for one in first.questions] if first else []
    prompt_mean = _tokens_mean(sample, settings)
    output_mean = figures["output_mean"] or earlier.get("output_tokens_mean") or USUAL_OUTPUT_TOKENS
    measured = earlier.get("prompts_per_s") if rate is None else None
    used = rate or measured
    return Plan(
        event_kinds=counts.event_kinds,
        unique_prompts=counts.unique_prompts,
        new_prompts=counts.missing,
        foreign_events=counts.foreign_events,
        prompt_tokens_mean=round(prompt_mean, 1),
        output_tokens_mean=round(output_mean, 1),
        estimated_prompt_tokens=round(prompt_mean * counts.missing),
        estimated_output_tokens=round(output_mean * counts.missing),
        rate_prompts_per_s=used,
        rate_from="given" if rate else "measured" if measured else "unknown",
        hours=round(counts.missing / used / 3600, 4) if used else None,
        model_identity=identity,
    )


def _earlier(out: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _tokens_mean(prompts: list[str], settings: GenerateSettings) -> float:
    if not prompts:
        return 0.0
    tokenizer = Path(settings.model) / "tokenizer.json"
    if tokenizer.is_file():
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        encoded = Tokenizer.from_file(str(tokenizer)).encode_batch(list(islice(prompts, SAMPLE)))
        return sum(len(one.ids) for one in encoded) / len(encoded)
    return sum(map(len, prompts)) / len(prompts) / CHARS_PER_TOKEN
