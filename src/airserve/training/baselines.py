"""What AIR is compared with and what needs no gradient: popularity, item-kNN, text; and how sequence models score.

Shapes: B users, L behaviours, C candidates, N catalogue rows, E vector width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from airserve import contract
from airserve.model.sequence import SequenceModel
from airserve.table.company import as_matrix, cosine_neighbours, with_guesses
from airserve.table.format import COMPANY_FLOOR
from airserve.training.device import moved
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


@dataclass(frozen=True, kw_only=True)
class Recency:
    """How much a behaviour counts by its place in the history."""

    last: int
    """Latest behaviours that count."""
    decay: float
    """Weight of each behaviour over that of the next later one, in (0, 1]."""

    def weights(self, rows_BL: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Weight of each behaviour of rows padded at the end, float32 [B, L]; 0 for padding and unknown items."""
        real_BL = rows_BL != contract.PAD_ROW
        back_BL = real_BL.sum(axis=1, keepdims=True) - 1 - np.arange(rows_BL.shape[1])
        counted_BL = (rows_BL >= contract.FIRST_ITEM_ROW) & (back_BL < self.last)
        weights: npt.NDArray[np.float32] = np.where(counted_BL, self.decay ** np.maximum(back_BL, 0), 0.0).astype(
            np.float32
        )
        return weights


def log_neighbours(log: Log, shrinkage: float) -> Any:
    """`airserve.table.company.cosine_neighbours` of a log's training histories."""
    train = log.splits == 0
    return cosine_neighbours(log.starts[train], log.rows[train], len(log.domain_of_row), shrinkage)


def neighbour_scorer(similarity: Any, recency: Recency) -> Scorer:
    """Scores an item by its summed similarity to the history's items (item-kNN over all neighbours)."""
    n_rows = similarity.shape[0]

    def score(batch: RankBatch, candidate_rows_BC: Tensor) -> Tensor:
        rows_BL = batch.inputs[0].numpy()
        weights_BL = recency.weights(rows_BL)
        users = np.repeat(np.arange(len(rows_BL)), rows_BL.shape[1])
        history = sparse.csr_matrix((weights_BL.ravel(), (users, rows_BL.ravel())), shape=(len(rows_BL), n_rows))
        scores_BN = torch.from_numpy((history @ similarity).toarray())
        return scores_BN.gather(1, candidate_rows_BC.long())

    return score


def text_scorer(titles_NE: Tensor, recency: Recency) -> Scorer:
    """Scores an item by the cosine of its title's vector and the history's weighted mean vector."""

    def score(batch: RankBatch, candidate_rows_BC: Tensor) -> Tensor:
        rows_BL = batch.inputs[0]
        weights_BL = torch.from_numpy(recency.weights(rows_BL.numpy()))
        profile_BE = torch.einsum("bl,ble->be", weights_BL, titles_NE[rows_BL.long()])
        profile_BE = torch.nn.functional.normalize(profile_BE, dim=-1)
        return torch.einsum("be,bce->bc", profile_BE, titles_NE[candidate_rows_BC.long()])

    return score


def sequence_scorer(model: SequenceModel) -> Scorer:
    """Scores by a sequence model as it is now; a batch's user vectors are made once, however often it is asked."""
    model.eval()
    known: dict[int, tuple[RankBatch, Tensor]] = {}
    with torch.no_grad():
        tokens_NH: Tensor = model.items.table()
    device = tokens_NH.device

    def score(batch: RankBatch, candidate_rows_BC: Tensor) -> Tensor:
        if id(batch) not in known:
            model.eval()
            with torch.no_grad():
                known[id(batch)] = (batch, model.user_vector(*moved(batch, device).inputs[:3]))
        user_BH = known[id(batch)][1]
        return torch.matmul(tokens_NH[candidate_rows_BC.to(device).long()], user_BH.unsqueeze(-1))[..., 0].cpu()

    return score


def company_scorer(similarity: Any, vectors_NE: Any, recency: Recency) -> Scorer:
    """What a served table says of what is met together: log(1 + sum / floor) over each item's kept neighbours.

    Args:
        similarity: of `log_neighbours`.
        vectors_NE: float32 [N + 2, E], the items' vectors, that the company of new ones is guessed by.
        recency: how much each behaviour counts.
    """
    summed = neighbour_scorer(as_matrix(*with_guesses(similarity, vectors_NE)), recency)

    def score(batch: RankBatch, candidate_rows_BC: Tensor) -> Tensor:
        return torch.log1p(summed(batch, candidate_rows_BC) / COMPANY_FLOOR)

    return score


def cold_scorer(known_N: Tensor) -> Scorer:
    """1 for items without a learned id, 0 for others."""
    cold_N = (~known_N).float().cpu()
    cold_N[: contract.FIRST_ITEM_ROW] = 0.0
    return lambda batch, rows_BC: cold_N[rows_BC.long()]
