"""Make the served table of an intent table: the rows of an exported encoder, what goes together, what is popular.

    .venv/bin/python offline/encode_table.py --data artifacts/demo/data --tables artifacts/demo/tables \
        --engine artifacts/demo/engine

Needs no torch and no training; run it whenever items, intents or behaviours changed.
"""

from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.export.serving import make_serving


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
    return make_serving(data, tables, engine, table_version)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
