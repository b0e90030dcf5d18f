"""Compare an exported graph with the PyTorch ranker it was made from, at the corners of the profile."""

from pathlib import Path

import cyclopts
import torch

from airserve.artifacts import INTENTS_FOLDER, ONNX_FILE
from airserve.cli import run_script
from airserve.export.onnx import sizes_of
from airserve.export.parity import check_parity
from airserve.table.intents import IntentTable
from airserve.training.checkpoint import load_ranker


def main(
    *,
    ranker: Path = Path("artifacts/demo/ranker"),
    tables: Path = Path("artifacts/demo/tables"),
    engine: Path = Path("artifacts/demo/engine"),
) -> dict[str, float]:
    """Print the largest and mean difference; fails when it is above the tolerance.

    Args:
        ranker: folder made by offline/train_ranker.py.
        tables: folder made by offline/build_tables.py.
        engine: folder made by build/export_onnx.py.
    """
    torch.set_num_threads(1)
    trained = load_ranker(ranker, IntentTable.open(tables / INTENTS_FOLDER))
    return check_parity(trained.ranker, engine / ONNX_FILE, sizes_of(trained.ranker))


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
