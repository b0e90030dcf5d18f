"""Measure a trained ranker on the test split, against popularity and its own base without intents."""

from dataclasses import replace
from pathlib import Path

import cyclopts
import torch

from airserve.cli import run_script
from airserve.data.schema import load_dataset
from airserve.table.lookup import IntentTable
from airserve.training.checkpoint import load_ranker
from airserve.training.evaluation import EvaluationSettings
from airserve.training.examples import make_log
from airserve.training.stages import evaluate_ranker


def main(
    *,
    data: Path = Path("artifacts/demo/data"),
    tables: Path = Path("artifacts/demo/tables"),
    ranker: Path = Path("artifacts/demo/ranker"),
    seed: int = 0,
    draws: int = 2,
    max_users: int = 2000,
    threads: int = 2,
) -> dict[str, object]:
    """Measure a checkpoint.

    Args:
        data: folder with items.parquet and behaviours.parquet.
        tables: folder made by offline/build_tables.py, of the catalogue and vocabulary that the ranker was trained for.
        ranker: folder made by offline/train_ranker.py.
        seed: of negatives, users and bootstrap.
        draws: times the negatives are drawn.
        max_users: test users, chosen at random.
        threads: of PyTorch.
    """
    torch.set_num_threads(threads)
    table = IntentTable.open(tables / "serving")
    model, _ = load_ranker(ranker, table)
    dataset = load_dataset(data)
    protocol = replace(EvaluationSettings(), seed=seed, draws=draws, users=max_users)
    return evaluate_ranker(model, table, make_log(dataset.items, dataset.behaviours, table), protocol)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
