"""Train the ranker on a behaviour log, and measure it against popularity and an ID-only sequence model."""

import hashlib
import logging
from dataclasses import asdict, replace
from pathlib import Path

import cyclopts
import torch

from airserve.artifacts import CONFIG_FILE, INTENTS_FOLDER, METRICS_FILE, RANKER_FILE
from airserve.cli import run_script
from airserve.data.schema import load_dataset
from airserve.files import write_json
from airserve.model.ranker import RankerSettings
from airserve.table.intents import IntentTable
from airserve.training.checkpoint import save_ranker
from airserve.training.device import AUTO, pick_device
from airserve.training.examples import make_log
from airserve.training.stages import Training, TrainSettings

log = logging.getLogger("train_ranker")


def main(
    *,
    data: Path = Path("artifacts/demo/data"),
    tables: Path = Path("artifacts/demo/tables"),
    out: Path = Path("artifacts/demo/ranker"),
    minutes_budget: float = 4.0,
    seed: int = 0,
    intents: bool = True,
    threads: int = 2,
    device: str = AUTO,
) -> dict[str, object]:
    """Train, measure and write a ranker; an interrupted training of the same settings is taken up again.

    Args:
        data: folder with items.parquet and behaviours.parquet.
        tables: folder made by offline/build_tables.py.
        out: folder for ranker.safetensors, config.json and metrics.json.
        minutes_budget: wall time that training may take.
        seed: of everything random.
        intents: --no-intents leaves the intents out of the score, an ablation.
        threads: of PyTorch.
        device: `auto` (a GPU when there is one), `cpu`, `cuda`, ...
    """
    torch.set_num_threads(threads)
    table = IntentTable.open(tables / INTENTS_FOLDER)
    dataset = load_dataset(data)
    settings = TrainSettings(
        ranker=replace(RankerSettings(), use_intents=intents), minutes_budget=minutes_budget, seed=seed
    )
    events = make_log(dataset.items, dataset.behaviours, table)
    mark = hashlib.sha256(repr((settings, table.manifest)).encode() + events.digest()).hexdigest()
    trained, metrics = Training(table, events, settings, out, mark, pick_device(device)).run()
    extra = {"training": {**asdict(settings), "ranker": None}, "fingerprint": mark}
    save_ranker(out, trained, table, extra)
    write_json(out / METRICS_FILE, metrics)
    for state in out.glob("resume-*.pt"):
        state.unlink()
    log.info("wrote %s, %s and %s", *(out / name for name in (RANKER_FILE, CONFIG_FILE, METRICS_FILE)))
    return metrics


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
