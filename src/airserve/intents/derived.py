"""Atomic intents without a language model: derived from titles and from what is bought with what.

A source for machines without a model hub and for measuring the ranker on public data. It writes the same
`answers.parquet` as the LLM job, so nothing behind it knows the difference. Two things a language model knows are read
off the training log instead: what a thing is (a cluster of like titles and like company) and what it is for (the
clusters bought after it, in either domain). Only the `train` split is read, and by default not even each user's last
event of it, so that the ranker can be trained on events that its intents do not already know.

Shapes: N items, W width of the title embeddings, S width of the joint space, G groups of a level.
"""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer

from airserve import contract
from airserve.artifact_schemas import ANSWERS_SCHEMA, SEGMENT_COLUMN
from airserve.artifacts import ANSWERS_FILE, VECTORS_FILE
from airserve.data.schema import load_dataset, write_parquet
from airserve.errors import DataError, UserError
from airserve.intents.schema import NODE_PATTERN
from airserve.table.embed import SentenceEmbedder, embed_texts
from airserve.table.format import file_sha256
from airserve.table.vectors import VECTOR_WIDTH, normalised, save_vectors

Array = npt.NDArray[Any]
Matrix = Any
"""A SciPy sparse matrix; SciPy ships no types."""
SOURCE = "derived:titles+company:2"
"""Identity of this source, as a model's name stands in a manifest."""
MOST_TITLES = 0.03
"""Words in a larger share of the titles (pack, ounce, set, white) name nothing."""
GUESSED_FROM = 10
"""Items with like titles that the company of one without events is guessed from. By the space alone, cold valid targets
of Food-Kitchen have HR@10 .077 without a guess, .161 with it, .122 by their titles (docs/LOG.md)."""


@dataclass(frozen=True, kw_only=True)
class DeriveSettings:
    """How intents are derived."""

    groups: tuple[int, ...] = (24, 240, 1600)
    """Nodes per level, coarse to fine; fewer where there are few items."""
    title_weight: float = 0.7
    """Weight of an item's title beside its company (1) in the space that is clustered."""
    width: int = VECTOR_WIDTH
    """S, dimensions of the company space."""
    reach: int = 30
    """Events between two that still count as company."""
    fade: float = 0.9
    """What each event in between leaves of a pair's count."""
    backward: float = 0.5
    """Weight of what was bought before a thing, beside what was bought after it."""
    skip_last: int = 1
    """Last training events of each user that are not read."""
    seed: int = 0
    """Of the decomposition and the clustering."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.groups) <= contract.MAX_DEPTH or list(self.groups) != sorted(self.groups):
            raise UserError(
                "groups",
                expected=f"2 to {contract.MAX_DEPTH} levels, each with at least as many groups as the one above",
                got=str(self.groups),
                remedy="change the settings",
            )
        if (
            min(self.groups) < 1
            or not 1 <= self.width <= VECTOR_WIDTH
            or self.reach < 1
            or not 0 < self.fade <= 1
            or self.skip_last < 0
        ):
            raise UserError(
                "DeriveSettings",
                expected=f"groups, reach >= 1, 1 <= width <= {VECTOR_WIDTH}, 0 < fade <= 1, skip_last >= 0",
                got=str(self),
                remedy="change the settings",
            )


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What a source without a language model leaves."""

    answers: pa.Table
    """`ANSWERS_SCHEMA`: one row per distinct item, action and segment of the training split, and one `order` row for an
    item that it does not have."""
    space_NS: Array
    """float32, the space that was grouped, unit rows in the order of the items; S <= `VECTOR_WIDTH`."""


