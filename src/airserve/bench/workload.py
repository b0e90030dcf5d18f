"""Requests to measure with: made from a table, the same every time.

A user of the workload has a few interests: its L behaviours are drawn from `ITEMS_PER_USER` items, as real histories
return to the same things; drawn from the whole catalogue they would make trees twice as wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.errors import UserError
from airserve.table.lookup import ServedTable

Array = npt.NDArray[Any]
ITEMS_PER_USER = 25


@dataclass(frozen=True, kw_only=True)
class WorkloadSettings:
    """What is asked."""

    behaviours: int = 128
    """L of each request."""
    candidates: int = 128
    """C of each request."""
    count: int = 64
    """Different requests."""
    mixed: bool = False
    """Draw L and C of each request between 1 and the values above."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("behaviours", 0, contract.MAX_BEHAVIOURS),
            ("candidates", 1, contract.MAX_CANDIDATES),
            ("count", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(name, expected=f"{low} to {high}", got=str(value), remedy="choose within")


def make_requests(table: ServedTable, settings: WorkloadSettings) -> list[dict[str, Array]]:
    """Calls of one request each, as tensors of `contract.REQUEST`.

    Args:
        table: its items are asked about; it must have some.
        settings: sizes and seed.
    """
    rng = np.random.default_rng(settings.seed)
    requests = []
    for _ in range(settings.count):
        behaviours, candidates = settings.behaviours, settings.candidates
        if settings.mixed:
            behaviours, candidates = int(rng.integers(1, behaviours + 1)), int(rng.integers(1, candidates + 1))
        shape = (1, behaviours)
        interests = rng.choice(table.items, ITEMS_PER_USER)
        ages_s = np.sort(10.0 ** rng.uniform(1.0, 7.0, shape))[:, ::-1]
        requests.append(
            {
                contract.BEHAVIOUR_ITEMS.name: rng.choice(interests, shape),
                contract.BEHAVIOUR_ACTIONS.name: rng.integers(1, contract.N_ACTIONS, shape).astype(np.int32),
                contract.BEHAVIOUR_AGES_S.name: np.ascontiguousarray(ages_s, dtype=np.float32),
                contract.USER_SEGMENT.name: np.zeros((1, 1), dtype=np.int32),
                contract.CANDIDATE_ITEMS.name: rng.choice(table.items, (1, candidates)),
            }
        )
    return requests
