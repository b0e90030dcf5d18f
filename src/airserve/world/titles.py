"""Titles of the demonstration world, in the manner in which people write them.

Product titles look like a marketplace's: an invented brand, a model number, sizes, colours, series, other things'
names as material, flavour or pattern, and somewhere among them the noun that counts. Video titles are hooks in frames.

Two things are kept from the language model that is trained on such titles, so that its accuracy can be told honestly:
titles that `is_held_out` says so of (a fifth; the demonstration world uses only these), and a tenth of the ontology's
wordings (`is_unseen_wording`), which appear in no title unless asked for.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import resources
from random import Random
from typing import Literal

import numpy as np

from airserve.errors import DataError
from airserve.world.ontology import Leaf, Ontology
from airserve.world.wordings import Wordings

Style = Literal["market", "tidy", "plain"]
"""`market`: crowded, as third-party sellers write. `tidy`: brand, at most one quality, noun, at most one size. `plain`:
the noun, or the video's line, and nothing else."""

FOOD_DOMAIN = "grocery & gourmet"
HELD_OUT_EVERY = 5


def is_held_out(title: str) -> bool:
    """Tell whether a title belongs to the fifth that no language model of the project is trained on."""
    return hashlib.blake2b(title.encode(), digest_size=8).digest()[0] % HELD_OUT_EVERY == 0


@cache
def _words() -> dict[str, tuple[str, ...]]:
    text = resources.files("airserve.world").joinpath("title_words.toml").read_text(encoding="utf-8")
    return {name: tuple(words) for name, words in tomllib.loads(text).items()}


