"""The form of published tables: their files, their manifests and the checks at opening.

Two kinds of table hold the same ids. The *intent table* (`tables/intents/`) has the frozen vectors of items and nodes;
a ranker is trained on it. The *served table* (`tables/serving/`) has the rows that an encoder made of them, what goes
together and what is popular; it is what a server opens, and it belongs to that encoder.

Runs inside the serving process: standard library and NumPy (1.26 and 2.x) only.

Shapes: N items, n event kinds, P paths per kind, D levels of a path, V vocabulary nodes with node 0, E vector width,
H token width, X = E + H, S segments, Q neighbours.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.artifacts import MANIFEST_FILE
from airserve.errors import ArtifactError
from airserve.table.arrays import NO_PATH as NO_PATH
from airserve.table.arrays import REBUILD
from airserve.table.arrays import Arrays as Arrays
from airserve.table.arrays import IntentArrays as IntentArrays
from airserve.table.arrays import ServedArrays as ServedArrays
from airserve.table.arrays import check_dtypes_and_shapes as check_dtypes_and_shapes
from airserve.table.arrays import check_values as check_values
from airserve.table.arrays import file_name as file_name

log = logging.getLogger(__name__)

SMALL_BYTES = 1 << 30
"""A table of up to this size is read whole when it is opened, hashed, and held in memory of its own: what happens to
its files later cannot hurt. A larger one is mapped, and only sizes and headers are checked: its files must stay as they
are, for reading a mapped file that was cut ends the process (SIGBUS)."""

Array = npt.NDArray[Any]


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
    cold_bias: float = 0.0
    """In `item_bias` of items without a learned id; 0: it need not be looked at."""

    @classmethod
    def of_manifest(cls, values: Mapping[str, Any]) -> Weighing:
        """What a served table's manifest says.

        Raises:
            ArtifactError: if a number is missing, not known or no number.
        """
        try:
            numbers: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
            }
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


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_table(folder: Path, kind: type[A], *, verify: bool | None = None) -> tuple[TableManifest, A]:
    """Open a published folder, read into memory or, where it is large, mapped (`SMALL_BYTES`).

    Args:
        folder: the folder with `manifest.json`.
        kind: which arrays it holds.
        verify: hash every file and check every value; without it only the manifest, sizes, dtypes and shapes. None:
            for tables of up to `SMALL_BYTES`, said in the log where it is not done.

    Raises:
        ArtifactError: if it is missing, damaged, incomplete, or of another format or contract version.
    """
    manifest = read_manifest(folder, kind)
    subject = str(folder / MANIFEST_FILE)
    total_bytes = sum(manifest.sizes.values())
    small = total_bytes <= SMALL_BYTES
    if verify is None:
        verify = small
        if not verify:
            log.warning("%s: %.1f GB: sizes are checked, checksums are not read", folder, total_bytes / 1e9)
    arrays = kind(**{name: _open_file(folder, name, manifest, verify=verify, small=small) for name in kind.DTYPES})
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


def _open_file(folder: Path, name: str, manifest: TableManifest, *, verify: bool, small: bool) -> Array:
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
        content = path.read_bytes() if small else None
        if verify and (got := hashlib.sha256(content).hexdigest() if content else file_sha256(path)) != expected:
            raise ArtifactError(
                str(path),
                expected=f"sha256 {expected[:12]}",
                got=f"{got[:12]}: the file is damaged or from another table",
                remedy=again,
            )
        if content is not None:
            return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
        # A plain view of the map: indexing np.memmap itself costs several times more.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(
            str(path),
            expected="a NumPy file as published",
            got=f"{type(error).__name__}: {error}",
            remedy=again,
        ) from None
