"""From the LLM's answers to the arrays of the atomic intent table: event kind -> intent paths.

Shapes: N items, n event kinds, P paths per kind, D levels of a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from airserve import contract
from airserve.artifact_schemas import SEGMENT_COLUMN
from airserve.data.schema import load_items
from airserve.table.answers import Answers
from airserve.table.format import NO_PATH, kind_keys
from airserve.table.vocabulary import NodePath, Vocabulary

Array = npt.NDArray[Any]


def read_items(folder: Path) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Item ids, ascending, and their titles, of a data folder.

    Raises:
        DataError: see `airserve.data.schema.load_items`.
    """
    table = load_items(folder).sort_by("item_id")
    return table["item_id"].to_numpy().astype(np.int64), table["title"].to_pylist()


@dataclass(frozen=True, kw_only=True)
class AtomicIntents:
    """The arrays of the table that hold ids; see `format.TableArrays`."""

    kinds: npt.NDArray[np.uint64]
    kind_paths: npt.NDArray[np.int32]
    item_paths: npt.NDArray[np.int32]
    paths: npt.NDArray[np.int32]
    n_segments: int

    def leaf_of_path(self) -> npt.NDArray[np.int32]:
        """The finest node of each path."""
        depth = (self.paths != contract.PAD_NODE).sum(axis=1)
        leaves: npt.NDArray[np.int32] = self.paths[np.arange(len(self.paths)), depth - 1]
        return leaves

    def kind_parts(self) -> tuple[Array, Array, Array]:
        """Catalogue row, action number and segment of each kind, int64 [n]."""
        pairs, segments = np.divmod(self.kinds.astype(np.int64), self.n_segments)
        rows, actions = np.divmod(pairs, contract.N_ACTIONS)
        return rows, actions, segments


def assemble(answers: Answers, vocabulary: Vocabulary, n_items: int) -> AtomicIntents:
    """Number the paths and lay the answers out by kind and by item.

    A kind keeps its first MAX_PATHS distinct paths in the LLM's order. An item's default paths are the most frequent
    ones of its kinds; among equals the one that stands further in front, then the lower path number. An answer that
    has no path left makes no kind.
    """
    provisional: dict[NodePath, int] = {}
    kind_paths = np.full((len(answers.rows), contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    known: dict[tuple[str, ...], int] = {}
    for place, paths in enumerate(answers.paths):
        numbers: dict[int, None] = {}
        for path in map(tuple, paths):
            if len(numbers) == contract.MAX_PATHS:
                break
            if path not in known:
                nodes = vocabulary.find(path)
                known[path] = provisional.setdefault(nodes, len(provisional)) if nodes else NO_PATH
            if known[path] != NO_PATH:
                numbers[known[path]] = None
        kind_paths[place, : len(numbers)] = list(numbers)
    return _numbered(answers, provisional, kind_paths, n_items)


def _numbered(
    answers: Answers, provisional: dict[NodePath, int], kind_paths: npt.NDArray[np.int32], n_items: int
) -> AtomicIntents:
    """Number the paths by their nodes, so that the order of the answers does not matter, and sort the kinds."""
    paths = np.full((len(provisional), contract.MAX_DEPTH), contract.PAD_NODE, dtype=np.int32)
    final = np.full(len(provisional) + 1, NO_PATH, dtype=np.int32)  # The last one is what NO_PATH (-1) finds.
    for number, path in enumerate(sorted(provisional)):
        paths[number, : len(path)] = path
        final[provisional[path]] = number
    n_segments = 1 + int(answers.segments.max(initial=0))
    keys = kind_keys(answers.rows, answers.actions, answers.segments, n_segments)
    order = np.argsort(keys, kind="stable")
    order = order[kind_paths[order, 0] != NO_PATH]
    kind_paths = final[kind_paths[order]]
    return AtomicIntents(
        kinds=keys[order].astype(np.uint64),
        kind_paths=kind_paths,
        item_paths=_default_paths(answers.rows[order], kind_paths, n_items),
        paths=paths,
        n_segments=n_segments,
    )


def _default_paths(rows: Array, kind_paths: npt.NDArray[np.int32], n_items: int) -> npt.NDArray[np.int32]:
    """The most frequent paths of each item; the kinds of one item stand together."""
    item_paths = np.full((n_items + contract.FIRST_ITEM_ROW, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=False):
        lists = [[number for number in numbers if number != NO_PATH] for numbers in kind_paths[start:end].tolist()]
        chosen = _most_frequent(lists)
        item_paths[rows[start], : len(chosen)] = chosen
    return item_paths


def _most_frequent(lists: Sequence[Sequence[int]]) -> list[int]:
    counts = Counter(number for numbers in lists for number in numbers)
    front: dict[int, int] = {}
    for numbers in lists:
        for place, number in enumerate(numbers):
            front[number] = min(place, front.get(number, place))
    return sorted(counts, key=lambda number: (-counts[number], front[number], number))[: contract.MAX_PATHS]


def shuffled(intents: AtomicIntents, seed: int) -> AtomicIntents:
    """The control experiment: every item that has intents gets another such item's, consistently over its kinds.

    Kinds, vocabulary and coverage stay as they are; only whose intents they are is wrong. A kind that the other item
    was never asked for takes what the lookup would have answered for that item.
    """
    rows = np.flatnonzero(intents.item_paths[:, 0] != NO_PATH)
    order = np.random.default_rng(seed).permutation(rows)
    donor = np.arange(len(intents.item_paths))
    donor[order] = np.roll(order, 1)  # one cycle through all: nobody keeps its own
    kind_rows, actions, segments = intents.kind_parts()
    keys = intents.kinds.astype(np.int64)
    kind_paths = intents.item_paths[donor[kind_rows]]
    for wanted in (np.zeros_like(segments), segments):  # the more exact answer last
        donor_keys = kind_keys(donor[kind_rows], actions, wanted, intents.n_segments)
        position = np.minimum(np.searchsorted(keys, donor_keys), max(len(keys) - 1, 0))
        hit = keys[position] == donor_keys
        kind_paths[hit] = intents.kind_paths[position[hit]]
    return AtomicIntents(
        kinds=intents.kinds,
        kind_paths=kind_paths,
        item_paths=intents.item_paths[donor],
        paths=intents.paths,
        n_segments=intents.n_segments,
    )


def to_arrow(intents: AtomicIntents, items: npt.NDArray[np.int64]) -> pa.Table:
    """The kinds as `atomic_intents.parquet` holds them."""
    rows, actions, segments = intents.kind_parts()
    of_path = pa.array([[int(node) for node in path if node] for path in intents.paths], pa.list_(pa.int32()))
    counts = (intents.kind_paths != NO_PATH).sum(axis=1)
    numbers = intents.kind_paths[intents.kind_paths != NO_PATH]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    action_names = pa.array([contract.ACTION_NAMES.get(number, "") for number in range(contract.N_ACTIONS)])
    return pa.table(
        {
            "item_id": pa.array(items[rows - contract.FIRST_ITEM_ROW], pa.int64()),
            "action": action_names.take(pa.array(actions)),
            SEGMENT_COLUMN: pa.array(segments, pa.int32()),
            "path_nodes": pa.ListArray.from_arrays(offsets, of_path.take(pa.array(numbers))),
        }
    )
