"""Run one benchmark in two checkouts in turn (A B A B), and print both medians and their ratio.

    python perf/compare_runs.py --old ../before --new . --rounds 3 -- perf/bench_serving.py --variant fused

Each checkout runs its own code in its own environment (`make setup` in both), on its own artifacts, so a machine that
gets slower meanwhile slows both. What limits it: the noise that is left between two runs; give several rounds.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cyclopts

from airserve.cli import run_script
from airserve.errors import UserError

log = logging.getLogger("compare_runs")


def run_once(checkout: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object that a benchmark prints in a checkout.

    Raises:
        UserError: if it fails or prints none.
    """
    python = checkout / ".venv" / "bin" / "python"
    if not python.exists():
        raise UserError(str(python), expected="an environment", got="no such file", remedy=f"make setup in {checkout}")
    whole = [str(python.absolute()), *command]
    done = subprocess.run(whole, cwd=checkout, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=False)
    try:
        result = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        result = None
    if done.returncode or not isinstance(result, dict):
        raise UserError(
            f"{checkout}: {' '.join(command)}",
            expected="a benchmark that prints a JSON object",
            got=f"exit status {done.returncode}",
            remedy="its message is above",
        )
    return result


def numbers(result: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """All numbers of a JSON object by dotted name."""
    found: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found


def main(
    *command: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)],
    old: Path,
    new: Path = Path(),
    rounds: int = 3,
) -> dict[str, object]:
    """Compare two checkouts.

    Args:
        command: the benchmark and its options, behind `--`.
        old: checkout of before.
        new: checkout of now.
        rounds: runs of each.
    """
    if not command or rounds < 1:
        expected = "a benchmark behind --, rounds >= 1"
        raise UserError("compare_runs", expected=expected, got=str(command), remedy="add it")
    runs: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for number in range(rounds):
        for name, checkout in (("old", old), ("new", new)):
            runs[name].append(numbers(run_once(checkout, command)))
            log.info("round %d, %s done", number + 1, name)
    shared = [name for name in runs["old"][0] if all(name in run for run in (*runs["old"], *runs["new"]))]
    medians = {which: {name: median(run[name] for run in found) for name in shared} for which, found in runs.items()}
    ratio = {name: round(medians["new"][name] / medians["old"][name], 4) for name in shared if medians["old"][name]}
    return {"rounds": rounds, **medians, "new_over_old": ratio}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
