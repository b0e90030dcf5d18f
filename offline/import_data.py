"""Bring your own items and behaviours into the project's data folder.

    python offline/import_data.py --data FOLDER --out artifacts/shop/data

FOLDER holds `items.parquet` and `behaviours.parquet` (docs/ARCHITECTURE.md, Schemas), LLMCDSR's text files, or
Amazon Reviews 2023 (`CATEGORY.jsonl` and `meta_CATEGORY.jsonl`).
"""

import logging
from dataclasses import asdict
from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.data.importers import import_folder

log = logging.getLogger("import_data")


def main(*, data: Path, out: Path, min_events: int = 5) -> dict[str, object]:
    """Check a folder and write its two tables.

    Args:
        data: the folder to read.
        out: the data folder to write.
        min_events: fewest events of a user and of an item that stay, for Amazon's reviews.
    """
    report = import_folder(data, out, min_events=min_events)
    log.info("wrote %s: %d items, %d events of %d users", out, report.items, report.behaviours, report.users)
    if report.filled_in:
        log.warning("not in the source, filled in: %s", ", ".join(report.filled_in))
    return asdict(report)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