def derive_folder(data: Path, out: Path, settings: DeriveSettings, cache: Path | None) -> dict[str, Any]:
    """Derive intents of a data folder and write `answers.parquet` and `vectors.npz`.

    Args:
        data: folder with items.parquet and behaviours.parquet.
        out: the intents folder.
        settings: see `DeriveSettings`.
        cache: where embedded titles are kept between runs; None for nowhere.

    Returns:
        Counts, for a JSON line.

    Raises:
        DataError: if the data are not in their documented format.
    """
    dataset = load_dataset(data)
    titles_NW, _ = embed_texts(SentenceEmbedder(), dataset.items["title"].to_pylist(), cache)
    derived = derive(dataset.items, dataset.behaviours, titles_NW, settings)
    answers = out / ANSWERS_FILE
    write_parquet(derived.answers, answers)
    save_vectors(out / VECTORS_FILE, dataset.items["item_id"].to_numpy(), derived.space_NS, file_sha256(answers))
    return {"source": SOURCE, "event_kinds": derived.answers.num_rows, "items": dataset.items.num_rows}


def derive(items: pa.Table, behaviours: pa.Table, titles_NW: Array, settings: DeriveSettings) -> Derived:
    """Derive the intents of every event kind of a log.

    Args:
        items: a validated items table.
        behaviours: a validated behaviours table, sorted by user and time.
        titles_NW: float32 embeddings of the items' titles, in the order of `items`.
        settings: see `DeriveSettings`.

    Raises:
        DataError: if there are fewer than two items.
    """
    ids = items["item_id"].to_numpy()
    if len(ids) < 2:
        raise DataError("items", expected="at least 2 items to group", got=str(len(ids)), remedy="give more data")
    order = np.argsort(ids)
    events = _training_events(behaviours, settings.skip_last)
    places = order[np.searchsorted(ids, behaviours["item_id"].to_numpy()[events], sorter=order)]
    flow_NN = company(places, behaviours["user_id"].to_numpy()[events], len(ids), settings)
    space_NS = joint_space(flow_NN, titles_NW, settings)
    levels = group_levels(space_NS, settings)
    titles = [title.lower() for title in items["title"].to_pylist()]
    texts = _path_texts(levels, titles)
    leaves_NP = intents_of_items(flow_NN, levels[-1], np.bincount(places, minlength=len(ids)))
    return Derived(answers=_answers(items, behaviours, leaves_NP, texts), space_NS=space_NS)


def _training_events(behaviours: pa.Table, skip_last: int) -> Array:
    """Indices of the training events but each user's last ones."""
    train = np.flatnonzero(behaviours["split"].to_numpy(zero_copy_only=False) == "train")
    users = behaviours["user_id"].to_numpy()[train]
    changes = np.append(np.flatnonzero(users[1:] != users[:-1]) + 1, len(users))
    end_of_user = changes[np.searchsorted(changes, np.arange(len(users)), side="right")]
    kept: Array = train[np.arange(len(train)) < end_of_user - skip_last]
    return kept


def company(places: Array, users: Array, n_items: int, settings: DeriveSettings) -> Matrix:
    """How often one item follows another: sparse float32 [N, N], row: earlier item, fading with the events between."""
    flow_NN = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    for gap in range(1, settings.reach + 1):
        earlier, later = places[:-gap], places[gap:]
        same = users[:-gap] == users[gap:]
        if not same.any():
            break
        same &= earlier != later
        counts = np.full(int(same.sum()), settings.fade ** (gap - 1), dtype=np.float32)
        flow_NN = flow_NN + sparse.csr_matrix((counts, (earlier[same], later[same])), shape=flow_NN.shape)
    return flow_NN + settings.backward * flow_NN.T


def joint_space(flow_NN: Matrix, titles_NW: Array, settings: DeriveSettings) -> Array:
    """Items by company (PPMI, reduced) and title side by side, reduced once more: float32 [N, S], unit rows.

    Source: positive pointwise mutual information with contexts smoothed by the power 0.75 (Levy, Goldberg, Dagan 2015).
    """
    pairs = (flow_NN + flow_NN.T).tocoo()
    n_items = pairs.shape[0]
    parts = [settings.title_weight * normalised(titles_NW.astype(np.float32))]
    if pairs.nnz > n_items:
        totals = np.asarray(pairs.sum(axis=0)).ravel()
        context = totals**0.75 / (totals**0.75).sum()
        information = np.log(pairs.data / (totals[pairs.row] * context[pairs.col]))
        positive = sparse.csr_matrix((np.maximum(information, 0.0), (pairs.row, pairs.col)), shape=pairs.shape)
        width = min(settings.width, n_items - 1)
        reducer = TruncatedSVD(width, n_iter=4, random_state=settings.seed)
        scaled = reducer.fit_transform(positive) / np.sqrt(np.maximum(reducer.singular_values_, 1e-9))
        scaled[totals == 0] = 0.0  # no company, no round-off either: `normalised` would make a whole vector of it
        parts.append(with_guessed_company(normalised(scaled.astype(np.float32)), parts[0], totals > 0))
    joint = normalised(np.concatenate(parts, axis=1))
    _, axes = np.linalg.eigh(joint.T.astype(np.float64) @ joint)
    return normalised((joint @ axes[:, ::-1][:, : settings.width]).astype(np.float32))


