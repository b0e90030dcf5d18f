"""Export a trained ranker to ONNX, check the graph, and hold it equal to PyTorch."""

import logging
from pathlib import Path

import cyclopts
import torch

from airserve import contract
from airserve.artifacts import INTENTS_FOLDER, MANIFEST_FILE, ONNX_FILE
from airserve.cli import run_script
from airserve.export.onnx import export_ranker, write_manifest
from airserve.export.parity import check_parity, measure_ms
from airserve.export.precision import write_fp16
from airserve.table.intents import IntentTable
from airserve.training.checkpoint import load_ranker

log = logging.getLogger("export_onnx")


def main(
    *,
    ranker: Path = Path("artifacts/demo/ranker"),
    tables: Path = Path("artifacts/demo/tables"),
    out: Path = Path("artifacts/demo/engine"),
    fp16: bool = False,
) -> dict[str, object]:
    """Write ranker.onnx, the encoders, what was learned of single items and nodes, and manifest.json.

    Args:
        ranker: folder made by offline/train_ranker.py.
        tables: folder made by offline/build_tables.py, which the ranker was trained on.
        out: folder to write to.
        fp16: also write ranker.fp16.onnx, for engines that compute in half precision.
    """
    torch.set_num_threads(1)
    table = IntentTable.open(tables / INTENTS_FOLDER)
    trained = load_ranker(ranker, table)
    manifest = export_ranker(trained.ranker, table, out, company=trained.company)
    path, sizes = out / ONNX_FILE, manifest["sizes"]
    parity = check_parity(trained.ranker, path, sizes)
    log.info(
        "parity with PyTorch: largest difference %.2g, mean %.2g, tolerance %g",
        parity["max_difference"],
        parity["mean_difference"],
        parity["tolerance"],
    )
    usual = {axis: sizes_[1] for axis, sizes_ in contract.PROFILE.items()}
    manifest |= {
        "target_actions": trained.task.actions,
        "parity": parity,
        "onnxruntime_one_thread": {**usual, **measure_ms(path, usual, sizes)},
    }
    if fp16:
        manifest["fp16"] = half = write_fp16(out, sizes)
        log.info("fp16 against fp32: largest difference of a score %.2g", half["max_difference"])
    manifest = write_manifest(out, manifest)
    log.info("wrote %s and %s", path, out / MANIFEST_FILE)
    return {"onnx": str(path), "bytes": path.stat().st_size, **manifest}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
