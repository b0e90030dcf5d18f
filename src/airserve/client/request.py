"""A ranking request as a user writes it, and as tensors on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """One past event of the user."""

    item: int
    """The item's 64-bit id; see `item_id` for string ids."""
    action: str
    """A name of `contract.ACTIONS`."""
    age_s: float
    """Seconds ago."""

    @property
    def action_number(self) -> int:
        """The action's number on the wire.

        Raises:
            InvalidRequestError: for a name that the contract does not have.
        """
        try:
            return contract.ACTIONS[self.action]
        except KeyError:
            raise InvalidRequestError(
                contract.BEHAVIOUR_ACTIONS.name,
                expected=f"one of {', '.join(contract.ACTIONS)}",
                got=repr(self.action),
                remedy="map your actions to these",
            ) from None


@dataclass(frozen=True, kw_only=True)
class RankRequest:
    """Score `candidates` for a user with this history."""

    behaviours: Sequence[Behaviour]
    """Oldest first, at most `contract.MAX_BEHAVIOURS`; may be empty."""
    candidates: Sequence[int]
    """Item ids, 1 to `contract.MAX_CANDIDATES`."""
    segment: int = 0
    """The user's profile segment; 0 where it is not known."""


def _padded(rows: list[list[Any]], fill: int | float, dtype: type[np.generic]) -> npt.NDArray[Any]:
    width = max((len(row) for row in rows), default=0)
    out = np.full((len(rows), width), fill, dtype=dtype)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return out


def to_tensors(requests: Sequence[RankRequest]) -> dict[str, npt.NDArray[Any]]:
    """Requests of different lengths as one padded, validated batch.

    Returns:
        Wire name to tensor, for each of `contract.REQUEST`.

    Raises:
        InvalidRequestError: before anything is sent.
    """
    histories = [request.behaviours for request in requests]
    tensors = {
        contract.BEHAVIOUR_ITEMS.name: _padded([[b.item for b in h] for h in histories], contract.PAD_ITEM, np.int64),
        contract.BEHAVIOUR_ACTIONS.name: _padded(
            [[b.action_number for b in h] for h in histories], contract.PAD_ACTION, np.int32
        ),
        contract.BEHAVIOUR_AGES_S.name: _padded([[b.age_s for b in h] for h in histories], 0.0, np.float32),
        contract.USER_SEGMENT.name: np.array([[request.segment] for request in requests], dtype=np.int32),
        contract.CANDIDATE_ITEMS.name: _padded([list(r.candidates) for r in requests], contract.PAD_ITEM, np.int64),
    }
    contract.validate_request(tensors)
    return tensors
