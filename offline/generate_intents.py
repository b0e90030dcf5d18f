"""Let a language model write the atomic intents of every event kind of a log.

    python offline/generate_intents.py --data artifacts/demo/data --out artifacts/demo/intents

The default model is the project's own small one. In production, on a GPU: `--model Qwen/Qwen3-4B --workers 1`; its chat
template is used, thinking off. Can be stopped at any point and started again: what is answered is not asked twice.
`--plan` prices the run and writes nothing. Exit status 3: more prompts than `--max-dead-share` have no usable answer.
docs/GENERATION.md has input, engines and operation.
"""

import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import cyclopts

from airserve.artifacts import ANSWERS_FILE
from airserve.cli import run_script
from airserve.data.sources import MemorySettings
from airserve.intents.generate import JobInput, generate
from airserve.intents.plan import plan as plan_job
from airserve.intents.settings import GenerateSettings

TOO_MANY_DEAD = 3
log = logging.getLogger("generate_intents")


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Server:
    """Of `--engine openai`."""

    base_url: str = "http://localhost:8000/v1"
    """The server; its key is read from OPENAI_API_KEY."""
    api: str = "chat"
    """chat, or completions for a model without a chat template."""
    served_model: str = ""
    """The model's name on the server, where it differs."""
    vllm_extras: bool = True
    """Send vLLM's own request fields."""
    concurrency: int = 32
    """Requests in flight."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Of `--engine ray`."""

    ray_address: str = ""
    """auto or host:port of a cluster; one is started on this machine where left out."""
    ray_cpus: float = 1
    """CPUs reserved for an actor."""
    ray_gpus: float = 0
    """GPUs of an actor."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Of vLLM."""

    omp_threads: int = 1
    """OpenMP threads of a worker, on a CPU."""
    max_num_seqs: int = 256
    """Prompts decoded together."""
    max_model_len: int = 2048
    """Tokens of prompt and answer together."""
    chunk: int = 1024
    """Prompts of one reusable part."""


def main(
    *,
    data: str = ".",
    out: Path,
    items: str | None = None,
    behaviours: str | None = None,
    model: str = "offline/intent_lm",
    engine: str = "vllm",
    workers: int = 2,
    limit: int | None = None,
    plan: bool = False,
    rate: float | None = None,
    max_dead_share: float = 0.1,
    ask_refused: bool = False,
    memory_mib: int = 1024,
    spill: str | None = None,
    server: Server | None = None,
    cluster: Cluster | None = None,
    tuning: Tuning | None = None,
) -> dict[str, object]:
    """Write `answers.parquet`, `dead_letters.parquet`, `manifest.json` and `report.html`.

    Args:
        data: folder or URL with `items` and `behaviours` as .parquet, .jsonl or .csv (files, or folders of files).
        out: folder to write; holds the answers of earlier runs too.
        items: file, glob or folder in place of the one in `data`.
        behaviours: file, glob or folder in place of the one in `data`.
        model: a checkpoint's folder, or its name on a hub.
        engine: vllm, ray (vLLM on the machines of a Ray cluster), or openai (any OpenAI-compatible server).
        workers: vLLM processes; one a core, on a GPU one. With ray, actors in the whole cluster.
        limit: ask only this many event kinds, the most frequent; for trying out.
        plan: say what the run would cost, and write nothing.
        rate: prompts per second for the plan; the last run's where left out.
        max_dead_share: exit with status 3 where more of the prompts have no usable answer.
        ask_refused: ask prompts again that the engine refused in an earlier run.
        memory_mib: of the search for event kinds; what does not fit is spilled.
        spill: folder for that.
    """
    options = {**asdict(server or Server()), **asdict(cluster or Cluster()), **asdict(tuning or Tuning())}
    settings = GenerateSettings(model=model, engine=engine, workers=workers, ask_refused=ask_refused, **options)
    memory = MemorySettings(memory_mib=memory_mib, spill=spill)
    source = JobInput(data=data, items=items, behaviours=behaviours, limit=limit, memory=memory)
    if plan:
        return asdict(plan_job(source, out, settings, rate=rate))
    report = generate(source, out, settings)
    log.info("wrote %s, valid %.1f %%; to look at: %s", out / ANSWERS_FILE, 100 * report.valid_share, out)
    if report.dead_share > max_dead_share:
        print(json.dumps(asdict(report)), flush=True)
        share, limit_share = f"{100 * report.dead_share:.2f} %", f"{100 * max_dead_share:.2f} %"
        log.error("%s of the prompts are dead letters, at most %s allowed; see %s", share, limit_share, out)
        sys.exit(TOO_MANY_DEAD)
    return asdict(report)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
