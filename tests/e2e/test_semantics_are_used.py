"""What intents add comes from their meaning: with the table's rows shuffled over the items it is gone."""

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
    over_ids, over_counts = ("air_minus_sequence", "air_minus_without_intents")
    gain, shuffled_gain = (found[over_counts]["hr10"]["mean"] for found in (true, shuffled))
    low, _ = true[over_counts]["hr10"]["interval"]
    print(f"gain in HR@10 over base and counts: {gain:.3f} (low end {low:.3f}), with shuffled rows {shuffled_gain:.3f}")
    assert true[over_ids]["hr10"]["interval"][0] > 0, "AIR does not beat the ID-only model by more than its interval"
    assert low > 0, "intents add nothing to the base and to what is met together"
    assert shuffled_gain < gain / 3
