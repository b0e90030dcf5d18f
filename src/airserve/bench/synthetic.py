"""A random table and an untrained ranker: enough to measure and to attack serving with, made in seconds.

Needs torch (the main environment). Scores mean nothing; sizes, formats and the graph are the real ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from airserve import contract
from airserve.artifacts import SERVING_FOLDER
from airserve.table.format import NO_PATH, TableArrays, kind_keys
from airserve.table.lookup import IntentTable
from airserve.table.publish import publish_table

VECTOR_WIDTH = 128
N_SEGMENTS = 3


def _tree_paths(rng: np.random.Generator, n_nodes: int, n_paths: int) -> np.ndarray:
    """int32 [n_paths, D], distinct paths over the node ids 1 .. n_nodes - 1."""
    found: set[tuple[int, ...]] = set()
    while len(found) < n_paths:
        depth = int(rng.integers(2, contract.MAX_DEPTH + 1))
        found.add(tuple(sorted(rng.choice(np.arange(1, n_nodes), depth, replace=False).tolist())))
    paths = np.zeros((n_paths, contract.MAX_DEPTH), dtype=np.int32)
    for row, path in zip(paths, sorted(found), strict=True):
        row[: len(path)] = path
    return paths


def _unit_rows(rng: np.random.Generator, rows: int, empty: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, VECTOR_WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:empty] = 0
    return vectors


def write_tables(folder: Path, *, n_items: int = 2000, n_nodes: int = 400, n_paths: int = 300, seed: int = 0) -> None:
    """Write `serving/` of a random table to a tables folder; item ids are 1 .. n_items."""
    rng = np.random.default_rng(seed)
    n_rows = n_items + contract.FIRST_ITEM_ROW

    def numbers(rows: int) -> np.ndarray:
        table = np.full((rows, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
        table[:, :2] = np.argsort(rng.random((rows, n_paths)), axis=1)[:, :2]
        return table

    item_paths = numbers(n_rows)
    item_paths[: contract.FIRST_ITEM_ROW] = NO_PATH
    rows = rng.integers(contract.FIRST_ITEM_ROW, n_rows, 2 * n_items)
    actions, segments = rng.integers(1, contract.N_ACTIONS, len(rows)), rng.integers(0, N_SEGMENTS, len(rows))
    kinds = np.unique(kind_keys(rows, actions, segments, N_SEGMENTS)).astype(np.uint64)
    arrays = TableArrays(
        items=np.arange(1, n_items + 1, dtype=np.int64),
        kinds=kinds,
        kind_paths=numbers(len(kinds)),
        item_paths=item_paths,
        paths=_tree_paths(rng, n_nodes, n_paths),
        node_vectors=_unit_rows(rng, n_nodes, 1),
        item_vectors=_unit_rows(rng, n_rows, contract.FIRST_ITEM_ROW),
    )
    publish_table(folder / SERVING_FOLDER, arrays, n_segments=N_SEGMENTS, vocabulary_sha256="0" * 64)


def write_engine(tables: Path, folder: Path) -> None:
    """Export an untrained ranker of the usual sizes for a table."""
    import torch

    from airserve.export.onnx import export_ranker, write_manifest
    from airserve.model.ranker import Ranker, RankerSettings
    from airserve.training.checkpoint import item_nodes

    torch.manual_seed(0)
    table = IntentTable.open(tables / SERVING_FOLDER)
    items, nodes = (torch.from_numpy(np.array(array)) for array in (table.item_vectors, table.node_vectors))
    levels = torch.arange(len(nodes)) % contract.MAX_DEPTH
    own_nodes = torch.from_numpy(item_nodes(table))
    ranker = Ranker(items, nodes, levels, RankerSettings(), own_nodes).eval()
    export_ranker(ranker, table, folder)
    write_manifest(folder, table, {"untrained": True})
