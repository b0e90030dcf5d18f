"""Training and evaluation examples of the intent model: a title, an action, a segment, and the true answer.

Examples are made on the fly, chunk by chunk, each chunk from its own seed: no title repeats, nothing is stored, and a
resumed run goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from transformers import PreTrainedTokenizerFast

from airserve.contract import ACTIONS
from airserve.intents.prompt import SEGMENTS, query
from airserve.intents.schema import Path
from airserve.lm.tokenizer import AnswerCodec
from airserve.world.intent_rules import true_paths
from airserve.world.ontology import Leaf, Ontology
from airserve.world.titles import Style, TitleWriter, draw, is_held_out

Kind = Literal["product", "content"]
KINDS: tuple[Kind, ...] = ("product", "content")
CONTENT_SHARE = 0.4
TIDY_SHARE = 0.15


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question and its true answer."""

    kind: Kind
    action: str
    segment: int
    title: str
    paths: tuple[Path, ...]

    @property
    def query_line(self) -> str:
        """What stands behind the constant prefix."""
        return query(self.action, SEGMENTS[self.segment], self.title) + "\n"


class ExampleWriter:
    """Draws examples from an ontology, leaves and actions evenly.

    Args:
        wordings: `seen`, or `unseen` for the wordings kept from training.
    """

    def __init__(self, ontology: Ontology, wordings: Literal["seen", "unseen"] = "seen") -> None:
        self._writer = TitleWriter(ontology, wordings)
        known = self._writer.wordings
        self._leaves: dict[Kind, list[Leaf]] = {
            "product": [leaf for leaf in ontology.leaves if known.products[leaf.index]],
            "content": [leaf for leaf in ontology.leaves if known.content[leaf.index]],
        }

    def draw(self, rng: Random, kind: Kind, *, held_out: bool, plain_share: float = 0.0) -> Example:
        """Draw one example; its title is held out or not, as asked for."""
        leaf = rng.choice(self._leaves[kind])
        style: Style = "tidy" if rng.random() < TIDY_SHARE else "market"
        if rng.random() < plain_share and (kind == "product" or self._has_plain_line(leaf)):
            style = "plain"

        def write() -> str:
            if kind == "product":
                return self._writer.product_title(leaf, rng, style)
            return self._writer.content_title(leaf, rng, style)

        title = draw(write, held_out=held_out)
        action, segment = rng.choice(tuple(ACTIONS)), rng.randrange(len(SEGMENTS))
        return Example(kind=kind, action=action, segment=segment, title=title, paths=true_paths(leaf, action, segment))

    def _has_plain_line(self, leaf: Leaf) -> bool:
        """A leaf's bare lines may all be held out; drawing one would never end."""
        return not all(is_held_out(line) for line in self._writer.wordings.content[leaf.index])

    def training(self, seed: int, chunk: int, count: int, plain_share: float = 0.0) -> list[Example]:
        """Return a chunk of training examples; none of their titles is held out.

        Args:
            plain_share: share of bare nouns and lines, from which words are learned fastest.
        """
        rng = Random(f"train-{seed}-{chunk}")
        kinds: list[Kind] = ["content" if rng.random() < CONTENT_SHARE else "product" for _ in range(count)]
        return [self.draw(rng, kind, held_out=False, plain_share=plain_share) for kind in kinds]

    def evaluation(self, seed: int, count: int, kind: Kind) -> list[Example]:
        """Return examples of held-out titles, each title once."""
        rng = Random(f"evaluation-{seed}-{kind}")
        found: dict[str, Example] = {}
        for _ in range(20 * count):
            example = self.draw(rng, kind, held_out=True)
            found.setdefault(example.title, example)
            if len(found) == count:
                break
        return list(found.values())


@dataclass(frozen=True, kw_only=True)
class Row:
    """An example as token ids: the query line, then the answer with its end token."""

    query_ids: list[int]
    answer_ids: list[int]

    def __len__(self) -> int:
        return len(self.query_ids) + len(self.answer_ids)


def encode(examples: list[Example], tokenizer: PreTrainedTokenizerFast, codec: AnswerCodec) -> list[Row]:
    """Turn examples into rows."""
    texts = [example.query_line for example in examples]
    queries: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        Row(query_ids=ids, answer_ids=codec.encode(example.paths))
        for ids, example in zip(queries, examples, strict=True)
    ]
