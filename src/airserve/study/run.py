"""Run a study: every (model, seed) once, from the cache where it is there, and put the results together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airserve.errors import UserError
from airserve.study.cache import Run, State, digest
from airserve.study.models import HELPERS, MODELS, Given, Report
from airserve.study.protocol import Ranks
from airserve.study.subject import Study

logger = logging.getLogger("evaluate_ranker")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One run, trained and ranked."""

    report: Report
    ranks: Ranks


ALL = {**MODELS, **HELPERS}
Results = dict[str, dict[int, Finished]]
"""Model -> seed -> run."""


def with_bases(names: Sequence[str]) -> list[str]:
    """The wanted models with those that they start from, bases first, else in the report's order.

    Raises:
        UserError: naming a model that there is not.
    """
    for name in names:
        if name not in MODELS:
            raise UserError("--models", expected=f"some of {', '.join(MODELS)}", got=name, remedy="correct the name")
    wanted = set(names) | {base for name in names for base in MODELS[name].needs[:1]}
    return [name for name in MODELS if name in wanted]


class Runner:
    """Trains and ranks what is not in the cache."""

    def __init__(self, study: Study, cache: Path) -> None:
        self.study, self.cache = study, cache

    def place(self, name: str, seed: int) -> tuple[Run, str]:
        """Where a run is kept, and its mark: the hash of all that it depends on."""
        model = ALL[name]
        needs = [self.place(other, seed)[1] for other in model.needs]
        mark = digest([name, seed, model.depends_on(self.study), needs])
        return Run(folder=self.cache / f"{name}-{seed}-{mark}"), mark

    def trained(self, name: str, seed: int) -> tuple[State, Report]:
        """A trained model: from the cache, or trained now."""
        run, mark = self.place(name, seed)
        report, state = run.report, run.state()
        if report is not None and state is not None:
            return state, report
        model, given = ALL[name], self.given(name, seed)
        logger.info("training %s, seed %d", model.label, seed)
        start = time.monotonic()
        state, report = model.learn(self.study, seed, run.folder, mark, given)
        report |= {"model": name, "seed": seed, "mark": mark, "train_seconds": round(time.monotonic() - start, 1)}
        run.finish(state, report)
        return state, report

    def given(self, name: str, seed: int) -> Given:
        """What a model needs of others, trained."""
        return {other: self.trained(other, seed)[0] for other in ALL[name].needs}

    def finished(self, name: str, seed: int) -> Finished:
        """A trained model and its ranks under the study's protocol: from the cache, or made now."""
        run, _ = self.place(name, seed)
        protocol = self.study.protocol_digest
        report, ranks = run.report, run.ranks(protocol)
        if report is not None and ranks is not None:
            return Finished(report=report, ranks=ranks)
        state, report = self.trained(name, seed)
        model, given = ALL[name], self.given(name, seed)
        start = time.monotonic()
        scorer, table = model.scorer(self.study, state, report, given)
        ranks = self.study.test.rank(scorer, table, title=f"ranking {name} {seed}")
        run.keep_ranks(protocol, ranks)
        logger.info("%s, seed %d: ranked in %.0f s", model.label, seed, time.monotonic() - start)
        return Finished(report=report, ranks=ranks)


def run_study(
    study: Study, names: Sequence[str], seeds: Sequence[int], cache: Path, after_seed: Callable[[Results], Any]
) -> Results:
    """Make all runs, a seed at a time, so that a study that is stopped has whole seeds.

    Args:
        study: data, intents, settings.
        names: models, of `MODELS`; those that they start from are added.
        seeds: of training.
        cache: folder of the runs.
        after_seed: called with what is there, after every seed.
    """
    runner = Runner(study, cache)
    results: Results = {name: {} for name in with_bases(names)}
    for seed in seeds:
        for name in results:
            if MODELS[name].seeded or not results[name]:
                results[name][seed] = runner.finished(name, seed if MODELS[name].seeded else 0)
        after_seed(results)
    return results
