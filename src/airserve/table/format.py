"""The memory-mapped form of tables: their files, their manifests and the checks at opening.

Two kinds of table hold the same ids. The *intent table* (`tables/intents/`) has the frozen vectors of items and nodes;
a ranker is trained on it. The *served table* (`tables/serving/`) has the rows that an encoder made of them, what goes
together and what is popular; it is what a server opens, and it belongs to that encoder.

Runs inside the serving process: standard library and NumPy (1.26 and 2.x) only.

Shapes: N items, n event kinds, P paths per kind, D levels of a path, V vocabulary nodes with node 0, E vector width,
H token width, X = E + H, S segments, Q neighbours.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.artifacts import MANIFEST_FILE
from airserve.errors import ArtifactError

log = logging.getLogger(__name__)

NO_PATH = -1
"""Fills the unused places of a kind's path numbers."""
REBUILD = "run offline/build_tables.py again"
VERIFY_BYTES = 1 << 30
"""A table of up to this size is hashed whole when it is opened; of a larger one, sizes and headers are checked."""

Array = npt.NDArray[Any]


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
        for name in ("kind_likeness", "item_likeness", "item_prior", "neighbour_weights"):
            found.append((name, "finite numbers", bool(np.isfinite(getattr(self, name)).all())))
        # The logarithm of a negative sum is no number.
        found.append(("neighbour_weights", "weights >= 0", not bool((self.neighbour_weights < 0).any())))
        return found


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """The learned numbers that the lookup weighs a tree with; of a ranker, kept in its tables' manifests."""

    actions: tuple[float, ...] = tuple(0.0 for _ in range(contract.N_ACTIONS))
    """a(action), by action number; padding weighs nothing."""
    decay_per_day: float = 0.0
    """Lambda."""
    norms: tuple[float, ...] = tuple(1.0 for _ in range(contract.MAX_DEPTH))
    """What the weights of a chain of each depth are divided by."""
    company_scale: float = 0.0
    """Of the score of what is met together, log(1 + sum / `COMPANY_FLOOR`); 0: none."""
    company_last: int = 10
    """Latest known behaviours that count for it."""
    company_decay: float = 1.0
    """Weight of each of them over that of the next later one."""

    @classmethod
    def of_manifest(cls, values: Mapping[str, Any]) -> Weighing:
        """What a served table's manifest says.

        Raises:
            ArtifactError: if a number is missing, not known or no number.
        """
        try:
            numbers = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            if numbers.keys() != {one.name for one in fields(cls)}:
                raise TypeError(f"has {', '.join(sorted(numbers)) or 'nothing'}")
            return cls(**numbers)
        except TypeError as error:
            raise ArtifactError(
                "weighing",
                expected=f"the numbers {', '.join(one.name for one in fields(cls))}",
                got=str(error),
                remedy="make the table again with offline/encode_table.py",
            ) from None

    def __post_init__(self) -> None:
        numbers = [*self.actions, self.decay_per_day, *self.norms, self.company_scale, self.company_decay]
        if (
            len(self.actions) != contract.N_ACTIONS
            or len(self.norms) != contract.MAX_DEPTH
            or not np.isfinite(numbers).all()
            or min(self.norms) <= 0
            or self.company_last < 0
        ):
            raise ArtifactError(
                "weighing",
                expected=f"{contract.N_ACTIONS} actions and {contract.MAX_DEPTH} norms, finite numbers, norms above 0",
                got=str(self),
                remedy="export the ranker again with build/export_onnx.py",
            )


COMPANY_FLOOR = 0.01
"""A summed similarity of this much counts as little as it looks."""


