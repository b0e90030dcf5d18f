"""What is met together, and what is popular: counts of a behaviour log, as a served table keeps them.

A sequence model learns such counts slowly, and from a sparse log hardly at all. So they are served beside it: each
item's strongest neighbours, matched with the history by the lookup, and a prior for users of whom nothing is known.
Both are counted anew whenever a table is made, without training.

Shapes: X events, N catalogue rows without the reserved ones, Q neighbours, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.errors import UserError

Array = npt.NDArray[Any]
Matrix = Any
"""A SciPy sparse matrix; SciPy ships no types."""
NEIGHBOURS, GUESSED = 48, 16
"""Of each item so many of the strongest are kept, and so many of those that are guessed; Q is both."""
GUESSED_FROM, GUESS_POWER = 10, 4
"""Items like a new one that its company is guessed from, and how much faster than likeness their say falls."""
MOST_KNOWN = 200_000
"""Items that the company of new ones is guessed from, the most popular, for likeness to each must be computed."""
SEGMENT_EVENTS = 1000.0
"""A segment's popularity is mixed with that over all as if it had seen so many more events."""


@dataclass(frozen=True, kw_only=True)
class Company:
    """How what is met together, and what is new, counts in a score; chosen on held-out targets."""

    scale: float = 0.0
    """Of log(1 + sum / `format.COMPANY_FLOOR`) beside the other scores; 0: none."""
    shrinkage: float = 10.0
    """Users that a pair of items must share before they count as alike."""
    last: int = 10
    """Latest known behaviours that count."""
    decay: float = 0.75
    """Weight of each of them over that of the next later one."""
    cold_bias: float = 0.0
    """Added to the score of an item without a learned id, >= 0: the tower knows less of it, and does not rank high what
    it does not know."""

    def __post_init__(self) -> None:
        least = min(self.scale, self.shrinkage, self.cold_bias)
        if least < 0 or self.last < 1 or not 0 < self.decay <= 1:
            raise UserError(
                "Company",
                expected="scale, shrinkage, cold_bias >= 0, last >= 1, 0 < decay <= 1",
                got=str(self),
                remedy="change the settings",
            )


def cosine_neighbours(users_X: Array, rows_X: Array, n_rows: int, shrinkage: float) -> Matrix:
    """Item-item cosine of histories, users as dimensions; a SciPy CSR matrix float32 [N + 2, N + 2].

    sim(i, j) = users with both / (sqrt(users with i * users with j) + shrinkage); the diagonal is 0. A pair that few
    users share says little: shrinkage pulls its similarity down.

    Args:
        users_X: int, any numbers >= 0, of training events.
        rows_X: their catalogue rows; reserved ones do not count.
        n_rows: N + 2.
        shrinkage: >= 0.
    """
    from scipy import sparse

    _, users_X = np.unique(users_X, return_inverse=True)
    seen = sparse.csr_matrix(
        (np.ones(len(rows_X), dtype=np.float32), (users_X, rows_X)), shape=(int(users_X.max(initial=0)) + 1, n_rows)
    )
    seen.data[:] = 1.0  # the constructor has added repeated events up
    together = (seen.T @ seen).tocoo()
    users = np.asarray(seen.sum(axis=0)).ravel()
    i, j, both = together.row, together.col, together.data
    kept = (i != j) & (i >= contract.FIRST_ITEM_ROW) & (j >= contract.FIRST_ITEM_ROW)
    i, j, both = i[kept], j[kept], both[kept]
    similarity = both / (np.sqrt(users[i] * users[j]) + shrinkage)
    return sparse.csr_matrix((similarity.astype(np.float32), (i, j)), shape=together.shape)


