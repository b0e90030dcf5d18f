"""What of a log a study learns from: without some items, which are then cold, and from a share of the users only.

Items and users are chosen by a hash of their id: the same ones on every machine, whatever else the data hold. What a
smaller share chooses, a larger one chooses too. Held-out users and their events stay as they are, so a study of a
sample is tested on the very targets of the whole study.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from airserve.data.schema import Dataset
from airserve.errors import UserError

Array = npt.NDArray[Any]
COLD_SEED, USERS_SEED = 1, 2
"""Of the two choices; other seeds would choose other items and users."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What of a log is learned from; by default all but the held-out users."""

    cold_items: float = 0.0
    """Share of the items whose events are taken out of training; they stay candidates, targets and held-out history."""
    thin: float = 1.0
    """Share of the training users that are kept."""
    learn_from_held_out: bool = False
    """Also learn from the histories of `valid` and `test` users (never from their targets)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.cold_items < 1.0:
            raise UserError(
                "--cold-items", expected="a share in [0, 1)", got=str(self.cold_items), remedy="0.2 makes a fifth cold"
            )
        if not 0.0 < self.thin <= 1.0:
            raise UserError("--thin", expected="a share in (0, 1]", got=str(self.thin), remedy="0.2 keeps a fifth")
        if self.cold_items and self.learn_from_held_out:
            raise UserError(
                "--cold-items",
                expected="a study that learns nothing from held-out users, whose histories keep the cold items",
                got="--learn-from-held-out",
                remedy="leave one of the two out",
            )

    def cold_ids(self, items: pa.Table) -> Array:
        """int64 ids of the cold items, in the order of `items`."""
        ids: Array = items["item_id"].to_numpy()
        return ids[is_chosen(ids, self.cold_items, COLD_SEED)]

    def of(self, dataset: Dataset) -> Dataset:
        """The dataset with what may be learned from: fewer users, and no event of a cold item among theirs."""
        behaviours = dataset.behaviours
        if self.thin < 1.0:
            behaviours = with_share_of_users(behaviours, self.thin)
        if self.cold_items:
            behaviours = without_items(behaviours, self.cold_ids(dataset.items))
        return replace(dataset, behaviours=behaviours)


def is_chosen(ids: Array, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Whether the hash of an id falls among the lowest `share` of all hashes; bool, shape of `ids`.

    Args:
        ids: int64.
        share: in [0, 1].
        seed: another one makes an independent choice.

    Source: the output function of SplitMix64 (Steele, Lea, Flood 2014).
    """
    start = np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = np.asarray(ids, dtype=np.int64).view(np.uint64) + start
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    chosen: npt.NDArray[np.bool_] = (mixed >> np.uint64(11)) * 2.0**-53 < share
    return chosen


def is_held_out(behaviours: pa.Table) -> pa.ChunkedArray:
    """Whether an event is of a user that has a `valid` or `test` event; such a user's events are a target's history."""
    users = pc.filter(behaviours["user_id"], pc.not_equal(behaviours["split"], "train"))
    return pc.is_in(behaviours["user_id"], value_set=users.combine_chunks())


def without_items(behaviours: pa.Table, item_ids: Array) -> pa.Table:
    """The log without any event of some items among the users that are learned from.

    The events are gone, not only marked: a sequence model reads what it does not have to predict. What a held-out user
    did with these items stays: at test time they are in the history and among the targets.

    Args:
        behaviours: a validated behaviours table.
        item_ids: int64.
    """
    of_items = pc.is_in(behaviours["item_id"], value_set=pa.array(item_ids, pa.int64()))
    return behaviours.filter(pc.or_(is_held_out(behaviours), pc.invert(of_items)))


def with_share_of_users(behaviours: pa.Table, share: float) -> pa.Table:
    """The log with a share of the users that are learned from, whole, and with all held-out users."""
    kept = pa.array(is_chosen(behaviours["user_id"].to_numpy(), share, USERS_SEED))
    return behaviours.filter(pc.or_(is_held_out(behaviours), kept))
