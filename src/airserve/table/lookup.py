"""Look a batch of requests up in a published table: item ids in, the ranker's rows and weights out.

Runs once per call inside Triton's Python backend: standard library and NumPy (1.26 and 2.x) only. No LLM and no
network: binary searches and gathers in arrays, then one small weighted tree per request. What limits it:
some 90 NumPy calls of 1 to 10 us a request.

Shapes: B requests, L behaviours, T window, C candidates, P paths per behaviour, R chains, D levels, U tree nodes,
M evidence, H token width, X row width, Q neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.table.format import (
    COMPANY_FLOOR,
    NO_PATH,
    A,
    ServedArrays,
    TableManifest,
    Weighing,
    kind_keys,
    read_table,
)
from airserve.table.tree import choose_evidence, compose_tree, weigh_nodes

Array = npt.NDArray[Any]
SECONDS_PER_DAY = 86400.0

_PADDING: dict[str, Any] = {
    contract.BEHAVIOUR_ITEMS.name: contract.PAD_ITEM,
    contract.CANDIDATE_ITEMS.name: contract.PAD_ITEM,
    contract.CHAIN_BIAS.name: contract.PADDED_CHAIN,
    contract.CANDIDATE_PRIOR.name: -np.inf,
    contract.EVIDENCE.name: contract.NO_EVIDENCE,
}
"""What fills a tensor behind its last value; 0 where not named."""
_SPECS = {spec.name: spec for spec in (*contract.REQUEST, *contract.LOOKUP_OUTPUTS)}
_CHAIN_BIAS = -contract.TIE_STEP * np.arange(contract.MAX_CHAINS, dtype=np.float32)
_NO_ROW = np.array([contract.PAD_ROW], dtype=np.int32)
_GAP_STEPS_S = np.array(contract.GAP_STEPS_S, dtype=np.float32)


class KindIndex(Generic[A]):
    """The ids of a table: rows of items, paths of event kinds. Safe to share between threads."""

    def __init__(self, manifest: TableManifest, arrays: A) -> None:
        self.manifest = manifest
        self.arrays = arrays
        self.items = arrays.items
        # Same dtype as the needles, or searchsorted converts the whole array on every call.
        self._kinds = arrays.kinds.view(np.int64)

    @property
    def table_version(self) -> int:
        """Version of the table, as the response reports it."""
        return self.manifest.table_version

    def rows(self, items: Array) -> npt.NDArray[np.int32]:
        """Catalogue rows of int64 item ids, any shape: PAD_ROW for PAD_ITEM, UNKNOWN_ROW for unknown ids."""
        position, found = _find(self.items, items)
        rows: npt.NDArray[np.int32] = position.astype(np.int32)
        rows += contract.FIRST_ITEM_ROW
        if not found.all():
            rows[~found] = contract.UNKNOWN_ROW
            rows[items == contract.PAD_ITEM] = contract.PAD_ROW
        return rows

    def kind_positions(self, rows: Array, actions: Array, segment: Array | int) -> tuple[Array, Array]:
        """Where each behaviour's kind stands, and whether it was asked; rows, actions and result of one shape.

        A kind that was never asked takes its item's and action's kind in segment 0.
        """
        n_segments = self.manifest.n_segments
        if isinstance(segment, int):
            segment = segment if segment < n_segments else 0
        else:
            segment = np.where(segment < n_segments, segment, 0)
        position, found = _find(self._kinds, kind_keys(rows, actions, segment, n_segments))
        if np.any(segment) and not found.all():
            at_0, found_0 = _find(self._kinds, kind_keys(rows, actions, 0, n_segments))
            position = np.where(found, position, at_0)
            found |= found_0
        return position, found

    def path_numbers(self, rows_BL: Array, actions_BL: Array, segment_B1: Array) -> npt.NDArray[np.int32]:
        """Path numbers [B, L, P] of each behaviour, NO_PATH where none: of its kind, else its item's default paths."""
        position, found = self.kind_positions(rows_BL, actions_BL, segment_B1)
        return self.of_kinds(self.arrays.kind_paths, self.arrays.item_paths, rows_BL, position, found)

    def of_kinds(self, by_kind: Array, by_item: Array, rows: Array, position: Array, found: Array) -> Array:
        """Values of kinds where they were asked, else of their items; [..., P]."""
        if found.all() and len(self._kinds):
            return by_kind.take(position, axis=0)
        values = by_item.take(rows, axis=0)
        asked = found.nonzero()
        values[asked] = by_kind.take(position[asked], axis=0)
        return values


