"""Look a batch of requests up in a published table: item ids in, the ranker's ids out.

Runs once per call inside Triton's Python backend: standard library and NumPy (1.26 and 2.x) only. No LLM, no vectors:
binary searches in memory-mapped arrays, then one small tree per request.

Shapes: B requests, L behaviours, C candidates, P paths per behaviour, R chains, D levels, U tree nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.table.format import TableArrays, TableManifest, kind_keys, read_table
from airserve.table.tree import compose_tree

Array = npt.NDArray[Any]

_PADDING: dict[str, int] = {
    contract.BEHAVIOUR_ITEMS.name: contract.PAD_ITEM,
    contract.CANDIDATE_ITEMS.name: contract.PAD_ITEM,
    contract.BEHAVIOUR_CHAINS.name: contract.PAD_CHAIN,
}
"""What fills a tensor behind its last value; 0 where not named."""
_SPECS = {spec.name: spec for spec in (*contract.REQUEST, *contract.LOOKUP_OUTPUTS)}


class IntentTable:
    """A published atomic intent table, opened read-only. Safe to share between threads."""

    def __init__(self, manifest: TableManifest, arrays: TableArrays) -> None:
        self.manifest = manifest
        self.arrays = arrays
        self.items = arrays.items
        self.node_vectors = arrays.node_vectors
        self.item_vectors = arrays.item_vectors
        # Same dtype as the needles, or searchsorted converts the whole array on every call.
        self._kinds = arrays.kinds.view(np.int64)

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> IntentTable:
        """Memory-map a `serving/` folder; see `format.read_table`.

        Raises:
            ArtifactError: if it is missing, damaged, incomplete, or made for another contract.
        """
        return cls(*read_table(Path(folder), verify=verify))

    @property
    def table_version(self) -> int:
        """Version of the table, as the response reports it."""
        return self.manifest.table_version

    def rows(self, items: Array) -> npt.NDArray[np.int32]:
        """Catalogue rows of int64 item ids, any shape: PAD_ROW for PAD_ITEM, UNKNOWN_ROW for unknown ids."""
        position, found = _find(self.items, items)
        position += contract.FIRST_ITEM_ROW
        rows: npt.NDArray[np.int32] = np.where(found, position.astype(np.int32), np.int32(contract.UNKNOWN_ROW))
        if not found.all():
            rows[items == contract.PAD_ITEM] = contract.PAD_ROW
        return rows

    def path_numbers(self, rows_BL: Array, actions_BL: Array, segment_B1: Array) -> npt.NDArray[np.int32]:
        """Path numbers [B, L, P] of each behaviour, NO_PATH where none.

        A kind that was never asked takes the paths of its item and action in segment 0, then its item's default paths.
        """
        n_segments = self.manifest.n_segments
        segment = np.where(segment_B1 < n_segments, segment_B1, 0)
        position, found = _find(self._kinds, kind_keys(rows_BL, actions_BL, segment, n_segments))
        if found.all() and len(self._kinds):
            every: npt.NDArray[np.int32] = self.arrays.kind_paths.take(position, axis=0)
            return every
        if segment.any():
            at_0, found_0 = _find(self._kinds, kind_keys(rows_BL, actions_BL, 0, n_segments))
            position = np.where(found, position, at_0)
            found |= found_0
        numbers: npt.NDArray[np.int32] = self.arrays.item_paths.take(rows_BL, axis=0)
        numbers[found] = self.arrays.kind_paths[position[found]]
        return numbers

    def lookup(self, request: Mapping[str, Array]) -> dict[str, Array]:
        """Answer a validated call.

        Args:
            request: the tensors of `contract.REQUEST`, batch axis first, as `contract.validate_request` accepts them.

        Returns:
            The tensors of `contract.LOOKUP_OUTPUTS`. An empty history becomes one padded row (L=1); R >= 1 and U >= 1.
            Coverage counts behaviours with a path in the table, 0 for an empty history.
        """
        items_BL = request[contract.BEHAVIOUR_ITEMS.name]
        actions_BL = request[contract.BEHAVIOUR_ACTIONS.name]
        ages_s_BL = request[contract.BEHAVIOUR_AGES_S.name]
        if items_BL.shape[1] == 0:
            empty = (len(items_BL), 1)
            items_BL = np.full(empty, contract.PAD_ITEM, dtype=np.int64)
            actions_BL = np.full(empty, contract.PAD_ACTION, dtype=np.int32)
            ages_s_BL = np.zeros(empty, dtype=np.float32)
        n_behaviours = items_BL.shape[1]
        # One search for both: NumPy's calls, not their elements, are the cost.
        rows = self.rows(np.concatenate((items_BL, request[contract.CANDIDATE_ITEMS.name]), axis=1))
        rows_BL, rows_BC = (np.ascontiguousarray(part) for part in (rows[:, :n_behaviours], rows[:, n_behaviours:]))
        numbers_BLP = self.path_numbers(rows_BL, actions_BL, request[contract.USER_SEGMENT.name])
        trees = [
            compose_tree(self.arrays.paths, len(self.node_vectors), numbers_LP, ages_s_L)
            for numbers_LP, ages_s_L in zip(numbers_BLP, ages_s_BL, strict=True)
        ]
        n_levels = contract.MAX_DEPTH
        return {
            contract.BEHAVIOUR_ROWS.name: rows_BL,
            contract.BEHAVIOUR_CHAINS.name: _stack_padded(
                [tree.behaviour_chains for tree in trees], numbers_BLP.shape[2:]
            ),
            contract.TREE_NODES.name: _stack_padded([tree.nodes for tree in trees], ()),
            contract.CHAIN_SLOTS.name: _stack_padded([tree.chain_slots for tree in trees], (n_levels,)),
            contract.CANDIDATE_ROWS.name: rows_BC,
            contract.COVERAGE.name: np.array(
                [[_coverage(*one)] for one in zip(numbers_BLP, rows_BL, strict=True)], dtype=np.float32
            ),
            contract.TABLE_VERSION.name: np.full((len(trees), 1), self.table_version, dtype=np.int64),
        }


def _coverage(numbers_LP: Array, rows_L: Array) -> float:
    """Share of one request's behaviours that have a path."""
    return int(np.count_nonzero(numbers_LP[:, 0] >= 0)) / max(int(np.count_nonzero(rows_L)), 1)


