"""The lookup in dictionaries and loops: slow, obvious, and what the fast one is tested against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.table.format import COMPANY_FLOOR, NO_PATH
from airserve.table.lookup import SECONDS_PER_DAY, ServedTable

Array = npt.NDArray[Any]
Kind = tuple[int, int, int]
Behaviours = list[tuple[int, int, float]]
"""(item, action, age in seconds), oldest first."""


@dataclass(frozen=True, kw_only=True)
class ReferenceTable:
    """A table as dictionaries."""

    table: ServedTable
    row_of_item: Mapping[int, int]
    paths_of_kind: Mapping[Kind, list[tuple[int, float]]]
    """(row, action, segment) -> path numbers and how like their leaves the item is."""
    paths_of_row: Mapping[int, list[tuple[int, float]]]
    nodes_of_path: list[list[int]]

    @classmethod
    def of(cls, table: ServedTable) -> ReferenceTable:
        """Copy an opened table."""
        arrays, n_segments = table.arrays, table.manifest.n_segments
        kinds: dict[Kind, list[tuple[int, float]]] = {}
        for key, numbers, likeness in zip(
            arrays.kinds.tolist(), arrays.kind_paths.tolist(), arrays.kind_likeness.tolist(), strict=True
        ):
            pair, segment = divmod(key, n_segments)
            row, action = divmod(pair, contract.N_ACTIONS)
            kinds[row, action, segment] = _paired(numbers, likeness)
        by_row = zip(arrays.item_paths.tolist(), arrays.item_likeness.tolist(), strict=True)
        return cls(
            table=table,
            row_of_item={item: contract.FIRST_ITEM_ROW + place for place, item in enumerate(arrays.items.tolist())},
            paths_of_kind=kinds,
            paths_of_row={row: _paired(numbers, likeness) for row, (numbers, likeness) in enumerate(by_row)},
            nodes_of_path=[[node for node in path if node] for path in arrays.paths.tolist()],
        )

    def row(self, item: int) -> int:
        """Catalogue row of an item id."""
        return contract.PAD_ROW if item == contract.PAD_ITEM else self.row_of_item.get(item, contract.UNKNOWN_ROW)

    def paths(self, item: int, action: int, segment: int) -> list[tuple[int, float]]:
        """Path numbers of one behaviour, and how like their leaves its item is."""
        row = self.row(item)
        for kind in ((row, action, segment), (row, action, 0)):
            if kind in self.paths_of_kind:
                return self.paths_of_kind[kind]
        return self.paths_of_row.get(row, [])


def _paired(numbers: list[int], likeness: list[float]) -> list[tuple[int, float]]:
    return [pair for pair in zip(numbers, likeness, strict=True) if pair[0] != NO_PATH]


def lookup_one(table: ReferenceTable, behaviours: Behaviours, segment: int, candidates: list[int]) -> dict[str, Array]:
    """Answer one request. Batch axis of one, unpadded, but for the chains that are padded to the fewest."""
    arrays, weighing = table.table.arrays, table.table.weighing
    paths_of = [table.paths(item, action, segment) for item, action, _ in behaviours]
    chains = _chains(behaviours, paths_of)
    fresh = [math.exp(-weighing.decay_per_day * age_s / SECONDS_PER_DAY) for _, _, age_s in behaviours]
    rows = [table.row(item) for item, _, _ in behaviours]
    kept = set(chains)
    passed_by = [
        {node for number, _ in paths if number in kept for node in table.nodes_of_path[number]} for paths in paths_of
    ]
    shown = max(len(chains), contract.MIN_CHAINS)
    nodes = np.zeros((shown, contract.MAX_DEPTH), dtype=np.int32)
    weights = np.zeros((shown, contract.MAX_DEPTH), dtype=np.float32)
    evidence = np.full((shown, contract.MAX_EVIDENCE), contract.NO_EVIDENCE, dtype=np.int32)
    bias = np.full(shown, contract.PADDED_CHAIN, dtype=np.float32)
    for place, number in enumerate(chains):
        path = table.nodes_of_path[number]
        nodes[place, : len(path)] = path
        for level, node in enumerate(path):
            passing = [at for at, passed in enumerate(passed_by) if node in passed]
            fused = sum(weighing.actions[behaviours[at][1]] * fresh[at] for at in passing)
            weights[place, level] = math.log1p(math.log1p(len(passing)) * fused) / weighing.norms[len(path) - 1]
        relevant = sorted(
            ((0.5 + 0.5 * likeness) * fresh[at] + contract.TIE_STEP * at, at)
            for at, paths in enumerate(paths_of)
            for other, likeness in paths
            if other == number
        )
        best = [at for _, at in reversed(relevant)][: contract.MAX_EVIDENCE]
        evidence[place, : len(best)] = best
        bias[place] = -contract.TIE_STEP * place
    covered = sum(bool(paths) for paths in paths_of)
    tokens = np.concatenate([arrays.item_tokens[np.array(rows, dtype=np.int64)], arrays.item_tokens[:1]])
    candidate_rows = np.array([table.row(item) for item in candidates])
    informed = any(row >= contract.FIRST_ITEM_ROW for row in rows)
    unknown = candidate_rows == contract.UNKNOWN_ROW
    values: dict[contract.TensorSpec, Any] = {
        **_window(table, behaviours, rows),
        contract.CHAIN_ROWS: arrays.node_rows[nodes],
        contract.LEVEL_WEIGHTS: weights,
        contract.CHAIN_BIAS: bias,
        contract.EVIDENCE_TOKENS: tokens[evidence],
        contract.CANDIDATE_TOKENS: arrays.item_tokens[candidate_rows if informed else 0 * candidate_rows],
        contract.CANDIDATE_TARGETS: arrays.item_targets[candidate_rows],
        contract.CANDIDATE_PRIOR: [_prior(table, rows, segment, int(row), informed=informed) for row in candidate_rows],
        contract.CHAIN_NODES: nodes,
        contract.EVIDENCE: evidence,
        contract.COVERAGE: [covered / len(behaviours) if behaviours else 0.0],
        contract.UNKNOWN_COUNT: [unknown.sum()],
        contract.UNKNOWN_MASK: unknown,
        contract.TABLE_VERSION: [table.table.table_version],
    }
    return {spec.name: np.asarray(values[spec]).astype(spec.dtype)[None] for spec in contract.LOOKUP_OUTPUTS}


def _chains(behaviours: Behaviours, paths_of: list[list[tuple[int, float]]]) -> list[int]:
    """Path numbers of the tree's chains, ascending: the strongest, where there are more than fit."""
    ages_of_chain: dict[int, list[float]] = {}
    for (_, _, age_s), paths in zip(behaviours, paths_of, strict=True):
        for number, _ in paths:
            ages_of_chain.setdefault(number, []).append(age_s)
    strongest = sorted(
        ages_of_chain, key=lambda number: (-len(ages_of_chain[number]), min(ages_of_chain[number]), number)
    )
    return sorted(strongest[: contract.MAX_CHAINS])


