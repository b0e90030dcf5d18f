"""Make a served table: an intent table and a log in, the rows that an encoder makes of them out.

Needs the exported encoders and ONNX Runtime, no torch: this runs every night. Learned vectors are taken for the items
and nodes that training knew, by item id and title and by a node's path; all others get the encoder's *none*. An item
whose title changed keeps its vector, unless most titles of the shared ids differ: then the catalogue is another shop's,
and no id means what it meant.

Shapes: N items, V nodes with node 0, E vector width, H token width, X = E + H, P paths.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from airserve import contract
from airserve.artifacts import ITEM_ENCODER_FILE, LEARNED_FILE, MANIFEST_FILE, NODE_ENCODER_FILE
from airserve.errors import ArtifactError
from airserve.table.company import Company, cosine_neighbours, popularity, with_guesses
from airserve.table.format import NO_PATH, ServedArrays, TableManifest, Weighing
from airserve.table.intents import IntentTable
from airserve.table.publish import publish_table

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]

CHUNK = 8192
"""Rows encoded at once: some 10 MB of inputs."""
SAME_SHOP = 0.5
"""Of the ids that both know, so many must have the title they had, or the catalogue is taken for another one's."""
REMEDY = "export the ranker again with build/export_onnx.py"


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What training learned of single items and nodes, and of none in particular."""

    items: Array
    """int64 [n] item ids, ascending."""
    titles: Array
    """uint64 [n], `text_key` of their titles."""
    item_ids: Array
    """float32 [n, H]."""
    no_item: Array
    """float32 [H]."""
    nodes: Array
    """uint64 [v], keys of the nodes' paths, ascending."""
    node_ids: Array
    """float32 [v, 3, H]: of the node's token, of a first path in a query, of another path in a query."""
    no_node: Array
    """float32 [3, H]."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The exported encoders of a ranker."""

    folder: Path
    manifest: dict[str, Any]
    learned: Learned

    @classmethod
    def open(cls, folder: Path) -> Encoder:
        """Read an engine folder.

        Raises:
            ArtifactError: if something is missing, damaged, of another export or of another contract.
        """
        path = folder / MANIFEST_FILE
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest.get("contract_version") != contract.CONTRACT_VERSION:
                raise ArtifactError(
                    str(path),
                    expected=f"contract version {contract.CONTRACT_VERSION} (this airserve)",
                    got=str(manifest.get("contract_version")),
                    remedy=REMEDY,
                )
            for name in (ITEM_ENCODER_FILE, NODE_ENCODER_FILE, LEARNED_FILE):
                got = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                if got != manifest["files"][name]:
                    raise ArtifactError(
                        str(folder / name),
                        expected=f"sha256 {manifest['files'][name][:12]}",
                        got=got[:12],
                        remedy=REMEDY,
                    )
            with np.load(folder / LEARNED_FILE, allow_pickle=False) as stored:
                learned = Learned(**{name: stored[name] for name in Learned.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                str(folder), expected="an exported encoder", got=f"{type(error).__name__}: {error}", remedy=REMEDY
            ) from None
        return cls(folder=folder, manifest=manifest, learned=learned)

    @property
    def identity(self) -> str:
        """Of all learned weights; rows and engine must have the same."""
        return str(self.manifest["encoder"])

    @property
    def company(self) -> Company:
        """How what is met together counts."""
        return Company(**self.manifest["company"])

    def weighing(self) -> Weighing:
        """What the lookup weighs trees with."""
        numbers = self.manifest["weighing"]
        company = self.company
        return Weighing(
            actions=tuple(numbers["actions"]),
            decay_per_day=numbers["decay_per_day"],
            norms=tuple(numbers["norms"]),
            company_scale=company.scale,
            company_last=company.last,
            company_decay=company.decay,
            cold_bias=company.cold_bias,
        )

    def session(self, name: str) -> ort.InferenceSession:
        """One of the encoders in ONNX Runtime."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return ort.InferenceSession(str(self.folder / name), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, kw_only=True)
class Events:
    """What a table is counted from: training events."""

    users: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    rows: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    """Catalogue rows of the table that is made."""
    segments: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    weights: Array = field(default_factory=lambda: np.zeros(0))
    """Of an event for the item's popularity."""


@dataclass(frozen=True, kw_only=True)
class EncodeReport:
    """What was found when rows were made."""

    items: int
    items_learned: int
    """With a learned id vector; the others have *none*."""
    titles_changed: int
    """Items with a learned vector whose title is not the one of training."""
    foreign: bool
    """The catalogue was taken for another shop's: no item has a learned vector."""
    nodes: int
    nodes_learned: int


def _places(known: Array, wanted: Array) -> Array:
    """Where each of `wanted` stands in ascending `known`, -1 where it does not."""
    if not len(known):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, place, -1)


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def encode_rows(
    table: IntentTable, encoder: Encoder, dtype: type[np.floating[Any]] = np.float16
) -> tuple[dict[str, Array], EncodeReport]:
    """Rows of all items and nodes.

    Args:
        table: ids and frozen vectors.
        encoder: of a ranker that was trained on vectors of the same embedder.
        dtype: of the rows.

    Returns:
        `node_rows`, `item_tokens`, `item_targets` and `item_bias` as in `ServedArrays`, and what was found.

    Raises:
        ArtifactError: if the vectors have another width than the encoder's, or a row comes out as no number.
    """
    learned, arrays = encoder.learned, table.arrays
    width = int(encoder.manifest["sizes"]["E"])
    if arrays.node_vectors.shape[1] != width:
        raise ArtifactError(
            "intent table",
            expected=f"vectors of {width} numbers (the encoder's)",
            got=str(arrays.node_vectors.shape[1]),
            remedy="build the tables with the embedder and projection of training (--previous)",
        )
    node_place = _places(learned.nodes, arrays.node_keys)
    node_ids_V3H = np.tile(learned.no_node, (arrays.n_nodes, 1, 1)).astype(np.float32)
    node_ids_V3H[node_place >= 0] = learned.node_ids[node_place[node_place >= 0]]
    node_rows = _encode_nodes(table, encoder, node_ids_V3H[:, 0], dtype)
    ids_NH, bias_N, found = _item_ids(table, learned)
    item_nodes_NPD = np.concatenate([arrays.paths, np.zeros((1, contract.MAX_DEPTH), dtype=np.int32)])[
        arrays.item_paths
    ]
    session = encoder.session(ITEM_ENCODER_FILE)
    names = [value.name for value in session.get_inputs()]
    tokens, targets = [], []
    for part in _chunks(arrays.n_rows):
        nodes_NPD = item_nodes_NPD[part]
        inputs = (
            ids_NH[part],
            np.asarray(arrays.item_vectors[part]),
            _mean_vectors(node_ids_V3H[:, 1], nodes_NPD[:, 0]),
            _mean_vectors(node_ids_V3H[:, 2], nodes_NPD[:, 1:].reshape(len(nodes_NPD), -1)),
        )
        made = session.run(None, dict(zip(names, inputs, strict=True)))
        tokens.append(made[0].astype(dtype))
        targets.append(made[1].astype(dtype))
    rows = {"node_rows": node_rows, "item_tokens": np.concatenate(tokens), "item_targets": np.concatenate(targets)}
    rows["item_bias"] = bias_N * np.float32(encoder.company.cold_bias)
    for name in ("item_tokens", "item_targets"):
        rows[name][contract.PAD_ROW] = 0
    for name, array in rows.items():
        if not np.isfinite(array).all():
            raise ArtifactError(
                name, expected="finite rows", got="infinite or no numbers", remedy="the weights are bad: train again"
            )
    report = EncodeReport(
        **found, items=len(table.items), nodes=len(node_place) - 1, nodes_learned=int((node_place >= 0).sum())
    )
    return rows, report


