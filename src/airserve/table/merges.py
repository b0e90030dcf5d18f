"""Near-duplicate nodes: what an LLM calls by two names on one level below one parent becomes one node.

Two siblings are one when the cosine of their texts' embeddings is at least the threshold. Only new nodes are merged
away, into a node that the previous vocabulary has or into the more frequent new one: an id, once given, never changes
and never goes. A merge stays in force as long as it is in the list of merges that is kept beside the vocabulary, also
with another threshold or embedder; it ends when it is pinned as rejected, and the node then gets a new id of its own.

Files: `merges.json`, a list of `{"path": [...], "into": [...], "similarity": 0.97}` with folded texts, and a file of
rejected merges in the same form (`similarity` is not needed).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.errors import DataError, UserError
from airserve.files import write_text
from airserve.table.vocabulary import NodeKey, Vocabulary, canonical_path, folded_text

THRESHOLD = 0.93
"""Cosine from which siblings are one node; docs/GENERATION.md, Merging, has what it was chosen by."""
Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts to L2-normalised rows."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """One node that goes into another."""

    path: NodeKey
    into: NodeKey
    similarity: float = 0.0

    def __post_init__(self) -> None:
        if len(self.path) != len(self.into) or not self.path or self.path == self.into:
            raise DataError(
                "merge",
                expected="two different paths of one length",
                got=f"{list(self.path)} into {list(self.into)}",
                remedy="repair the file of merges",
            )


def find_merges(
    answers: Iterable[Sequence[Sequence[str]]],
    embed: Embed,
    *,
    previous: Vocabulary | None = None,
    earlier: Sequence[Merge] = (),
    rejected: Sequence[Merge] = (),
    threshold: float = THRESHOLD,
) -> list[Merge]:
    """Find what is to be merged, level by level, below parents that are merged already.

    Args:
        answers: the paths of each valid answer.
        embed: of the node texts alone.
        previous: its nodes are kept.
        earlier: merges of the runs before; kept, unless rejected.
        rejected: pairs that stay two nodes, whichever way round.
        threshold: cosine, above 0, at most 1.

    Raises:
        UserError: for a threshold that is none.
    """
    if not 0 < threshold <= 1:
        raise UserError("merge threshold", expected="above 0, at most 1", got=str(threshold), remedy="use 0.93")
    counts, texts = _count(answers)
    kept = _keys(previous)
    apart = {frozenset((merge.path, merge.into)) for merge in rejected}
    merges = {
        merge.path: merge
        for merge in earlier
        if frozenset((merge.path, merge.into)) not in apart and merge.path not in kept
    }
    canonical: dict[NodeKey, NodeKey] = {(): ()}
    for level in range(1, contract.MAX_DEPTH + 1):
        siblings: dict[NodeKey, Counter[NodeKey]] = defaultdict(Counter)
        for key in kept:
            if len(key) == level:
                siblings[key[:-1]][key] += 0
        for key, count in counts.items():
            if len(key) == level:
                moved = (*canonical[key[:-1]], key[-1])
                siblings[moved[:-1]][moved] += count
                canonical[key] = moved
        for found in siblings.values():
            for merge in _merge_siblings(found, kept, texts, embed, merges, apart, threshold):
                merges[merge.path] = merge
        for key, moved in canonical.items():
            if len(key) == level and moved in merges:
                canonical[key] = merges[moved].into
    return sorted(merges.values(), key=lambda merge: (len(merge.path), merge.path))


def aliases_of(merges: Sequence[Merge]) -> dict[NodeKey, NodeKey]:
    """Merges as `build_vocabulary` takes them."""
    return {merge.path: merge.into for merge in merges}


def _count(answers: Iterable[Sequence[Sequence[str]]]) -> tuple[Counter[NodeKey], dict[str, str]]:
    counts: Counter[NodeKey] = Counter()
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for paths in answers:
        for path in paths:
            words = canonical_path(path)
            folded = tuple(map(folded_text, words))
            for depth, (text, key) in enumerate(zip(words, folded, strict=True), start=1):
                counts[folded[:depth]] += 1
                spellings[key][text] += 1
    return counts, {key: min(found.items(), key=lambda one: (-one[1], one[0]))[0] for key, found in spellings.items()}


def _keys(vocabulary: Vocabulary | None) -> dict[NodeKey, str]:
    nodes = vocabulary.nodes if vocabulary else ()
    keys: dict[int, NodeKey] = {0: ()}
    for node in nodes:
        keys[node.node_id] = (*keys[node.parent_id], folded_text(node.text))
    return {keys[node.node_id]: node.text for node in nodes}


def _merge_siblings(
    found: Mapping[NodeKey, int],
    kept: Mapping[NodeKey, str],
    texts: Mapping[str, str],
    embed: Embed,
    merges: Mapping[NodeKey, Merge],
    apart: set[frozenset[NodeKey]],
    threshold: float,
) -> list[Merge]:
    """New merges among the children of one node; kept nodes and frequent ones first, so that others go into them."""
    keys = [key for key in found if key not in merges]
    keys.sort(key=lambda key: (key not in kept, -found[key], key))
    if len(keys) < 2 or all(key in kept for key in keys):
        return []
    vectors = embed([kept.get(key) or texts[key[-1]] for key in keys])
    standing: list[int] = []
    new = []
    for place, key in enumerate(keys):
        if key not in kept and standing:
            near = vectors[standing] @ vectors[place]
            for at in np.argsort(-near, kind="stable"):
                if near[at] < threshold:
                    break
                into = keys[standing[at]]
                if frozenset((key, into)) not in apart:
                    new.append(Merge(path=key, into=into, similarity=round(float(near[at]), 4)))
                    break
            if new and new[-1].path == key:
                continue
        standing.append(place)
    return new


def read_merges(path: Path) -> list[Merge]:
    """Read a file of merges or of rejected ones; texts are folded.

    Raises:
        DataError: if it cannot be read or is not of that form.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            Merge(
                path=tuple(map(folded_text, row["path"])),
                into=tuple(map(folded_text, row["into"])),
                similarity=float(row.get("similarity", 0)),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            str(path),
            expected='a JSON list of {"path": [...], "into": [...]}',
            got=f"{type(error).__name__}: {error}",
            remedy="see docs/GENERATION.md, Merging",
        ) from error


def write_merges(merges: Sequence[Merge], path: Path) -> None:
    """Write merges, atomically, a line each."""
    rows = [
        json.dumps({"path": list(one.path), "into": list(one.into), "similarity": one.similarity}, ensure_ascii=False)
        for one in merges
    ]
    write_text(path, "[\n" + ",\n".join(rows) + "\n]\n")