def guessed(similarity: Matrix, vectors_NE: Array) -> Matrix:
    """Similarities of and to items without any, guessed from the items whose vectors are most like theirs.

    A new item is met with what items like it are met with: what is true of `cat tree` in one colour is true of the next
    one. For pairs of known items there is nothing, so that a guess never outweighs a count.

    Args:
        similarity: of `cosine_neighbours`.
        vectors_NE: float32 [N + 2, E], unit rows, of titles and intents.

    Returns:
        A SciPy CSR matrix float32 [N + 2, N + 2].
    """
    from scipy import sparse

    strength = np.asarray(similarity.sum(axis=1)).ravel()
    known = np.flatnonzero(strength > 0)
    known = known[np.argsort(-strength[known], kind="stable")][:MOST_KNOWN]
    new = np.flatnonzero((strength == 0) & vectors_NE.any(axis=1))
    new = new[new >= contract.FIRST_ITEM_ROW]
    count = min(GUESSED_FROM, len(known))
    empty = sparse.csr_matrix(similarity.shape, dtype=np.float32)
    if not count or not len(new):
        return empty
    known_KE = np.asarray(vectors_NE[known], dtype=np.float32)
    stands_for = []
    for start in range(0, len(new), 512):
        part = new[start : start + 512]
        likeness = np.asarray(vectors_NE[part], dtype=np.float32) @ known_KE.T
        nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        weights = np.maximum(np.take_along_axis(likeness, nearest, axis=1), 0.0) ** GUESS_POWER
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        owner = np.repeat(part, count)
        stands_for.append(sparse.csr_matrix((weights.ravel(), (known[nearest.ravel()], owner)), shape=similarity.shape))
    of_new = sum(stands_for[1:], stands_for[0]).astype(np.float32)
    to_new = similarity @ of_new
    # Pairs of two new items are left out: they would be most of the numbers, and the least sure.
    return (to_new + to_new.T).tocsr()


def with_guesses(similarity: Matrix, vectors_NE: Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
    """The strongest neighbours of every row, and behind them the strongest of the guessed ones; see `strongest`."""
    counted, supposed = strongest(similarity), strongest(guessed(similarity, vectors_NE), GUESSED)
    return (
        np.concatenate([counted[0], supposed[0]], axis=1),
        np.concatenate([counted[1], supposed[1]], axis=1),
    )


def strongest(similarity: Matrix, count: int = NEIGHBOURS) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
    """The strongest neighbours of every row, strongest first, of equal ones the lower row first.

    Returns:
        int32 [N + 2, `count`] rows and float16 [N + 2, `count`] similarities, 0 where there are fewer.
    """
    similarity = similarity.tocsr()
    sizes = np.diff(similarity.indptr)
    owner = np.repeat(np.arange(similarity.shape[0]), sizes)
    weights = similarity.data.astype(np.float16)
    order = np.lexsort((similarity.indices, -weights.astype(np.float32), owner))
    place = np.arange(len(order)) - np.repeat(similarity.indptr[:-1], sizes)
    kept = (place < count) & (weights[order] > 0)
    rows = np.zeros((similarity.shape[0], count), dtype=np.int32)
    found = np.zeros(rows.shape, dtype=np.float16)
    rows[owner[kept], place[kept]] = similarity.indices[order][kept]
    found[owner[kept], place[kept]] = weights[order][kept]
    return rows, found


def as_matrix(neighbours: Array, weights: Array) -> Matrix:
    """Kept neighbours as a SciPy CSR matrix float32 [N + 2, N + 2]."""
    from scipy import sparse

    kept = weights > 0
    owner = np.repeat(np.arange(len(neighbours)), neighbours.shape[1]).reshape(neighbours.shape)
    values = weights[kept].astype(np.float32)
    return sparse.csr_matrix((values, (owner[kept], neighbours[kept])), shape=(len(neighbours), len(neighbours)))


def popularity(rows_X: Array, weights_X: Array, segments_X: Array, n_rows: int, n_segments: int) -> Array:
    """Popularity of every row, over all and by segment, as a score.

    log(1 + c) with c the (weighted) events of the row; for a segment, of that segment's events, mixed with those over
    all (`SEGMENT_EVENTS`) and scaled up to as many as over all, so that segments compare.

    Returns:
        float16 [N + 2, 1 + S]; the reserved rows are zeros.
    """
    overall = np.bincount(rows_X, weights=weights_X, minlength=n_rows)
    overall[: contract.FIRST_ITEM_ROW] = 0.0
    total = max(float(overall.sum()), 1.0)
    columns = [overall]
    for segment in range(n_segments):
        own = segments_X == segment
        counts = np.bincount(rows_X[own], weights=weights_X[own], minlength=n_rows)
        counts[: contract.FIRST_ITEM_ROW] = 0.0
        mixed = counts + SEGMENT_EVENTS * overall / total
        columns.append(mixed * total / (counts.sum() + SEGMENT_EVENTS))
    return np.log1p(np.stack(columns, axis=1)).astype(np.float16)