def with_guessed_company(company_NS: Array, titles_NW: Array, has_N: Array) -> Array:
    """Company vectors of all items: one without any event gets that of the items whose titles are most like its own.

    Else it would lie between the items that have company, near none: a title is the smaller part of the space.

    Args:
        company_NS: float32, unit rows, zeros where there is no event.
        titles_NW: float32, rows of one length.
        has_N: bool, whether an item has events.
    """
    known, missing = np.flatnonzero(has_N), np.flatnonzero(~has_N)
    whole = company_NS.copy()
    count = min(GUESSED_FROM, len(known))
    unit_NW = normalised(titles_NW)
    for start in range(0, len(missing) if count else 0, 1024):
        part = missing[start : start + 1024]
        likeness = unit_NW[part] @ unit_NW[known].T
        nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        weights = np.maximum(np.take_along_axis(likeness, nearest, axis=1), 0.0) ** 4
        whole[part] = np.einsum("nk,nks->ns", weights, company_NS[known][nearest])
    return normalised(whole)


def group_levels(space_NS: Array, settings: DeriveSettings) -> list[Array]:
    """Group of each item on each level, coarse to fine; a group lies inside one group of the level above.

    The finest groups are k-means clusters; the coarser ones are cut from Ward's tree over their centres.
    """
    n_leaves = min(settings.groups[-1], max(len(space_NS) // 3, 1))
    clusters = MiniBatchKMeans(n_leaves, batch_size=4096, n_init=1, max_iter=30, random_state=settings.seed)
    found = clusters.fit_predict(space_NS)
    used, leaf_N = np.unique(found, return_inverse=True)
    if len(used) < 2:
        return [np.zeros(len(space_NS), dtype=np.int64) for _ in settings.groups]
    tree = linkage(clusters.cluster_centers_[used], method="ward")
    levels = [fcluster(tree, t=min(count, len(used)), criterion="maxclust")[leaf_N] for count in settings.groups[:-1]]
    return [np.unique(level, return_inverse=True)[1] for level in levels] + [leaf_N]


def intents_of_items(flow_NN: Matrix, leaf_N: Array, counts_N: Array) -> Array:
    """Leaves of each item, its own first, then those that follow it most: int64 [N, P], -1 where fewer.

    A leaf's share is the flow into it over the root of its own size, so that large leaves do not win everywhere.
    """
    n_items = len(leaf_N)
    member_NG = sparse.csr_matrix((np.ones(n_items, dtype=np.float32), (np.arange(n_items), leaf_N)))
    sizes_G = np.maximum(np.asarray(member_NG.T @ counts_N).ravel(), 1.0)
    flow_NG = (flow_NN @ member_NG @ sparse.diags(1.0 / np.sqrt(sizes_G))).tocsr()
    leaves_NP = np.full((n_items, contract.MAX_PATHS), -1, dtype=np.int64)
    leaves_NP[:, 0] = leaf_N
    # What follows an item without events is guessed to be what follows its own leaf.
    without = np.diff(flow_NG.indptr) == 0
    flow_NG = (flow_NG + sparse.diags(without.astype(np.float32)) @ member_NG @ (member_NG.T @ flow_NG)).tocsr()
    for item in range(n_items):
        span = slice(flow_NG.indptr[item], flow_NG.indptr[item + 1])
        others, flows = flow_NG.indices[span], flow_NG.data[span]
        flows, others = flows[others != leaf_N[item]], others[others != leaf_N[item]]
        best = others[np.lexsort((others, -flows))][: contract.MAX_PATHS - 1]
        leaves_NP[item, 1 : 1 + len(best)] = best
    return leaves_NP


def _path_texts(levels: Sequence[Array], titles: Sequence[str]) -> list[tuple[str, ...]]:
    """The path of each leaf, as texts."""
    most = MOST_TITLES if len(titles) >= 1000 else 1.0
    counter = CountVectorizer(
        token_pattern=r"(?u)\b[a-z][a-z'-]{2,17}\b", stop_words="english", binary=True, max_df=most
    )
    try:
        words_NT = counter.fit_transform(titles)
    except ValueError:  # no title has a word
        words_NT = counter.fit_transform(["group"] * len(titles))
    words = counter.get_feature_names_out()
    paths: list[tuple[str, ...]] = [() for _ in range(int(levels[-1].max()) + 1)]
    leaf_N = levels[-1]
    a_member = np.zeros(len(paths), dtype=np.int64)
    a_member[leaf_N] = np.arange(len(leaf_N))
    for level_N in levels:
        names = _names(words_NT, words, level_N)
        for leaf, member in enumerate(a_member):
            paths[leaf] = (*paths[leaf], names[int(level_N[member])])
    return paths


def _names(words_NT: Matrix, words: Array, group_N: Array) -> list[str]:
    """A distinct name for each group of a level: the words with the highest TF-IDF, titles as documents."""
    n_groups = int(group_N.max()) + 1
    member_GN = sparse.csr_matrix((np.ones(len(group_N)), (group_N, np.arange(len(group_N)))))
    counts_GT = (member_GN @ words_NT).tocsr()
    rarity_T = np.log(len(group_N) / np.maximum(np.asarray(counts_GT.sum(axis=0)).ravel(), 1.0)) + 1e-6
    taken: set[str] = set()
    names = []
    for group in range(n_groups):
        span = slice(counts_GT.indptr[group], counts_GT.indptr[group + 1])
        terms = counts_GT.indices[span]
        best = terms[np.argsort(-counts_GT.data[span] * rarity_T[terms], kind="stable")][:6]
        name = _free_name([words[term] for term in best], taken, group)
        taken.add(name)
        names.append(name)
    return names


def _free_name(words: Sequence[str], taken: set[str], group: int) -> str:
    for length in range(min(2, len(words)), len(words) + 1):
        name = " ".join(words[:length])[:38].strip(" '-")
        if length and name not in taken and re.match(NODE_PATTERN, name):
            return name
    return f"{' '.join(words[:1]) or 'group'} {group}"


def _answers(items: pa.Table, behaviours: pa.Table, leaves_NP: Array, texts: Sequence[tuple[str, ...]]) -> pa.Table:
    """One row per event kind of the training split."""
    train = behaviours.filter(pc.equal(behaviours["split"], "train"))
    kinds = train.group_by(["item_id", "action", SEGMENT_COLUMN]).aggregate([])
    missing = np.setdiff1d(items["item_id"].to_numpy(), kinds["item_id"].to_numpy())
    item_id = np.concatenate([kinds["item_id"].to_numpy(), missing])
    action = kinds["action"].to_pylist() + ["order"] * len(missing)
    segment = np.concatenate([kinds[SEGMENT_COLUMN].to_numpy(), np.zeros(len(missing), dtype=np.int32)])
    order = np.lexsort((segment, action, item_id))
    place = {item: at for at, item in enumerate(items["item_id"].to_pylist())}
    titles = items["title"].to_pylist()
    rows = [place[int(item)] for item in item_id[order]]
    paths = [[list(texts[leaf]) for leaf in leaves_NP[row] if leaf >= 0] for row in rows]
    return pa.table(
        {
            "item_id": item_id[order],
            "action": [action[at] for at in order],
            SEGMENT_COLUMN: segment[order],
            "text": [titles[row] for row in rows],
            "paths": paths,
            "valid": [True] * len(rows),
            "raw": [json.dumps({"paths": path}) for path in paths],
        },
        schema=ANSWERS_SCHEMA,
    )
