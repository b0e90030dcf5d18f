"""The held-out protocol: each target against random items of its domain, many draws, and against the whole domain.

A model is asked once for a user's scores of the whole in-domain catalogue; the ranks of every draw and the
full-catalogue rank are read off that row. So the draws, seeded once and by user, are the same for every model and every
training seed, and one more draw costs nothing but a sum. A tie, and a score that is no number, counts against the
target. The user's history is not excluded from the negatives.

Shapes: X targets, W draws, S negatives of a draw, B targets of a batch, C items of a domain.
"""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from airserve.errors import DataError, UserError
from airserve.progress import Progress
from airserve.table.intents import IntentTable
from airserve.training.evaluation import Scorer, rivals
from airserve.training.examples import SPLITS, Log, RankBatch, Task, rank_batches, some

Array = npt.NDArray[Any]


CHUNK = 4096
"""Candidates scored at once: a re-ranker's intermediate results then stay in the cache (0.23 against 0.83 s a user)."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The protocol's numbers. LLMCDSR's: 999 negatives, the last 50 events."""

    negatives: int = 999
    """Items of the target's domain drawn without the target, all of them where there are fewer."""
    draws: int = 20
    """Times the negatives are drawn anew."""
    max_history: int = 50
    """Latest events of a user that a model sees."""
    max_users: int = 5000
    """Targets, chosen at random where there are more."""
    seed: int = 2026
    """Of the draws, and of the choice of targets."""

    def __post_init__(self) -> None:
        if min(self.negatives, self.draws, self.max_history, self.max_users) < 1 or self.seed < 0:
            raise UserError(
                "Protocol",
                expected="negatives, draws, max_history, max_users >= 1, seed >= 0",
                got=f"{self.negatives}, {self.draws}, {self.max_history}, {self.max_users}, {self.seed}",
                remedy="change the settings",
            )


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where a model put each target, 1 is best."""

    drawn_WX: npt.NDArray[np.int32]
    """Among the negatives of each draw."""
    full_X: npt.NDArray[np.int32]
    """Among all candidate items of the target's domain."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The targets of one split under a protocol."""

    __test__ = False
    log: Log
    task: Task
    split: str
    protocol: Protocol

    def __post_init__(self) -> None:
        if self.targets.size == 0:
            raise DataError(
                "behaviours: split",
                expected=f"{self.split} events on candidate items with a known domain",
                got="none",
                remedy=f"mark the last event of some users as {self.split}",
            )

    @cached_property
    def targets(self) -> Array:
        """int64 [X] event indices."""
        found = self.log.targets(self.split)
        rng = np.random.default_rng([self.protocol.seed, SPLITS.index(self.split), 3])
        return some(found, self.protocol.max_users, rng)

    @cached_property
    def domains(self) -> npt.NDArray[np.int32]:
        """int32 [X], place in `log.domains`."""
        of_target: npt.NDArray[np.int32] = self.log.domain_of_row[self.log.rows[self.targets]]
        return of_target

    def pool(self, domain: int) -> npt.NDArray[np.int32]:
        """Candidate rows of a domain, ascending, int32 [C]."""
        rows = self.log.candidate_rows
        chosen: npt.NDArray[np.int32] = rows[self.log.domain_of_row[rows] == domain]
        return chosen

    def negatives(self, place: int, pool_C: Array, target_at: int) -> npt.NDArray[np.int64]:
        """The draws of one target, as places in the pool; int64 [W, S], the same for every model."""
        rng = np.random.default_rng([self.protocol.seed, SPLITS.index(self.split), 17, place])
        others = len(pool_C) - 1
        size = min(self.protocol.negatives, others)
        drawn_WS = np.stack(
            [rng.choice(others, size=size, replace=False, shuffle=False) for _ in range(self.protocol.draws)]
        )
        return drawn_WS + (drawn_WS >= target_at)

    def batches(self, table: IntentTable, batch: int) -> Iterator[tuple[int, RankBatch]]:
        """The targets looked up in a table, a domain at a time: (domain, batch), `places` counted over all targets."""
        for domain in np.unique(self.domains):
            places = np.flatnonzero(self.domains == domain)
            chosen = rank_batches(
                table, self.log, self.targets[places], self.task, batch=batch, max_length=self.protocol.max_history
            )
            for looked_up in chosen:
                yield (
                    int(domain),
                    RankBatch(
                        inputs=looked_up.inputs,
                        target_rows_B=looked_up.target_rows_B,
                        places=places[looked_up.places],
                    ),
                )

    def rank(self, scorer: Scorer, table: IntentTable, *, title: str, batch: int = 1) -> Ranks:
        """Rank every target by a model.

        Args:
            scorer: the model.
            table: what its histories are looked up in.
            title: shown with the progress.
            batch: targets scored at once; memory grows with batch x items of a domain.
        """
        count = len(self.targets)
        drawn_WX = np.zeros((self.protocol.draws, count), dtype=np.int32)
        full_X = np.zeros(count, dtype=np.int32)
        pools = {int(domain): self.pool(int(domain)) for domain in np.unique(self.domains)}
        with torch.inference_mode(), Progress(title, count, "targets") as progress:
            for domain, looked_up in self.batches(table, batch):
                pool_C = pools[domain]
                rows_BC = torch.from_numpy(pool_C).expand(len(looked_up.places), -1)
                at_B = np.searchsorted(pool_C, looked_up.target_rows_B.numpy())
                scores_BC = torch.cat([scorer(looked_up, part) for part in torch.split(rows_BC, CHUNK, dim=1)], dim=1)
                rivals_BC = rivals(scores_BC, torch.from_numpy(at_B)).numpy()
                for rivals_C, at, place in zip(rivals_BC, at_B, looked_up.places, strict=True):
                    full_X[place] = 1 + rivals_C.sum()
                    drawn_WS = self.negatives(int(place), pool_C, int(at))
                    drawn_WX[:, place] = 1 + rivals_C[drawn_WS].sum(axis=1)
                progress.advance(len(looked_up.places))
        return Ranks(drawn_WX=drawn_WX, full_X=full_X)
