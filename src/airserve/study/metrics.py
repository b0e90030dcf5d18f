"""HR, NDCG and MRR from ranks, their intervals, and the slices of users that they are reported on.

Intervals are 95 % percentile bootstrap intervals over users and training seeds at once (both are resampled, crossed),
after a user's draws are averaged. A difference of two models is paired: same users, draws and, where both have seeds,
same seeds. A model without a seed (popularity) is the same in every resampled seed.

Shapes: S seeds, W draws, X users, R resamples.

Source: Owen 2007, "The pigeonhole bootstrap" (both factors resampled; its intervals are conservative).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve.study.protocol import TestSet
from airserve.training.examples import history

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
CUTS = (1, 5, 10)


def hit(ranks: Array, cut: int) -> Floats:
    """HR@cut of each ranking, float64, shape of `ranks`."""
    return (ranks <= cut).astype(np.float64)


def gain(ranks: Array, cut: int) -> Floats:
    """NDCG@cut of each ranking with its one relevant item: 1 / log2(1 + rank), 0 behind the cut."""
    discounted: Floats = np.where(ranks <= cut, 1.0 / np.log2(1.0 + ranks), 0.0)
    return discounted


def reciprocal(ranks: Array) -> Floats:
    """1 / rank."""
    inverse: Floats = 1.0 / ranks
    return inverse


DRAWN: dict[str, Callable[[Array], Floats]] = {
    **{f"hr{cut}": partial(hit, cut=cut) for cut in CUTS},
    **{f"ndcg{cut}": partial(gain, cut=cut) for cut in CUTS},
}
"""Measures over a draw of negatives, averaged over draws. HR@1 and NDCG@1 are equal."""
FULL: dict[str, Callable[[Array], Floats]] = {
    "full_hr10": partial(hit, cut=10),
    "full_ndcg10": partial(gain, cut=10),
    "full_mrr": reciprocal,
}
"""Measures over the whole in-domain catalogue."""
METRICS = (*DRAWN, *FULL)


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are made."""

    resamples: int = 5000
    seed: int = 29

    def means(self, values_SX: Floats) -> Floats:
        """The mean of each resample, float64 [R]; users are resampled alike whatever the number of seeds."""
        seeds, users = values_SX.shape
        by_seed_RS = _shares(self.resamples, users, self.seed) @ values_SX.T
        resampled: Floats = (by_seed_RS * _shares(self.resamples, seeds, self.seed + 1)).sum(axis=1)
        return resampled

    def interval(self, values_SX: Floats) -> list[float]:
        """95 % interval of the mean, [low, high]."""
        return bounds(self.means(values_SX))


@lru_cache(maxsize=16)
def _shares(resamples: int, count: int, seed: int) -> Floats:
    """How often each of `count` is in each resample of `count` draws, as shares; float64 [R, count]."""
    rng = np.random.default_rng([seed, count])
    shares: Floats = rng.multinomial(count, np.full(count, 1.0 / count), size=resamples) / count
    return shares


def bounds(resampled_R: Floats) -> list[float]:
    """The central 95 % of resampled values, rounded."""
    low, high = np.nanquantile(resampled_R, [0.025, 0.975]) if np.isfinite(resampled_R).any() else (np.nan, np.nan)
    return [round(float(low), 5), round(float(high), 5)]


def measure(drawn_SWX: Array, full_SX: Array) -> dict[str, Floats]:
    """Every metric of every user and seed, draws averaged: metric -> float64 [S, X]."""
    values = {name: measured(drawn_SWX).mean(axis=1) for name, measured in DRAWN.items()}
    return values | {name: measured(full_SX) for name, measured in FULL.items()}


def summarise(values_SX: Floats, bootstrap: Bootstrap) -> dict[str, Any]:
    """Mean, interval, and each seed's mean."""
    return {
        "mean": round(float(values_SX.mean()), 5),
        "interval": bootstrap.interval(values_SX),
        "by_seed": [round(float(value), 5) for value in values_SX.mean(axis=1)],
    }


def difference(ours_SX: Floats, other_SX: Floats, bootstrap: Bootstrap) -> dict[str, Any]:
    """Ours minus the other's, paired, and the relative change of the means; `seeds` is how many pairs of seeds."""
    ours_SX, other_SX = matched(ours_SX, other_SX)
    ours_R, other_R = bootstrap.means(ours_SX), bootstrap.means(other_SX)
    ours, other = float(ours_SX.mean()), float(other_SX.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_R = np.where(other_R > 0, ours_R / other_R - 1.0, np.nan)
    return {
        "mean": round(ours - other, 5),
        "interval": bounds(ours_R - other_R),
        "relative": round(ours / other - 1.0, 5) if other > 0 else None,
        "relative_interval": bounds(relative_R) if other > 0 else None,
        "seeds": len(ours_SX),
    }


def matched(ours_SX: Floats, other_SX: Floats) -> tuple[Floats, Floats]:
    """Both with the same seeds: one without seeds is repeated, of unequal numbers the first ones are taken."""
    if len(other_SX) == 1:
        return ours_SX, np.broadcast_to(other_SX, ours_SX.shape)
    if len(ours_SX) == 1:
        return np.broadcast_to(ours_SX, other_SX.shape), other_SX
    both = min(len(ours_SX), len(other_SX))
    return ours_SX[:both], other_SX[:both]


FEW_EVENTS, FEW_IN_DOMAIN, RARE = 5, 2, 3


def slices(test: TestSet) -> dict[str, npt.NDArray[np.bool_]]:
    """Which users each reported slice holds: name -> bool [X], by the history as the models see it."""
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
}
