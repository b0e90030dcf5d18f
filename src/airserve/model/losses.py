"""Sampled softmax with the logQ correction.

Shapes: X examples, S negatives shared by all examples of a step.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from airserve.errors import DataError


class NegativeSampler:
    """Draws negatives from half uniform, half popularity^0.75, with replacement, and knows each item's log chance.

    Args:
        rows: int32 [I], the items that can be drawn.
        counts: [I], how often each is a target in training.

    Raises:
        DataError: if there is nothing to draw from.
    """

    def __init__(self, rows: npt.NDArray[np.int32], counts: npt.NDArray[np.float64]) -> None:
        if rows.size == 0:
            raise DataError("candidate items", expected="at least one", got="none", remedy="mark items is_candidate")
        smooth = np.maximum(counts, 0.0) ** 0.75
        popular = smooth / smooth.sum() if smooth.sum() > 0 else np.full(rows.size, 1.0 / rows.size)
        chance = 0.5 * popular + 0.5 / rows.size
        self.rows = rows
        self._cumulative = np.cumsum(chance)
        self._log_chance = torch.from_numpy(np.log(chance).astype(np.float32))

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`count` draws: rows int32 [S], and log q of each, float32 [S]."""
        places = np.searchsorted(self._cumulative, rng.random(count) * self._cumulative[-1], side="right")
        places = np.minimum(places, self.rows.size - 1)
        return torch.from_numpy(self.rows[places]), self._log_chance[torch.from_numpy(places)]


def sampled_softmax_losses(
    target_scores_X: Tensor,
    negative_scores_XS: Tensor,
    target_rows_X: Tensor,
    negative_rows_S: Tensor,
    negative_log_chance_S: Tensor,
) -> Tensor:
    """Cross entropy of each target against the catalogue, the catalogue's part estimated from shared negatives.

    -log(exp(s_t) / (exp(s_t) + sum_j exp(s_j) / (S q_j))): each negative stands for 1 / (S q_j) items, so the sum is
    an unbiased estimate of the softmax's denominator. Without the correction popular items, drawn more often, would be
    held down. The target is there for certain and is not corrected; a negative that is the target is left out.

    Args:
        target_scores_X: float32.
        negative_scores_XS: float32.
        target_rows_X: int32.
        negative_rows_S: int32.
        negative_log_chance_S: float32, log q of each negative.

    Returns:
        float32 [X].

    Source: Bengio and Senecal 2008 (importance sampled softmax).
    """
    corrected_XS = negative_scores_XS - (negative_log_chance_S + math.log(negative_rows_S.numel()))
    corrected_XS = corrected_XS.masked_fill(target_rows_X.unsqueeze(1) == negative_rows_S, float("-inf"))
    logits_XS = torch.cat([target_scores_X.unsqueeze(1), corrected_XS], dim=1)
    targets_X = torch.zeros(len(target_rows_X), dtype=torch.long, device=logits_XS.device)
    return F.cross_entropy(logits_XS, targets_X, reduction="none")
