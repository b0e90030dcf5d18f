"""The lookup in dictionaries and loops: slow, obvious, and what the fast one is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.table.format import NO_PATH
from airserve.table.lookup import IntentTable

Array = npt.NDArray[Any]
Kind = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ReferenceTable:
    """A table as dictionaries."""

    row_of_item: Mapping[int, int]
    paths_of_kind: Mapping[Kind, list[int]]
    """(row, action, segment) -> path numbers."""
    paths_of_row: Mapping[int, list[int]]
    nodes_of_path: list[list[int]]
    version: int

    @classmethod
    def of(cls, table: IntentTable) -> ReferenceTable:
        """Copy an opened table."""
        arrays, n_segments = table.arrays, table.manifest.n_segments
        kinds: dict[Kind, list[int]] = {}
        for key, numbers in zip(arrays.kinds.tolist(), arrays.kind_paths.tolist(), strict=True):
            pair, segment = divmod(key, n_segments)
            row, action = divmod(pair, contract.N_ACTIONS)
            kinds[row, action, segment] = [number for number in numbers if number != NO_PATH]
        return cls(
            row_of_item={item: contract.FIRST_ITEM_ROW + place for place, item in enumerate(arrays.items.tolist())},
            paths_of_kind=kinds,
            paths_of_row={
                row: [number for number in numbers if number != NO_PATH]
                for row, numbers in enumerate(arrays.item_paths.tolist())
            },
            nodes_of_path=[[node for node in path if node] for path in arrays.paths.tolist()],
            version=table.table_version,
        )

    def row(self, item: int) -> int:
        """Catalogue row of an item id."""
        return contract.PAD_ROW if item == contract.PAD_ITEM else self.row_of_item.get(item, contract.UNKNOWN_ROW)

    def paths(self, item: int, action: int, segment: int) -> list[int]:
        """Path numbers of one behaviour."""
        row = self.row(item)
        for kind in ((row, action, segment), (row, action, 0)):
            if kind in self.paths_of_kind:
                return self.paths_of_kind[kind]
        return self.paths_of_row.get(row, [])


def lookup_one(
    table: ReferenceTable, behaviours: list[tuple[int, int, float]], segment: int, candidates: list[int]
) -> dict[str, Array]:
    """Answer one request: behaviours (item, action, age in seconds), oldest first. Batch axis of one, unpadded."""
    if not behaviours:
        behaviours = [(contract.PAD_ITEM, contract.PAD_ACTION, 0.0)]
    paths_of = [table.paths(item, action, segment) for item, action, _ in behaviours]
    ages_of_chain: dict[int, list[float]] = {}
    for (_, _, age_s), numbers in zip(behaviours, paths_of, strict=True):
        for number in numbers:
            ages_of_chain.setdefault(number, []).append(age_s)
    strongest = sorted(
        ages_of_chain, key=lambda number: (-len(ages_of_chain[number]), min(ages_of_chain[number]), number)
    )
    chains = sorted(strongest[: contract.MAX_CHAINS])
    nodes = [0, *sorted({node for number in chains for node in table.nodes_of_path[number]})]
    slots = [[nodes.index(node) for node in table.nodes_of_path[number]] for number in chains] or [[]]
    real = [place for place, (item, _, _) in enumerate(behaviours) if item != contract.PAD_ITEM]
    covered = [place for place in real if paths_of[place]]
    behaviour_chains = [
        [chains.index(number) if number in chains else contract.PAD_CHAIN for number in numbers] for numbers in paths_of
    ]
    values: dict[str, Any] = {
        contract.BEHAVIOUR_ROWS.name: [table.row(item) for item, _, _ in behaviours],
        contract.BEHAVIOUR_CHAINS.name: _padded(behaviour_chains, contract.MAX_PATHS, contract.PAD_CHAIN),
        contract.TREE_NODES.name: nodes,
        contract.CHAIN_SLOTS.name: _padded(slots, contract.MAX_DEPTH, contract.PAD_SLOT),
        contract.CANDIDATE_ROWS.name: [table.row(item) for item in candidates],
        contract.COVERAGE.name: [len(covered) / len(real) if real else 0.0],
        contract.TABLE_VERSION.name: [table.version],
    }
    return {spec.name: np.array([values[spec.name]], dtype=spec.dtype) for spec in contract.LOOKUP_OUTPUTS}


def _padded(rows: list[list[int]], width: int, filler: int) -> list[list[int]]:
    return [row + [filler] * (width - len(row)) for row in rows]
