"""Accuracy of the intent model on titles that it never saw.

Greedy decoding gives the true answer exactly when each of its tokens is the most probable one behind the true ones
before it, so one forward pass over question and true answer tells the accuracy of the first path and of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from airserve.intents.prompt import query
from airserve.lm.examples import Example, encode
from airserve.lm.network import IntentNetwork
from airserve.lm.tokenizer import AnswerCodec
from airserve.lm.training import answer_logits, collate
from airserve.world.ontology import DEPTH


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares over one set of examples."""

    titles: int
    domain: float
    """First path's domain is right."""
    category: float
    """... and its category."""
    leaf: float
    """The whole first path is right."""
    answer: float
    """All paths are right."""


@torch.inference_mode()
def accuracy(
    network: IntentNetwork,
    examples: list[Example],
    tokenizer: PreTrainedTokenizerFast,
    codec: AnswerCodec,
    batch_rows: int = 128,
) -> Accuracy:
    """Return the accuracy of greedy answers; every example counts once."""
    rows = sorted(encode(examples, tokenizer, codec), key=len)
    right = torch.zeros(4)
    for start in range(0, len(rows), batch_rows):
        part = rows[start : start + batch_rows]
        batch = collate(part, codec.end_id)
        with torch.autocast("cpu", torch.bfloat16):
            hits = answer_logits(network, batch).argmax(dim=-1) == batch.targets
        for number in range(len(part)):
            good = int((~hits[batch.row_of == number]).int().argmax()) if not hits[batch.row_of == number].all() else 99
            right += torch.tensor([float(good > 1 + level) for level in range(DEPTH)] + [float(good == 99)])
    shares = (right / max(len(rows), 1)).tolist()
    return Accuracy(
        titles=len(rows),
        domain=round(shares[0], 4),
        category=round(shares[1], 4),
        leaf=round(shares[2], 4),
        answer=round(shares[3], 4),
    )


@torch.inference_mode()
def greedy_answers(
    network: IntentNetwork,
    questions: list[tuple[str, str, str]],
    tokenizer: PreTrainedTokenizerFast,
    codec: AnswerCodec,
    most_tokens: int = 32,
) -> list[str]:
    """Answer questions (action, segment text, title) greedily, without a grammar; for a look, not for a job."""
    past = network.prefix_cache()
    answers: list[str] = []
    for question in questions:
        ids: list[int] = tokenizer(query(*question) + "\n", add_special_tokens=False)["input_ids"]
        asked = len(ids)
        while len(ids) < asked + most_tokens:
            hidden, _ = network.hidden(torch.tensor([ids]), past)
            ids.append(int(network.logits(hidden[:, -1]).argmax()))
            if ids[-1] == codec.end_id:
                break
        answers.append(tokenizer.decode(ids[asked:], skip_special_tokens=True))
    return answers
