"""What the stages minimise.

Shapes: X positions, B examples of a batch, C candidates, S negatives, H width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from airserve import contract
from airserve.model.losses import NegativeSampler, sampled_softmax_losses
from airserve.model.ranker import Ranker
from airserve.model.sequence import SequenceModel
from airserve.training.evaluation import Scorer
from airserve.training.examples import RankBatch, SequenceBatch

HIDDEN_SHARE = 0.05


def hidesome(rows_BT: Tensor, rng: np.random.Generator) -> Tensor:
    """Make a few items unknown, so that the unknown item's embedding is trained."""
    hidden_BT = torch.from_numpy(rng.random(tuple(rows_BT.shape)) < HIDDEN_SHARE).to(rows_BT.device)
    return torch.where(
        hidden_BT & (rows_BT != contract.PAD_ROW), torch.full_like(rows_BT, contract.UNKNOWN_ROW), rows_BT
    )


def sequence_loss(
    model: SequenceModel, batch: SequenceBatch, sampler: NegativeSampler, negatives: int, rng: np.random.Generator
) -> Tensor:
    """Sampled softmax at every position that has a target."""
    model.redraw(rng)
    rows_BT = hidesome(batch.rows_BT, rng)
    states_BTH = model(rows_BT, batch.actions_BT, batch.ages_s_BT)
    asked_BT = batch.target_rows_BT != contract.PAD_ROW
    states_XH, target_rows_X = states_BTH[asked_BT], batch.target_rows_BT[asked_BT]
    weights_X = batch.target_weights_BT[asked_BT]
    negative_rows_S, log_chance_S = (drawn.to(rows_BT.device) for drawn in sampler.draw(negatives, rng))
    target_scores_X = (states_XH * model.items(target_rows_X)).sum(-1)
    negative_scores_XS = torch.matmul(states_XH, model.items(negative_rows_S).transpose(0, 1))
    losses_X = sampled_softmax_losses(target_scores_X, negative_scores_XS, target_rows_X, negative_rows_S, log_chance_S)
    return (losses_X * weights_X).sum() / weights_X.sum().clamp(min=1e-6)


def intent_loss(
    ranker: Ranker,
    batch: RankBatch,
    sampler: NegativeSampler,
    negatives: int,
    rng: np.random.Generator,
    apart: Scorer | None = None,
) -> Tensor:
    """Sampled softmax of the intent score, alone or beside the score of a base that has not seen the examples.

    Never beside that of the ranker's own base: it knows the training targets better than it will know new ones, and
    what it leaves over of them is not what the intents are for. `choose_blend` weighs the two afterwards.

    Args:
        ranker: the intent stage learns; with `apart`, also `base_scale`.
        batch: examples.
        sampler: of the negatives, shared by the batch.
        negatives: how many.
        rng: of the negatives.
        apart: scores by a base trained without the examples' users.
    """
    ranker.redraw(rng)
    device = batch.target_rows_B.device
    negative_rows_S, log_chance_S = (drawn.to(device) for drawn in sampler.draw(negatives, rng))
    rows_BC = torch.cat(
        [batch.target_rows_B.unsqueeze(1), negative_rows_S.unsqueeze(0).expand(len(batch.target_rows_B), -1)], dim=1
    )
    scores_BC, _ = ranker.intent_score(ranker.user_tree(*batch.inputs), rows_BC)
    if apart is not None:
        scores_BC = scores_BC + ranker.base_scale * apart(batch, rows_BC).to(device)
    return sampled_softmax_losses(
        scores_BC[:, 0], scores_BC[:, 1:], batch.target_rows_B, negative_rows_S, log_chance_S
    ).mean()
