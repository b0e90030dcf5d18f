"""Distinct event kinds of a log: what the language model is asked about.

A kind is (action, item, user segment). Items that may be ranked get one default kind even when nobody has seen them, so
that every candidate has intents. Kinds whose prompts say the same share a prompt. All of it is columnar (DuckDB): a log
of 100 million events takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from airserve.contract import ACTIONS

DEFAULT_ACTION = "order"
DEFAULT_SEGMENT = 0
assert DEFAULT_ACTION in ACTIONS


@dataclass(frozen=True, kw_only=True)
class EventKinds:
    """The kinds of a log and the prompts that they need."""

    kinds: pa.Table
    """`item_id`, `action`, `user_segment`, `text` (the item's title), `prompt_id`, `events` (how often; 0 for a default
    kind that was never seen). The most frequent first."""
    prompts: pa.Table
    """`prompt_id` (0..), `action`, `user_segment`, `text`, in the order of the kinds."""


def event_kinds(items: pa.Table, behaviours: pa.Table, *, limit: int | None = None) -> EventKinds:
    """Find the distinct event kinds of a log.

    Args:
        items: `data.schema.ITEMS_SCHEMA`.
        behaviours: `data.schema.BEHAVIOURS_SCHEMA`; events on other items are left out.
        limit: keep only this many, the most frequent; for trying out.

    Returns:
        kinds and prompts; titles that differ only in case or blanks share a prompt.
    """
    top = "" if limit is None else f"LIMIT {int(limit)}"
    with duckdb.connect() as connection:
        connection.register("items", items)
        connection.register("behaviours", behaviours)
        connection.execute(
            f"""
            CREATE TEMP TABLE kinds AS
            WITH seen AS (
                SELECT item_id, action, user_segment, count(*) AS events FROM behaviours GROUP BY ALL
                UNION ALL
                SELECT item_id, $action, $segment::INTEGER, 0 FROM items WHERE is_candidate
            ), distinct_kinds AS (
                SELECT item_id, action, user_segment, sum(events)::BIGINT AS events FROM seen GROUP BY ALL
            )
            SELECT item_id, action, user_segment, title AS text, events,
                   lower(trim(regexp_replace(title, '\\s+', ' ', 'g'))) AS same
            FROM distinct_kinds JOIN items USING (item_id)
            ORDER BY events DESC, item_id, action, user_segment {top}
            """,
            {"action": DEFAULT_ACTION, "segment": DEFAULT_SEGMENT},
        )
        connection.execute(
            """
            CREATE TEMP TABLE prompts AS
            SELECT row_number() OVER (ORDER BY sum(events) DESC, action, user_segment, same) - 1 AS prompt_id,
                   action, user_segment, min(text) AS text, same
            FROM kinds GROUP BY action, user_segment, same
            """
        )
        kinds = connection.sql(
            """
            SELECT k.item_id, k.action, k.user_segment, k.text, p.prompt_id, k.events
            FROM kinds k JOIN prompts p USING (action, user_segment, same)
            ORDER BY k.events DESC, k.item_id, k.action, k.user_segment
            """
        ).to_arrow_table()
        prompts = connection.sql(
            "SELECT prompt_id, action, user_segment, text FROM prompts ORDER BY prompt_id"
        ).to_arrow_table()
    return EventKinds(kinds=kinds, prompts=prompts)