def _encode_nodes(table: IntentTable, encoder: Encoder, ids_VH: Array, dtype: Any) -> Array:
    arrays = table.arrays
    levels_V = np.zeros(arrays.n_nodes, dtype=np.int64)
    for level in range(contract.MAX_DEPTH):
        levels_V[arrays.paths[:, level]] = level
    session = encoder.session(NODE_ENCODER_FILE)
    names = [value.name for value in session.get_inputs()]
    parts = []
    for part in _chunks(arrays.n_nodes):
        inputs = (ids_VH[part], np.asarray(arrays.node_vectors[part]), levels_V[part])
        parts.append(session.run(None, dict(zip(names, inputs, strict=True)))[0].astype(dtype))
    rows: Array = np.concatenate(parts)
    rows[contract.PAD_NODE] = 0
    return rows


def _item_ids(table: IntentTable, learned: Learned) -> tuple[Array, Array, dict[str, Any]]:
    """Id vectors of all catalogue rows, float32 [N + 2, H], 1 where there is none, float32 [N + 2], and the counts."""
    place = _places(learned.items, table.items)
    shared = place >= 0
    same = np.zeros(len(shared), dtype=np.bool_)
    same[shared] = learned.titles[place[shared]] == table.arrays.title_keys[shared]
    foreign = bool(shared.any() and (same & shared).sum() < SAME_SHOP * shared.sum())
    if foreign:
        log.warning(
            "%d of %d ids that training knew have other titles now: another catalogue, no learned id is used",
            int((shared & ~same).sum()),
            int(shared.sum()),
        )
        shared = np.zeros_like(shared)
    ids_NH = np.tile(learned.no_item, (table.arrays.n_rows, 1)).astype(np.float32)
    ids_NH[contract.FIRST_ITEM_ROW :][shared] = learned.item_ids[place[shared]]
    changed = int((shared & ~same).sum())
    without_N = np.concatenate([np.zeros(contract.FIRST_ITEM_ROW), ~shared]).astype(np.float32)
    return ids_NH, without_N, {"items_learned": int(shared.sum()), "titles_changed": changed, "foreign": foreign}


