"""From the LLM's answers to the arrays of the atomic intent table: event kind -> intent paths.

Shapes: N items, n event kinds, P paths per kind, D levels of a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airserve import contract
from airserve.data.schema import load_items
from airserve.errors import DataError
from airserve.table.format import NO_PATH, kind_keys
from airserve.table.vocabulary import NodePath, Vocabulary

Array = npt.NDArray[Any]

SEGMENT_COLUMN = contract.USER_SEGMENT.name
"""Column of the answers and of the atomic intents, named as in a request."""
ANSWER_COLUMNS = {
    "item_id": pa.int64(),
    "action": pa.string(),
    SEGMENT_COLUMN: pa.int32(),
    "paths": pa.list_(pa.list_(pa.string())),
    "valid": pa.bool_(),
}


def read_columns(path: Path, columns: Mapping[str, pa.DataType], written_by: str) -> pa.Table:
    """Read columns of a Parquet file, cast to their types, without nulls.

    Raises:
        DataError: naming file and column.
    """
    try:
        table = pq.read_table(path, columns=list(columns))
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise DataError(str(path), expected=f"a column {missing[0]}", got="none", remedy=f"run {written_by}")
        table = table.select(list(columns)).cast(pa.schema(list(columns.items())))
    except (OSError, pa.ArrowException) as error:
        expected = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        got = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise DataError(
            str(path), expected=f"a Parquet file with {expected}", got=got, remedy=f"run {written_by}"
        ) from None
    for name in columns:
        if table[name].null_count:
            raise DataError(
                f"{path}: {name}", expected="a value in every row", got=f"{table[name].null_count} nulls", remedy="fill"
            )
    return table


def read_items(folder: Path) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Item ids, ascending, and their titles, of a data folder.

    Raises:
        DataError: see `airserve.data.schema.load_items`.
    """
    table = load_items(folder).sort_by("item_id")
    return table["item_id"].to_numpy().astype(np.int64), table["title"].to_pylist()


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The valid answers, one an event kind."""

    rows: npt.NDArray[np.int64]
    """Catalogue rows."""
    actions: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]
    paths: list[list[list[str]]]
    n_asked: int
    """Rows of the file, invalid ones too."""
    n_foreign: int
    """Valid answers about items that are not in the catalogue; left out."""


def read_answers(path: Path, items: npt.NDArray[np.int64]) -> Answers:
    """Read `answers.parquet` for a catalogue.

    Args:
        path: the file.
        items: item ids, ascending.

    Raises:
        DataError: for an unknown action, a negative segment, or a kind that comes twice.
    """
    table = read_columns(path, ANSWER_COLUMNS, "offline/generate_intents.py")
    n_asked = table.num_rows
    known = pc.is_in(table["action"], value_set=pa.array(list(contract.ACTIONS)))
    if not pc.all(known, min_count=0).as_py():
        got = table.filter(pc.invert(known))["action"][0].as_py()
        raise DataError(f"{path}: action", expected=f"one of {', '.join(contract.ACTIONS)}", got=got, remedy="map it")
    table = table.filter(table["valid"])
    n_valid = table.num_rows
    table = table.filter(pc.is_in(table["item_id"], value_set=pa.array(items)))
    table = table.sort_by([("item_id", "ascending"), ("action", "ascending"), (SEGMENT_COLUMN, "ascending")])
    rows = np.searchsorted(items, table["item_id"].to_numpy()) + contract.FIRST_ITEM_ROW
    actions = np.array([contract.ACTIONS[name] for name in table["action"].to_pylist()], dtype=np.int64)
    segments = table[SEGMENT_COLUMN].to_numpy().astype(np.int64)
    if (segments < 0).any():
        raise DataError(f"{path}: user_segment", expected=">= 0", got=str(segments.min()), remedy="use 0 for unknown")
    n_segments = 1 + int(segments.max(initial=0))
    if len(np.unique(kind_keys(rows, actions, segments, n_segments))) != len(rows):
        raise DataError(str(path), expected="each event kind once", got="a kind twice", remedy="keep one of them")
    return Answers(
        rows=rows,
        actions=actions,
        segments=segments,
        paths=table["paths"].to_pylist(),
        n_asked=n_asked,
        n_foreign=n_valid - table.num_rows,
    )


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
    found = [_distinct_paths(vocabulary, paths) for paths in answers.paths]
    numbered = {path: number for number, path in enumerate(sorted({path for paths in found for path in paths}))}
    paths = np.full((len(numbered), contract.MAX_DEPTH), contract.PAD_NODE, dtype=np.int32)
    for path, number in numbered.items():
        paths[number, : len(path)] = path
    n_segments = 1 + int(answers.segments.max(initial=0))
    keys = kind_keys(answers.rows, answers.actions, answers.segments, n_segments)
    asked = [place for place in np.argsort(keys, kind="stable") if found[place]]
    kind_paths = np.full((len(asked), contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    by_item: dict[int, list[list[int]]] = {}
    for kind, place in enumerate(asked):
        numbers = [numbered[path] for path in found[place]]
        kind_paths[kind, : len(numbers)] = numbers
        by_item.setdefault(int(answers.rows[place]), []).append(numbers)
    item_paths = np.full((n_items + contract.FIRST_ITEM_ROW, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    for row, lists in by_item.items():
        chosen = _most_frequent(lists)
        item_paths[row, : len(chosen)] = chosen
    return AtomicIntents(
        kinds=keys[asked].astype(np.uint64),
        kind_paths=kind_paths,
        item_paths=item_paths,
        paths=paths,
        n_segments=n_segments,
    )


def _distinct_paths(vocabulary: Vocabulary, paths: Sequence[Sequence[str]]) -> list[NodePath]:
    found = (vocabulary.find(path) for path in paths)
    return list(dict.fromkeys(path for path in found if path))[: contract.MAX_PATHS]


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
    nodes = [[int(node) for node in path if node] for path in intents.paths]
    path_nodes = [[nodes[number] for number in numbers if number != NO_PATH] for numbers in intents.kind_paths]
    return pa.table(
        {
            "item_id": pa.array(items[rows - contract.FIRST_ITEM_ROW], pa.int64()),
            "action": pa.array([contract.ACTION_NAMES[int(action)] for action in actions], pa.string()),
            SEGMENT_COLUMN: pa.array(segments, pa.int32()),
            "path_nodes": pa.array(path_nodes, pa.list_(pa.list_(pa.int32()))),
        }
    )
