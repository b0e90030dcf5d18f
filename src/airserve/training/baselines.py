"""What AIR is compared with: popularity, and the same sequence model on item ids alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from airserve import contract
from airserve.model.sequence import SequenceModel
from airserve.training.evaluation import Scorer
from airserve.training.examples import Log, RankBatch, Task


def target_counts(log: Log, task: Task) -> npt.NDArray[np.float64]:
    """How often each row is a target in training, float64 [N + 2]; other actions than the task's count a hundredth."""
    train = log.splits == 0
    weights = np.where(np.isin(log.actions[train], task.actions), 1.0, 0.01)
    counts: npt.NDArray[Any] = np.bincount(log.rows[train], weights=weights, minlength=len(log.domain_of_row))
    counts[: contract.FIRST_ITEM_ROW] = 0.0
    return counts


def popularity_scorer(log: Log, task: Task) -> Scorer:
    """Scores an item by how often it is a target in training."""
    counts_N = torch.from_numpy(target_counts(log, task).astype(np.float32))

    def score(batch: RankBatch, candidate_rows_BC: Tensor) -> Tensor:
        return counts_N[candidate_rows_BC.long()]

    return score


def sequence_scorer(model: SequenceModel) -> Scorer:
    """Scores by a sequence model as it is now; a batch's user vectors are made once, however often it is asked."""
    model.eval()
    known: dict[int, tuple[RankBatch, Tensor]] = {}
    with torch.no_grad():
        tokens_NH = model.items.table()  # type: ignore[operator]

    def score(batch: RankBatch, candidate_rows_BC: Tensor) -> Tensor:
        if id(batch) not in known:
            model.eval()
            with torch.no_grad():
                known[id(batch)] = (batch, model.user_vector(*batch.inputs[:3]))
        user_BH = known[id(batch)][1]
        return torch.matmul(tokens_NH[candidate_rows_BC.long()], user_BH.unsqueeze(-1))[..., 0]

    return score
