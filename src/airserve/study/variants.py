"""Intent tables for the controls: the same items, somebody else's intents or none.

Shapes: N catalogue rows without the reserved ones, E vector width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.table import atomic
from airserve.table.format import NO_PATH, IntentArrays
from airserve.table.intents import IntentTable
from airserve.table.vectors import item_table

Array = npt.NDArray[Any]


def with_shuffled_intents(table: IntentTable, titles_NE: Array, seed: int) -> IntentTable:
    """Every item that has intents gets another such item's; vocabulary, coverage and sizes stay.

    Where the table's item vectors hold the items' intents beside their titles, they are made again of the wrong ones;
    where the source has a space of its own, an item's vector becomes that of its wrong leaf.

    Args:
        table: the true one.
        titles_NE: float32 [N + 2, E], the items' title vectors in catalogue rows.
        seed: of the permutation.
    """
    arrays = table.arrays
    true = atomic.AtomicIntents(
        kinds=arrays.kinds,
        kind_paths=arrays.kind_paths,
        item_paths=arrays.item_paths,
        paths=arrays.paths,
        n_segments=table.manifest.n_segments,
    )
    wrong = atomic.shuffled(true, seed)
    vectors_NE = arrays.item_vectors
    if not np.allclose(vectors_NE, titles_NE, atol=1e-6):
        titles, nodes_VE = np.asarray(titles_NE[contract.FIRST_ITEM_ROW :]), np.asarray(arrays.node_vectors)
        leaf_of_path = wrong.leaf_of_path()
        of_texts = item_table(titles, nodes_VE, true.item_paths[contract.FIRST_ITEM_ROW :], leaf_of_path)
        if np.allclose(vectors_NE, of_texts, atol=1e-4):
            vectors_NE = item_table(titles, nodes_VE, wrong.item_paths[contract.FIRST_ITEM_ROW :], leaf_of_path)
        else:
            leaves = np.append(leaf_of_path, contract.PAD_NODE)[wrong.item_paths[:, 0]]
            vectors_NE = nodes_VE[leaves]
    return _like(
        table,
        replace(arrays, kind_paths=wrong.kind_paths, item_paths=wrong.item_paths, item_vectors=vectors_NE),
        f"shuffled-{seed}",
    )


def with_items_for_intents(table: IntentTable, titles_NE: Array) -> IntentTable:
    """Every item is its own one intent, whose vector is the item's title vector; nothing of any intent is left.

    The no-intents control is AIR trained on this table: the same lookup, weights, retrieval, composition and head, so
    the same number of parameters and the same view of the history (its items, chosen for the candidate by likeness of
    text, with their ages), on the same base. What AIR has beyond it is only what the intents say.

    Args:
        table: the true one; its catalogue is kept.
        titles_NE: float32 [N + 2, E], the items' title vectors in catalogue rows.
    """
    count = len(table.items)
    paths = np.zeros((count, contract.MAX_DEPTH), dtype=np.int32)
    paths[:, 0] = 1 + np.arange(count)
    item_paths = np.full((count + contract.FIRST_ITEM_ROW, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    item_paths[contract.FIRST_ITEM_ROW :, 0] = np.arange(count)
    titles = np.asarray(titles_NE, dtype=np.float32)
    arrays = IntentArrays(
        items=table.items,
        kinds=np.zeros(0, dtype=np.uint64),
        kind_paths=np.zeros((0, contract.MAX_PATHS), dtype=np.int32),
        item_paths=item_paths,
        paths=paths,
        node_vectors=np.concatenate([np.zeros((1, titles.shape[1]), np.float32), titles[contract.FIRST_ITEM_ROW :]]),
        item_vectors=titles,
        title_keys=table.arrays.title_keys,
        node_keys=np.concatenate([np.zeros(1, np.uint64), table.arrays.title_keys]),
    )
    return _like(table, arrays, "items-for-intents")


def _like(table: IntentTable, arrays: IntentArrays, what: str) -> IntentTable:
    """An unpublished table of the same catalogue."""
    manifest = replace(
        table.manifest,
        counts=arrays.counts(),
        vocabulary_sha256=f"{table.manifest.vocabulary_sha256} {what}",
        files={},
    )
    return IntentTable(manifest, arrays)