class ServedTable(KindIndex[ServedArrays]):
    """A published table with an encoder's rows, opened read-only."""

    def __init__(self, manifest: TableManifest, arrays: ServedArrays) -> None:
        super().__init__(manifest, arrays)
        self.weighing = Weighing.of_manifest(manifest.weighing)
        self._actions_A = np.array(self.weighing.actions, dtype=np.float32)
        self._levels_D1 = np.diff(self.weighing.norms, prepend=0.0).astype(np.float32)[:, None]
        self._decay_per_s = np.float32(-self.weighing.decay_per_day / SECONDS_PER_DAY)
        self._has_bias = self.weighing.cold_bias > 0
        last = self.weighing.company_last if arrays.neighbours.shape[1] and self.weighing.company_scale else 0
        self._recency_W1 = (self.weighing.company_decay ** np.arange(last, dtype=np.float32))[:, None]

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool | None = None) -> ServedTable:
        """Open a `serving/` folder; see `format.read_table`.

        Raises:
            ArtifactError: if it is missing, damaged, incomplete, or made for another contract.
        """
        return cls(*read_table(Path(folder), ServedArrays, verify=verify))

    def lookup(self, request: Mapping[str, Array]) -> dict[str, Array]:
        """Answer a validated call.

        Args:
            request: the tensors of `contract.REQUEST`, batch axis first, as `contract.validate_request` accepts them.

        Returns:
            The tensors of `contract.LOOKUP_OUTPUTS`; R >= K. Coverage counts behaviours with a path in the table, 0
            for an empty history. Where no behaviour is of a known item the candidates' tokens are zeros, so that the
            sequence tower has no say, and the prior is the popularity in the user's segment.
        """
        items = np.concatenate((request[contract.BEHAVIOUR_ITEMS.name], request[contract.CANDIDATE_ITEMS.name]), axis=1)
        rows = self.rows(items)
        n_behaviours = request[contract.BEHAVIOUR_ITEMS.name].shape[1]
        parts = [
            self._look_up_one(
                rows_LC[:n_behaviours],
                request[contract.BEHAVIOUR_ACTIONS.name][at],
                request[contract.BEHAVIOUR_AGES_S.name][at],
                int(request[contract.USER_SEGMENT.name][at, 0]),
                rows_LC[n_behaviours:],
            )
            for at, rows_LC in enumerate(rows)
        ]
        return parts[0] if len(parts) == 1 else merge_lookups(parts)

    def _look_up_one(
        self, rows_L: Array, actions_L: Array, ages_s_L: Array, segment: int, rows_C: Array
    ) -> dict[str, Array]:
        """One request, batch axis of one."""
        places = None
        if not rows_L.all():
            places = rows_L.nonzero()[0]
            rows_L, actions_L, ages_s_L = (values.take(places) for values in (rows_L, actions_L, ages_s_L))
        tree = self._tree(rows_L, actions_L, ages_s_L, segment, places)
        informed = bool((rows_L >= contract.FIRST_ITEM_ROW).any())
        unknown_C = rows_C == contract.UNKNOWN_ROW
        n_unknown = int(np.count_nonzero(unknown_C))
        arrays = self.arrays
        return {
            **self._window(rows_L, actions_L, ages_s_L),
            **tree,
            contract.CANDIDATE_TOKENS.name: arrays.item_tokens.take(
                rows_C if informed else np.zeros_like(rows_C), axis=0
            )[None],
            contract.CANDIDATE_TARGETS.name: arrays.item_targets.take(rows_C, axis=0)[None],
            contract.CANDIDATE_PRIOR.name: self._prior(
                rows_L, rows_C, unknown_C if n_unknown else None, segment, informed=informed
            )[None],
            contract.UNKNOWN_COUNT.name: np.array([[n_unknown]], dtype=np.int32),
            contract.UNKNOWN_MASK.name: unknown_C[None],
            contract.TABLE_VERSION.name: np.array([[self.table_version]], dtype=np.int64),
        }

    def _window(self, rows_L: Array, actions_L: Array, ages_s_L: Array) -> dict[str, Array]:
        """The latest behaviours, at the end of a window of a fixed size."""
        size = min(len(rows_L), contract.WINDOW)
        start = contract.WINDOW - size
        tokens_TH = np.zeros((contract.WINDOW, self.arrays.item_tokens.shape[1]), dtype=self.arrays.item_tokens.dtype)
        context_T = np.full(contract.WINDOW, contract.PAD_CONTEXT, dtype=np.int32)
        if size:
            self.arrays.item_tokens.take(rows_L[-size:], axis=0, out=tokens_TH[start:], mode="clip")
            gaps = np.zeros(size, dtype=np.int32)
            # The first of the window has no gap, whatever came before it: so was it trained.
            latest = ages_s_L[-size:]
            gaps[1:] = _GAP_STEPS_S.searchsorted(latest[:-1] - latest[1:], side="right")
            context_T[start:] = 1 + actions_L[-size:] * contract.N_GAPS + gaps
        return {contract.WINDOW_TOKENS.name: tokens_TH[None], contract.WINDOW_CONTEXT.name: context_T[None]}

    def _tree(
        self, rows_L: Array, actions_L: Array, ages_s_L: Array, segment: int, places: Array | None
    ) -> dict[str, Array]:
        """The weighted tree's chains: rows, weights, evidence."""
        arrays = self.arrays
        position_L, found_L = self.kind_positions(rows_L, actions_L, segment)
        numbers_LP = self.of_kinds(arrays.kind_paths, arrays.item_paths, rows_L, position_L, found_L)
        tree = compose_tree(arrays.paths, len(arrays.node_rows), numbers_LP, ages_s_L)
        n_chains = len(tree.chain_slots)
        shown = max(n_chains, contract.MIN_CHAINS)
        nodes_RD = np.zeros((shown, contract.MAX_DEPTH), dtype=np.int32)
        weights_RD = np.zeros((shown, contract.MAX_DEPTH), dtype=np.float32)
        evidence_RM = np.full((shown, contract.MAX_EVIDENCE), contract.NO_EVIDENCE, dtype=np.int32)
        bias_R = np.full(shown, contract.PADDED_CHAIN, dtype=np.float32)
        evidence_rows_RM = np.zeros((shown, contract.MAX_EVIDENCE), dtype=np.int32)
        if n_chains:
            fresh_L = np.exp(ages_s_L * self._decay_per_s)
            log_weights_U = weigh_nodes(tree, self._actions_A.take(actions_L) * fresh_L)
            slots_RD = tree.chain_slots
            nodes_RD[:n_chains] = tree.nodes.take(slots_RD)
            norms_R1 = (slots_RD != contract.PAD_SLOT).astype(np.float32).dot(self._levels_D1)
            np.divide(log_weights_U.take(slots_RD), norms_R1, out=weights_RD[:n_chains])
            likeness_LP = self.of_kinds(arrays.kind_likeness, arrays.item_likeness, rows_L, position_L, found_L)
            relevance_LP = (likeness_LP.astype(np.float32) * 0.5 + 0.5) * fresh_L[:, None]
            chosen_RM = choose_evidence(tree.behaviour_chains, relevance_LP, n_chains)
            # No evidence (-1) reads the last of the rows, the one of zeros.
            evidence_rows_RM[:n_chains] = np.concatenate((rows_L, _NO_ROW)).take(chosen_RM, mode="wrap")
            evidence_RM[:n_chains] = chosen_RM
            if places is not None:
                evidence_RM[:n_chains] = np.append(places, contract.NO_EVIDENCE).take(chosen_RM, mode="wrap")
            bias_R[:n_chains] = _CHAIN_BIAS[:n_chains]
        covered = np.count_nonzero(numbers_LP[:, 0] != NO_PATH)
        return {
            contract.CHAIN_ROWS.name: arrays.node_rows.take(nodes_RD, axis=0)[None],
            contract.LEVEL_WEIGHTS.name: weights_RD[None],
            contract.CHAIN_BIAS.name: bias_R[None],
            contract.EVIDENCE_TOKENS.name: arrays.item_tokens.take(evidence_rows_RM, axis=0)[None],
            contract.CHAIN_NODES.name: nodes_RD[None],
            contract.EVIDENCE.name: evidence_RM[None],
            contract.COVERAGE.name: np.array([[covered / max(len(rows_L), 1)]], dtype=np.float32),
        }

    def _prior(
        self, rows_L: Array, rows_C: Array, unknown_C: Array | None, segment: int, *, informed: bool
    ) -> npt.NDArray[np.float32]:
        """What is added to the candidates' scores."""
        if informed:
            prior_C = self._company(rows_L, rows_C)
            if self._has_bias:
                prior_C += self.arrays.item_bias.take(rows_C)
        else:
            by_segment = self.arrays.item_prior.shape[1]
            column = 1 + segment if 1 + segment < by_segment else 0
            prior_C = self.arrays.item_prior[rows_C, column].astype(np.float32)
        if unknown_C is not None:
            prior_C[unknown_C] = -contract.UNKNOWN_PENALTY
        if not rows_C.all():
            prior_C[rows_C == contract.PAD_ROW] = -np.inf
        return prior_C

    def _company(self, rows_L: Array, rows_C: Array) -> npt.NDArray[np.float32]:
        """Score of what is met together with the latest behaviours, float32 [C]."""
        if not len(self._recency_W1):
            return np.zeros(len(rows_C), dtype=np.float32)
        if contract.UNKNOWN_ROW in rows_L:
            rows_L = rows_L[rows_L >= contract.FIRST_ITEM_ROW]
        latest_W = rows_L[-len(self._recency_W1) :][::-1]
        near_X = self.arrays.neighbours.take(latest_W, axis=0).ravel()
        weights_WQ = self.arrays.neighbour_weights.take(latest_W, axis=0).astype(np.float32)
        weights_X = (weights_WQ * self._recency_W1[: len(latest_W)]).ravel()
        ordered_C = np.sort(rows_C)
        place_X = ordered_C.searchsorted(near_X)
        np.minimum(place_X, len(ordered_C) - 1, out=place_X)
        hits = (ordered_C.take(place_X) == near_X).nonzero()[0]
        if not len(hits):
            return np.zeros(len(rows_C), dtype=np.float32)
        sums_C = np.bincount(place_X.take(hits), weights=weights_X.take(hits), minlength=len(ordered_C))
        scores_C = self.weighing.company_scale * np.log1p(sums_C.astype(np.float32) * np.float32(1.0 / COMPANY_FLOOR))
        # A candidate that comes twice was counted at the first of its places.
        found_C: npt.NDArray[np.float32] = scores_C.astype(np.float32).take(ordered_C.searchsorted(rows_C))
        return found_C


def _find(ascending: Array, needles: Array) -> tuple[Array, Array]:
    """Positions of the needles in an ascending array of the same dtype, and which of them are there."""
    if ascending.size == 0:
        return np.zeros(needles.shape, dtype=np.int64), np.zeros(needles.shape, dtype=np.bool_)
    position = ascending.searchsorted(needles)
    np.minimum(position, ascending.size - 1, out=position)
    return position, ascending.take(position) == needles


def ranker_inputs(looked_up: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of `contract.RANKER_INPUTS` among those of a lookup."""
    return {spec.name: looked_up[spec.name] for spec in contract.RANKER_INPUTS}


def merge_lookups(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Join calls along the batch axis, padding every axis that varies to its longest in any tensor.

    Args:
        parts: calls with the same tensors each, all named in `contract.REQUEST` or `contract.LOOKUP_OUTPUTS`.
    """
    merged: dict[str, Array] = {}
    for name in parts[0]:
        spec = _SPECS[name]
        arrays = [part[name] for part in parts]
        shape = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
        if all(array.shape[1:] == shape for array in arrays):
            merged[name] = np.concatenate(arrays)
            continue
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
