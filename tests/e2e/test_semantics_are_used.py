"""AIR's gain comes from the semantics: with the table's rows shuffled over the items it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.vllm


def run(*command: object) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def test_shuffling_the_tables_rows_takes_the_gain_away(small_job: Any, tmp_path: Path) -> None:
    job, results = small_job
    data, intents = job.folder / "data", job.folder / "intents"
    run("offline/build_tables.py", "--data", data, "--intents", intents, "--out", tmp_path / "t", "--shuffle-seed", 1)
    shuffled = run(
        "offline/train_ranker.py", "--data", data, "--tables", tmp_path / "t", "--out", tmp_path / "r",
        "--minutes-budget", job.train_minutes,
    )  # fmt: skip
    true = results["ranker"]
    gain = true["hr10"]["air"] - true["hr10"]["sequence"]
    shuffled_gain = shuffled["hr10"]["air"] - shuffled["hr10"]["sequence"]
    low, _ = true["air_minus_sequence"]["hr10"]["interval"]
    print(f"gain in HR@10 over ids only: {gain:.3f} (low end {low:.3f}), with shuffled rows {shuffled_gain:.3f}")
    assert low > 0, "AIR does not beat the ID-only sequence model by more than its interval"
    assert shuffled_gain < gain / 3
