"""Arrow schemas of the offline half's Parquet files: who writes a file and who reads it take its columns from here.

The files' names are in `artifacts.py`. No column of a written file holds nulls. Needs pyarrow.
"""

from __future__ import annotations

import pyarrow as pa

from airserve.contract import USER_SEGMENT

SEGMENT_COLUMN = USER_SEGMENT.name
"""Column of a user segment's number, named as in a request."""
TEXT_PATHS = pa.list_(pa.list_(pa.string()))
"""Paths of texts, each coarse to fine."""
NODE_PATHS = pa.list_(pa.list_(pa.int32()))
"""Paths of node ids, each coarse to fine."""

ITEMS_SCHEMA = pa.schema(
    [("item_id", pa.int64()), ("domain", pa.string()), ("title", pa.string()), ("is_candidate", pa.bool_())]
)
"""Items; `item_id` is unique."""

BEHAVIOURS_SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("action", pa.string()),
        ("timestamp_s", pa.int64()),
        (SEGMENT_COLUMN, pa.int32()),
        ("split", pa.string()),
    ]
)
"""Events, sorted by user, then time; `action` is one of `contract.ACTIONS`."""

TRUTH_SCHEMA = pa.schema([("item_id", pa.int64()), ("leaf", pa.string())])
"""Demo world: the path of an item's leaf, its levels joined by ` > `."""

ANSWERS_SCHEMA = pa.schema(
    [
        ("item_id", pa.int64()),
        ("action", pa.string()),
        (SEGMENT_COLUMN, pa.int32()),
        ("text", pa.string()),
        ("paths", TEXT_PATHS),
        ("valid", pa.bool_()),
        ("raw", pa.string()),
    ]
)
"""Answers, one row an event kind: `text` is the item's title, `raw` what the model wrote. `paths` is empty where the
answer is not `valid`."""

DEAD_LETTERS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("action", pa.string()),
        (SEGMENT_COLUMN, pa.int32()),
        ("text", pa.string()),
        ("reason", pa.string()),
        ("raw", pa.string()),
    ]
)
"""Prompts without a usable answer."""

PARTS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("raw", pa.string()),
        ("paths", TEXT_PATHS),
        ("valid", pa.bool_()),
        ("retried", pa.bool_()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("error", pa.string()),
    ]
)
"""Answers of one chunk by the prompt's content key. `error` is missing in parts that were written before the engine's
refusals were kept."""

VOCABULARY_SCHEMA = pa.schema(
    [
        ("node_id", pa.int32()),
        ("parent_id", pa.int32()),
        ("level", pa.int32()),
        ("text", pa.string()),
        ("count", pa.int64()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
"""Nodes 1, 2, ...; `parent_id` is 0 for a root, `embedding` is the vector that is served."""

ATOMIC_INTENTS_SCHEMA = pa.schema(
    [("item_id", pa.int64()), ("action", pa.string()), (SEGMENT_COLUMN, pa.int32()), ("path_nodes", NODE_PATHS)]
)
"""Event kinds with at least one path."""
