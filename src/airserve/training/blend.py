"""Choose what base, intents and company count beside one another, with cold items among the targets and the rivals.

On more targets than training is stopped by, and as the mean over all draws of the reported protocol's negatives from a
pool: neighbours on the grid differ by less than one draw's noise. Half of the measure is of the valid targets as they
are; in the other half a share of the items has neither a learned id nor company, as items that come tomorrow.

Shapes: X targets, B targets of a batch, C candidates, N catalogue rows, G rows of a grid, S scorers.
"""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from airserve import contract
from airserve.model.ranker import Ranker
from airserve.model.sequence import dropped
from airserve.table.company import Company, as_matrix, strongest
from airserve.training import evaluation
from airserve.training.baselines import (
    Recency,
    cold_scorer,
    company_scorer,
    log_neighbours,
    neighbour_scorer,
    sequence_scorer,
)
from airserve.training.evaluation import Scorer
from airserve.training.examples import Log, RankBatch

logger = logging.getLogger("train_ranker")
Array = npt.NDArray[Any]
BASE_GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
COMPANY_GRID = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
INTENT_GRID = (0.0, 1.0)
"""Intents count once or not at all: only ratios matter, and a log may be too small for them."""
SHRINKAGES, DECAYS, LASTS = (0.0, 10.0, 50.0), (1.0, 0.9, 0.75), (10, 20)
COLD_GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
COLD_PRICE = 0.005
"""Of new items as many are let in as cost at most this share of the measure over all targets: a platform that never
shows what is new learns nothing of it, and the measure cannot tell so small a difference anyway."""
COLD_SHARE, COLD_SALT = 0.2, 20
"""Of the items that are made cold while the blend is chosen."""


@dataclass(frozen=True, kw_only=True)
class BlendTargets:
    """What the blend is chosen on."""

    batches: list[RankBatch]
    candidates_XC: Array
    """int32, the target first."""
    weights_X: Array
    """How much each target counts."""
    negatives: int
    """Rivals of a target in the reported protocol."""


class Chosen(NamedTuple):
    """What was chosen."""

    company: Company
    base_without: float
    """Weight of the base's score, if there were no intents,"""
    company_without: Company
    """and the company beside it."""


@contextmanager
def without_ids(ranker: Ranker, rows_N: Tensor) -> Iterator[None]:
    """The ranker while it does not know the ids of some rows, bool [N]."""
    ids = ranker.base.items.ids
    known_N = cast(Tensor, ids.known_N).clone()
    ids.set_known(known_N & ~rows_N)
    try:
        yield
    finally:
        ids.set_known(known_N)


def choose(ranker: Ranker, log: Log, targets: BlendTargets, intents: Callable[[Ranker], Scorer] | None) -> Chosen:
    """Set `base_scale` and `intent_scale` of a trained ranker, and choose its company.

    Args:
        ranker: trained.
        log: gives what is met together.
        targets: of the `valid` split.
        intents: makes the scorer by intents; None for a ranker without.

    Returns:
        The chosen company, and what would have been chosen without intents.
    """
    device = ranker.base_scale.device
    rows_N = torch.arange(len(log.domain_of_row))
    cold_N = dropped(rows_N, COLD_SALT, COLD_SHARE) & (rows_N >= contract.FIRST_ITEM_ROW)
    company = _choose_company(log, targets)
    similarity = log_neighbours(log, company.shrinkage)
    vectors_NE = cast(Tensor, ranker.item_vectors_NE).cpu().numpy()
    recency = Recency(last=company.last, decay=company.decay)

    scored = []
    for hidden_N in (torch.zeros_like(cold_N), cold_N):
        with without_ids(ranker, hidden_N.to(device)):
            scorers = [
                sequence_scorer(ranker.base),
                company_scorer(_without(similarity, hidden_N.numpy()), vectors_NE, recency),
                intents(ranker) if intents else cold_scorer(torch.ones_like(cold_N)),
                cold_scorer(cast(Tensor, ranker.base.items.ids.known_N)),
            ]
            scored.append(_score(scorers, targets))

    def measured(grid: Sequence[tuple[float, ...]]) -> Array:
        """The measure of every row of weights: base, company, intents, cold bias."""
        found: Array = np.mean([_measure(scores_SXC, targets, np.array(grid)) for scores_SXC in scored], axis=0)
        return found

    # The bias is chosen behind the others: a whole grid of four would take minutes.
    grid = list(product(BASE_GRID, COMPANY_GRID, INTENT_GRID if intents else (0.0,), (0.0,)))
    quality = measured(grid)

    def goodness(at: int) -> tuple[float, float, float]:
        # Of equal ones the one nearest to the trained blend.
        return round(float(quality[at]), 9), -abs(grid[at][0] - 1.0), -grid[at][1]

    best = max(range(len(grid)), key=goodness)
    bare = max((at for at in range(len(grid)) if grid[at][2] == 0.0), key=goodness)
    base_scale, company_scale, intent_scale, _ = grid[best]
    biases = measured([(base_scale, company_scale, intent_scale, bias) for bias in COLD_GRID])
    cold_bias = max(
        bias for bias, one in zip(COLD_GRID, biases, strict=True) if one >= (1.0 - COLD_PRICE) * quality[best]
    )
    ranker.base_scale.data.fill_(base_scale)
    cast(Tensor, ranker.intent_scale).fill_(intent_scale)
    chosen = replace(company, scale=company_scale, cold_bias=cold_bias)
    logger.info(
        "blend: base x %.2f, intents x %.0f, %s, NDCG@10 %.4f on valid", base_scale, intent_scale, chosen, quality[best]
    )
    return Chosen(chosen, grid[bare][0], replace(company, scale=grid[bare][1]))


