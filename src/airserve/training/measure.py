"""Measure rankers on the held-out targets of a log: HR@10 and NDCG@10 with intervals, whole and by domain.

Shapes: X targets, W draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from airserve.errors import DataError
from airserve.model.sequence import SequenceModel
from airserve.table.intents import IntentTable
from airserve.training import evaluation
from airserve.training.baselines import popularity_scorer, sequence_scorer
from airserve.training.evaluation import Array, EvaluationSettings, Scorer
from airserve.training.examples import Log, Task, find_task, rank_batches, some

AIR, SEQUENCE, POPULARITY, BASE = "air", "sequence", "popularity", "base"
WITHOUT_INTENTS = "without_intents"
"""Base and what is met together, blended for themselves: what AIR would be if nothing had an intent."""
AGAINST = (SEQUENCE, WITHOUT_INTENTS)
"""What AIR is compared with, pair by pair."""


def measure(
    table: IntentTable, log: Log, task: Task, scorers: dict[str, Scorer], settings: EvaluationSettings
) -> dict[str, Any]:
    """Metrics on the test split (on valid, where there is none), over all targets and by the target's domain.

    Args:
        table: what the histories are looked up in.
        log: the log.
        task: what the targets look like.
        scorers: the models by name, `AIR` among them.
        settings: the protocol.

    Returns:
        What `summarise_ranks` says of all targets, `split`, and the same of each domain as `by_domain`.

    Raises:
        DataError: if the log has neither test nor valid targets.
    """
    split = "test" if log.targets("test").size else "valid"
    targets = some(log.targets(split), settings.users, np.random.default_rng([settings.seed, 3]))
    if targets.size == 0:
        raise DataError("behaviours: split", expected="test events", got="none", remedy="mark some events as test")
    candidates = evaluation.draw_candidates(log, targets, settings)
    batches = list(rank_batches(table, log, targets, task, batch=32))
    ranks = evaluation.rank_targets(scorers, batches, candidates, title=f"measuring on {split}")
    metrics = summarise_ranks(ranks, settings, ours=AIR, against=AGAINST)
    domains = log.domain_of_row[log.rows[targets]]
    metrics["split"] = split
    metrics["by_domain"] = {
        log.domains[number]: summarise_ranks(
            {name: drawn[:, domains == number] for name, drawn in ranks.items()}, settings, ours=AIR, against=AGAINST
        )
        for number in np.unique(domains)
    }
    return metrics


def evaluate_ranker(
    air: Scorer, base: SequenceModel, table: IntentTable, log: Log, settings: EvaluationSettings
) -> dict[str, Any]:
    """Measure a trained ranker against popularity and against its own base, without training anything.

    The ID-only baseline needs a training of its own: see `airserve.training.stages.Training`.

    Args:
        air: the ranker's scorer, see `airserve.training.stages.air_scorer`.
        base: its sequence tower.
        table: of the ranker.
        log: the log.
        settings: the protocol.

    Returns:
        See `measure`.

    Raises:
        DataError: if the log has neither test nor valid targets.
    """
    task = find_task(log)
    scorers = {AIR: air, BASE: sequence_scorer(base), POPULARITY: popularity_scorer(log, task)}
    return measure(table, log, task, scorers, settings)


def summarise_ranks(
    ranks: Mapping[str, Array], settings: EvaluationSettings, *, ours: str, against: Sequence[str]
) -> dict[str, Any]:
    """Metrics of every scorer, and the paired difference of two.

    Args:
        ranks: scorer name -> int64 [W, X], see `rank_targets`.
        settings: bootstrap and seed.
        ours: scorer whose gain is reported,
        against: over these, where they are.

    Returns:
        `hr10`, `ndcg10` (name -> mean), `hr10_interval`, `ndcg10_interval` (name -> [low, high]), `OURS_minus_AGAINST`
        (metric -> `mean`, `interval` of the paired difference), `test_users`, `draws`.
    """
    report: dict[str, Any] = {"test_users": ranks[ours].shape[1], "draws": settings.draws}
    for metric, values_of in (("hr10", evaluation.hits), ("ndcg10", evaluation.gains)):
        per_user = {name: values_of(drawn_WX).mean(axis=0) for name, drawn_WX in ranks.items()}
        found = {name: _summary(values_X, settings) for name, values_X in per_user.items()}
        report[metric] = {name: one["mean"] for name, one in found.items()}
        report[f"{metric}_interval"] = {name: one["interval"] for name, one in found.items()}
        for other in against:
            if other in per_user:
                paired = _summary(per_user[ours] - per_user[other], settings)
                report.setdefault(f"{ours}_minus_{other}", {})[metric] = paired
    return report


def _summary(values_X: Array, settings: EvaluationSettings) -> dict[str, Any]:
    """Mean and interval over users to four digits; zeros without users."""
    mean = float(values_X.mean()) if len(values_X) else 0.0
    interval = settings.bootstrap.interval(values_X[None])
    return {"mean": round(mean, 4), "interval": [round(bound, 4) for bound in interval]}
