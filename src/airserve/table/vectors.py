"""Reduce text embeddings to the width that the ranker holds, and blend an item's title with its intents.

Shapes: S sampled texts, W width of the text embedder, E width served, N items, P paths per item, V nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.errors import DataError
from airserve.files import atomic_stream

VECTOR_WIDTH = 128
MAX_SAMPLE = 20_000
"""Texts that the projection is fitted on, spread evenly over all."""
MIN_CENTRED = 2 * VECTOR_WIDTH
"""Fewer texts than this are not centred: their mean says more of the sample than of the language."""

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A linear map of text embeddings to E dimensions."""

    identity: str
    """Of the text embedder it was fitted for."""
    mean: Vectors
    """[W], subtracted first."""
    axes: Vectors
    """[W, E]"""

    def apply(self, embeddings_SW: Vectors) -> Vectors:
        """Project and L2-normalise: float32 [S, E]."""
        return normalised((embeddings_SW - self.mean) @ self.axes)

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        with atomic_stream(path) as stream:
            np.savez(stream, identity=np.array(self.identity), mean=self.mean, axes=self.axes)

    @classmethod
    def load(cls, path: Path) -> Projection:
        """Read what `save` wrote.

        Raises:
            DataError: if it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(identity=str(stored["identity"]), mean=stored["mean"], axes=stored["axes"])
        except Exception as error:  # a damaged archive raises what it likes
            raise DataError(
                str(path), expected="a projection", got=f"{type(error).__name__}", remedy="build without --previous"
            ) from None


def normalised(vectors: npt.NDArray[Any]) -> Vectors:
    """Rows of length 1; rows of zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12).astype(np.float32)
    return unit