def _choose_company(log: Log, targets: BlendTargets) -> Company:
    """The counts that rank best by themselves."""
    found: dict[tuple[float, float, int], float] = {}
    for shrinkage in SHRINKAGES:
        similarity = as_matrix(*strongest(log_neighbours(log, shrinkage)))
        for decay, last in product(DECAYS, LASTS):
            scorer = neighbour_scorer(similarity, Recency(last=last, decay=decay))
            found[shrinkage, decay, last] = float(_measure(_score([scorer], targets), targets, np.ones((1, 1)))[0])
    shrinkage, decay, last = max(found, key=lambda one: found[one])
    return Company(shrinkage=shrinkage, decay=decay, last=last)


def _without(similarity: Any, hidden_N: Array) -> Any:
    """The similarities without those of some rows."""
    from scipy import sparse

    kept = sparse.diags((~hidden_N).astype(np.float32))
    return (kept @ similarity @ kept).tocsr()


def _score(scorers: list[Scorer], targets: BlendTargets) -> Tensor:
    """Scores of all targets' candidates by every scorer, float32 [S, X, C]."""
    scores_SXC = torch.zeros(len(scorers), *targets.candidates_XC.shape)
    with torch.inference_mode():
        for batch in targets.batches:
            rows_BC = torch.from_numpy(targets.candidates_XC[batch.places])
            for place, scorer in enumerate(scorers):
                scores_SXC[place, torch.from_numpy(batch.places)] = scorer(batch, rows_BC)
    return scores_SXC


def _measure(scores_SXC: Tensor, targets: BlendTargets, grid_GS: Array) -> Array:
    """Expected NDCG@10 of every row of weights (one a scorer), float64 [G]."""
    rows_XC = torch.from_numpy(targets.candidates_XC)
    ranks_GX = np.stack(
        [
            evaluation.target_ranks(torch.einsum("s,sxc->xc", weights_S, scores_SXC), rows_XC).numpy()
            for weights_S in torch.from_numpy(grid_GS).float()
        ]
    )
    # Few pairs of rank and pool are distinct, and each costs a distribution.
    pool_X = (targets.candidates_XC[:, 1:] != contract.PAD_ROW).sum(axis=1)
    keys, places = np.unique(ranks_GX * (pool_X.max() + 1) + pool_X, return_inverse=True)
    ranks, pools = np.divmod(keys, pool_X.max() + 1)
    gains_GX = evaluation.expected_gains(ranks, pools, targets.negatives)[places.reshape(ranks_GX.shape)]
    measured: Array = gains_GX @ (targets.weights_X / targets.weights_X.sum())
    return measured
