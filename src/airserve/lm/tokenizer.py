"""The tokenizer of the shipped intent model: byte-level BPE whose answers are very short.

Every node of the ontology is one token with its quotes and comma (`,"cat tree"`), and so are the brackets around and
between paths: an answer of one path takes 6 tokens, of two paths 10, which is most of the model's decoding speed. They
are ordinary vocabulary entries found by the pre-tokenizer and `ignore_merges`, so other node texts still have a
spelling, from smaller pieces. Input is lower-cased and hyphens between words become blanks: titles are read, never
written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from airserve.errors import ArtifactError
from airserve.intents.prompt import prefix
from airserve.intents.schema import Path

END = "<|end|>"
OPEN, BETWEEN, CLOSE = '{"paths":[[', "],[", "]]}"

_PIECES = (
    r'\{"paths":\[\[|\]\]\}|\],\[|,?"[a-z0-9][a-z0-9 &\'-]+"'
    r"| ?\p{L}+(?:'\p{L}+)?| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
)
_SPACED = r"(?<=[\p{L}\p{N}.])[-/](?=[\p{L}\p{N}])"
_OPENED = r"(?<=[(\[*~#])(?=[\p{L}\p{N}])"


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Size of the vocabulary."""

    pieces: int = 4096
    """Byte-level BPE pieces, the 256 bytes among them; the ontology's nodes come on top."""

    def __post_init__(self) -> None:
        if self.pieces < 512:
            raise ValueError(f"pieces: expected at least 512, got {self.pieces}; choose more")


def _bare(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("&amp;", "&"),
            normalizers.Replace("&quot;", '"'),
            normalizers.Replace(Regex(_SPACED), " "),
            normalizers.Replace(Regex(_OPENED), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def node_pieces(nodes: Iterable[str]) -> list[str]:
    """Return the answer pieces that are one token each: brackets, and every node as a root and as a child."""
    return [OPEN, BETWEEN, CLOSE, *(f'{comma}"{node}"' for node in nodes for comma in ("", ","))]


def build_tokenizer(
    titles: Iterable[str], nodes: Sequence[str], settings: TokenizerSettings | None = None
) -> PreTrainedTokenizerFast:
    """Train the pieces on titles and the prompt, and add the answer pieces.

    Args:
        titles: training titles (never held-out ones).
        nodes: distinct node texts of the ontology.
    """
    settings = settings or TokenizerSettings()
    trained = _bare(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=settings.pieces,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=16,
    )
    prompt_lines = [line for line in prefix().splitlines() if '"' not in line]
    trained.train_from_iterator([*titles, *prompt_lines * 20], trainer)
    model = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in node_pieces(nodes):
        vocab.setdefault(byte_level.pre_tokenize_str(text)[0][0], len(vocab))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = _bare(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.add_special_tokens([END])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


class AnswerCodec:
    """Turns paths into answer tokens and answer tokens into text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, nodes: Iterable[str]) -> None:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        vocab: dict[str, int] = tokenizer.get_vocab()
        pieces = {text: vocab.get(byte_level.pre_tokenize_str(text)[0][0]) for text in node_pieces(nodes)}
        missing = [text for text, number in pieces.items() if number is None]
        if missing:
            raise ArtifactError(
                "tokenizer",
                expected="one token for every node of the ontology",
                got=f"none for {missing[0]}",
                remedy="train the model anew for this ontology",
            )
        self._ids = {text: number for text, number in pieces.items() if number is not None}
        self.end_id: int = vocab[END]

    def encode(self, paths: Sequence[Path]) -> list[int]:
        """Return the answer's token ids, the end token last."""
        ids: list[int] = []
        for number, path in enumerate(paths):
            ids.append(self._ids[BETWEEN if number else OPEN])
            ids.extend(self._ids[f'{"," if level else ""}"{node}"'] for level, node in enumerate(path))
        return [*ids, self._ids[CLOSE], self.end_id]
