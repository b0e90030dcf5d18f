"""What all models of a study share: data, intents, protocol and settings."""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from airserve.study import protocol
from airserve.study.cache import digest, source_digest
from airserve.study.protocol import TestSet
from airserve.study.sample import Sample
from airserve.table.intents import IntentTable
from airserve.training import evaluation
from airserve.training.device import CPU
from airserve.training.examples import Log, Task, find_task
from airserve.training.stages import Training, TrainSettings

Array = npt.NDArray[Any]
NO_LIMIT_MINUTES = 1e6
"""A study's trainings end by their epochs, never by the clock: else results would depend on the machine's load."""
TUNING_DRAWS = 3


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all models of a study share."""

    table: IntentTable
    """The intents."""
    titles_NE: Array
    """float32 [N + 2, E], title vectors in catalogue rows."""
    log: Log
    """Without what `sample` leaves out."""
    sample: Sample = field(default_factory=Sample)
    """What of the data is learned from."""
    cold_rows: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    """int32, ascending: catalogue rows of the cold items. Training reads `Log.untrained_rows`, which has them too."""
    train: TrainSettings = field(default_factory=TrainSettings)
    protocol: protocol.Protocol = field(default_factory=protocol.Protocol)
    source: str = "given tables"
    """What made the intents."""
    device: torch.device = CPU
    """Where models are trained and scored."""

    @cached_property
    def task(self) -> Task:
        """What the targets look like, read off the `valid` split."""
        return find_task(self.log)

    @cached_property
    def test(self) -> TestSet:
        """The targets that are reported."""
        return TestSet(log=self.log, task=self.task, split="test", protocol=self.protocol)

    @cached_property
    def valid(self) -> TestSet:
        """The targets that baselines are tuned on."""
        few = replace(self.protocol, draws=min(TUNING_DRAWS, self.protocol.draws))
        return TestSet(log=self.log, task=self.task, split="valid", protocol=few)

    @cached_property
    def data_digest(self) -> str:
        """Of the log, of what is learned from, and of the title vectors."""
        parts: list[object] = [self.log.digest().hex(), digest(np.asarray(self.titles_NE).tobytes().hex())]
        return digest(parts if self.sample == Sample() else [*parts, asdict(self.sample)])

    @cached_property
    def table_digest(self) -> str:
        """Of the intents."""
        arrays = self.table.arrays
        parts = (
            arrays.kinds,
            arrays.kind_paths,
            arrays.item_paths,
            arrays.paths,
            arrays.node_vectors,
            arrays.item_vectors,
        )
        return digest([np.ascontiguousarray(part).tobytes().hex() for part in parts])

    @property
    def protocol_digest(self) -> str:
        """Of everything that ranks depend on beside the model."""
        return digest([asdict(self.protocol), source_digest([protocol, evaluation.rivals])])

    def training(self, table: IntentTable, seed: int, folder: Path, mark: str) -> Training:
        """The library's training on one of the study's tables, resumable, without a time limit."""
        settings = replace(self.train, seed=seed, minutes_budget=NO_LIMIT_MINUTES)
        return Training(table, self.log, settings, folder, mark, self.device)