def _find(ascending: Array, needles: Array) -> tuple[Array, Array]:
    """Positions of the needles in an ascending array of the same dtype, and which of them are there."""
    if ascending.size == 0:
        return np.zeros(needles.shape, dtype=np.int64), np.zeros(needles.shape, dtype=np.bool_)
    position = ascending.searchsorted(needles)
    np.minimum(position, ascending.size - 1, out=position)
    return position, ascending.take(position) == needles


def _stack_padded(rows: Sequence[Array], tail: tuple[int, ...]) -> Array:
    """Stack arrays of different lengths, zeros behind the short ones."""
    if len(rows) == 1:
        return rows[0][None]
    stacked = np.zeros((len(rows), max(len(row) for row in rows), *tail), dtype=np.int32)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return stacked


def ranker_inputs(request: Mapping[str, Array], looked_up: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of `contract.RANKER_INPUTS` of a call; an empty history's actions and ages become one padded row."""
    inputs = {}
    for spec in contract.RANKER_INPUTS:
        array = looked_up[spec.name] if spec.name in looked_up else request[spec.name]
        if spec.axes[1] == "L" and array.shape[1] == 0:
            array = np.zeros((len(array), 1), dtype=spec.dtype)
        inputs[spec.name] = array
    return inputs


def merge_lookups(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Join calls along the batch axis, padding every axis that varies to its longest in any tensor.

    The longest of all tensors, because an empty history has no ages while its lookup has one padded row.

    Args:
        parts: calls with the same tensors each, all named in `contract.REQUEST` or `contract.LOOKUP_OUTPUTS`.
    """
    extents: dict[str, int] = {}
    for part in parts:
        for name, array in part.items():
            for axis, size in zip(_SPECS[name].axes[1:], array.shape[1:], strict=True):
                extents[axis] = max(extents.get(axis, 0), size)
    merged: dict[str, Array] = {}
    for name in parts[0]:
        spec = _SPECS[name]
        arrays = [part[name] for part in parts]
        shape = tuple(extents[axis] for axis in spec.axes[1:])
        joined = np.full((sum(len(array) for array in arrays), *shape), _PADDING.get(name, 0), dtype=spec.dtype)
        start = 0
        for array in arrays:
            stop = start + len(array)
            joined[(slice(start, stop), *(slice(size) for size in array.shape[1:]))] = array
            start = stop
        merged[name] = joined
    return merged


def pad(part: Mapping[str, Array], extents: Mapping[str, int]) -> dict[str, Array]:
    """One call with every axis that varies padded to a size.

    Args:
        part: tensors named in `contract.REQUEST` or `contract.LOOKUP_OUTPUTS`.
        extents: axis name to size, at least as large as in `part`.
    """
    padded: dict[str, Array] = {}
    for name, array in part.items():
        spec = _SPECS[name]
        sizes = (extents.get(axis, size) for axis, size in zip(spec.axes[1:], array.shape[1:], strict=True))
        shape = (len(array), *sizes)
        if shape == array.shape:
            padded[name] = array
            continue
        padded[name] = np.full(shape, _PADDING.get(name, 0), dtype=spec.dtype)
        padded[name][tuple(slice(size) for size in array.shape)] = array
    return padded


_EXTENT_BY: dict[str, contract.TensorSpec] = {
    "L": contract.BEHAVIOUR_ROWS,
    "C": contract.CANDIDATE_ROWS,
    "R": contract.CHAIN_SLOTS,
    "U": contract.TREE_NODES,
}


def trim(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Cut the padding that all requests of a batch share at the end of an axis, leaving one place at least.

    Args:
        batch: the tensors of `contract.LOOKUP_OUTPUTS`, with any of `contract.REQUEST` beside them.
    """
    extents: dict[str, int] = {}
    for axis, spec in _EXTENT_BY.items():
        array = batch[spec.name]
        used = (array != 0).any(axis=(0, *range(2, array.ndim)))
        extents[axis] = 1 + int(np.flatnonzero(used)[-1]) if used.any() else 1
    return {
        name: array[(slice(None), *(slice(extents.get(axis)) for axis in _SPECS[name].axes[1:]))]
        for name, array in batch.items()
    }
