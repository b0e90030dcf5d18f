"""Train the ranker and the model it is measured against, and measure both.

1. Base: the sequence tower, on every position of the training histories.
2. Intents: tree, retrieval, composition and head, on examples looked up as in serving, on their own score, or on what
   a second base leaves over that has not seen the examples (`TrainSettings.apart_share`).
3. Blend: how much base, intents and what is met together count in the score, chosen by NDCG@10 on the `valid` split, as
   all checkpoints are, with a share of its items made cold (`blend.py`).
The ID-only baseline is trained as the base is: same data, loss, schedule and size, and at least as long.

Shapes: X positions or examples, B examples of a batch, T window, C candidates, S negatives, H width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from airserve import contract
from airserve.errors import DataError
from airserve.model.losses import NegativeSampler
from airserve.model.ranker import Ranker, RankerSettings, UserTree
from airserve.model.sequence import SequenceModel
from airserve.table.company import Company
from airserve.table.intents import IntentTable
from airserve.training import evaluation
from airserve.training.baselines import (
    Recency,
    cold_scorer,
    company_scorer,
    log_neighbours,
    popularity_scorer,
    sequence_scorer,
    target_counts,
)
from airserve.training.blend import BlendTargets, Chosen, choose
from airserve.training.checkpoint import Trained, new_ranker
from airserve.training.device import CPU, device_of, moved
from airserve.training.evaluation import EvaluationSettings, Scorer
from airserve.training.examples import (
    Log,
    RankBatch,
    SequenceBatch,
    find_task,
    last_of_users,
    rank_batches,
    sequence_batches,
    some,
    training_targets,
    without_training,
)
from airserve.training.loop import FitReport, FitSettings, fit
from airserve.training.measure import AIR, BASE, POPULARITY, SEQUENCE, WITHOUT_INTENTS, measure
from airserve.training.objectives import intent_loss, sequence_loss

logger = logging.getLogger("train_ranker")
BLEND_TARGETS, BLEND_POOL = 1000, 1999
"""Valid targets that the blend is chosen on, and the rivals that each is ranked against."""
BASE_SHARE, SEQUENCE_SHARE, INTENTS_SHARE, APART_SHARE = 0.25, 0.4, 0.3, 0.1
"""Of the time limit. The baseline may take the longest: ids alone learn slowest, and must not lose for want of time."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A whole training."""

    ranker: RankerSettings = field(default_factory=RankerSettings)
    """The network."""
    sequence_fit: FitSettings = field(default_factory=lambda: FitSettings(learning_rate=2e-3, epochs=8))
    """Of the base and of the ID-only baseline; `budget_s` is set from `minutes_budget`."""
    intent_fit: FitSettings = field(default_factory=lambda: FitSettings(learning_rate=2e-3, epochs=5, patience=2))
    """Of the intent part."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """The protocol of the reported metrics."""
    minutes_budget: float = 4.0
    """Wall time of everything; the time limits of the stages are shares of it."""
    seed: int = 0
    """Of weights, order and negatives."""
    sequence_negatives: int = 512
    """Shared by the positions of a step."""
    steps_per_epoch: int = 150
    """Small data are trained in small batches, so that an epoch has at least so many steps (measured on the demo world:
    NDCG@10 of the ID-only model on valid 0.54 after 12 epochs of 40 steps, 0.62 after 8 of 160)."""
    sequence_batch: tuple[int, int] = (16, 128)
    """Fewest and most windows of a step."""
    rank_batch: tuple[int, int] = (16, 48)
    """Fewest and most examples of a step of the intent stage."""
    rank_negatives: int = 128
    """Shared by the examples of a step."""
    train_history: int = 128
    """Behaviours of an example of the intent stage, the latest."""
    max_examples: int = 40_000
    """Of the intent stage, chosen at random."""
    valid_examples: int = 600
    """Targets of the `valid` split, chosen at random, that training is stopped by."""
    last_targets: int = 0
    """The intent stage learns each user's so many last training targets, 0: all. For intents that were derived from
    the log itself, without those: examples that the intents already know teach it to trust them too much."""
    apart_share: float = 0.0
    """Share of the users that a second base does not learn from. The intent stage then learns, from those users alone,
    what that base leaves over; 0: from all users, on its own score. Costs a training of the base more."""
    valid_as_popular_as_training: bool = False
    """Weigh the `valid` targets so that their items are as popular as those of training. For a `valid` split that
    prefers popular items (LLMCDSR's does) and would choose models that do."""


class Training:
    """One training of all models on one log and one table."""

    def __init__(
        self,
        table: IntentTable,
        log: Log,
        settings: TrainSettings,
        state_folder: Path,
        mark: str,
        device: torch.device = CPU,
    ) -> None:
        self.table, self.log, self.settings, self.device = table, log, settings, device
        self.state_folder, self.mark = state_folder, mark
        self.task = find_task(log)
        logger.info(
            "targets: %s, %s",
            " and ".join(contract.ACTION_NAMES[number] for number in self.task.actions),
            "items new to the user" if self.task.novel else "also items that the user knows",
        )
        counts = target_counts(log, self.task)
        # Never drawn: items that are never a target. As negatives only, they would teach that what has no id is bad.
        trained = np.setdiff1d(log.candidate_rows, log.untrained_rows)
        rows = trained if trained.size else log.candidate_rows
        self.sampler = NegativeSampler(rows, counts[rows])
        rng = np.random.default_rng([settings.seed, 5])
        self.valid = some(log.targets("valid"), settings.valid_examples, rng)
        if self.valid.size == 0:
            # Without a valid split the last training targets stop the training; they are also trained on.
            self.valid = some(training_targets(log, self.task), settings.valid_examples, rng)
        if self.valid.size == 0:
            raise DataError("behaviours", expected="events that can be predicted", got="none", remedy="give more data")
        self.valid_weights = self._weights(self.valid)
        self.valid_protocol = EvaluationSettings(draws=1, negatives=499, seed=settings.seed + 1)
        self.valid_candidates = evaluation.draw_candidates(log, self.valid, self.valid_protocol)
        self.valid_batches = list(rank_batches(table, log, self.valid, self.task, batch=32))
        self.item_vectors_NE = torch.from_numpy(np.array(table.item_vectors))

    def _weights(self, targets: evaluation.Array) -> evaluation.Array:
        """How much each valid target counts."""
        if not self.settings.valid_as_popular_as_training:
            return np.ones(len(targets))
        trained = self.log.rows[training_targets(self.log, self.task)]
        return evaluation.popularity_weights(self.log.rows[targets], trained, target_counts(self.log, self.task))

    def _valid_ndcg(self, scorer: Scorer) -> float:
        ranks = evaluation.rank_targets({AIR: scorer}, self.valid_batches, self.valid_candidates)
        return float(np.average(evaluation.gains(ranks[AIR])[0], weights=self.valid_weights))

    def _state(self, name: str) -> Path:
        return self.state_folder / f"resume-{name}.pt"

    def is_apart(self) -> evaluation.Array:
        """bool [X], the events of the users that `fit_apart` does not learn from."""
        users = np.unique(self.log.starts)
        chosen = np.random.default_rng([self.settings.seed, 13]).random(len(users)) < self.settings.apart_share
        return np.asarray(chosen[np.searchsorted(users, self.log.starts)])

    def fit_apart(self, model: SequenceModel, share: float) -> FitReport:
        """Train a base without the users that the intent stage learns from."""
        return self.fit_sequence("base apart", model, share, without_training(self.log, self.is_apart()))

    def fit_sequence(self, name: str, model: SequenceModel, share: float, log: Log | None = None) -> FitReport:
        """Train a sequence model on every position of the training histories of a log, the whole one when left out."""
        s, log = self.settings, log or self.log
        users = len(np.unique(log.starts[log.splits == 0]))
        size = batch_size(users, s.steps_per_epoch, s.sequence_batch)
        batches = sequence_batches(log, self.task, window=contract.WINDOW, batch=size)

        def loss(batch: SequenceBatch, rng: np.random.Generator) -> Tensor:
            return sequence_loss(model, batch, self.sampler, s.sequence_negatives, rng)

        known_N = np.arange(len(log.domain_of_row)) >= contract.FIRST_ITEM_ROW
        known_N[log.untrained_rows] = False
        model.items.ids.set_known(torch.from_numpy(known_N))
        settings = replace(s.sequence_fit, budget_s=60 * s.minutes_budget * share, seed=s.seed)
        report = fit(
            f"training {name}",
            model,
            model.parameters(),
            batches,
            loss,
            lambda: self._valid_ndcg(sequence_scorer(model)),
            settings,
            state_path=self._state(name),
            fingerprint=self.mark,
        )
        logger.info("%s: NDCG@10 %.4f on valid, epoch %d of %d", name, report.best, report.best_epoch, report.epochs)
        return report

    def fit_intents(self, ranker: Ranker, share: float, apart: SequenceModel | None = None) -> FitReport:
        """Train everything but the base on looked-up examples.

        Args:
            ranker: its base is trained.
            share: of the time limit.
            apart: see `fit_apart`; the stage learns what this one leaves over.
        """
        s = self.settings
        targets = training_targets(self.log, self.task)
        if apart is not None:
            targets = targets[self.is_apart()[targets]]
        if s.last_targets:
            targets = last_of_users(self.log, targets, s.last_targets)
        targets = some(targets, s.max_examples, np.random.default_rng([s.seed, 7]))
        size = batch_size(len(targets), s.steps_per_epoch, s.rank_batch)
        batches = list(rank_batches(self.table, self.log, targets, self.task, max_length=s.train_history, batch=size))

        def loss(batch: RankBatch, rng: np.random.Generator) -> Tensor:
            return intent_loss(ranker, batch, self.sampler, s.rank_negatives, rng, beside)

        def measure() -> float:
            intents = intent_scorer(ranker)
            both = [(1.0, intents)] if beside is None else [(float(ranker.base_scale), beside), (1.0, intents)]
            return self._valid_ndcg(summed(both))

        beside = None if apart is None else sequence_scorer(apart)
        ranker.base.requires_grad_(False)
        ranker.base_scale.requires_grad_(apart is not None)
        learning = [parameter for parameter in ranker.parameters() if parameter.requires_grad]
        report = fit(
            "training intents",
            ranker,
            learning,
            batches,
            loss,
            measure,
            replace(s.intent_fit, budget_s=60 * s.minutes_budget * share, seed=s.seed),
            state_path=self._state("intents"),
            fingerprint=self.mark,
        )
        ranker.base.requires_grad_(True)
        ranker.base_scale.requires_grad_(False)
        return report

    def choose_blend(self, ranker: Ranker) -> Chosen:
        """Set what base, intents and company count beside one another; see `blend.choose`."""
        targets = some(self.log.targets("valid"), BLEND_TARGETS, np.random.default_rng([self.settings.seed, 11]))
        if targets.size == 0:
            targets = self.valid
        batches = list(rank_batches(self.table, self.log, targets, self.task, batch=8))
        pool = replace(self.valid_protocol, negatives=BLEND_POOL)
        setting = BlendTargets(
            batches=batches,
            candidates_XC=evaluation.draw_candidates(self.log, targets, pool)[0],
            weights_X=self._weights(targets),
            negatives=self.settings.evaluation.negatives,
        )
        return choose(ranker, self.log, setting, intent_scorer if ranker.settings.use_intents else None)

    def run(self) -> tuple[Trained, dict[str, Any]]:
        """Train everything, and measure it; returns what was learned, and the metrics."""
        s, start = self.settings, time.monotonic()
        torch.manual_seed(s.seed)
        ranker = new_ranker(self.table, s.ranker).to(self.device)
        fits = {BASE: self.fit_sequence(BASE, ranker.base, BASE_SHARE)}
        torch.manual_seed(s.seed)
        ids_only = replace(s.ranker.sequence, use_item_vectors=False, id_dropout=0.0)
        sequence = SequenceModel(self.item_vectors_NE, ids_only)
        sequence = sequence.to(self.device)
        fits[SEQUENCE] = self.fit_sequence(SEQUENCE, sequence, SEQUENCE_SHARE)
        if s.ranker.use_intents:
            apart = None
            if s.apart_share:
                apart = SequenceModel(self.item_vectors_NE, s.ranker.sequence).to(self.device)
                fits["base_apart"] = self.fit_apart(apart, APART_SHARE)
            fits["intents"] = self.fit_intents(ranker, INTENTS_SHARE - (APART_SHARE if apart else 0.0), apart)
        company, base_without, company_without = self.choose_blend(ranker)
        scorers = {
            AIR: air_scorer(ranker, self.log, company),
            SEQUENCE: sequence_scorer(sequence),
            POPULARITY: popularity_scorer(self.log, self.task),
            BASE: sequence_scorer(ranker.base),
            WITHOUT_INTENTS: summed(
                [
                    (base_without, sequence_scorer(ranker.base)),
                    (company_without.scale, ranker_company(ranker, self.log, company_without)),
                ]
            ),
        }
        metrics = measure(self.table, self.log, self.task, scorers, s.evaluation)
        metrics["fits"] = {name: {"valid_ndcg10": round(r.best, 4), "epochs": r.epochs} for name, r in fits.items()}
        metrics["blend"] = {"base": float(ranker.base_scale), "intents": float(ranker.intent_scale)}  # type: ignore[arg-type]
        metrics["company"] = vars(company)
        metrics["seconds"] = round(time.monotonic() - start, 1)
        return Trained(ranker.cpu(), company, self.task), metrics


def intent_scorer(ranker: Ranker) -> Scorer:
    """Scores by the intents alone; a batch's trees are made once, however often it is asked."""
    ranker.eval()
    device = device_of(ranker)
    with torch.no_grad():
        queries_NH = ranker.queries.table()
    latest: list[tuple[RankBatch, UserTree]] = []

    def score(batch: RankBatch, candidate_rows_BC: Tensor) -> Tensor:
        if not latest or latest[0][0] is not batch:
            # Training puts the modules back into its own mode; a scorer never drops anything.
            ranker.eval()
            latest[:] = [(batch, ranker.user_tree(*moved(batch, device).inputs))]
        return ranker.intent_score(latest[0][1], candidate_rows_BC.to(device), queries_NH)[0].cpu()

    return score


def air_scorer(ranker: Ranker, log: Log | None = None, company: Company | None = None) -> Scorer:
    """Scores by the whole ranker and by what is met together, as in serving; without a log by the ranker alone."""
    parts = [(float(ranker.base_scale), sequence_scorer(ranker.base))]
    if ranker.settings.use_intents:
        parts.append((float(ranker.intent_scale), intent_scorer(ranker)))  # type: ignore[arg-type]
    if log is not None and company is not None and company.scale:
        parts.append((company.scale, ranker_company(ranker, log, company)))
    if company is not None and company.cold_bias:
        parts.append((company.cold_bias, cold_scorer(cast(Tensor, ranker.base.items.ids.known_N))))
    return summed(parts)


def ranker_company(ranker: Ranker, log: Log, company: Company) -> Scorer:
    """Scores by what is met together, new items by what items like them are met with."""
    vectors_NE = cast(Tensor, ranker.item_vectors_NE).cpu().numpy()
    recency = Recency(last=company.last, decay=company.decay)
    return company_scorer(log_neighbours(log, company.shrinkage), vectors_NE, recency)


def summed(parts: Sequence[tuple[float, Scorer]]) -> Scorer:
    """Weighed sum of scores; what weighs nothing is not asked."""
    parts = [part for part in parts if part[0]]

    def score(batch: RankBatch, candidate_rows_BC: Tensor) -> Tensor:
        total_BC = torch.zeros(candidate_rows_BC.shape)
        for weight, scorer in parts:
            total_BC = total_BC + weight * scorer(batch, candidate_rows_BC)
        return total_BC

    return score


def batch_size(count: int, steps: int, bounds: tuple[int, int]) -> int:
    """A batch size that makes `steps` steps of `count`, within bounds."""
    return min(max(count // steps, bounds[0]), bounds[1])
