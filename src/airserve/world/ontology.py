"""The intent ontology: what people may want, in three levels, with the words that products and videos use for it.

It is kept as TOML parts in `world/ontology/`, one `[[leaf]]` table an intent:

    [[leaf]]
    path = ["pet supplies", "cat furniture", "cat tree"]
    products = ["sisal cat tower", "kitty scratching post"]      # what marketplaces call it
    content = ["she only sleeps on top of the fridge now"]       # videos that people who will want it watch
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from airserve.errors import DataError
from airserve.intents.schema import NODE_PATTERN

DEPTH = 3
MIN_WORDINGS = 3
"""Fewest products and fewest content lines of a leaf."""

_NODE = re.compile(NODE_PATTERN)


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One intent, the end of a path."""

    index: int
    """Position in the ontology; changes when the files do."""
    path: tuple[str, str, str]
    products: tuple[str, ...]
    """Noun phrases, lower case."""
    content: tuple[str, ...]
    """Short-video titles, lower case."""
    ontology: Ontology = field(init=False, repr=False, compare=False)
    """Where the leaf belongs; set by the ontology."""

    @property
    def domain(self) -> str:
        """First level."""
        return self.path[0]

    @property
    def category(self) -> tuple[str, str]:
        """Domain and second level; category names alone are not unique."""
        return self.path[:2]

    @property
    def name(self) -> str:
        """Last level."""
        return self.path[2]

    def __str__(self) -> str:
        return " > ".join(self.path)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ontology:
    """All leaves, in the order of the files' names and of the leaves in them."""

    leaves: tuple[Leaf, ...]
    by_category: dict[tuple[str, str], tuple[Leaf, ...]] = field(init=False, repr=False)
    """Leaves of each (domain, category)."""
    by_domain: dict[str, tuple[tuple[str, str], ...]] = field(init=False, repr=False)
    """Categories of each domain."""
    shared_products: frozenset[str] = field(init=False, repr=False)
    """Product phrases that more than one leaf lists; they decide nothing, so title synthesis leaves them out."""

    def __post_init__(self) -> None:
        paths = Counter(leaf.path for leaf in self.leaves)
        twice = [" > ".join(path) for path, count in paths.items() if count > 1]
        if not self.leaves or twice:
            raise DataError(
                "ontology",
                expected="at least one leaf, every path once",
                got=f"{twice[0]!r} twice" if twice else "no leaf",
                remedy="merge or rename the leaves",
            )
        categories: dict[tuple[str, str], list[Leaf]] = {}
        domains: dict[str, dict[tuple[str, str], None]] = {}
        for leaf in self.leaves:
            object.__setattr__(leaf, "ontology", self)
            categories.setdefault(leaf.category, []).append(leaf)
            domains.setdefault(leaf.domain, {})[leaf.category] = None
        phrases = Counter(phrase for leaf in self.leaves for phrase in set(leaf.products))
        object.__setattr__(self, "by_category", {key: tuple(leaves) for key, leaves in categories.items()})
        object.__setattr__(self, "by_domain", {key: tuple(found) for key, found in domains.items()})
        object.__setattr__(self, "shared_products", frozenset(text for text, count in phrases.items() if count > 1))

    @property
    def nodes(self) -> tuple[str, ...]:
        """Distinct node texts of all levels, sorted."""
        return tuple(sorted({node for leaf in self.leaves for node in leaf.path}))

    def siblings(self, leaf: Leaf) -> tuple[Leaf, ...]:
        """Leaves of the same category, the leaf itself among them."""
        return self.by_category[leaf.category]


def _strings(value: Any, where: str, fewest: int) -> tuple[str, ...]:
    texts = tuple(value) if isinstance(value, list) else ()
    if len(texts) < fewest or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(where, expected=f"a list of at least {fewest} strings", got=repr(value)[:80], remedy="fill it")
    return tuple(dict.fromkeys(" ".join(text.lower().split()) for text in texts))


def _leaf(index: int, table: dict[str, Any], where: str) -> Leaf:
    path = _strings(table.get("path"), f"{where} path", DEPTH)
    bad = [node for node in path if not _NODE.fullmatch(node)]
    if len(path) != DEPTH or bad:
        raise DataError(
            f"{where} path",
            expected=f"{DEPTH} different nodes that match {NODE_PATTERN}",
            got=repr(bad[0]) if bad else f"{len(path)} nodes",
            remedy="rename the node",
        )
    return Leaf(
        index=index,
        path=(path[0], path[1], path[2]),
        products=_strings(table.get("products"), f"{where} products", MIN_WORDINGS),
        content=_strings(table.get("content"), f"{where} content", MIN_WORDINGS),
    )


def parse_ontology(parts: Sequence[tuple[str, str]]) -> Ontology:
    """Build an ontology from TOML texts.

    Args:
        parts: file name and text of each part, in order.

    Raises:
        DataError: naming the file and the leaf that is not in the documented form.
    """
    leaves: list[Leaf] = []
    for name, text in parts:
        try:
            tables = tomllib.loads(text).get("leaf", [])
        except tomllib.TOMLDecodeError as error:
            raise DataError(name, expected="TOML", got=str(error), remedy="correct the file") from error
        for number, table in enumerate(tables, start=1):
            leaves.append(_leaf(len(leaves), table, f"{name}, leaf {number}"))
    return Ontology(leaves=tuple(leaves))


def load_ontology(folder: Path | None = None) -> Ontology:
    """Load and check all `*.toml` parts of a folder, in the order of their names.

    Args:
        folder: None for the ontology that comes with the package.

    Raises:
        DataError: if there is no part, or a part is not in the documented form.
    """
    root = folder if folder is not None else resources.files("airserve.world").joinpath("ontology")
    files = sorted((file for file in root.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    if not files:
        raise DataError(str(root), expected="*.toml parts of an ontology", got="none", remedy="name their folder")
    return parse_ontology([(file.name, file.read_text(encoding="utf-8")) for file in files])
