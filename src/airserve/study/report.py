"""The results of a study as one JSON object: metrics, paired differences, slices, and where they come from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from airserve.study import metrics
from airserve.study.models import MODELS
from airserve.study.run import Results
from airserve.study.subject import Study
from airserve.training.evaluation import Bootstrap, Floats, difference, summarise
from airserve.training.measure import AIR

PACKAGES = ("torch", "numpy", "scipy", "pyarrow")
OURS = AIR
Measured = dict[str, dict[str, Floats]]
"""Model -> metric -> float64 [S, X]."""


def provenance() -> dict[str, Any]:
    """Commit, package versions and machine."""
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def measured(results: Results) -> Measured:
    """Every model's metrics of every seed and user; models without a finished run are left out."""
    return {
        name: metrics.measure(
            np.stack([run.ranks.drawn_WX for run in runs.values()]),
            np.stack([run.ranks.full_X for run in runs.values()]),
        )
        for name, runs in results.items()
        if runs
    }


def results_json(study: Study, results: Results, bootstrap: Bootstrap, minutes: float) -> dict[str, Any]:
    """Everything that a reader needs to judge the study, and to draw its figures again."""
    values = measured(results)
    chosen = metrics.slices(study.test, study.cold_rows)
    log, test = study.log, study.test
    return {
        "data": {
            "items": int((log.domain_of_row >= 0).sum()),
            "candidates": {name: len(test.pool(number)) for number, name in enumerate(log.domains)},
            "users": len(np.unique(log.starts)),
            "training_events": int((log.splits == 0).sum()),
            "test_targets": len(test.targets),
            "valid_targets": len(study.valid.targets),
            "sample": {**asdict(study.sample), "cold_rows": len(study.cold_rows)},
            "intents": study.source,
            "digest": study.data_digest,
            "table_digest": study.table_digest,
        },
        "protocol": asdict(study.protocol),
        "bootstrap": asdict(bootstrap),
        "settings": asdict(study.train),
        "provenance": provenance(),
        "minutes": round(minutes, 1),
        "training_minutes": round(
            sum(run.report["train_seconds"] for runs in results.values() for run in runs.values()) / 60, 1
        ),
        "models": {
            name: {
                "label": MODELS[name].label,
                "base": next(iter(MODELS[name].needs), None),
                "seeds": sorted(runs) if MODELS[name].seeded else [],
                "runs": [run.report for run in runs.values()],
            }
            for name, runs in results.items()
            if runs
        },
        "slices": {name: slice_json(values, users, bootstrap) for name, users in chosen.items()},
    }


def slice_json(values: Measured, users_X: npt.NDArray[np.bool_], bootstrap: Bootstrap) -> dict[str, Any]:
    """Metrics of some users, and AIR minus every other model on them."""
    part = {name: {metric: of[:, users_X] for metric, of in by_metric.items()} for name, by_metric in values.items()}
    report: dict[str, Any] = {
        "users": int(users_X.sum()),
        "metrics": {
            name: {metric: summarise(of, bootstrap) for metric, of in by_metric.items()}
            for name, by_metric in part.items()
        },
    }
    if OURS in part:
        report["air_minus"] = {
            name: {metric: difference(part[OURS][metric], of, bootstrap) for metric, of in by_metric.items()}
            for name, by_metric in part.items()
            if name != OURS
        }
    return report


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the script prints: HR@10 and NDCG@10 of every model by domain, and how long it took.

    Of a study with cold items also of `cold` and `warm` targets.
    """
    of_slice = {
        name: {model: [found["hr10"]["mean"], found["ndcg10"]["mean"]] for model, found in of["metrics"].items()}
        for name, of in report["slices"].items()
    }
    seeds = {name: len(model["runs"]) for name, model in report["models"].items()}
    return {
        "hr10_ndcg10": {n.partition(":")[2]: of for n, of in of_slice.items() if n.startswith("domain:")},
        **{f"hr10_ndcg10_{name}": of_slice[name] for name in ("cold", "warm") if name in of_slice},
        "runs": seeds,
        **{name: report[name] for name in ("minutes", "training_minutes")},
    }
