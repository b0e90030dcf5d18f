"""A random table and an untrained ranker: enough to measure and to attack serving with, made in seconds.

Needs torch (the main environment). Scores mean nothing; sizes, formats and the graph are the real ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from airserve import contract
from airserve.artifacts import INTENTS_FOLDER, SERVING_FOLDER
from airserve.table.company import Company
from airserve.table.encode import Encoder, Events, encode_table
from airserve.table.format import NO_PATH, IntentArrays, kind_keys, text_key
from airserve.table.intents import IntentTable
from airserve.table.publish import publish_table

VECTOR_WIDTH = 128
N_SEGMENTS = 3


def _tree_paths(rng: np.random.Generator, n_nodes: int, n_paths: int) -> np.ndarray:
    """int32 [n_paths, D], distinct paths of a random forest over the node ids 1 .. n_nodes - 1."""
    parents = np.zeros(n_nodes, dtype=np.int32)
    levels = np.zeros(n_nodes, dtype=np.int32)
    for node in range(2, n_nodes):
        parent = int(rng.integers(0, node))
        if parent and levels[parent] + 1 < contract.MAX_DEPTH:
            parents[node], levels[node] = parent, levels[parent] + 1
    ends = np.sort(rng.permutation(np.arange(1, n_nodes))[:n_paths])
    paths = np.zeros((len(ends), contract.MAX_DEPTH), dtype=np.int32)
    for row, end in zip(paths, ends, strict=True):
        node = int(end)
        for level in range(levels[end], -1, -1):
            row[level] = node
            node = int(parents[node])
    return paths


def _unit_rows(rng: np.random.Generator, rows: int, empty: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, VECTOR_WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:empty] = 0
    return vectors


def random_arrays(
    *, n_items: int = 2000, n_nodes: int = 400, n_paths: int = 300, seed: int = 0, first_item: int = 1
) -> IntentArrays:
    """A random intent table's arrays; item ids are first_item .. first_item + n_items - 1."""
    rng = np.random.default_rng(seed)
    n_rows = n_items + contract.FIRST_ITEM_ROW
    paths = _tree_paths(rng, n_nodes, n_paths)

    def numbers(rows: int) -> np.ndarray:
        table = np.full((rows, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
        table[:, 0] = rng.integers(0, len(paths), rows)
        table[:, 1] = (table[:, 0] + rng.integers(1, len(paths), rows)) % len(paths)
        return table

    item_paths = numbers(n_rows)
    item_paths[: contract.FIRST_ITEM_ROW] = NO_PATH
    rows = rng.integers(contract.FIRST_ITEM_ROW, n_rows, 2 * n_items)
    actions, segments = rng.integers(1, contract.N_ACTIONS, len(rows)), rng.integers(0, N_SEGMENTS, len(rows))
    kinds = np.unique(kind_keys(rows, actions, segments, N_SEGMENTS)).astype(np.uint64)
    items = np.arange(first_item, first_item + n_items, dtype=np.int64)
    return IntentArrays(
        items=items,
        kinds=kinds,
        kind_paths=numbers(len(kinds)),
        item_paths=item_paths,
        paths=paths,
        node_vectors=_unit_rows(rng, n_nodes, 1),
        item_vectors=_unit_rows(rng, n_rows, contract.FIRST_ITEM_ROW),
        title_keys=np.array([text_key(f"{seed} item {item}") for item in items], dtype=np.uint64),
        node_keys=np.array([0, *(text_key(f"{seed} node {node}") for node in range(1, n_nodes))], dtype=np.uint64),
    )


def random_events(n_items: int, *, seed: int = 0) -> Events:
    """Random training events of a random table."""
    rng = np.random.default_rng([seed, 1])
    count = 8 * n_items
    return Events(
        users=rng.integers(0, n_items, count),
        rows=rng.integers(contract.FIRST_ITEM_ROW, n_items + contract.FIRST_ITEM_ROW, count).astype(np.int32),
        segments=rng.integers(0, N_SEGMENTS, count).astype(np.int32),
        weights=np.ones(count),
    )


def write_intents(tables: Path, arrays: IntentArrays) -> IntentTable:
    """Write `intents/` of a tables folder, and open it."""
    publish_table(tables / INTENTS_FOLDER, arrays, n_segments=N_SEGMENTS, vocabulary_sha256="0" * 64)
    return IntentTable.open(tables / INTENTS_FOLDER)


def write_engine(tables: Path, folder: Path, *, seed: int = 0) -> None:
    """Export an untrained ranker of the usual sizes, whose learned vectors are of a tables folder's items."""
    import torch

    from airserve.export.onnx import export_ranker
    from airserve.model.ranker import RankerSettings
    from airserve.training.checkpoint import new_ranker

    torch.manual_seed(seed)
    table = IntentTable.open(tables / INTENTS_FOLDER)
    export_ranker(new_ranker(table, RankerSettings()).eval(), table, folder, company=Company(scale=0.5))


def write_serving(tables: Path, engine: Path, *, seed: int = 0) -> None:
    """Write `serving/` of a tables folder: the rows that an engine folder's encoders make."""
    table = IntentTable.open(tables / INTENTS_FOLDER)
    encode_table(table, Encoder.open(engine), random_events(len(table.items), seed=seed), tables / SERVING_FOLDER)


def write_all(folder: Path, *, seed: int = 0, **sizes: int) -> None:
    """Write `tables/` and `engine/` of a random table and an untrained ranker."""
    write_intents(folder / "tables", random_arrays(seed=seed, **sizes))
    write_engine(folder / "tables", folder / "engine", seed=seed)
    write_serving(folder / "tables", folder / "engine", seed=seed)