def _window(table: ReferenceTable, behaviours: Behaviours, rows: list[int]) -> dict[contract.TensorSpec, Array]:
    tokens = np.zeros((contract.WINDOW, table.table.arrays.item_tokens.shape[1]), dtype=np.float16)
    context = np.full(contract.WINDOW, contract.PAD_CONTEXT, dtype=np.int32)
    latest = behaviours[-contract.WINDOW :]
    start = contract.WINDOW - len(latest)
    for place, (_, action, age_s) in enumerate(latest):
        gap_s = latest[place - 1][2] - age_s if place else 0.0
        reached = sum(np.float32(gap_s) >= np.float32(step) for step in contract.GAP_STEPS_S)
        tokens[start + place] = table.table.arrays.item_tokens[rows[len(rows) - len(latest) + place]]
        context[start + place] = 1 + action * contract.N_GAPS + reached
    return {contract.WINDOW_TOKENS: tokens, contract.WINDOW_CONTEXT: context}


def _prior(table: ReferenceTable, rows: list[int], segment: int, row: int, *, informed: bool) -> float:
    """What is added to one candidate's score."""
    arrays, weighing = table.table.arrays, table.table.weighing
    if row == contract.PAD_ROW:
        return -math.inf
    if row == contract.UNKNOWN_ROW:
        return -contract.UNKNOWN_PENALTY
    if not informed:
        column = 1 + segment if 1 + segment < arrays.item_prior.shape[1] else 0
        return float(arrays.item_prior[row, column])
    known = [other for other in rows if other >= contract.FIRST_ITEM_ROW][::-1][: weighing.company_last]
    total = 0.0
    for back, other in enumerate(known):
        for near, weight in zip(arrays.neighbours[other].tolist(), arrays.neighbour_weights[other], strict=True):
            if near == row:
                total += float(weight) * weighing.company_decay**back
    return weighing.company_scale * math.log1p(total / COMPANY_FLOOR) + float(arrays.item_bias[row])
