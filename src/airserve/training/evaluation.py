"""Held-out HR@10 and NDCG@10 with intervals.

Protocol: a test user's target against 999 random other candidate items of the target's domain (all of them where there
are fewer), several draws of negatives, the same ones for every model; a tie counts against the target. Intervals
are 95 % bootstrap intervals over users, after averaging a user's draws.

Shapes: X examples, W draws, B examples of a batch, C candidates (the target first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
Scorer = Callable[[RankBatch, Tensor], Tensor]
"""Scores float32 [B, C] of candidate rows int32 [B, C]; higher ranks first."""
CUT = 10


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


def target_ranks(scores_BC: Tensor, candidate_rows_BC: Tensor) -> Tensor:
    """Rank of the first candidate, 1 is best, int64 [B]; ties and NaN count against it, padding does not count."""
    rivals_BC = ~(scores_BC[:, 1:] < scores_BC[:, :1]) & (candidate_rows_BC[:, 1:] != contract.PAD_ROW)
    return 1 + rivals_BC.sum(1)


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


def hits(ranks: Array) -> Array:
    """HR@10 of each ranking, float64, shape of `ranks`."""
    return (ranks <= CUT).astype(np.float64)


def gains(ranks: Array) -> Array:
    """NDCG@10 of each ranking with its one relevant item: 1 / log2(1 + rank), 0 behind the cut."""
    discounted: Array = np.where(ranks <= CUT, 1.0 / np.log2(1.0 + ranks), 0.0)
    return discounted


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


def interval(per_user_X: Array, settings: EvaluationSettings) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over users; (0, 0) without users."""
    count = len(per_user_X)
    if count == 0:
        return 0.0, 0.0
    rng = np.random.default_rng([settings.seed, 29])
    means = [float(per_user_X[rng.integers(count, size=count)].mean()) for _ in range(settings.resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summarise(ranks: Mapping[str, Array], settings: EvaluationSettings, *, ours: str, against: str) -> dict[str, Any]:
    """Metrics of every scorer, and the paired difference of two.

    Args:
        ranks: scorer name -> int64 [W, X], see `rank_targets`.
        settings: bootstrap and seed.
        ours: scorer whose gain is reported,
        against: over this one.

    Returns:
        `hr10`, `ndcg10` (name -> mean), `hr10_interval`, `ndcg10_interval` (name -> [low, high]), `OURS_minus_AGAINST`
        (metric -> `mean`, `interval` of the paired difference), `test_users`, `draws`.
    """
    report: dict[str, Any] = {"test_users": 0, "draws": settings.draws}
    for metric, measure in (("hr10", hits), ("ndcg10", gains)):
        per_user = {name: measure(drawn).mean(axis=0) for name, drawn in ranks.items()}
        report["test_users"] = len(per_user[ours])
        report[metric] = {name: _mean(values) for name, values in per_user.items()}
        report[f"{metric}_interval"] = {name: _rounded(interval(values, settings)) for name, values in per_user.items()}
        if against in per_user:
            paired = per_user[ours] - per_user[against]
            difference = {"mean": _mean(paired), "interval": _rounded(interval(paired, settings))}
            report.setdefault(f"{ours}_minus_{against}", {})[metric] = difference
    return report


def _mean(values: Array) -> float:
    return round(float(values.mean()), 4) if len(values) else 0.0


def _rounded(pair: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in pair]


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
