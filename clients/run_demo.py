"""The main job, end to end: behaviours to intents to tables to ranker to engine to Triton to explained answers."""

import json
import sys
import time
from pathlib import Path

import cyclopts

from airserve.artifacts import LM_REPORT_FILE, SUMMARY_FILE
from airserve.cli import run_script
from airserve.errors import UserError
from airserve.files import write_json
from airserve.main_job import MainJob, online_command, steps, summarise
from airserve.pipeline import run_chain, run_step


def name_of(data: Path | None, size: float) -> str:
    """The artifacts folder of a run."""
    if data is not None:
        return data.resolve().name
    return "demo" if size == 1.0 else f"demo-{size:g}"


def show(summary: dict[str, object], folder: Path, seconds: float) -> None:
    """The summary as a person reads it, on stderr."""
    lines = [f"{name:>18}  {json.dumps(value)}" for name, value in summary.items()]
    text = "\n".join(lines)
    print(f"\n{text}\n\ndone in {seconds:.0f} s; everything is in {folder}/", file=sys.stderr)


def main(
    *,
    data: Path | None = None,
    size: float = 1.0,
    model: str = "offline/intent_lm",
    workers: int = 2,
    train_minutes: float | None = None,
) -> dict[str, object]:
    """Run the main job.

    Args:
        data: a folder with your own items and behaviours; the demo world when left out.
        size: size of the demo world, 1.0 is 4,000 items and 200,000 events.
        model: the LLM, a folder or a name on a hub such as Qwen/Qwen3-4B.
        workers: vLLM processes.
        train_minutes: time to train the ranker and its baselines; 3 for the demo world, 15 for your data.
    """
    if data is not None and not data.is_dir():
        raise UserError("DATA", expected="a folder", got=str(data), remedy="see docs/DATA.md for what it may hold")
    start = time.monotonic()
    folder = Path("artifacts") / name_of(data, size)
    minutes = train_minutes if train_minutes is not None else (3.0 if data is None else 15.0)
    job = MainJob(folder=folder, data=data, size=size, model=model, workers=workers, train_minutes=minutes)
    chain = steps(job)
    results = run_chain(chain, folder / "steps")
    results["answers"] = run_step(
        online_command(job), folder / "steps", number=len(chain) + 1, of=len(chain) + 1, reuse=False
    )
    report = Path(model) / LM_REPORT_FILE
    summary = summarise(results, json.loads(report.read_text()) if report.exists() else {})
    write_json(folder / SUMMARY_FILE, summary)
    show(summary, folder, time.monotonic() - start)
    return summary


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