def fit_projection(embeddings_SW: Vectors, identity: str, width: int = VECTOR_WIDTH) -> Projection:
    """Principal components of the embeddings.

    The sign of each axis is fixed (its largest entry is positive), so that equal input gives equal vectors. Where the
    embeddings have fewer than `width` dimensions, the rest are zeros.
    """
    step = -(-len(embeddings_SW) // MAX_SAMPLE)
    sample = embeddings_SW[:: max(step, 1)].astype(np.float64)
    embedder_width = embeddings_SW.shape[1]
    centred = len(sample) >= MIN_CENTRED
    mean_W = sample.mean(axis=0) if centred else np.zeros(embedder_width)
    deviations = sample - mean_W
    _, eigenvectors = np.linalg.eigh(deviations.T @ deviations)
    axes = eigenvectors[:, ::-1][:, :width]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    axes_WE = np.zeros((embedder_width, width), dtype=np.float32)
    axes_WE[:, : axes.shape[1]] = axes * np.sign(largest)
    return Projection(identity=identity, mean=mean_W.astype(np.float32), axes=axes_WE)


def node_table(node_vectors: Vectors) -> Vectors:
    """Vectors of nodes 1.. with the row of node 0 in front: float32 [V, E]."""
    return np.concatenate([np.zeros((1, node_vectors.shape[1]), dtype=np.float32), node_vectors])


def item_table(
    titles_NE: Vectors, node_vectors_VE: Vectors, item_paths_NP: npt.NDArray[np.int32], leaf_of_path: npt.NDArray[Any]
) -> Vectors:
    """Vectors of the catalogue's rows: float32 [N + 2, E].

    Args:
        titles_NE: title vectors, normalised.
        node_vectors_VE: node vectors with node 0.
        item_paths_NP: default path numbers of each item (without the reserved rows), -1 where none.
        leaf_of_path: the finest node of each path.

    Returns:
        The normalised mean of an item's title vector and of the (normalised) mean of its default paths' leaves; the
        title vector alone where it has no paths. The reserved rows are zeros.
    """
    leaves_NP = np.where(item_paths_NP >= 0, np.append(leaf_of_path, contract.PAD_NODE)[item_paths_NP], 0)
    vectors = np.zeros((len(titles_NE) + contract.FIRST_ITEM_ROW, titles_NE.shape[1]), dtype=np.float32)
    # Node 0 is a row of zeros, and a mean's direction does not depend on what it is divided by.
    leaf_sum = sum(node_vectors_VE[leaves_NP[:, place]] for place in range(leaves_NP.shape[1]))
    vectors[contract.FIRST_ITEM_ROW :] = normalised(titles_NE + normalised(np.asarray(leaf_sum)))
    return vectors


def save_titles(path: Path, titles_NE: Vectors) -> None:
    """Write the items' title vectors in catalogue rows, float32 [N + 2, E], rows 0 and 1 zeros; atomically.

    What a model may know of an item without its intents: the item vectors that are served may hold both.
    """
    rows_NE = np.zeros((len(titles_NE) + contract.FIRST_ITEM_ROW, titles_NE.shape[1]), dtype=np.float32)
    rows_NE[contract.FIRST_ITEM_ROW :] = titles_NE
    with atomic_stream(path) as stream:
        np.save(stream, rows_NE)


def save_vectors(path: Path, items: npt.NDArray[np.int64], vectors_NS: Vectors, answers_sha256: str) -> None:
    """Write the items' vectors in a source's own space (S <= `VECTOR_WIDTH`), for the answers beside them."""
    with atomic_stream(path) as stream:
        np.savez(stream, items=items, vectors=vectors_NS, answers_sha256=np.array(answers_sha256))


def read_vectors(path: Path, items: npt.NDArray[np.int64], answers_sha256: str) -> Vectors:
    """The vectors of `items` in a source's own space, float32 [N, E], zeros for items that it does not have.

    Raises:
        DataError: if the file is damaged, too wide, or was written for other answers.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            known, vectors_NS = stored["items"], stored["vectors"].astype(np.float32)
            written_for = str(stored["answers_sha256"])
    except Exception as error:  # a damaged archive raises what it likes
        raise DataError(
            str(path), expected="items' vectors", got=type(error).__name__, remedy="make the intents again"
        ) from None
    if written_for != answers_sha256:
        raise DataError(
            str(path),
            expected=f"vectors of the answers beside it ({answers_sha256[:12]})",
            got=f"those of others ({written_for[:12]})",
            remedy="remove it if a language model wrote the answers; else derive the intents again",
        )
    if vectors_NS.shape[1] > VECTOR_WIDTH or len(vectors_NS) != len(known):
        raise DataError(
            str(path),
            expected=f"a vector of at most {VECTOR_WIDTH} numbers per item",
            got=f"{vectors_NS.shape} for {len(known)} items",
            remedy="reduce them first",
        )
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, items, sorter=order), len(known) - 1)]
    vectors_NE = np.zeros((len(items), VECTOR_WIDTH), dtype=np.float32)
    vectors_NE[:, : vectors_NS.shape[1]] = np.where((known[place] == items)[:, None], vectors_NS[place], 0.0)
    return normalised(vectors_NE)


def mean_of_members(
    item_vectors_NE: Vectors, first_paths_N: npt.NDArray[np.int32], paths: npt.NDArray[np.int32], n_nodes: int
) -> Vectors:
    """Vectors of all nodes with node 0, float32 [V, E]: a node's is that of the items whose first path passes it.

    Args:
        item_vectors_NE: without the reserved rows.
        first_paths_N: path number of each item's first default path, -1 where none.
        paths: int32 [n, D] node ids.
        n_nodes: V.
    """
    sums_VE = np.zeros((n_nodes, item_vectors_NE.shape[1]), dtype=np.float32)
    has = first_paths_N >= 0
    for level in range(paths.shape[1]):
        np.add.at(sums_VE, paths[first_paths_N[has], level], item_vectors_NE[has])
    sums_VE[contract.PAD_NODE] = 0.0
    return normalised(sums_VE)
