"""The intent table: what a ranker is trained on. Ids, and the frozen vectors of items and nodes.

Shapes: B requests, L behaviours, P paths per behaviour, U tree nodes, R chains, D levels.
"""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.table.format import IntentArrays, TableManifest, read_table
from airserve.table.lookup import KindIndex
from airserve.table.tree import compose_tree

Array = npt.NDArray[Any]


class Trees(NamedTuple):
    """Looked-up histories, as `Ranker.user_tree` takes them; int32 but for the ages."""

    behaviour_rows_BL: Array
    """Catalogue rows, `PAD_ROW` behind the last."""
    actions_BL: Array
    ages_s_BL: Array
    """float32."""
    behaviour_chains_BLP: Array
    """Indices into the tree's chains, `PAD_CHAIN` where none."""
    tree_nodes_BU: Array
    """Distinct node ids; slot 0 and padding hold node 0."""
    chain_slots_BRD: Array
    """Each chain as slots of the nodes, coarse to fine, 0 where none; R >= K."""


class IntentTable(KindIndex[IntentArrays]):
    """A published intent table, opened read-only."""

    def __init__(self, manifest: TableManifest, arrays: IntentArrays) -> None:
        super().__init__(manifest, arrays)
        self.node_vectors = arrays.node_vectors
        self.item_vectors = arrays.item_vectors

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool | None = None) -> IntentTable:
        """Open an `intents/` folder of tables; see `format.read_table`.

        Raises:
            ArtifactError: if it is missing, damaged, incomplete, or made for another contract.
        """
        return cls(*read_table(Path(folder), IntentArrays, verify=verify))

    def trees(self, request: Mapping[str, Array]) -> Trees:
        """Look the histories of validated requests up; an empty one becomes one padded row."""
        items_BL = request[contract.BEHAVIOUR_ITEMS.name]
        actions_BL = request[contract.BEHAVIOUR_ACTIONS.name]
        ages_s_BL = request[contract.BEHAVIOUR_AGES_S.name]
        if items_BL.shape[1] == 0:
            empty = (len(items_BL), 1)
            items_BL = np.full(empty, contract.PAD_ITEM, dtype=np.int64)
            actions_BL = np.full(empty, contract.PAD_ACTION, dtype=np.int32)
            ages_s_BL = np.zeros(empty, dtype=np.float32)
        rows_BL = self.rows(items_BL)
        numbers_BLP = self.path_numbers(rows_BL, actions_BL, request[contract.USER_SEGMENT.name])
        trees = [
            compose_tree(self.arrays.paths, len(self.node_vectors), numbers_LP, ages_s_L)
            for numbers_LP, ages_s_L in zip(numbers_BLP, ages_s_BL, strict=True)
        ]
        return Trees(
            rows_BL,
            actions_BL,
            ages_s_BL,
            np.stack([tree.behaviour_chains for tree in trees]),
            _stacked([tree.nodes for tree in trees], (), 1),
            _stacked([tree.chain_slots for tree in trees], (contract.MAX_DEPTH,), contract.MIN_CHAINS),
        )


def _stacked(rows: Sequence[Array], tail: tuple[int, ...], fewest: int) -> Array:
    """Stack int32 arrays of different lengths, zeros behind the short ones."""
    longest = max(fewest, *(len(row) for row in rows)) if rows else fewest
    stacked = np.zeros((len(rows), longest, *tail), dtype=np.int32)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return stacked