@dataclass(frozen=True, kw_only=True)
class TableManifest:
    """What `manifest.json` says of a published table."""

    contract_version: int
    table_version: int
    """52 bits of the files' hash unless the publisher gave a number."""
    n_segments: int
    """User segments 0 .. n_segments - 1 have kinds of their own."""
    counts: Mapping[str, int]
    """See `Arrays.counts`."""
    catalogue_sha256: str
    """Of items.npy: which item has which catalogue row."""
    vocabulary_sha256: str
    """Of the vocabulary's ids, parents and texts."""
    files: Mapping[str, str]
    """File name -> sha256."""
    sizes: Mapping[str, int]
    """File name -> bytes."""
    encoder: str = ""
    """Identity of the encoder that made the rows; empty in an intent table."""
    weighing: Mapping[str, Any] = field(default_factory=dict)
    """The encoder's `Weighing`; empty in an intent table."""
    format: str = ""

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, subject: str, expected_format: str) -> TableManifest:
        """Parse and check the text of `manifest.json`; `subject` is named in messages.

        Raises:
            ArtifactError: if it is no manifest of this format and of this contract's version.
        """
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ArtifactError(subject, expected="a JSON object", got="something else", remedy=REBUILD)
        if values.get("contract_version") != contract.CONTRACT_VERSION:
            raise ArtifactError(
                subject,
                expected=f"contract version {contract.CONTRACT_VERSION} (this airserve)",
                got=f"contract version {values.get('contract_version')} (the table)",
                remedy=f"{REBUILD} with this version",
            )
        if values.get("format") != expected_format:
            raise ArtifactError(
                subject,
                expected=f"format {expected_format}",
                got=str(values.get("format")),
                remedy="give the folder of that kind of table: tables/intents or tables/serving",
            )
        for one in fields(cls):
            kind = {"int": int, "str": str}.get(str(one.type), dict)
            value = values.get(one.name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ArtifactError(f"{subject}: {one.name}", expected=kind.__name__, got=repr(value), remedy=REBUILD)
        for name, kind in (("files", str), ("sizes", int), ("counts", int)):
            if not all(isinstance(value, kind) for value in values[name].values()):
                raise ArtifactError(f"{subject}: {name}", expected=kind.__name__, got="other values", remedy=REBUILD)
        return cls(**{one.name: values[one.name] for one in fields(cls)})


FORMATS: dict[type[Arrays], str] = {IntentArrays: "airserve-intent-table-2", ServedArrays: "airserve-served-table-2"}
A = TypeVar("A", bound=Arrays)


def kind_keys(rows: Array, actions: Array, segments: Array | int, n_segments: int) -> npt.NDArray[np.int64]:
    """Keys of event kinds from catalogue rows, action numbers and segments < n_segments, in the rows' shape."""
    keys: npt.NDArray[np.int64] = (rows.astype(np.int64) * contract.N_ACTIONS + actions) * n_segments + segments
    return keys


def text_key(text: str) -> int:
    """A 64-bit key of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def file_name(array_name: str) -> str:
    """File that holds an array of a table."""
    return f"{array_name}.npy"


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def read_table(folder: Path, kind: type[A], *, verify: bool | None = None) -> tuple[TableManifest, A]:
    """Memory-map a published folder.

    Args:
        folder: the folder with `manifest.json`.
        kind: which arrays it holds.
        verify: hash every file and check every value; without it only the manifest, sizes, dtypes and shapes. None:
            for tables of up to `VERIFY_BYTES`, said in the log where it is not done.

    Raises:
        ArtifactError: if it is missing, damaged, incomplete, or of another format or contract version.
    """
    manifest = read_manifest(folder, kind)
    subject = str(folder / MANIFEST_FILE)
    if verify is None:
        total_bytes = sum(manifest.sizes.values())
        verify = total_bytes <= VERIFY_BYTES
        if not verify:
            log.warning("%s: %.1f GB: sizes are checked, checksums are not read", folder, total_bytes / 1e9)
    arrays = kind(**{name: _map_file(folder, name, manifest, verify=verify) for name in kind.DTYPES})
    check_dtypes_and_shapes(arrays, str(folder))
    for name, count in arrays.counts().items():
        if manifest.counts.get(name) != count:
            raise ArtifactError(
                f"{subject}: {name}", expected=str(manifest.counts.get(name)), got=str(count), remedy=REBUILD
            )
    if manifest.n_segments < 1:
        raise ArtifactError(f"{subject}: n_segments", expected=">= 1", got=str(manifest.n_segments), remedy=REBUILD)
    if verify:
        check_values(arrays, manifest.n_segments, str(folder))
    return manifest, arrays


def read_manifest(folder: Path, kind: type[Arrays]) -> TableManifest:
    """The manifest of a published folder; see `read_table`."""
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            str(path),
            expected="the manifest of a published table",
            got=type(error).__name__,
            remedy="give a table's folder, or run offline/build_tables.py",
        ) from None
    return TableManifest.from_json(text, str(path), FORMATS[kind])


def _map_file(folder: Path, name: str, manifest: TableManifest, *, verify: bool) -> Array:
    path = folder / file_name(name)
    expected, size = manifest.files.get(path.name), manifest.sizes.get(path.name)
    if expected is None or size is None:
        raise ArtifactError(
            str(folder / MANIFEST_FILE), expected=f"sha256 and size of {path.name}", got="none", remedy=REBUILD
        )
    again = f"copy the whole folder again or {REBUILD}"
    try:
        if (got_size := path.stat().st_size) != size:
            raise ArtifactError(str(path), expected=f"{size} bytes", got=str(got_size), remedy=again)
        if verify and (got := file_sha256(path)) != expected:
            raise ArtifactError(
                str(path),
                expected=f"sha256 {expected[:12]}",
                got=f"{got[:12]}: the file is damaged or from another table",
                remedy=again,
            )
        # A plain view of the map: indexing np.memmap itself costs several times more.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(
            str(path),
            expected="a NumPy file as published",
            got=f"{type(error).__name__}: {error}",
            remedy=again,
        ) from None
