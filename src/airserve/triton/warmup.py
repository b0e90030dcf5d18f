"""Requests that run before a server reports ready, so that no user's request pays for the first allocations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract

Array = npt.NDArray[Any]
SIZES = ((1, 1, 1), (1, 128, 128), (8, 128, 128), (1, 256, 1024))
"""B, L and C of the requests that Python models ask themselves; the last ones set the memory that is kept."""


def warmup_request(items: Array, batch: int, behaviours: int, candidates: int) -> dict[str, Array]:
    """A valid call of the given sizes, the same every time.

    Args:
        items: int64 [N], N >= 1, item ids to take.
        batch: B >= 1.
        behaviours: L.
        candidates: C >= 1.
    """
    history = np.arange(batch * behaviours).reshape(batch, behaviours)
    return {
        contract.BEHAVIOUR_ITEMS.name: items[history % len(items)],
        contract.BEHAVIOUR_ACTIONS.name: (1 + history % (contract.N_ACTIONS - 1)).astype(np.int32),
        contract.BEHAVIOUR_AGES_S.name: (60.0 * (1 + history)).astype(np.float32),
        contract.USER_SEGMENT.name: np.zeros((batch, 1), dtype=np.int32),
        contract.CANDIDATE_ITEMS.name: items[np.arange(batch * candidates).reshape(batch, candidates) % len(items)],
    }


def warmup_requests(items: Array) -> Iterator[dict[str, Array]]:
    """Calls of all `SIZES` about a table's own items; about unknown ones when it has none."""
    known = np.asarray(items[:4096]) if len(items) else np.arange(1, 129, dtype=np.int64)
    for batch, behaviours, candidates in SIZES:
        yield warmup_request(known, batch, behaviours, candidates)
