"""The arrays of both kinds of table: what is in them, and what must hold of it.

Runs inside the serving process: standard library and NumPy (1.26 and 2.x) only.

Shapes: N items, n event kinds, P paths per kind, D levels of a path, V vocabulary nodes with node 0, E vector width,
H token width, X = E + H, S segments, Q neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.errors import ArtifactError

NO_PATH = -1
"""Fills the unused places of a kind's path numbers."""
REBUILD = "run offline/build_tables.py again"

Array = npt.NDArray[Any]


def file_name(array_name: str) -> str:
    """File that holds an array of a table."""
    return f"{array_name}.npy"


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """The ids of a table, one file each."""

    items: Array
    """int64 [N] item ids, ascending; item i has catalogue row i + FIRST_ITEM_ROW."""
    kinds: Array
    """uint64 [n] keys of event kinds, ascending, see `kind_keys`."""
    kind_paths: Array
    """int32 [n, P] path numbers, distinct, NO_PATH behind the last."""
    item_paths: Array
    """int32 [N + 2, P] default path numbers of each catalogue row; none in rows 0 and 1."""
    paths: Array
    """int32 [n_paths, D] node ids, coarse to fine, 0 behind the last."""

    DTYPES: ClassVar[Mapping[str, type[np.generic]]] = {
        "items": np.int64,
        "kinds": np.uint64,
        "kind_paths": np.int32,
        "item_paths": np.int32,
        "paths": np.int32,
    }

    @property
    def n_rows(self) -> int:
        """Catalogue rows, with the reserved ones."""
        return len(self.items) + contract.FIRST_ITEM_ROW

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array that the others imply."""
        return {
            "items": (len(self.items),),
            "kinds": (len(self.kinds),),
            "kind_paths": (len(self.kinds), contract.MAX_PATHS),
            "item_paths": (self.n_rows, contract.MAX_PATHS),
            "paths": (len(self.paths), contract.MAX_DEPTH),
        }

    def facts(self) -> list[tuple[str, str, bool]]:
        """(array, what must hold of its values, whether it does)."""
        kinds = self.kinds.view(np.int64)
        found = [
            ("items", "ids in ascending order, each once", bool((self.items[1:] > self.items[:-1]).all())),
            ("items", f"no id {contract.PAD_ITEM}", contract.PAD_ITEM not in self.items[:1]),
            ("kinds", "keys in ascending order, each once", bool((kinds[1:] > kinds[:-1]).all())),
            (
                "item_paths",
                "no paths in the reserved rows",
                bool((self.item_paths[: contract.FIRST_ITEM_ROW] == NO_PATH).all()),
            ),
            ("paths", f"node ids below {self.n_nodes}", _within(self.paths, 0, self.n_nodes)),
            ("paths", "node ids coarse to fine without gaps", _packed(self.paths, contract.PAD_NODE)),
            ("paths", "at least one node in a path", bool((self.paths[:, 0] != contract.PAD_NODE).all())),
        ]
        for name in ("kind_paths", "item_paths"):
            numbers = getattr(self, name)
            found += [
                (name, f"path numbers below {len(self.paths)}", _within(numbers, NO_PATH, len(self.paths))),
                (name, "path numbers without gaps", _packed(numbers, NO_PATH)),
                (name, "each path once in a row", _distinct_in_rows(numbers)),
            ]
        return found

    @property
    def n_nodes(self) -> int:
        """Nodes of the vocabulary, with node 0."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """What the manifest says of the sizes."""
        return {
            "n_items": len(self.items),
            "n_kinds": len(self.kinds),
            "n_paths": len(self.paths),
            "n_nodes": self.n_nodes,
        }


@dataclass(frozen=True, kw_only=True)
class IntentArrays(Arrays):
    """An intent table's arrays."""

    node_vectors: Array
    """float32 [V, E], L2-normalised; row 0 zeros."""
    item_vectors: Array
    """float32 [N + 2, E], L2-normalised; rows 0 and 1 zeros."""
    title_keys: Array
    """uint64 [N], a key of each item's title: an id means the same thing only while its title does."""
    node_keys: Array
    """uint64 [V], a key of each node's path, 0 for node 0: what it is called in another vocabulary too."""

    DTYPES: ClassVar[Mapping[str, type[np.generic]]] = {
        **Arrays.DTYPES,
        "node_vectors": np.float32,
        "item_vectors": np.float32,
        "title_keys": np.uint64,
        "node_keys": np.uint64,
    }

    @property
    def n_nodes(self) -> int:
        """See `Arrays`."""
        return len(self.node_vectors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Arrays`."""
        width = self.node_vectors.shape[-1] if self.node_vectors.ndim else 0
        return super().shapes() | {
            "node_vectors": (self.n_nodes, width),
            "item_vectors": (self.n_rows, width),
            "title_keys": (len(self.items),),
            "node_keys": (self.n_nodes,),
        }

    def counts(self) -> dict[str, int]:
        """See `Arrays`."""
        return super().counts() | {"vector_width": int(self.node_vectors.shape[1])}

    def facts(self) -> list[tuple[str, str, bool]]:
        """See `Arrays`."""
        return [
            *super().facts(),
            *_zeros_then_finite("node_vectors", self.node_vectors, 1),
            *_zeros_then_finite("item_vectors", self.item_vectors, contract.FIRST_ITEM_ROW),
        ]


@dataclass(frozen=True, kw_only=True)
class ServedArrays(Arrays):
    """A served table's arrays."""

    kind_likeness: Array
    """float16 [n, P], cosine of a kind's item with the leaf of each of its paths."""
    item_likeness: Array
    """float16 [N + 2, P], the same for an item's default paths."""
    node_rows: Array
    """float16 [V, X] of the node encoder; row 0 zeros."""
    item_tokens: Array
    """float16 [N + 2, H] of the item encoder; row 0 zeros, row 1 of an item that nothing is known about."""
    item_targets: Array
    """float16 [N + 2, X] of the item encoder; row 0 zeros."""
    item_prior: Array
    """float16 [N + 2, 1 + S], popularity over all, then by segment, see `company.popularity`."""
    item_bias: Array
    """float32 [N + 2], added to an item's score: for items without a learned id."""
    neighbours: Array
    """int32 [N + 2, Q] rows of what is met together with an item, 0 where none."""
    neighbour_weights: Array
    """float16 [N + 2, Q], how strongly, >= 0, 0 where none."""

    DTYPES: ClassVar[Mapping[str, type[np.generic]]] = {
        **Arrays.DTYPES,
        "kind_likeness": np.float16,
        "item_likeness": np.float16,
        "node_rows": np.float16,
        "item_tokens": np.float16,
        "item_targets": np.float16,
        "item_prior": np.float16,
        "item_bias": np.float32,
        "neighbours": np.int32,
        "neighbour_weights": np.float16,
    }

    @property
    def n_nodes(self) -> int:
        """See `Arrays`."""
        return len(self.node_rows)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Arrays`."""

        def width(array: Array) -> int:
            return int(array.shape[-1]) if array.ndim else 0

        return super().shapes() | {
            "kind_likeness": (len(self.kinds), contract.MAX_PATHS),
            "item_likeness": (self.n_rows, contract.MAX_PATHS),
            "node_rows": (self.n_nodes, width(self.node_rows)),
            "item_tokens": (self.n_rows, width(self.item_tokens)),
            "item_targets": (self.n_rows, width(self.node_rows)),
            "item_prior": (self.n_rows, max(width(self.item_prior), 1)),
            "item_bias": (self.n_rows,),
            "neighbours": (self.n_rows, width(self.neighbours)),
            "neighbour_weights": (self.n_rows, width(self.neighbours)),
        }

    def counts(self) -> dict[str, int]:
        """See `Arrays`."""
        sizes = {"token_width": self.item_tokens, "row_width": self.node_rows, "n_neighbours": self.neighbours}
        return super().counts() | {name: int(array.shape[1]) for name, array in sizes.items()}

    def facts(self) -> list[tuple[str, str, bool]]:
        """See `Arrays`."""
        found = [
            *super().facts(),
            ("neighbours", f"rows below {self.n_rows}", _within(self.neighbours, 0, self.n_rows)),
        ]
        for name in ("node_rows", "item_tokens", "item_targets"):
            found += _zeros_then_finite(name, getattr(self, name), 1)
        for name in ("kind_likeness", "item_likeness", "item_prior", "item_bias", "neighbour_weights"):
            found.append((name, "finite numbers", bool(np.isfinite(getattr(self, name)).all())))
        # The logarithm of a negative sum is no number.
        found.append(("neighbour_weights", "weights >= 0", not bool((self.neighbour_weights < 0).any())))
        return found


def check_dtypes_and_shapes(arrays: Arrays, subject: str) -> None:
    """Check the arrays against one another by dtype and shape only; reads no data.

    Raises:
        ArtifactError: naming the file.
    """
    for name, dtype in arrays.DTYPES.items():
        array = getattr(arrays, name)
        if array.ndim == 0 or array.dtype != dtype:
            raise ArtifactError(
                f"{subject}/{file_name(name)}",
                expected=f"an array of {dtype.__name__}",
                got=f"{array.dtype} {list(array.shape)}",
                remedy=REBUILD,
            )
    for name, shape in arrays.shapes().items():
        got = getattr(arrays, name).shape
        if got != shape:
            raise ArtifactError(
                f"{subject}/{file_name(name)}", expected=f"shape {list(shape)}", got=str(list(got)), remedy=REBUILD
            )


def check_values(arrays: Arrays, n_segments: int, subject: str) -> None:
    """Check every value that the lookup relies on: order, bounds, padding, finite numbers.

    Raises:
        ArtifactError: naming the file and what is wrong in it.
    """
    kinds = arrays.kinds.view(np.int64)
    first_key = contract.FIRST_ITEM_ROW * contract.N_ACTIONS * n_segments
    below = arrays.n_rows * contract.N_ACTIONS * n_segments
    own_items = ("kinds", "keys of items of this table", bool(((kinds >= first_key) & (kinds < below)).all()))
    for name, expected, holds in (*arrays.facts(), own_items):
        if not holds:
            raise ArtifactError(f"{subject}/{file_name(name)}", expected=expected, got="other values", remedy=REBUILD)


def _within(array: Array, low: int, high: int) -> bool:
    return bool(array.size == 0 or (array.min() >= low and array.max() < high))


def _zeros_then_finite(name: str, array: Array, reserved: int) -> list[tuple[str, str, bool]]:
    return [
        (name, f"zeros in the first {reserved} rows", len(array) >= reserved and not array[:reserved].any()),
        (name, "finite numbers", bool(np.isfinite(array).all())),
    ]


def _packed(array: Array, empty: int) -> bool:
    """Whether no filled place of a row stands behind an empty one."""
    filled = array != empty
    return not bool((filled[:, 1:] & ~filled[:, :-1]).any())


def _distinct_in_rows(array: Array) -> bool:
    ordered = np.sort(array, axis=1)
    return not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_PATH)).any())
