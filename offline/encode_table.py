"""Make the served table of an intent table: the rows of an exported encoder, what goes together, what is popular.

    .venv/bin/python offline/encode_table.py --data artifacts/demo/data --tables artifacts/demo/tables \
        --engine artifacts/demo/engine

Needs no torch and no training; run it whenever items, intents or behaviours changed.
"""

import logging
from dataclasses import asdict
from pathlib import Path

import cyclopts

from airserve.artifacts import INTENTS_FOLDER, SERVING_FOLDER
from airserve.cli import run_script
from airserve.export.half import compare_precision
from airserve.table.encode import Encoder, encode_table
from airserve.table.events import training_events
from airserve.table.intents import IntentTable
from airserve.table.lookup import ServedTable

log = logging.getLogger("encode_table")


def main(
    *,
    data: Path = Path("artifacts/demo/data"),
    tables: Path = Path("artifacts/demo/tables"),
    engine: Path = Path("artifacts/demo/engine"),
    table_version: int | None = None,
) -> dict[str, object]:
    """Write tables/serving.

    Args:
        data: folder with items.parquet and behaviours.parquet.
        tables: folder made by offline/build_tables.py.
        engine: folder made by build/export_onnx.py.
        table_version: a version of your own; from the content where left out.
    """
    table, encoder = IntentTable.open(tables / INTENTS_FOLDER), Encoder.open(engine)
    events = training_events(data, table, encoder.manifest["target_actions"])
    out = tables / SERVING_FOLDER
    manifest, report = encode_table(table, encoder, events, out, table_version=table_version)
    log.info("wrote %s, version %d, rows of encoder %s", out, manifest.table_version, manifest.encoder)
    if report.items_learned < report.items:
        log.info("%d of %d items have no learned id: title and intents carry them", report.items - report.items_learned,
                 report.items)  # fmt: skip
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


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
