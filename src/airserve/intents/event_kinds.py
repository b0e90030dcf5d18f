"""Distinct event kinds of a log: what the language model is asked about.

A kind is (action, item, user segment). Items that may be ranked get one default kind even when nobody has seen them, so
that every candidate has intents. Kinds whose prompts say the same share a prompt. The log is aggregated by DuckDB in
one pass: bound by the decoding of three columns and by the hash table of distinct kinds, which is spilled when it is
larger than the memory given, so memory does not grow with the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from airserve.artifact_schemas import BEHAVIOURS_SCHEMA, ITEMS_SCHEMA
from airserve.contract import ACTIONS, PAD_ITEM
from airserve.data.sources import MemorySettings, Source, bounded_duckdb, data_errors, scan
from airserve.errors import DataError

DEFAULT_ACTION = "order"
DEFAULT_SEGMENT = 0
assert DEFAULT_ACTION in ACTIONS

ITEM_COLUMNS = ITEMS_SCHEMA
LOG_COLUMNS = pa.schema([BEHAVIOURS_SCHEMA.field(name) for name in ("item_id", "action", "user_segment")])
OPTIONAL = frozenset({"domain", "is_candidate", "user_segment"})
_ACTION_CODE = "CASE action " + " ".join(f"WHEN '{name}' THEN {code}" for name, code in ACTIONS.items()) + " END"
_ACTION_NAME = "CASE code " + " ".join(f"WHEN {code} THEN '{name}'" for name, code in ACTIONS.items()) + " END"
UNKNOWN_CODE = 127


@dataclass(frozen=True, kw_only=True)
class EventKinds:
    """The kinds of a log and the prompts that they need."""

    kinds: pa.Table
    """`item_id`, `action`, `user_segment`, `text` (the item's title), `prompt_id`, `events` (how often; 0 for a default
    kind that was never seen). The most frequent first."""
    prompts: pa.Table
    """`prompt_id` (0..), `action`, `user_segment`, `text`, in the order of the kinds."""


def event_kinds(items: pa.Table, behaviours: pa.Table, *, limit: int | None = None) -> EventKinds:
    """Find the distinct event kinds of a log that is in memory.

    Args:
        items: `artifact_schemas.ITEMS_SCHEMA`.
        behaviours: `artifact_schemas.BEHAVIOURS_SCHEMA`; events on other items are left out.
        limit: keep only this many, the most frequent; for trying out.

    Returns:
        kinds and prompts; titles that differ only in case or blanks share a prompt.
    """
    with bounded_duckdb(MemorySettings(threads=1)) as connection:
        connection.register("item_rows", items)
        connection.register("log_rows", behaviours)
        count_kinds(connection, "SELECT item_id, action, user_segment FROM log_rows")
        connection.execute("CREATE TABLE items AS SELECT * FROM item_rows")
        make_prompts(connection, limit)
        kinds = connection.sql(
            "SELECT item_id, action, user_segment, text, prompt_id, events FROM kinds "
            "ORDER BY events DESC, item_id, action, user_segment"
        ).to_arrow_table()
        prompts = connection.sql(
            "SELECT prompt_id, action, user_segment, text FROM prompts ORDER BY prompt_id"
        ).to_arrow_table()
    return EventKinds(kinds=kinds, prompts=prompts)


def load_kinds(connection: Any, items: Source, log: Source, *, limit: int | None = None) -> int:
    """Fill the tables `items`, `kinds` and `prompts` of a DuckDB connection from files.

    `kinds` and `prompts` have the columns of `EventKinds`.

    Returns:
        the number of events on items that are not in `items`; they are left out.

    Raises:
        DataError: naming file and column, what was expected, what came and the remedy.
    """
    load_items(connection, items)
    with data_errors(log):
        select = scan(connection, log, LOG_COLUMNS, optional=OPTIONAL)
        if "user_segment" not in [row[0] for row in connection.execute(f"DESCRIBE {select}").fetchall()]:
            select = f"SELECT *, {DEFAULT_SEGMENT}::INTEGER AS user_segment FROM ({select})"
        count_kinds(connection, select)
        _check_log(connection, log, select)
        foreign = connection.execute(
            "SELECT coalesce(sum(events), 0)::BIGINT, (SELECT coalesce(sum(events), 0)::BIGINT FROM seen) "
            "FROM seen ANTI JOIN items USING (item_id)"
        ).fetchall()[0]
        if foreign[0] and foreign[0] == foreign[1]:
            raise _refuse(log, "item_id", f"ids of {items.location}", "none of them", "name the items of this log")
        make_prompts(connection, limit)
    return int(foreign[0])


def load_items(connection: Any, items: Source) -> None:
    """Read and check the items into the table `items`.

    Raises:
        DataError: for a missing column, a null, a repeated id, or the id that is reserved for padding.
    """
    with data_errors(items):
        select = scan(connection, items, ITEM_COLUMNS, optional=OPTIONAL)
        connection.execute(f"CREATE TABLE items AS {select}")
        names = [row[0] for row in connection.execute("DESCRIBE items").fetchall()]
        for name, filled in (("domain", "VARCHAR DEFAULT ''"), ("is_candidate", "BOOLEAN DEFAULT true")):
            if name not in names:
                connection.execute(f"ALTER TABLE items ADD COLUMN {name} {filled}")
    for name in names:
        nulls = connection.execute(f"SELECT count(*) FROM items WHERE {name} IS NULL").fetchall()[0][0]
        if nulls:
            raise _refuse(items, name, "no nulls", f"{nulls} nulls", "fill them or leave the rows out")
    twice = connection.execute(
        "SELECT count(*), min(item_id) FROM (SELECT item_id FROM items GROUP BY item_id HAVING count(*) > 1)"
    ).fetchall()[0]
    if twice[0]:
        got = f"{twice[0]} ids more than once, the first {twice[1]}"
        raise _refuse(items, "item_id", "unique ids", got, "keep one row an item")
    if connection.execute("SELECT count(*) FROM items WHERE item_id = ?", [PAD_ITEM]).fetchall()[0][0]:
        raise _refuse(items, "item_id", "any other 64-bit id", str(PAD_ITEM), "this one is reserved for padding")


def count_kinds(connection: Any, select: str) -> None:
    """Aggregate a log into the table `seen`: `item_id`, `code` (of the action), `user_segment`, `events`.

    Args:
        connection: DuckDB.
        select: gives `item_id`, `action`, `user_segment`.
    """
    # Grouping by a small number is several times faster than by the action's name.
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(
        f"""
        CREATE TABLE seen AS
        SELECT item_id, coalesce({_ACTION_CODE}, {UNKNOWN_CODE})::TINYINT AS code, user_segment, count(*) AS events
        FROM ({select}) GROUP BY ALL
        """
    )
    connection.execute("SET preserve_insertion_order = true")


def make_prompts(connection: Any, limit: int | None = None) -> None:
    """Make the tables `kinds` and `prompts` from `seen` and `items`; `limit` keeps the most frequent kinds."""
    top = "" if limit is None else f"LIMIT {int(limit)}"
    connection.execute(
        f"""
        CREATE TABLE kinds AS
        WITH titled AS (
            SELECT *, lower(trim(regexp_replace(title, '\\s+', ' ', 'g'))) AS same FROM items
        ), all_kinds AS (
            SELECT item_id, code, user_segment, events FROM seen
            UNION ALL
            SELECT item_id, {ACTIONS[DEFAULT_ACTION]}, {DEFAULT_SEGMENT}, 0 FROM items WHERE is_candidate
        ), distinct_kinds AS (
            SELECT item_id, code, user_segment, sum(events)::BIGINT AS events FROM all_kinds GROUP BY ALL
        ), named AS (
            SELECT item_id, {_ACTION_NAME} AS action, user_segment, title AS text, events, domain, same
            FROM distinct_kinds JOIN titled USING (item_id)
            ORDER BY events DESC, item_id, action, user_segment {top}
        ), grouped AS (
            SELECT action, user_segment, same, min(text) AS prompt_text,
                   row_number() OVER (ORDER BY sum(events) DESC, action, user_segment, same) - 1 AS prompt_id
            FROM named GROUP BY action, user_segment, same
        )
        SELECT item_id, action, user_segment, text, prompt_id, events, domain, prompt_text
        FROM named JOIN grouped USING (action, user_segment, same)
        """
    )
    connection.execute(
        "CREATE TABLE prompts AS SELECT prompt_id, any_value(action) AS action, "
        "any_value(user_segment) AS user_segment, any_value(prompt_text) AS text FROM kinds GROUP BY prompt_id"
    )


def _check_log(connection: Any, log: Source, select: str) -> None:
    nulls_of_item, nulls_of_segment, unknown, lowest = connection.execute(
        f"""
        SELECT coalesce(sum(events) FILTER (item_id IS NULL), 0),
               coalesce(sum(events) FILTER (user_segment IS NULL), 0),
               coalesce(sum(events) FILTER (code = {UNKNOWN_CODE}), 0), min(user_segment) FROM seen
        """
    ).fetchall()[0]
    for name, nulls in (("item_id", nulls_of_item), ("user_segment", nulls_of_segment)):
        if nulls:
            raise _refuse(log, name, "no nulls", f"{nulls} nulls", "fill them or leave the rows out")
    if unknown:
        names = ", ".join(f"'{name}'" for name in ACTIONS)
        first = connection.execute(
            f"SELECT action FROM ({select}) WHERE action IS NULL OR action NOT IN ({names}) LIMIT 1"
        ).fetchall()[0][0]
        got = f"{first!r} ({unknown} events)"
        raise _refuse(log, "action", f"one of {', '.join(ACTIONS)}", got, "map your actions to these")
    if lowest is not None and lowest < 0:
        raise _refuse(log, "user_segment", "a segment >= 0", str(lowest), "write 0 where it is not known")


def _refuse(source: Source, column: str, expected: str, got: str, remedy: str) -> DataError:
    return DataError(f"{source.location}, column {column}", expected=expected, got=got, remedy=remedy)
