"""Measure AIR against its baselines, controls and ablations on a behaviour log, over seeds, with intervals.

    python offline/evaluate_ranker.py --data FOLDER --out results.json

Every (model, seed) is trained and ranked once and kept in the cache folder, so that an interrupted study is taken up
where it was. With --ranker it measures that one trained ranker instead, against popularity and its own base.
"""

import os
from pathlib import Path

import cyclopts
import torch

from airserve.artifacts import RESULTS_FILE, SERVING_FOLDER
from airserve.cli import run_script
from airserve.data.schema import load_dataset
from airserve.study.job import StudyJob
from airserve.study.metrics import Bootstrap
from airserve.study.models import MODELS
from airserve.study.prepare import derived_source, prepare, study_settings
from airserve.study.protocol import Protocol
from airserve.table.lookup import IntentTable
from airserve.training.checkpoint import load_ranker
from airserve.training.device import AUTO, pick_device
from airserve.training.evaluation import EvaluationSettings
from airserve.training.examples import make_log
from airserve.training.stages import evaluate_ranker


def main(
    *,
    data: Path = Path("artifacts/demo/data"),
    out: Path | None = None,
    tables: Path | None = None,
    models: str = ",".join(MODELS),
    seeds: int = 5,
    first_seed: int = 0,
    draws: int = 20,
    cache: Path = Path("artifacts/study"),
    fast: bool = False,
    learn_from_held_out: bool = False,
    resamples: int = 5000,
    truth: Path | None = None,
    ranker: Path | None = None,
    max_users: int = 5000,
    threads: int = min(2, os.cpu_count() or 1),
    device: str = AUTO,
) -> dict[str, object]:
    """Run the study, or take it up.

    Args:
        data: LLMCDSR's text files, or a folder with items.parquet and behaviours.parquet.
        out: the JSON file to write; artifacts/study/results.json when left out.
        tables: folder made by offline/build_tables.py; when left out, intents are derived from titles and behaviour.
        models: names, separated by commas; what a model starts from is added.
        seeds: how many trainings of each model.
        first_seed: the first of them.
        draws: of the negatives.
        cache: folder of the finished runs.
        fast: a toy configuration, for trying the script.
        learn_from_held_out: also learn from the histories of valid and test users; the published protocol does not.
        resamples: of the bootstrap.
        truth: a truth.parquet of offline/make_world.py; AIR's retrieved intents are compared with it.
        ranker: train nothing, measure this ranker only (a folder made by offline/train_ranker.py).
        max_users: test users, chosen at random where there are more.
        threads: of PyTorch.
        device: `auto` (a GPU when there is one), `cpu`, `cuda`, ...
    """
    torch.set_num_threads(threads)
    if ranker is not None:
        return measure_one(ranker, data, tables, EvaluationSettings(seed=first_seed, draws=draws, users=max_users))
    job = StudyJob(
        models=tuple(filter(None, map(str.strip, models.split(",")))),
        seeds=tuple(range(first_seed, first_seed + seeds)),
        runs=cache / "runs",
        out=out or cache / RESULTS_FILE,
        bootstrap=Bootstrap(resamples=resamples),
        truth=truth,
    )
    study = prepare(
        data,
        tables or derived_source(cache),
        cache,
        train=study_settings(fast=fast),
        protocol=Protocol(draws=draws, max_users=max_users),
        learn_from_held_out=learn_from_held_out,
        device=pick_device(device),
    )
    return job.run(study, tables or cache / "tables")


def measure_one(ranker: Path, data: Path, tables: Path | None, settings: EvaluationSettings) -> dict[str, object]:
    """Measure one trained ranker; `data` has items.parquet and behaviours.parquet, the tables lie beside it."""
    table = IntentTable.open((tables or data.parent / "tables") / SERVING_FOLDER)
    model, _ = load_ranker(ranker, table)
    dataset = load_dataset(data)
    return evaluate_ranker(model, table, make_log(dataset.items, dataset.behaviours, table), settings)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
