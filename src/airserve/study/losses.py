"""SASRec's own loss, for the record: binary cross entropy with one random negative a position.

Shapes: B windows, T positions, X positions with a target, H width.

Source: Kang and McAuley 2018, "Self-attentive sequential recommendation".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from airserve import contract
from airserve.model.sequence import SequenceModel
from airserve.training.baselines import sequence_scorer
from airserve.training.examples import SequenceBatch, sequence_batches
from airserve.training.loop import FitReport, fit
from airserve.training.stages import Training, batch_size


def bce_loss(
    model: SequenceModel, batch: SequenceBatch, rows: npt.NDArray[np.int32], rng: np.random.Generator
) -> Tensor:
    """Mean binary cross entropy of each target against one item drawn uniformly from `rows` (int32)."""
    states_BTH = model(batch.rows_BT, batch.actions_BT, batch.ages_s_BT)
    asked_BT = batch.target_rows_BT != contract.PAD_ROW
    states_XH, targets_X = states_BTH[asked_BT], batch.target_rows_BT[asked_BT]
    negatives_X = torch.from_numpy(rng.choice(rows, size=len(targets_X))).to(targets_X.device)
    right_X = (states_XH * model.items(targets_X)).sum(-1)
    wrong_X = (states_XH * model.items(negatives_X)).sum(-1)
    losses_X = F.softplus(-right_X) + F.softplus(wrong_X) * (negatives_X != targets_X)
    weights_X = batch.target_weights_BT[asked_BT]
    return (losses_X * weights_X).sum() / weights_X.sum().clamp(min=1e-6)


def fit_with_bce(training: Training, model: SequenceModel, state_path: Path, mark: str) -> FitReport:
    """Train as `Training.fit_sequence` does, but for the loss."""
    s, log = training.settings, training.log
    size = batch_size(len(np.unique(log.starts)), s.steps_per_epoch, s.sequence_batch)
    return fit(
        "training with BCE",
        model,
        model.parameters(),
        sequence_batches(log, training.task, window=contract.WINDOW, batch=size),
        lambda batch, rng: bce_loss(model, batch, log.candidate_rows, rng),
        lambda: training._valid_ndcg(sequence_scorer(model)),
        s.sequence_fit,
        state_path=state_path,
        fingerprint=mark,
    )
