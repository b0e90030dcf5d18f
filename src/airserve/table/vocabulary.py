"""The intent vocabulary: every node of every answer, made canonical, with an id that it keeps for ever.

A node is its parent and its text, so `cat > toy` and `dog > toy` are two nodes. Texts that differ only in case, spacing
or a plain English plural are one node, shown in its most frequent spelling. Near-duplicates (`merges.py`) are aliases:
spellings of a node that has another text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from airserve import contract
from airserve.artifact_schemas import VOCABULARY_SCHEMA
from airserve.artifacts import VOCABULARY_FILE
from airserve.errors import DataError

NodePath = tuple[int, ...]
NodeKey = tuple[str, ...]
"""`folded_text` of a node and of those above it, coarse to fine."""
TEXTS_REMEMBERED = 1 << 17
"""Answers say the same words over and over."""
_SPACES = re.compile(r"\s+")
_PLURAL_S = re.compile(r"(?<![sui])s$")
_MUTE_E = re.compile(r"(?<=[sxzio])e$|(?<=[cs]h)e$")
"""What `boxes` and `cookie` keep of a plural's `es`; dropped in the singular too, so that both meet."""
_FINAL_Y = re.compile(r"(?<=[^aeiou])y$")
_SHORTEST_PLURAL = 4


@lru_cache(maxsize=TEXTS_REMEMBERED)
def canonical_text(text: str) -> str:
    """A node's text as it is shown: Unicode NFKC, lower case, single spaces, no marks at either end."""
    folded = _SPACES.sub(" ", unicodedata.normalize("NFKC", text)).casefold()
    return folded.strip(" .,;:!?\"'`>-_*")


@lru_cache(maxsize=TEXTS_REMEMBERED)
def folded_text(text: str) -> str:
    """What the spellings of one node have in common: `canonical_text`, its last word without a plain plural's ending.

    A key, not a word: `berries` and `berry` give `berri`.
    """
    head, space, last = canonical_text(text).rpartition(" ")
    if len(last) >= _SHORTEST_PLURAL:
        last = _FINAL_Y.sub("i", _MUTE_E.sub("", _PLURAL_S.sub("", last)))
    return head + space + last


def canonical_path(path: Sequence[str]) -> tuple[str, ...]:
    """Canonical texts of a path, at most MAX_DEPTH; empty levels and repeats of the level above are left out."""
    texts: list[str] = []
    for level in path:
        text = canonical_text(level)
        if text and (not texts or folded_text(text) != folded_text(texts[-1])):
            texts.append(text)
    return tuple(texts[: contract.MAX_DEPTH])


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the vocabulary."""

    node_id: int
    """1 and up."""
    parent_id: int
    """0 for a root."""
    level: int
    """0 for a root."""
    text: str
    count: int
    """Answers that pass through it, in the last build."""


NODE_COLUMNS = tuple(field.name for field in fields(Node))
"""Columns of the vocabulary that are a node's own."""


@dataclass(frozen=True)
class Vocabulary:
    """All nodes, node i at place i - 1."""

    nodes: tuple[Node, ...]
    aliases: Mapping[NodeKey, NodeKey] = field(default_factory=dict)
    """Keys that stand for another node, and that node's key."""
    _ids: dict[tuple[int, str], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for place, node in enumerate(self.nodes):
            if node.node_id != place + 1 or not 0 <= node.parent_id < node.node_id:
                raise DataError(
                    f"vocabulary node {node.node_id}",
                    expected=f"node {place + 1} with a parent before it",
                    got=f"node {node.node_id} with parent {node.parent_id}",
                    remedy=f"give a {VOCABULARY_FILE} as offline/build_tables.py wrote it",
                )
        ids = {(node.parent_id, folded_text(node.text)): node.node_id for node in self.nodes}
        for alias, target in self.aliases.items():
            places = [0]
            for text in target:
                places.append(ids.get((places[-1], text), -1))
            if places[-1] > 0:
                ids.setdefault((places[-2], alias[-1]), places[-1])
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.nodes)

    def find(self, path: Sequence[str]) -> NodePath | None:
        """Node ids of a path of texts; None where a node of it is not in the vocabulary, or nothing is left of it."""
        parent_id, ids = 0, []
        for text in canonical_path(path):
            node_id = self._ids.get((parent_id, folded_text(text)))
            if node_id is None:
                return None
            ids.append(node_id)
            parent_id = node_id
        return tuple(ids) or None

    def chain(self, node_id: int) -> tuple[Node, ...]:
        """The node and those above it, coarse to fine."""
        above: list[Node] = []
        while node_id:
            above.append(self.nodes[node_id - 1])
            node_id = above[-1].parent_id
        return tuple(reversed(above))

    def text_to_embed(self, node: Node) -> str:
        """A node's own text with its parent's as context: `cat furniture: cat tree`."""
        return f"{self.nodes[node.parent_id - 1].text}: {node.text}" if node.parent_id else node.text

    def path_texts(self) -> list[str]:
        """Each node's path of folded texts, `pet supply > cat bed`: what it is called whatever its id."""
        texts: list[str] = []
        for node in self.nodes:
            above = f"{texts[node.parent_id - 1]} > " if node.parent_id else ""
            texts.append(above + folded_text(node.text))
        return texts

    def leaves(self) -> list[Node]:
        """Nodes that are nobody's parent."""
        parents = {node.parent_id for node in self.nodes}
        return [node for node in self.nodes if node.node_id not in parents]

    def sha256(self) -> str:
        """Hash of ids, parents and texts: what a ranker trained on it depends on."""
        lines = "".join(f"{node.node_id}\t{node.parent_id}\t{node.text}\n" for node in self.nodes)
        return hashlib.sha256(lines.encode()).hexdigest()


