"""Measure AIR against its baselines, controls and ablations on a behaviour log, over seeds, with intervals.

    python offline/evaluate_ranker.py --data FOLDER --out results.json

Every (model, seed) is trained and ranked once and kept in the cache folder, so that an interrupted study is taken up
where it was.
"""

import os
from pathlib import Path

import cyclopts
import torch

from airserve.artifacts import RESULTS_FILE
from airserve.cli import run_script
from airserve.study.job import StudyJob
from airserve.study.models import MODELS
from airserve.study.prepare import derived_source, prepare, study_settings
from airserve.study.protocol import Protocol
from airserve.study.sample import Sample
from airserve.training.device import AUTO, pick_device
from airserve.training.evaluation import Bootstrap


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
    cold_items: float = 0.0,
    thin: float = 1.0,
    resamples: int = 5000,
    truth: Path | None = None,
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
        cold_items: share of the items, by a hash of their id, without any training event; the slice `cold` of targets.
        thin: share of the training users, by a hash of their id, that is kept; held-out users all are.
        resamples: of the bootstrap.
        truth: a truth.parquet of offline/make_world.py; AIR's retrieved intents are compared with it.
        max_users: test users, chosen at random where there are more.
        threads: of PyTorch.
        device: `auto` (a GPU when there is one), `cpu`, `cuda`, ...
    """
    torch.set_num_threads(threads)
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
        sample=Sample(cold_items=cold_items, thin=thin, learn_from_held_out=learn_from_held_out),
        device=pick_device(device),
    )
    return job.run(study, tables or cache / "tables")


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
