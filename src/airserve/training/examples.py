"""A behaviour log as training and test examples.

A log's events are sorted by user, then time; an example is one target event and the same user's events before it.

Shapes: X events, B examples of a batch, L behaviours, T window.
"""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from airserve import contract
from airserve.errors import DataError
from airserve.table.intents import IntentTable

Array = npt.NDArray[Any]
SPLITS = ("train", "valid", "test")
REPEAT_SHARE = 0.05
HELD_OUT = -1
"""In `Log.splits`: an event that is a target's history but that nothing is learned from."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """A behaviour log in catalogue rows."""

    items: Array
    """int64 [X] item ids."""
    rows: Array
    """int32 [X] catalogue rows, `UNKNOWN_ROW` for items that the table does not hold."""
    actions: Array
    """int32 [X]."""
    times_s: Array
    """int64 [X]."""
    segments: Array
    """int32 [X]."""
    splits: Array
    """int8 [X], index into `SPLITS`."""
    starts: Array
    """int64 [X], index of the first event of the event's user."""
    candidate_rows: Array
    """int32, ascending: rows that may be ranked."""
    domain_of_row: Array
    """int32 [N + 2], place in `domains`, -1 for reserved rows."""
    domains: tuple[str, ...]
    """Names of the domains."""

    @property
    def is_candidate(self) -> Array:
        """bool [X], whether the event's item may be ranked."""
        return np.isin(self.rows, self.candidate_rows)

    @property
    def is_novel(self) -> Array:
        """bool [X], whether it is the user's first event with the item."""
        novel = np.zeros(len(self.rows), dtype=np.bool_)
        keys = self.starts * (len(self.domain_of_row) + 1) + self.rows
        novel[np.unique(keys, return_index=True)[1]] = True
        return novel

    @property
    def untrained_rows(self) -> npt.NDArray[np.int32]:
        """int32, ascending: catalogue rows without any event of the `train` split; no id vector of them was learned."""
        counts = np.bincount(self.rows[self.splits == 0], minlength=len(self.domain_of_row))
        rows = np.flatnonzero(counts == 0).astype(np.int32)
        return rows[rows >= contract.FIRST_ITEM_ROW]

    def digest(self) -> bytes:
        """Hash of all of it, so that a training knows its data again."""
        digest = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return digest.digest()

    def targets(self, split: str) -> Array:
        """Indices of the target events of `valid` or `test`, int64."""
        chosen = (self.splits == SPLITS.index(split)) & self.is_candidate
        return np.flatnonzero(chosen)


def without_training(log: Log, events: Array) -> Log:
    """The log with nothing to learn from the given training events, bool [X]; they are still history."""
    return replace(log, splits=np.where(events & (log.splits == 0), HELD_OUT, log.splits).astype(np.int8))


