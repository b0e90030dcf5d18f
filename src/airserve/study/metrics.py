"""The study's metrics of every seed and user, and the slices of users that they are reported on.

What a metric and an interval is stands in `airserve.training.evaluation`.

Shapes: S seeds, W draws, X users.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve.study.protocol import TestSet
from airserve.training.evaluation import Floats, gains, hits, reciprocals
from airserve.training.examples import history

Array = npt.NDArray[Any]
CUTS = (1, 5, 10)
DRAWN: dict[str, Callable[[Array], Floats]] = {
    **{f"hr{cut}": partial(hits, cut=cut) for cut in CUTS},
    **{f"ndcg{cut}": partial(gains, cut=cut) for cut in CUTS},
}
"""Measures over a draw of negatives, averaged over draws. HR@1 and NDCG@1 are equal."""
FULL: dict[str, Callable[[Array], Floats]] = {
    "full_hr10": partial(hits, cut=10),
    "full_ndcg10": partial(gains, cut=10),
    "full_mrr": reciprocals,
}
"""Measures over the whole in-domain catalogue."""
METRICS = (*DRAWN, *FULL)


def measure(drawn_SWX: Array, full_SX: Array) -> dict[str, Floats]:
    """Every metric of every user and seed, draws averaged: metric -> float64 [S, X]."""
    values = {name: measured(drawn_SWX).mean(axis=1) for name, measured in DRAWN.items()}
    return values | {name: measured(full_SX) for name, measured in FULL.items()}


FEW_EVENTS, FEW_IN_DOMAIN, RARE = 5, 2, 3


def slices(test: TestSet, cold_rows: Array | None = None) -> dict[str, npt.NDArray[np.bool_]]:
    """Which users each reported slice holds, by the history as the models see it, and by the target.

    Args:
        test: the targets.
        cold_rows: of `Study`; without any there are no slices `warm` and `cold`.

    Returns:
        name -> bool [X]; `all`, and every other one that has a user.
    """
    log, count = test.log, len(test.targets)
    length_X = np.zeros(count, dtype=np.int64)
    in_domain_X = np.zeros(count, dtype=np.int64)
    switched_X = np.zeros(count, dtype=np.bool_)
    for place, target in enumerate(test.targets):
        events = history(log, int(target), test.task, test.protocol.max_history)
        same = log.domain_of_row[log.rows[events]] == test.domains[place]
        length_X[place], in_domain_X[place] = len(events), same.sum()
        switched_X[place] = len(events) > 0 and not same[-1]
    seen_X = np.bincount(log.rows[log.splits == 0], minlength=len(log.domain_of_row))[log.rows[test.targets]]
    found = {
        "all": np.ones(count, dtype=np.bool_),
        "short_history": length_X <= FEW_EVENTS,
        "few_in_domain": in_domain_X <= FEW_IN_DOMAIN,
        "none_in_domain": in_domain_X == 0,
        "last_in_other_domain": switched_X,
        "rare_target": seen_X <= RARE,
        "unseen_target": seen_X == 0,
    }
    if cold_rows is not None and len(cold_rows):
        cold_X = np.isin(log.rows[test.targets], cold_rows)
        found |= {"warm": ~cold_X, "cold": cold_X}
    by_domain = {f"domain:{name}": test.domains == number for number, name in enumerate(log.domains)}
    return {name: chosen for name, chosen in (found | by_domain).items() if name == "all" or chosen.any()}


SLICE_TITLES = {
    "all": "all users",
    "short_history": f"at most {FEW_EVENTS} events",
    "few_in_domain": f"at most {FEW_IN_DOMAIN} events in the target's domain",
    "none_in_domain": "no event in the target's domain",
    "last_in_other_domain": "last event in another domain",
    "rare_target": f"target at most {RARE} times in training",
    "unseen_target": "target unseen in training",
    "warm": "warm target",
    "cold": "cold target, its events kept out of training",
}
