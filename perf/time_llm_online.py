"""Measure how long the language model takes to answer for one user online, with the user's history in the prompt.

    python perf/time_llm_online.py --data artifacts/demo/data --model offline/intent_lm --users 5

What limits it: reading the prompt is bound by FLOPs, writing the answer by the bytes of the weights, once a token.
`--dummy-shape qwen3-0.6b` times a published architecture with random weights: the time is real, the answer is not.
"""

from dataclasses import asdict
from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.intents.online import time_online
from airserve.intents.settings import GenerateSettings


def main(
    *,
    data: Path,
    model: str = "offline/intent_lm",
    users: int = 5,
    behaviours: int = 50,
    omp_threads: int = 1,
    max_model_len: int = 4096,
    dummy_shape: str | None = None,
) -> dict[str, object]:
    """Time whole-history answers, one user at a time.

    Args:
        data: data folder.
        model: a checkpoint's folder, or its name on a hub.
        users: users to time.
        behaviours: length of a history.
        omp_threads: OpenMP threads, on a CPU.
        max_model_len: tokens of prompt and answer together.
        dummy_shape: time this architecture with random weights, with the tokenizer of `model`.
    """
    settings = GenerateSettings(model=model, workers=1, omp_threads=omp_threads, max_model_len=max_model_len)
    return asdict(time_online(data, settings, users=users, behaviours=behaviours, dummy_shape=dummy_shape))


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