def _title_case(text: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def brand(rng: Random, *, food: bool) -> str:
    """Invent a maker's name."""
    words = _words()
    kind = rng.random()
    if kind < 0.55:
        name = rng.choice(words["brand_starts"]) + rng.choice(words["brand_middles"]) + rng.choice(words["brand_ends"])
        name = name.upper() if rng.random() < 0.12 else name
    elif kind < 0.85:
        name = f"{rng.choice(words['brand_first'])} {rng.choice(words['brand_second'])}"
    else:
        first = rng.choice(words["brand_starts"]) + rng.choice(words["brand_ends"])
        name = rng.choice(
            (f"{first}'s", f"Dr. {first}", f"{first} & {rng.choice(words['brand_starts'])}son", f"{first}-It")
        )
    return f"{name} {rng.choice(words['food_makers' if food else 'goods_makers'])}" if rng.random() < 0.25 else name


def _model(rng: Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTVWX") for _ in range(rng.randint(1, 4)))
    number = str(rng.randint(10, 99999))
    return rng.choice(
        (letters + number, number, f"{letters}-{number}", f"{letters}{number}{letters[:1]}", f"#{number}")
    )


def _goods_size(rng: Random) -> str:
    a, b = rng.randint(2, 90), rng.randint(2, 90)
    count = rng.choice((2, 3, 4, 5, 6, 8, 10, 12, 20, 24, 50, 100))
    half = f"{rng.randint(1, 12)}-1/2"
    return rng.choice(
        (
            f"{a}-Inch", f"{a} Inch", f'{a}"', f'{a}" x {b}"', f"{a}-by-{b}-Inch", f"{a} by {b}-Inch", f"{half}-Inch",
            f"{a / 4:.2f}-Inch", f"{rng.randint(1, 12)}-Quart", f"{half}-Quart", f"{a}-Ounce", f"{a} oz", f"{a}oz.",
            f"{count}-Piece", f"{count}pc", f"{count} Pcs", f"{count}-Cup", f"{count}-Count", f"Set of {count}",
            f"(Set of {count})", f"{count}-Pack", f"{count} Pack", f"(Pack of {count})", f"Pack of {count}",
            f"{rng.choice((120, 600, 900, 1200, 1500))}-Watt", f"{rng.randint(2, 16)}-Speed", f"{a}-Liter", "King",
            "Queen", "Twin", "Full/Queen", "Standard", "Size: Small", "Size 8", f"{count * 100} Thread Count",
        )
    )  # fmt: skip


def _food_size(rng: Random) -> str:
    words = _words()
    amount = rng.choice(
        (str(rng.randint(1, 48)), f"{rng.randint(1, 300) / 10:.1f}", f"{rng.randint(100, 3000) / 100:.2f}")
    )
    unit = rng.choice(
        ("-Ounce", "-Ounce", "-Ounce", " Ounce", " oz", "oz", "-Pound", " lb", " Fl Oz", "g", "-Count", "ct")
    )
    pack = rng.choice((2, 3, 4, 5, 6, 8, 10, 12, 18, 24, 36))
    vessel = rng.choice(words["vessels"] if rng.random() < 0.7 else words["vessel"])
    return rng.choice(
        (
            f"{amount}{unit} {vessel} (Pack of {pack})", f"{amount}{unit} (Pack of {pack})", f"{amount}{unit}",
            f"{amount}{unit} {vessel}", f"(Pack of {pack})", f"{pack}-Count", f"{pack} Count", f"{pack}-Pack",
            f"{pack}-Count {vessel}",
        )
    )  # fmt: skip


class TitleWriter:
    """Writes titles of an ontology's leaves.

    Args:
        ontology: the leaves, and what names other leaves take.
        wordings: `seen` for training and for the world, `unseen` for the wordings kept from both.
    """

    def __init__(self, ontology: Ontology, wordings: Literal["seen", "unseen"] = "seen") -> None:
        self.wordings = Wordings(ontology, unseen=wordings == "unseen")
        self._leaves = ontology.leaves
        self._same_domain: dict[str, list[Leaf]] = {}
        for leaf in ontology.leaves:
            self._same_domain.setdefault(leaf.domain, []).append(leaf)

    def product_title(self, leaf: Leaf, rng: Random, style: Style = "market") -> str:
        """Write one product title of a leaf.

        Raises:
            DataError: if the leaf has no product wording of the kind asked for.
        """
        words = _words()
        food = (leaf.domain == FOOD_DOMAIN) != (rng.random() < 0.04)
        size = _food_size(rng) if food else _goods_size(rng)
        head = self._head(leaf, rng)
        if style == "plain":
            return _title_case(head)
        if style == "tidy":
            quality = rng.choice(words["food_qualities" if food else "qualities"]) if rng.random() < 0.5 else ""
            text = f"{brand(rng, food=food)} {quality} {head}" + (f", {size}" if rng.random() < 0.5 else "")
            return " ".join(_title_case(text).split())
        front = [brand(rng, food=food)] if rng.random() < 0.85 else []
        front += [rng.choice(words["series"])] * (rng.random() < (0.1 if food else 0.25))
        front += [_model(rng)] * (rng.random() < (0.03 if food else 0.3))
        size_first = rng.random() < (0.08 if food else 0.4)
        before = self._attributes(leaf, rng, food=food, most=3)
        if size_first:
            before.insert(rng.randint(0, len(before)), size)
        if self.wordings.changes_head(leaf, " ".join(before), head):
            before = []
        body = " ".join([*front, *before, head])
        title = body + self._tail(leaf, rng, food=food, size="" if size_first else size)
        return self._finish(title, rng)

    def content_title(self, leaf: Leaf, rng: Random, style: Style = "market") -> str:
        """Write one short-video title of a leaf; `plain` gives the bare line, the other styles frame it.

        Raises:
            DataError: if the leaf has no content line of the kind asked for.
        """
        words = _words()
        lines = self.wordings.content[leaf.index]
        if not lines:
            raise DataError(f"leaf {leaf}", expected="content lines", got="none", remedy="choose another leaf")
        text = rng.choice(lines)
        if style == "plain":
            return text
        if rng.random() < 0.15:
            small = set(words["small_words"])
            kept = [word for word in text.split() if word not in small or rng.random() < 0.5]
            text = " ".join(kept) if len(kept) >= 3 else text
        if rng.random() < 0.2:
            text = _typo(text, rng)
        if rng.random() < 0.4:
            text = rng.choice(words["content_starts"]) + text
        for _ in range(rng.choice((0, 0, 0, 1, 1, 1, 2))):
            text += rng.choice(words["content_ends"])
        case = rng.random()
        if case < 0.2:
            return text[:1].upper() + text[1:]
        return _title_case(text) if case < 0.28 else text.upper() if case < 0.33 else text

    def _head(self, leaf: Leaf, rng: Random) -> str:
        """The noun phrase, as listed or shortened, sometimes split by a quality, turned round, or said twice."""
        words = _words()
        forms = self.wordings.products[leaf.index]
        if not forms:
            raise DataError(f"leaf {leaf}", expected="product phrases", got="none", remedy="choose another leaf")
        short = self.wordings.short_forms[leaf.index]
        phrase = rng.choice(short) if short and rng.random() < 0.25 else rng.choice(forms)
        if rng.random() < 0.15:
            phrase = self.wordings.other_number(phrase)
        parts = phrase.split()
        if len(parts) > 1:
            kind = rng.random()
            if kind < 0.1:
                parts.insert(len(parts) - 1, rng.choice(words[rng.choice(("qualities", "materials", "colours"))]))
            elif kind < 0.14:
                parts = [f"{parts[-1]},", *parts[:-1]]
            elif kind < 0.17:
                parts = ["-".join(parts)]
            elif kind < 0.19 and len(parts) == 2:
                parts = ["".join(parts)]
        text = " ".join(parts)
        if rng.random() < 0.12:
            text += rng.choice((" ", " - ", " / ", ", ", " & ")) + rng.choice(forms)
        return text + rng.choice((" Set", " Kit", " Collection")) if rng.random() < 0.04 else text

    def _attributes(self, leaf: Leaf, rng: Random, *, food: bool, most: int) -> list[str]:
        """What stands before the noun: qualities, materials, flavours, patterns, names of other things."""
        words = _words()
        lists = ("food_qualities", "flavours") if food else ("qualities", "materials", "colours", "patterns")
        found = [rng.choice(words[rng.choice(lists)]) for _ in range(rng.choice(range(most + 1)))]
        if rng.random() < 0.15:
            other = self._other(leaf, rng).split()
            found.append(" ".join(other[: rng.randint(1, 2)]))
        return found

    def _other(self, leaf: Leaf, rng: Random) -> str:
        """A phrase of another leaf, most often of the same domain."""
        while True:
            other = rng.choice(self._same_domain[leaf.domain] if rng.random() < 0.7 else self._leaves)
            if other.index != leaf.index or len(self._leaves) == 1:
                return rng.choice(other.products)

    def _tail(self, leaf: Leaf, rng: Random, *, food: bool, size: str) -> str:
        """What stands behind the noun, each piece after a comma, a dash or a preposition."""
        words = _words()
        tail = ""
        if not food and rng.random() < 0.2:
            part = self._other(leaf, rng) if rng.random() < 0.3 else rng.choice(words["parts"])
            tail += f" {rng.choice(('with', 'with', 'w/', 'and', '&'))} {part}"
            tail += f" and {rng.choice(words['parts'])}" if rng.random() < 0.2 else ""
        if rng.random() < (0.05 if food else 0.12):
            tail += f" {rng.choice(('for', 'for', 'fits', 'by', 'from'))} "
            tail += self._other(leaf, rng) if rng.random() < 0.5 else brand(rng, food=food)
        join = rng.choice((", ", ", ", ", ", " - ", " ", " ("))
        if rng.random() < (0.45 if food else 0.5):
            named = (
                ("flavours", "flavours", "food_qualities") if food else ("colours", "colours", "patterns", "materials")
            )
            for _ in range(rng.choice((1, 1, 1, 2))):
                tail += join + rng.choice(words[rng.choice(named)]) + (")" if join == " (" else "")
        if size and rng.random() < (0.9 if food else 0.3):
            tail += rng.choice((", ", ", ", " ", " - ")) + size
        if rng.random() < 0.06:
            tail += " - " + rng.choice(words["pitches"])
        return tail

    def _finish(self, text: str, rng: Random) -> str:
        """Cases and entities, as sellers leave them."""
        case = rng.random()
        text = _title_case(text) if case < 0.86 else text.upper() if case < 0.93 else text.lower()
        if rng.random() < 0.3:
            text = text.replace("&", "&amp;").replace('"', "&quot;")
        return " ".join(text.split())


def _typo(text: str, rng: Random) -> str:
    words = text.split()
    long = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    place = rng.choice(long)
    word, at = words[place], rng.randint(1, len(words[place]) - 2)
    words[place] = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word + word[-1] * 3,
        )
    )
    return " ".join(words)


def draw(write: Callable[[], str], *, held_out: bool) -> str:
    """Call `write` until its title is held out (or is not)."""
    while True:
        title = write()
        if is_held_out(title) == held_out:
            return title


@lru_cache(maxsize=4)
def _writer(ontology: Ontology) -> TitleWriter:
    return TitleWriter(ontology)


def _plain(rng: Random | np.random.Generator) -> Random:
    return rng if isinstance(rng, Random) else Random(int(rng.integers(2**63)))


def product_title(leaf: Leaf, rng: Random | np.random.Generator, style: Style = "market") -> str:
    """Write one product title of a leaf, in seen wordings."""
    return _writer(leaf.ontology).product_title(leaf, _plain(rng), style)


def content_title(leaf: Leaf, rng: Random | np.random.Generator) -> str:
    """Write one short-video title of a leaf, in seen wordings."""
    return _writer(leaf.ontology).content_title(leaf, _plain(rng))
