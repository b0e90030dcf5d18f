"""Ranks of held-out targets, HR and NDCG of them, and intervals: the one place where these are computed.

Protocol of a training: a target against random other candidate items of its domain (all of them where there are fewer),
several draws of negatives, the same ones for every model. The study draws by user instead (`airserve.study.protocol`);
what a rank, a metric and an interval is, it takes from here. A tie, and a score that is no number, counts against the
target.

Intervals are 95 % percentile bootstrap intervals over users and training seeds at once (both are resampled, crossed),
after a user's draws are averaged; with one seed they are over users. A difference of two models is paired: same users,
draws and, where both have seeds, same seeds. A model without a seed (popularity) is the same in every resampled seed.

Shapes: X examples, W draws, B examples of a batch, C candidates (the target first), S seeds, R resamples.

Source: Owen 2007, "The pigeonhole bootstrap" (both factors resampled; its intervals are conservative).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import hypergeom
from torch import Tensor

from airserve import contract
from airserve.progress import Progress
from airserve.training.examples import Log, RankBatch

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Scorer = Callable[[RankBatch, Tensor], Tensor]
"""Scores float32 [B, C] of candidate rows int32 [B, C]; higher ranks first."""
CUT = 10
BOOTSTRAP_SEED = 29


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The protocol's numbers."""

    negatives: int = 999
    """Other items that a target is ranked against."""
    draws: int = 2
    """Times the negatives are drawn anew."""
    users: int = 2000
    """Targets measured, chosen at random where there are more."""
    resamples: int = 2000
    """Of the bootstrap."""
    seed: int = 0
    """Of negatives and bootstrap."""

    @property
    def bootstrap(self) -> Bootstrap:
        """What the intervals are made with."""
        return Bootstrap(resamples=self.resamples, seed=BOOTSTRAP_SEED + self.seed)


def draw_candidates(log: Log, targets: Array, settings: EvaluationSettings) -> npt.NDArray[np.int32]:
    """Candidates of each example and draw: the target, then distinct others of its domain, then padding.

    Args:
        log: the log.
        targets: int64 [X] event indices.
        settings: how many, and the seed.

    Returns:
        int32 [W, X, C] catalogue rows.
    """
    rng = np.random.default_rng([settings.seed, 17])
    domains = log.domain_of_row[log.candidate_rows]
    pools = {int(domain): log.candidate_rows[domains == domain] for domain in np.unique(domains)}
    widest = max((len(pool) - 1 for pool in pools.values()), default=0)
    drawn = np.full(
        (settings.draws, len(targets), 1 + min(settings.negatives, widest)), contract.PAD_ROW, dtype=np.int32
    )
    for place, row in enumerate(log.rows[targets]):
        pool = pools[int(log.domain_of_row[row])]
        for draw in range(settings.draws):
            some = rng.choice(pool, size=min(settings.negatives + 1, len(pool)), replace=False, shuffle=False)
            others = some[some != row][: settings.negatives]
            drawn[draw, place, 0] = row
            drawn[draw, place, 1 : 1 + len(others)] = others
    return drawn


def rivals(scores_BC: Tensor, target_at_B: Tensor) -> Tensor:
    """Which candidates do not rank behind the target, bool [B, C]; the target itself is none, ties and NaN are."""
    target_scores_B1 = scores_BC.gather(1, target_at_B.unsqueeze(1))
    ahead_BC = ~(scores_BC < target_scores_B1)
    return ahead_BC.scatter(1, target_at_B.unsqueeze(1), False)


def target_ranks(scores_BC: Tensor, candidate_rows_BC: Tensor) -> Tensor:
    """Rank of the first candidate, 1 is best, int64 [B]; padding does not count."""
    first_B = torch.zeros(len(scores_BC), dtype=torch.int64, device=scores_BC.device)
    return 1 + (rivals(scores_BC, first_B) & (candidate_rows_BC != contract.PAD_ROW)).sum(1)


