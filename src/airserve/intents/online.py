"""How long the language model would take online: one user's whole history in one prompt, the user's intents out.

This is the figure that atomic intents are measured against. It is kept favourable to the model: the engine is warm, the
prompt's constant prefix is in its cache, and the user is alone on the machine.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from airserve.artifacts import CHECKPOINT_CONFIG_FILE
from airserve.contract import ACTIONS
from airserve.data.schema import load_behaviours, load_items
from airserve.errors import DataError, UserError
from airserve.files import write_json
from airserve.intents.engine_vllm import VllmEngine, vllm_version
from airserve.intents.prompt import prefix, query, segment_text
from airserve.intents.settings import GenerateSettings
from airserve.progress import track

log = logging.getLogger(__name__)
DUMMY_OUTPUT_TOKENS = 64
"""Random weights do not end an answer; a real one of two to four paths takes about this many tokens."""
DUMMY_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
"""Published architectures; with random weights their answers mean nothing, but take the same time."""
DUMMY_VOCABULARY = 151_936


@dataclass(frozen=True, kw_only=True)
class OnlineTiming:
    """Time of one answer for one user; seconds are the median over users."""

    llm_online_s: float
    llm_online_min_s: float
    llm_online_max_s: float
    users: int
    behaviours_mean: float
    prompt_tokens_mean: float
    output_tokens_mean: float
    valid_share: float
    model: str
    dummy_shape: str | None
    """Set where the weights were random: then only the time means anything."""
    vllm_version: str | None


def time_online(
    data: Path, settings: GenerateSettings, *, users: int = 5, behaviours: int = 50, dummy_shape: str | None = None
) -> OnlineTiming:
    """Ask the model for the intents of whole histories, one user at a time.

    Args:
        data: data folder; the users are test users, or any where there is none.
        settings: model and engine; `max_model_len` holds even where the model was trained for less.
        users: how many to time; one more is asked first, to warm up.
        behaviours: length of a history, the most recent ones.
        dummy_shape: a name of `DUMMY_SHAPES`: time that architecture with random weights and the tokenizer of
            `settings.model`.

    Raises:
        DataError: for data without a user who has a history.
        UserError: for an unknown shape.
        EngineError: if vLLM does not start.
    """
    prompts, lengths = histories(data, users=users + 1, behaviours=behaviours)
    with ExitStack() as stack:
        overrides: dict[str, Any] = {"hf_overrides": {"max_position_embeddings": settings.max_model_len}}
        if dummy_shape is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airserve-")))
            _write_dummy(dummy_shape, settings, folder)
            overrides = {"load_format": "dummy", "dtype": "bfloat16", "tokenizer": settings.model}
            settings = replace(settings, model=str(folder), max_output_tokens=DUMMY_OUTPUT_TOKENS)
        log.info("starting vLLM %s with %s", vllm_version(), dummy_shape or settings.model)
        engine = VllmEngine(settings, max_model_len=settings.max_model_len, **overrides)
        tokens = [fit_history(engine, prompt) for prompt in prompts]
        engine.complete(tokens[:1])
        seconds, answers = [], []
        timed = tokens[1:] or tokens
        for ids in track(timed, "asking online", len(timed), "users"):
            start = time.perf_counter()
            answers += engine.complete([ids])
            seconds.append(time.perf_counter() - start)
    return OnlineTiming(
        llm_online_s=round(statistics.median(seconds), 4),
        llm_online_min_s=round(min(seconds), 4),
        llm_online_max_s=round(max(seconds), 4),
        users=len(seconds),
        behaviours_mean=round(statistics.mean(lengths), 1),
        prompt_tokens_mean=round(statistics.mean(answer.prompt_tokens for answer in answers), 1),
        output_tokens_mean=round(statistics.mean(answer.output_tokens for answer in answers), 1),
        valid_share=round(statistics.mean(answer.valid for answer in answers), 4),
        model=settings.model if dummy_shape is None else dummy_shape,
        dummy_shape=dummy_shape,
        vllm_version=vllm_version(),
    )


def histories(data: Path, *, users: int, behaviours: int) -> tuple[list[str], list[int]]:
    """Render the prompts of whole histories: the constant prefix, then one query line a behaviour, oldest first.

    Args:
        data: data folder.
        users: how many; test users first, then those with the longest histories.
        behaviours: at most this many a user, the most recent.

    Returns:
        prompts, and the number of behaviours in each.

    Raises:
        DataError: if no user has a history.
    """
    items = load_items(data)
    rows = recent_histories(items, load_behaviours(data, items), users, behaviours)
    if not rows:
        raise DataError(str(data), expected="users with a history", got="none", remedy="import more behaviours")
    return [history_prompt(row["events"]) for row in rows], [len(row["events"]) for row in rows]


def history_prompt(events: list[dict[str, Any]]) -> str:
    """Render one user's history: the constant prefix, then a query line an event."""
    lines = [query(event["action"], segment_text(event["user_segment"]), event["title"]) for event in events]
    return prefix() + "\n".join(lines) + "\n"


