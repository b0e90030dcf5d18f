"""Build the intent vocabulary and the atomic intent table from the LLM's answers, and publish them for serving.

    cd artifacts/demo; python ../../offline/build_tables.py --data data --intents intents --out tables

Bound by the text encoder: about 330 new titles/s on 2 cores; a second run takes them from the cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cyclopts import App

from airserve.errors import UserError
from airserve.export.serving import make_serving
from airserve.table.build import BuildSettings, build_tables
from airserve.table.embed import BUNDLED
from airserve.table.merges import THRESHOLD

app = App(help=__doc__)


@app.default
def main(
    *,
    data: Path,
    intents: Path,
    out: Path,
    previous: Path | None = None,
    embedder: str = BUNDLED,
    merge_threshold: float = THRESHOLD,
    rejected_merges: Path | None = None,
    cache: Path = Path("artifacts/cache"),
    shuffle_seed: int | None = None,
    table_version: int | None = None,
    encoder: Path | None = None,
) -> None:
    """Build and publish the tables.

    Args:
        data: folder with items.parquet.
        intents: folder with answers.parquet.
        out: the tables folder to write.
        previous: a vocabulary.parquet whose node ids (and vectors) are kept.
        embedder: the bundled model, a folder, or any sentence-transformers name.
        merge_threshold: cosine from which sibling nodes become one.
        rejected_merges: JSON file of pairs that stay two nodes (docs/GENERATION.md, Merging).
        cache: where embedded texts are kept between runs.
        shuffle_seed: give every item another item's intents: the control experiment.
        table_version: a version of your own; from the content where left out.
        encoder: folder made by build/export_onnx.py: also write the rows that a server opens (tables/serving), as
            offline/encode_table.py does. The first time there is none yet: train on the tables, then export.
    """
    settings = BuildSettings(
        data=data,
        intents=intents,
        out=out,
        previous=previous,
        embedder=embedder,
        merge_threshold=merge_threshold,
        rejected_merges=rejected_merges,
        cache=cache,
        shuffle_seed=shuffle_seed,
        table_version=table_version,
    )
    figures = build_tables(settings)
    if encoder is not None:
        figures["serving"] = make_serving(data, out, encoder, table_version)
    print(json.dumps(figures))


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
