"""A ranking request as a user writes it, and as tensors on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.contract import TensorSpec
from airserve.errors import InvalidRequestError
from airserve.ids import ItemIds

if TYPE_CHECKING:
    # Only type checkers need the default (PEP 696): a bare `RankRequest` is one with integer ids.
    from typing_extensions import TypeVar

    Id = TypeVar("Id", bound=int | str, default=int)
else:
    from typing import TypeVar

    Id = TypeVar("Id", bound=int | str)


@dataclass(frozen=True, kw_only=True)
class Behaviour(Generic[Id]):
    """One past event of the user."""

    item: Id
    """The item's 64-bit id, or its string id where the client was given an `ItemIds`."""
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
        return _action_row([self])[0]


@dataclass(frozen=True, kw_only=True)
class RankRequest(Generic[Id]):
    """Score `candidates` for a user with this history."""

    behaviours: Sequence[Behaviour[Id]]
    """Oldest first; may be empty. Clients send the last `contract.MAX_BEHAVIOURS` of them."""
    candidates: Sequence[Id]
    """Item ids, at least 1. Clients send more than `contract.MAX_CANDIDATES` in parts."""
    segment: int = 0
    """The user's profile segment; 0 where it is not known."""


def encode_items(request: RankRequest[Id], item_ids: ItemIds) -> RankRequest[int]:
    """The same request with 64-bit ids in place of strings; integers stay as they are.

    Raises:
        DataError: if two strings have the same id.
    """

    def encode(item: int | str) -> int:
        return int(item_ids.encode([item])[0]) if isinstance(item, str) else item

    return RankRequest(
        behaviours=[Behaviour(item=encode(b.item), action=b.action, age_s=b.age_s) for b in request.behaviours],
        candidates=[encode(item) for item in request.candidates],
        segment=request.segment,
    )


def _id_row(spec: TensorSpec, items: Sequence[int]) -> npt.NDArray[np.int64]:
    """One row of item ids, int64 [n]; floats, strings and larger numbers are refused, not converted."""
    array = np.asarray(items)
    if not array.size:
        return np.empty(0, dtype=np.int64)
    fits = array.dtype.kind == "i" or (array.dtype.kind == "u" and array.max() <= np.iinfo(np.int64).max)
    if fits and array.ndim == 1:
        return array.astype(np.int64, copy=False)
    text = next((item for item in items if isinstance(item, str)), None)
    raise InvalidRequestError(
        spec.name,
        expected="item ids that are int64 numbers",
        got=f"{array.dtype} {list(array.shape)}" if text is None else repr(text),
        remedy="map the ids to int64" if text is None else "give the client item_ids=ItemIds()",
    )


def _padded(rows: Sequence[Any], fill: int | float, dtype: type[np.generic]) -> npt.NDArray[Any]:
    if len(rows) == 1:
        return np.array(rows[0], dtype=dtype)[None]
    width = max((len(row) for row in rows), default=0)
    out = np.full((len(rows), width), fill, dtype=dtype)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return out


def _action_row(behaviours: Sequence[Behaviour[Any]]) -> list[int]:
    numbers = contract.ACTIONS
    try:
        return [numbers[behaviour.action] for behaviour in behaviours]
    except (KeyError, TypeError):
        unknown = next(b.action for b in behaviours if not isinstance(b.action, str) or b.action not in numbers)
        raise InvalidRequestError(
            contract.BEHAVIOUR_ACTIONS.name,
            expected=f"one of {', '.join(numbers)}",
            got=repr(unknown),
            remedy="map your actions to these",
        ) from None


def _age_row(behaviours: Sequence[Behaviour]) -> npt.NDArray[np.float32]:
    try:
        return np.array([behaviour.age_s for behaviour in behaviours], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            contract.BEHAVIOUR_AGES_S.name,
            expected="finite seconds >= 0",
            got=str(error),
            remedy="send now minus the event's time",
        ) from None


def _segments(requests: Sequence[RankRequest]) -> npt.NDArray[np.int32]:
    limit = int(np.iinfo(np.int32).max)
    for request in requests:
        whole = isinstance(request.segment, int | np.integer)
        if not whole or not 0 <= request.segment <= limit:
            raise InvalidRequestError(
                contract.USER_SEGMENT.name,
                expected=f"a whole number from 0 to {limit}",
                got=repr(request.segment),
                remedy="send 0 where the segment is not known",
            )
    return np.array([request.segment for request in requests], dtype=np.int32).reshape(-1, 1)


def to_tensors(requests: Sequence[RankRequest]) -> dict[str, npt.NDArray[Any]]:
    """Requests of different lengths as one padded, validated batch.

    Returns:
        Wire name to tensor, for each of `contract.REQUEST`.

    Raises:
        InvalidRequestError: before anything is sent.
    """
    histories = [request.behaviours for request in requests]
    item_rows = [_id_row(contract.BEHAVIOUR_ITEMS, [b.item for b in h]) for h in histories]
    candidate_rows = [_id_row(contract.CANDIDATE_ITEMS, request.candidates) for request in requests]
    for row in candidate_rows:
        if len(row) and np.minimum.reduce(row) == contract.PAD_ITEM:
            raise InvalidRequestError(
                contract.CANDIDATE_ITEMS.name,
                expected="item ids",
                got=f"{contract.PAD_ITEM}, which is reserved for padding",
                remedy="give that item another id",
            )
    tensors = {
        contract.BEHAVIOUR_ITEMS.name: _padded(item_rows, contract.PAD_ITEM, np.int64),
        contract.BEHAVIOUR_ACTIONS.name: _padded(
            [_action_row(history) for history in histories], contract.PAD_ACTION, np.int32
        ),
        contract.BEHAVIOUR_AGES_S.name: _padded([_age_row(history) for history in histories], 0.0, np.float32),
        contract.USER_SEGMENT.name: _segments(requests),
        contract.CANDIDATE_ITEMS.name: _padded(candidate_rows, contract.PAD_ITEM, np.int64),
    }
    contract.validate_request(tensors)
    return tensors