def recent_histories(items: pa.Table, log: pa.Table, users: int, behaviours: int) -> list[dict[str, Any]]:
    """Each chosen user's `user_id` and `events` (`item_id`, `action`, `user_segment`, `title`, `timestamp_s`)."""
    with duckdb.connect() as connection:
        connection.register("items", items)
        connection.register("log", log)
        rows: list[dict[str, Any]] = (
            connection.sql(
                """
            WITH chosen AS (
                SELECT user_id FROM log GROUP BY user_id HAVING count(*) FILTER (split = 'train') > 0
                ORDER BY bool_or(split = 'test') DESC, count(*) DESC, user_id LIMIT $users
            ), numbered AS (
                SELECT user_id, item_id, action, user_segment, title, timestamp_s,
                       row_number() OVER (PARTITION BY user_id ORDER BY timestamp_s DESC) AS place
                FROM log JOIN chosen USING (user_id) JOIN items USING (item_id) WHERE split = 'train'
            )
            SELECT user_id,
                   list({item_id: item_id, action: action, user_segment: user_segment, title: title,
                         timestamp_s: timestamp_s} ORDER BY place DESC) AS events
            FROM numbered WHERE place <= $behaviours GROUP BY user_id ORDER BY user_id
            """,
                params={"users": users, "behaviours": behaviours},
            )
            .to_arrow_table()
            .to_pylist()
        )
    assert all(event["action"] in ACTIONS for row in rows for event in row["events"])
    return rows


def fit_history(engine: VllmEngine, prompt: str) -> list[int]:
    """Tokenise a `history_prompt`; the oldest lines go where the history is too long for the model."""
    lines = prompt.removeprefix(prefix()).splitlines()
    while True:
        text = prefix() + "\n".join(lines) + "\n"
        if engine.is_chat:
            said = [{"role": "system", "content": prefix()}, {"role": "user", "content": "\n".join(lines)}]
            ids = engine.chat_tokens(said)
        else:
            ids = list(engine.tokenizer(text)["input_ids"])
        if len(ids) <= engine.max_prompt_tokens or len(lines) == 1:
            return ids
        lines = lines[1:]


def _write_dummy(shape: str, settings: GenerateSettings, folder: Path) -> None:
    if shape not in DUMMY_SHAPES:
        raise UserError("dummy_shape", expected=f"one of {', '.join(DUMMY_SHAPES)}", got=shape, remedy="choose one")
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": DUMMY_VOCABULARY,
        "max_position_embeddings": max(settings.max_model_len, 40_960),
        "rope_theta": 1_000_000,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "dtype": "bfloat16",
        **DUMMY_SHAPES[shape],
    }
    write_json(folder / CHECKPOINT_CONFIG_FILE, config)
