"""Do intents composed from the table say what the language model says when it reads the whole history at once?

The paper's claim behind atomic intents, measured: for a sample of users, leaves composed from the answers of each event
are compared with the leaves of one answer to the whole history, by name and by embedding, and again with a table whose
answers are shuffled over the kinds, which is what chance gives.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from airserve.artifacts import ANSWERS_FILE
from airserve.data.schema import load_behaviours, load_items
from airserve.errors import DataError
from airserve.intents.engine_vllm import VllmEngine
from airserve.intents.online import fit_history, history_prompt, recent_histories
from airserve.intents.settings import GenerateSettings
from airserve.table.vocabulary import canonical_path, folded_text

Kind = tuple[int, str, int]
Leaf = tuple[str, ...]
Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]
HALF_LIFE_S = 14 * 86_400.0
"""Of a behaviour's weight; the paper does not say its lambda."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Means over users."""

    leaf_overlap: float
    """Of the whole-history leaves, those among the composed ones."""
    similarity: float
    """Cosine of each whole-history leaf to the nearest composed leaf."""


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Table-composed intents against the whole-history answer."""

    users: int
    users_without_answer: int
    """The model's whole-history answer was invalid; left out."""
    behaviours_mean: float
    composed_leaves: int
    """Kept of each user, by weight."""
    table: Agreement
    shuffled: Agreement


def measure_consistency(
    data: Path,
    intents: Path,
    settings: GenerateSettings,
    embed: Embed,
    *,
    users: int = 50,
    behaviours: int = 20,
    leaves: int = 10,
    seed: int = 0,
) -> Consistency:
    """Compare both ways of finding a user's intents.

    Args:
        data: data folder.
        intents: folder with `answers.parquet`, written by the same model.
        settings: model and engine.
        embed: texts to L2-normalised rows.
        users: sample size.
        behaviours: length of a history.
        leaves: composed leaves kept of each user, the heaviest.
        seed: of the shuffled control.

    Raises:
        DataError: for data without histories, or if no whole-history answer is valid.
        EngineError: if vLLM does not start.
    """
    items = load_items(data)
    rows = recent_histories(items, load_behaviours(data, items), users, behaviours)
    engine = VllmEngine(settings)
    said = engine.complete([fit_history(engine, history_prompt(row["events"])) for row in rows])
    table = _read_table(intents / ANSWERS_FILE)
    shuffled = shuffle_table(table, seed)
    pairs = [(row["events"], leaves_of(answer.paths)) for row, answer in zip(rows, said, strict=True) if answer.valid]
    if not pairs:
        raise DataError(
            settings.model,
            expected="valid answers to whole histories",
            got=f"none of {len(rows)}",
            remedy="use a larger model, or shorter histories",
        )
    return Consistency(
        users=len(pairs),
        users_without_answer=len(rows) - len(pairs),
        behaviours_mean=round(statistics.mean(len(events) for events, _ in pairs), 1),
        composed_leaves=leaves,
        table=agreement([(compose(events, table, leaves), whole) for events, whole in pairs], embed),
        shuffled=agreement([(compose(events, shuffled, leaves), whole) for events, whole in pairs], embed),
    )


def leaves_of(paths: Sequence[Sequence[str]]) -> set[str]:
    """The last node of each path, folded: what is compared by name."""
    return {folded_text(canonical_path(path)[-1]) for path in paths if canonical_path(path)}


def shuffle_table(table: dict[Kind, list[list[str]]], seed: int) -> dict[Kind, list[list[str]]]:
    """The same answers, each at another kind's place."""
    kinds = sorted(table)
    answers = [table[kind] for kind in kinds]
    random.Random(seed).shuffle(answers)
    return dict(zip(kinds, answers, strict=True))


def compose(events: Sequence[dict[str, Any]], table: dict[Kind, list[list[str]]], keep: int) -> list[str]:
    """The heaviest leaves of a history, `log(1 + N) * sum of exp(-lambda * age)`.

    Args:
        events: `item_id`, `action`, `user_segment`, `timestamp_s`.
        table: paths of each kind.
        keep: at most this many.

    Source: AIR (arXiv 2606.10357), unified intent tree; actions weigh the same here.
    """
    now_s = max((event["timestamp_s"] for event in events), default=0)
    weights: dict[str, list[float]] = defaultdict(list)
    for event in events:
        faded = math.exp(-math.log(2) * (now_s - event["timestamp_s"]) / HALF_LIFE_S)
        for leaf in leaves_of(table.get((event["item_id"], event["action"], event["user_segment"]), [])):
            weights[leaf].append(faded)
    ranked = sorted(weights, key=lambda leaf: (-math.log1p(len(weights[leaf])) * sum(weights[leaf]), leaf))
    return ranked[:keep]


def agreement(pairs: Sequence[tuple[list[str], set[str]]], embed: Embed) -> Agreement:
    """Compare composed leaves with whole-history leaves, user by user.

    Args:
        pairs: composed and whole-history leaves; a user without composed leaves counts as 0.
        embed: texts to L2-normalised rows.
    """
    texts = sorted({text for composed, whole in pairs for text in (*composed, *whole)})
    place = {text: at for at, text in enumerate(texts)}
    vectors = embed(texts)
    overlaps, similarities = [], []
    for composed, whole in pairs:
        wanted = sorted(whole)
        overlaps.append(len(whole & set(composed)) / len(whole))
        if composed:
            near = vectors[[place[text] for text in wanted]] @ vectors[[place[text] for text in composed]].T
            similarities.append(float(near.max(axis=1).mean()))
        else:
            similarities.append(0.0)
    return Agreement(
        leaf_overlap=round(statistics.mean(overlaps), 4), similarity=round(statistics.mean(similarities), 4)
    )


def _read_table(path: Path) -> dict[Kind, list[list[str]]]:
    if not path.is_file():
        raise DataError(str(path), expected="answers", got="no such file", remedy="run offline/generate_intents.py")
    rows = pq.read_table(path, columns=["item_id", "action", "user_segment", "paths"]).to_pylist()
    return {(row["item_id"], row["action"], row["user_segment"]): row["paths"] for row in rows}