def _mean_vectors(vectors_VH: Array, nodes_NX: Array) -> Array:
    """Mean vector of the nodes that are there, float32 [N, H]; zeros where none."""
    real_NX = nodes_NX != contract.PAD_NODE
    sums_NH = np.zeros((len(nodes_NX), vectors_VH.shape[1]), dtype=np.float32)
    for place in range(nodes_NX.shape[1]):
        sums_NH += vectors_VH[nodes_NX[:, place]] * real_NX[:, place, None]
    means_NH: Array = sums_NH / np.maximum(real_NX.sum(axis=1), 1)[:, None].astype(np.float32)
    return means_NH


def likeness(table: IntentTable, rows_X: Array, paths_XP: Array) -> npt.NDArray[np.float16]:
    """Cosine of items with the leaves of paths, float16 [X, P]; 0 where there is no path."""
    arrays = table.arrays
    depth = (arrays.paths != contract.PAD_NODE).sum(axis=1)
    leaves = np.append(arrays.paths[np.arange(len(arrays.paths)), np.maximum(depth - 1, 0)], contract.PAD_NODE)
    found = np.zeros(paths_XP.shape, dtype=np.float16)
    for part in _chunks(len(rows_X)):
        vectors_XE = arrays.item_vectors[rows_X[part]]
        for place in range(paths_XP.shape[1]):
            leaf_vectors_XE = arrays.node_vectors[leaves[paths_XP[part, place]]]
            found[part, place] = np.einsum("xe,xe->x", vectors_XE, leaf_vectors_XE)
    return found


def encode_table(
    table: IntentTable, encoder: Encoder, events: Events, out: Path, *, table_version: int | None = None
) -> tuple[TableManifest, EncodeReport]:
    """Make and publish a served table.

    Args:
        table: an intent table.
        encoder: of a ranker.
        events: training events, for what is met together and what is popular; may be empty.
        out: the `serving/` folder.
        table_version: see `publish_table`.
    """
    arrays = table.arrays
    rows, report = encode_rows(table, encoder)
    rows_of_kinds = (arrays.kinds.astype(np.int64) // (contract.N_ACTIONS * table.manifest.n_segments)).astype(np.int32)
    company = encoder.company
    if company.scale and len(events.rows):
        similarity = cosine_neighbours(events.users, events.rows, arrays.n_rows, company.shrinkage)
        neighbours, weights = with_guesses(similarity, arrays.item_vectors)
    else:
        neighbours = np.zeros((arrays.n_rows, 0), dtype=np.int32)
        weights = np.zeros(neighbours.shape, dtype=np.float16)
    served = ServedArrays(
        items=arrays.items,
        kinds=arrays.kinds,
        kind_paths=arrays.kind_paths,
        item_paths=arrays.item_paths,
        paths=arrays.paths,
        kind_likeness=likeness(table, rows_of_kinds, np.asarray(arrays.kind_paths)),
        item_likeness=likeness(table, np.arange(arrays.n_rows), np.asarray(arrays.item_paths)),
        **rows,
        item_prior=popularity(events.rows, events.weights, events.segments, arrays.n_rows, table.manifest.n_segments),
        neighbours=neighbours,
        neighbour_weights=weights,
    )
    manifest = publish_table(
        out,
        served,
        n_segments=table.manifest.n_segments,
        vocabulary_sha256=table.manifest.vocabulary_sha256,
        table_version=table_version,
        encoder=encoder.identity,
        weighing=encoder.weighing(),
    )
    return manifest, report


assert NO_PATH == -1, "a missing path reads the row of zeros at the end"
