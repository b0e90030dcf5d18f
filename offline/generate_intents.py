"""Let a language model on vLLM write the atomic intents of every event kind of a log.

    python offline/generate_intents.py --data artifacts/demo/data --out artifacts/demo/intents

The default model is the project's own small one. In production, on a GPU: `--model Qwen/Qwen3-4B --workers 1`; its chat
template is used, thinking off. Can be stopped at any point and started again: what is answered is not asked twice.
"""

import logging
from dataclasses import asdict
from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.intents.generate import generate
from airserve.intents.settings import GenerateSettings

log = logging.getLogger("generate_intents")


def main(
    *,
    data: Path,
    out: Path,
    model: str = "offline/intent_lm",
    workers: int = 2,
    limit: int | None = None,
    omp_threads: int = 1,
    max_num_seqs: int = 256,
    max_model_len: int = 2048,
    chunk: int = 1024,
) -> dict[str, object]:
    """Write `answers.parquet` and `manifest.json`.

    Args:
        data: folder with `items.parquet` and `behaviours.parquet`.
        out: folder to write; holds the answers of earlier runs too.
        model: a checkpoint's folder, or its name on a hub.
        workers: vLLM processes; one a core, on a GPU one.
        limit: ask only this many event kinds, the most frequent; for trying out.
        omp_threads: OpenMP threads of a worker, on a CPU.
        max_num_seqs: prompts decoded together.
        max_model_len: tokens of prompt and answer together.
        chunk: prompts of one reusable part.
    """
    settings = GenerateSettings(
        model=model,
        workers=workers,
        omp_threads=omp_threads,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        chunk=chunk,
    )
    report = generate(data, out, settings, limit=limit)
    log.info("wrote %s, valid %.1f %%", out / "answers.parquet", 100 * report.valid_share)
    return asdict(report)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
