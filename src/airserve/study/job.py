"""One study from a folder of data to its JSON file."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airserve.errors import UserError
from airserve.files import write_json
from airserve.study.report import headline, results_json
from airserve.study.run import Results, Runner, run_study
from airserve.study.subject import Study
from airserve.study.truth import compare_with_truth
from airserve.training.evaluation import Bootstrap

logger = logging.getLogger("evaluate_ranker")


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """What to run and where to write."""

    models: tuple[str, ...]
    """Of `MODELS`; what they start from is added."""
    seeds: tuple[int, ...]
    """Of training."""
    runs: Path
    """Folder of the finished runs."""
    out: Path
    """The JSON file; written after every seed."""
    bootstrap: Bootstrap
    truth: Path | None = None
    """A `truth.parquet` that AIR's retrieved intents are compared with."""

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0:
            raise UserError("--seeds", expected="at least one, from 0", got=str(self.seeds), remedy="5 is usual")

    def run(self, study: Study, tables: Path) -> dict[str, Any]:
        """Make all runs that are not there, and write the report; returns its headline.

        Args:
            study: data, intents, settings.
            tables: the folder that the intents came from.
        """
        start = time.monotonic()

        def write(results: Results, more: dict[str, Any] | None = None) -> dict[str, Any]:
            minutes = (time.monotonic() - start) / 60
            report = results_json(study, results, self.bootstrap, minutes) | (more or {})
            write_json(self.out, report)
            logger.info("wrote %s", self.out)
            return headline(report) | (more or {})

        results = run_study(study, self.models, self.seeds, self.runs, write)
        if self.truth is None:
            return write(results)
        compared = compare_with_truth(study, Runner(study, self.runs), self.seeds, self.truth, tables)
        return write(results, {"truth": compared})