def resolve(key: NodeKey, aliases: Mapping[NodeKey, NodeKey]) -> NodeKey:
    """The key of the node that a path of folded texts leads to."""
    found: NodeKey = ()
    for text in key:
        found = (*found, text)
        found = aliases.get(found, found)
    return found


def build_vocabulary(
    answers: Iterable[Sequence[Sequence[str]]],
    previous: Vocabulary | None = None,
    aliases: Mapping[NodeKey, NodeKey] | None = None,
) -> Vocabulary:
    """Collect the nodes of all answers.

    Args:
        answers: the paths of each valid answer, as the LLM wrote them.
        previous: a vocabulary to extend: its nodes keep their ids and texts, even where no answer names them any more.
        aliases: of `merges.find_merges`; a node of `previous` is never one.

    Returns:
        The previous nodes, then the new ones: level by level, in the order of their parents, the most frequent first.
    """
    aliases = aliases or {}
    counts: Counter[tuple[str, ...]] = Counter()
    spellings: dict[tuple[str, ...], Counter[str]] = {}
    for paths in answers:
        passed: dict[tuple[str, ...], str] = {}
        for texts in map(canonical_path, paths):
            folded = resolve(tuple(map(folded_text, texts)), aliases)
            for depth, text in enumerate(texts, start=1):
                # The spelling of an alias is not one of the node's own.
                own = folded_text(text) == folded[depth - 1]
                passed.setdefault(folded[:depth], text if own else "")
                passed[folded[:depth]] = passed[folded[:depth]] or (text if own else "")
        counts.update(passed.keys())
        for key, text in passed.items():
            if text:
                spellings.setdefault(key, Counter())[text] += 1
    key_of: dict[int, tuple[str, ...]] = {0: ()}
    nodes: list[Node] = []
    for node in previous.nodes if previous else ():
        key = (*key_of[node.parent_id], folded_text(node.text))
        key_of[node.node_id] = key
        nodes.append(
            Node(node_id=node.node_id, parent_id=node.parent_id, level=node.level, text=node.text, count=counts[key])
        )
    id_of = {key: node_id for node_id, key in key_of.items()}
    new = [key for key in counts if key not in id_of]
    for level in range(contract.MAX_DEPTH):
        at_level = [key for key in new if len(key) == level + 1]
        for key in sorted(at_level, key=lambda key: (id_of[key[:-1]], -counts[key], key)):
            id_of[key] = len(nodes) + 1
            text = min(spellings[key].items(), key=lambda item: (-item[1], item[0]))[0]
            nodes.append(Node(node_id=id_of[key], parent_id=id_of[key[:-1]], level=level, text=text, count=counts[key]))
    return Vocabulary(tuple(nodes), aliases)


def to_arrow(vocabulary: Vocabulary, vectors: Sequence[Sequence[float]]) -> pa.Table:
    """The vocabulary as `VOCABULARY_SCHEMA`; `vectors` [nodes, E] without node 0."""
    nodes = vocabulary.nodes
    return pa.table(
        {
            **{name: [getattr(node, name) for node in nodes] for name in NODE_COLUMNS},
            "embedding": list(vectors),
        },
        schema=VOCABULARY_SCHEMA,
    )


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a `vocabulary.parquet`.

    Raises:
        DataError: if it is missing or not of that form.
    """
    try:
        rows = pq.read_table(path, columns=list(NODE_COLUMNS)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            str(path),
            expected=f"a Parquet file with {', '.join(NODE_COLUMNS)}",
            got=f"{type(error).__name__}: {error}",
            remedy=f"give a {VOCABULARY_FILE} as offline/build_tables.py wrote it",
        ) from None
    return Vocabulary(tuple(Node(**row) for row in rows))