def rank_targets(
    scorers: Mapping[str, Scorer], batches: Sequence[RankBatch], candidates_WXC: Array, *, title: str = "evaluating"
) -> dict[str, Array]:
    """Ranks of the targets by every scorer, int64 [W, X]."""
    draws, count = candidates_WXC.shape[:2]
    ranks = {name: np.zeros((draws, count), dtype=np.int64) for name in scorers}
    with torch.inference_mode(), Progress(title, draws * count * len(scorers), "rankings") as progress:
        for batch in batches:
            for draw in range(draws):
                rows_BC = torch.from_numpy(candidates_WXC[draw, batch.places])
                for name, scorer in scorers.items():
                    ranks[name][draw, batch.places] = target_ranks(scorer(batch, rows_BC), rows_BC).numpy()
                    progress.advance(len(batch.places))
    return ranks


def hits(ranks: Array, cut: int = CUT) -> Floats:
    """HR@cut of each ranking, float64, shape of `ranks`."""
    return (ranks <= cut).astype(np.float64)


def gains(ranks: Array, cut: int = CUT) -> Floats:
    """NDCG@cut of each ranking with its one relevant item: 1 / log2(1 + rank), 0 behind the cut."""
    discounted: Floats = np.where(ranks <= cut, 1.0 / np.log2(1.0 + ranks), 0.0)
    return discounted


def reciprocals(ranks: Array) -> Floats:
    """1 / rank; their mean is the MRR."""
    inverse: Floats = 1.0 / ranks
    return inverse


def expected_gains(ranks: Array, pool: Array | int, negatives: int) -> Array:
    """NDCG@10 that a target can expect against random negatives, from its rank in a larger pool of them.

    Without a draw's noise: of the `rank - 1` rivals above the target in the pool, a hypergeometric number is drawn.

    Args:
        ranks: int64 [X], of the target in the pool, 1 is best.
        pool: rivals in the pool, one number or int64 [X].
        negatives: how many of them a draw has; the whole pool where that is smaller.

    Returns:
        float64 [X].
    """
    rivals = np.arange(CUT)
    pool_X1 = np.maximum(np.broadcast_to(pool, np.shape(ranks))[..., None], 1)
    chances = hypergeom.pmf(rivals, pool_X1, np.asarray(ranks)[..., None] - 1, np.minimum(negatives, pool_X1))
    expected: Array = (chances / np.log2(2.0 + rivals)).sum(-1)
    return expected


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are made."""

    resamples: int = 5000
    seed: int = BOOTSTRAP_SEED

    def means(self, values_SX: Floats) -> Floats:
        """The mean of each resample, float64 [R]; users are resampled alike whatever the number of seeds."""
        seeds, users = values_SX.shape
        by_seed_RS = _shares(self.resamples, users, self.seed) @ values_SX.T
        resampled: Floats = (by_seed_RS * _shares(self.resamples, seeds, self.seed + 1)).sum(axis=1)
        return resampled

    def interval(self, values_SX: Floats) -> list[float]:
        """95 % interval of the mean, [low, high]; [0, 0] without users."""
        return bounds(self.means(values_SX)) if values_SX.size else [0.0, 0.0]


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


def summarise(values_SX: Floats, bootstrap: Bootstrap) -> dict[str, Any]:
    """`mean`, its `interval`, and each seed's mean (`by_seed`)."""
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


POPULARITY_BINS = 10
MAX_WEIGHT = 5.0


def popularity_weights(rows_X: Array, training_rows: Array, counts_N: Array) -> Array:
    """Weights of targets under which their items are as popular as those of training targets; float64 [X].

    Args:
        rows_X: the targets' catalogue rows.
        training_rows: those of the training targets; without any, all weights are 1.
        counts_N: how often each row is a target in training.

    Returns:
        Share of training targets over share of targets of the item's popularity (a decile of the training targets),
        mean 1, at most about `MAX_WEIGHT`.
    """
    if not len(training_rows):
        return np.ones(len(rows_X))
    edges = np.unique(np.quantile(counts_N[training_rows], np.linspace(0, 1, POPULARITY_BINS + 1)[1:-1]))
    bins_X = np.digitize(counts_N[rows_X], edges)
    wanted = np.bincount(np.digitize(counts_N[training_rows], edges), minlength=len(edges) + 1) / len(training_rows)
    found = np.bincount(bins_X, minlength=len(edges) + 1) / len(rows_X)
    weights_X = np.minimum((wanted / np.maximum(found, 1e-9))[bins_X], MAX_WEIGHT)
    return np.asarray(weights_X / weights_X.mean())
