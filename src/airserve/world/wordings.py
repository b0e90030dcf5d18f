"""Which words name a leaf: its phrases, shorter forms that still name it alone, and what of them is kept back."""

from __future__ import annotations

import hashlib
from collections import Counter

from airserve.world.ontology import Leaf, Ontology

UNSEEN_EVERY = 10
FEWEST_TO_KEEP_BACK = 8
"""Leaves with fewer products (or content lines) keep none of them back."""


def is_unseen_wording(text: str) -> bool:
    """Tell whether a phrase or line belongs to the tenth that appears in no title by default."""
    return hashlib.blake2b(b"wording:" + text.encode(), digest_size=8).digest()[0] % UNSEEN_EVERY == 0


def singular(word: str) -> str:
    """Fold a plain English plural: `knives` stays apart, `dishes`, `berries` and `cups` do not."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _plural(word: str) -> str:
    if word.endswith(("ch", "sh", "x", "ss")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else word + "s"


def _key(words: list[str]) -> tuple[str, ...]:
    return tuple(singular(word) for word in words)


class Wordings:
    """Phrases and lines of every leaf of an ontology.

    Args:
        unseen: take the kept-back wordings in place of the others.

    Attributes:
        products: per leaf index, its phrases; those that another leaf lists as well are left out.
        short_forms: per leaf index, ends of its phrases ("skillet" of "nonstick skillet") that hardly any other leaf's
            phrases end in; none of unseen wordings.
        content: per leaf index, its content lines.
    """

    def __init__(self, ontology: Ontology, *, unseen: bool = False) -> None:
        self.products: list[tuple[str, ...]] = []
        self.content: list[tuple[str, ...]] = []
        for leaf in ontology.leaves:
            own = tuple(text for text in leaf.products if text not in ontology.shared_products)
            self.products.append(_part(own or leaf.products, unseen=unseen))
            self.content.append(_part(leaf.content, unseen=unseen))
        self._owners: dict[tuple[str, ...], set[int]] = {}
        self._ends: dict[tuple[str, ...], Counter[int]] = {}
        for leaf in ontology.leaves:
            for phrase in leaf.products:
                words = phrase.split()
                self._owners.setdefault(_key(words), set()).add(leaf.index)
                for start in range(len(words)):
                    self._ends.setdefault(_key(words[start:]), Counter())[leaf.index] += 1
        self.short_forms = [() if unseen else self._short(leaf) for leaf in ontology.leaves]

    def _short(self, leaf: Leaf) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for phrase in self.products[leaf.index]:
            words = phrase.split()
            for start in range(1, len(words)):
                end = words[start:]
                counts = self._ends[_key(end)]
                own, others = counts[leaf.index], counts.total() - counts[leaf.index]
                one_word = len(end) == 1
                if (own >= 2 and own >= 2 * others) if one_word else (others == 0):
                    found[" ".join(end)] = None
        return tuple(found)

    def other_number(self, phrase: str) -> str:
        """Turn a phrase's last word into its plural, or back."""
        first, _, last = phrase.rpartition(" ")
        changed = singular(last) if singular(last) != last else _plural(last)
        return f"{first} {changed}".strip()

    def changes_head(self, leaf: Leaf, before: str, head: str) -> bool:
        """Tell whether words before a noun make it another leaf's: `cookie` before `cutter board`."""
        words = f"{before} {head}".lower().replace(",", "").split()
        shortest = len(head.split())
        return any(
            (owners := self._owners.get(_key(words[start:]))) is not None and leaf.index not in owners
            for start in range(len(words) - shortest)
        )


def _part(texts: tuple[str, ...], *, unseen: bool) -> tuple[str, ...]:
    if len(texts) < FEWEST_TO_KEEP_BACK:
        return () if unseen else texts
    return tuple(text for text in texts if is_unseen_wording(text) == unseen)
