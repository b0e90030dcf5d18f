"""Measure one trained ranker on held-out targets, against popularity and its own base; trains nothing.

    python offline/measure_ranker.py --ranker artifacts/demo/ranker

The baselines that need a training of their own, and intervals over seeds: offline/evaluate_ranker.py.
"""

import os
from pathlib import Path

import cyclopts
import torch

from airserve.artifacts import INTENTS_FOLDER
from airserve.cli import run_script
from airserve.data.schema import load_dataset
from airserve.table.intents import IntentTable
from airserve.training.checkpoint import load_ranker
from airserve.training.evaluation import EvaluationSettings
from airserve.training.examples import make_log
from airserve.training.measure import evaluate_ranker
from airserve.training.stages import air_scorer


def main(
    *,
    ranker: Path,
    data: Path = Path("artifacts/demo/data"),
    tables: Path | None = None,
    draws: int = 20,
    max_users: int = 5000,
    seed: int = 0,
    threads: int = min(2, os.cpu_count() or 1),
) -> dict[str, object]:
    """Measure a ranker.

    Args:
        ranker: folder made by offline/train_ranker.py.
        data: folder with items.parquet and behaviours.parquet.
        tables: folder made by offline/build_tables.py; `tables` beside the data when left out.
        draws: of the negatives.
        max_users: targets, chosen at random where there are more.
        seed: of targets, negatives and intervals.
        threads: of PyTorch.
    """
    torch.set_num_threads(threads)
    table = IntentTable.open((tables or data.parent / "tables") / INTENTS_FOLDER)
    trained = load_ranker(ranker, table)
    dataset = load_dataset(data)
    log = make_log(dataset.items, dataset.behaviours, table)
    settings = EvaluationSettings(seed=seed, draws=draws, users=max_users)
    air = air_scorer(trained.ranker, log, trained.company)
    return evaluate_ranker(air, trained.ranker.base, table, log, settings)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