def make_log(items: pa.Table, behaviours: pa.Table, table: IntentTable) -> Log:
    """Translate validated `items` and `behaviours` tables (docs/ARCHITECTURE.md) into a `Log`.

    Raises:
        DataError: if no item of the data is in the intent table, or an action is unknown.
    """
    item_rows = table.rows(items["item_id"].to_numpy())
    known = item_rows >= contract.FIRST_ITEM_ROW
    if not known.any():
        raise DataError("items", expected="items of the intent table", got="none", remedy="build tables of this data")
    domain_of_row = np.full(len(table.items) + contract.FIRST_ITEM_ROW, -1, dtype=np.int32)
    domains = items["domain"].combine_chunks().dictionary_encode()
    domain_of_row[item_rows[known]] = domains.indices.to_numpy()[known]
    can = np.asarray(items["is_candidate"].to_numpy(zero_copy_only=False), dtype=np.bool_)
    actions = behaviours["action"].combine_chunks().dictionary_encode()
    numbers = [contract.ACTIONS.get(name, -1) for name in actions.dictionary.to_pylist()]
    if -1 in numbers:
        raise DataError(
            "behaviours: action",
            expected=f"one of {', '.join(contract.ACTIONS)}",
            got=repr(actions.dictionary.to_pylist()[numbers.index(-1)]),
            remedy="map your actions to these",
        )
    users = behaviours["user_id"].to_numpy()
    first = np.concatenate([[True], users[1:] != users[:-1]]) if len(users) else np.zeros(0, dtype=np.bool_)
    behaviour_items = behaviours["item_id"].to_numpy()
    split_codes = pc.index_in(behaviours["split"], value_set=pa.array(SPLITS)).to_numpy()
    return Log(
        items=behaviour_items,
        rows=table.rows(behaviour_items),
        actions=np.asarray(numbers, dtype=np.int32)[actions.indices.to_numpy()],
        times_s=behaviours["timestamp_s"].to_numpy(),
        segments=behaviours["user_segment"].to_numpy().astype(np.int32),
        splits=split_codes.astype(np.int8),
        starts=np.maximum.accumulate(np.where(first, np.arange(len(users)), 0)),
        candidate_rows=np.sort(item_rows[known & can]).astype(np.int32),
        domain_of_row=domain_of_row,
        domains=tuple(domains.dictionary.to_pylist()),
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the held-out targets look like, so that training asks for the same; read off the `valid` split."""

    actions: tuple[int, ...]
    """Actions of the targets."""
    novel: bool
    """Targets are items that the user's history does not hold."""


def find_task(log: Log) -> Task:
    """The task of the `valid` targets (of all candidate events, where there are none)."""
    targets = log.targets("valid")
    if targets.size == 0:
        return Task(actions=tuple(contract.ACTION_NAMES), novel=False)
    numbers, counts = np.unique(log.actions[targets], return_counts=True)
    repeats = 1.0 - float(log.is_novel[targets].mean())
    return Task(
        actions=tuple(int(n) for n, count in zip(numbers, counts, strict=True) if count >= 0.05 * targets.size),
        novel=repeats < REPEAT_SHARE,
    )


def training_targets(log: Log, task: Task) -> Array:
    """Events of the `train` split that pose the task and have a history; int64 indices, in the log's order."""
    chosen = (log.splits == 0) & log.is_candidate & np.isin(log.actions, task.actions)
    chosen &= np.arange(len(log.rows)) > log.starts
    return np.flatnonzero(chosen)


def history(log: Log, target: int, task: Task, max_length: int) -> Array:
    """Indices of the events before a target, oldest first; without the target's own item in a novel task."""
    events = np.arange(log.starts[target], target)
    if task.novel:
        events = events[log.rows[events] != log.rows[target]]
    return events[-max_length:]


def make_request(log: Log, targets: Array, task: Task, max_length: int) -> dict[str, Array]:
    """The contract's request of some examples, with the target as the one candidate and ages as of the target."""
    histories = [history(log, int(target), task, max_length) for target in targets]
    length = max([len(events) for events in histories], default=0)
    shape = (len(targets), length)
    items = np.full(shape, contract.PAD_ITEM, dtype=np.int64)
    actions = np.full(shape, contract.PAD_ACTION, dtype=np.int32)
    ages_s = np.zeros(shape, dtype=np.float32)
    for place, (target, events) in enumerate(zip(targets, histories, strict=True)):
        items[place, : len(events)] = log.items[events]
        actions[place, : len(events)] = log.actions[events]
        ages_s[place, : len(events)] = np.maximum(log.times_s[target] - log.times_s[events], 0)
    return {
        contract.BEHAVIOUR_ITEMS.name: items,
        contract.BEHAVIOUR_ACTIONS.name: actions,
        contract.BEHAVIOUR_AGES_S.name: ages_s,
        contract.USER_SEGMENT.name: log.segments[targets][:, None],
        contract.CANDIDATE_ITEMS.name: log.items[targets][:, None],
    }


@dataclass(frozen=True, kw_only=True)
class RankBatch:
    """Some examples, looked up."""

    inputs: tuple[Tensor, ...]
    """What `Ranker.user_tree` takes, in its order; see `airserve.table.intents.Trees`."""
    target_rows_B: Tensor
    """int32."""
    places: Array
    """Where the examples stand in the list of targets."""


def rank_batches(
    table: IntentTable, log: Log, targets: Array, task: Task, *, batch: int, max_length: int = contract.MAX_BEHAVIOURS
) -> Iterator[RankBatch]:
    """Look examples up, those of similar length together."""
    order = np.argsort(np.minimum(targets - log.starts[targets], max_length), kind="stable")
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        trees = table.trees(make_request(log, targets[places], task, max_length))
        yield RankBatch(
            inputs=tuple(map(torch.from_numpy, trees)),
            target_rows_B=torch.from_numpy(log.rows[targets[places]].astype(np.int32)),
            places=places,
        )


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """Windows of users' training events, short ones padded at the start."""

    rows_BT: Tensor
    actions_BT: Tensor
    ages_s_BT: Tensor
    """Seconds before the window's last event."""
    target_rows_BT: Tensor
    """The next event to be predicted after each position; `PAD_ROW` where none."""
    target_weights_BT: Tensor
    """float32: 1 where that event is of the task's actions and comes next, less otherwise."""


OTHER_WEIGHT = 0.5
"""Weight of a target of another action than the task's, and of one that does not follow at once."""


def next_targets(log: Log, task: Task) -> tuple[Array, Array]:
    """For each event, the next training event of its user that is a fit target, and its weight.

    Returns:
        int64 [X] event indices, -1 where none; float32 [X].
    """
    fit = (log.splits == 0) & log.is_candidate
    if task.novel:
        fit &= log.is_novel
    count = len(log.rows)
    later = np.minimum.accumulate(np.where(fit, np.arange(count), count)[::-1])[::-1]
    following = np.append(later[1:], count)[:count]
    safe = np.minimum(following, max(count - 1, 0))
    same_user = (following < count) & (log.starts[safe] == log.starts)
    asked = np.isin(log.actions[safe], task.actions)
    at_once = safe == np.arange(count) + 1
    weights = np.where(asked, 1.0, OTHER_WEIGHT) * np.where(at_once, 1.0, OTHER_WEIGHT)
    return np.where(same_user, following, -1), (weights * same_user).astype(np.float32)


def sequence_batches(log: Log, task: Task, *, window: int, batch: int) -> list[SequenceBatch]:
    """Cut each user's training events into windows, from the latest back, similar lengths together."""
    targets, weights = next_targets(log, task)
    train = log.splits == 0
    boundaries = np.flatnonzero(np.diff(log.starts, prepend=-1) != 0)
    windows: list[tuple[int, int]] = []
    for start, stop in zip(boundaries, np.append(boundaries[1:], len(log.rows)), strict=True):
        while stop > start and (not train[stop - 1] or targets[stop - 1] < 0):
            stop -= 1
        while stop > start:
            windows.append((max(start, stop - window), int(stop)))
            stop -= window
    windows.sort(key=lambda pair: pair[1] - pair[0])
    return [
        _pack_windows(log, targets, weights, windows[start : start + batch]) for start in range(0, len(windows), batch)
    ]


def _pack_windows(log: Log, targets: Array, weights: Array, windows: list[tuple[int, int]]) -> SequenceBatch:
    length = max(stop - start for start, stop in windows)
    index_BT = np.array([stop for _, stop in windows])[:, None] - np.arange(length, 0, -1)
    inside_BT = index_BT >= np.array([start for start, _ in windows])[:, None]
    index_BT = np.where(inside_BT, index_BT, 0)
    target_BT = np.where(inside_BT, targets[index_BT], -1)
    ages_s_BT = log.times_s[index_BT[:, -1:]] - log.times_s[index_BT]
    return SequenceBatch(
        rows_BT=torch.from_numpy(np.where(inside_BT, log.rows[index_BT], contract.PAD_ROW).astype(np.int32)),
        actions_BT=torch.from_numpy(np.where(inside_BT, log.actions[index_BT], contract.PAD_ACTION).astype(np.int32)),
        ages_s_BT=torch.from_numpy(np.where(inside_BT, ages_s_BT, 0).astype(np.float32)),
        target_rows_BT=torch.from_numpy(
            np.where(target_BT >= 0, log.rows[target_BT], contract.PAD_ROW).astype(np.int32)
        ),
        target_weights_BT=torch.from_numpy(np.where(target_BT >= 0, weights[index_BT], 0.0).astype(np.float32)),
    )


def some(indices: Array, count: int, rng: np.random.Generator) -> Array:
    """At most `count` of the indices, at random, in order."""
    if len(indices) <= count:
        return indices
    return np.sort(rng.choice(indices, size=count, replace=False))


def last_of_users(log: Log, targets: Array, count: int) -> Array:
    """Each user's `count` last ones of ascending targets."""
    users = log.starts[targets]
    behind = np.searchsorted(users, users, side="right") - np.arange(len(users))
    return targets[behind <= count]
