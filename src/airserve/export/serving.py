"""From a data folder, its intent table and an exported ranker to the table that a server opens."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airserve.artifacts import INTENTS_FOLDER, SERVING_FOLDER
from airserve.export.half import compare_precision
from airserve.table.encode import Encoder, encode_table
from airserve.table.events import training_events
from airserve.table.intents import IntentTable
from airserve.table.lookup import ServedTable

log = logging.getLogger("encode_table")


def make_serving(data: Path, tables: Path, engine: Path, table_version: int | None = None) -> dict[str, Any]:
    """Write `serving/` of a tables folder, and measure what half precision does to it.

    Args:
        data: folder with items.parquet and behaviours.parquet.
        tables: folder with the intent table.
        engine: folder with the exported ranker and its encoders.
        table_version: see `publish_table`.

    Returns:
        Counts, the encoder, and the figures of `compare_precision`, for a JSON line.
    """
    table, encoder = IntentTable.open(tables / INTENTS_FOLDER), Encoder.open(engine)
    events = training_events(data, table, encoder.manifest["target_actions"])
    out = tables / SERVING_FOLDER
    manifest, report = encode_table(table, encoder, events, out, table_version=table_version)
    log.info("wrote %s, version %d, rows of encoder %s", out, manifest.table_version, manifest.encoder)
    without = report.items - report.items_learned
    if without:
        log.info("%d of %d items have no learned id: title and intents carry them", without, report.items)
    precision = compare_precision(table, ServedTable.open(out), encoder)
    log.info("fp16 rows against fp32: %s", precision)
    return {
        "table_version": manifest.table_version,
        "encoder": manifest.encoder,
        "events": len(events.rows),
        "bytes": sum(manifest.sizes.values()),
        **asdict(report),
        **precision,
    }
