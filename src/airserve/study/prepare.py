"""From a folder of behaviour data to a `Study`: import, intents, tables, title vectors."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch

from airserve import contract
from airserve.artifacts import (
    BEHAVIOURS_FILE,
    INTENTS_FOLDER,
    ITEMS_FILE,
    MANIFEST_FILE,
    PROJECTION_FILE,
    TITLE_VECTORS_FILE,
)
from airserve.data.importers import import_folder
from airserve.data.schema import Dataset, load_dataset, write_parquet
from airserve.errors import ArtifactError
from airserve.files import write_json
from airserve.intents.derived import SOURCE, DeriveSettings, derive_folder
from airserve.model.ranker import RankerSettings
from airserve.model.sequence import SequenceSettings
from airserve.study.protocol import Protocol
from airserve.study.sample import Sample, is_held_out
from airserve.study.subject import Study
from airserve.table.build import BuildSettings, build_tables
from airserve.table.embed import BUNDLED, SentenceEmbedder, embed_texts
from airserve.table.format import file_sha256
from airserve.table.intents import IntentTable
from airserve.table.vectors import Projection, save_titles
from airserve.training.device import CPU
from airserve.training.examples import Log, make_log, without_training
from airserve.training.loop import FitSettings
from airserve.training.stages import TrainSettings

logger = logging.getLogger("evaluate_ranker")


def without_held_out_histories(log: Log) -> Log:
    """The log with nothing to learn from users of `valid` and `test`, as in the published protocol.

    Their events are still the history of their target.
    """
    return without_training(log, np.isin(log.starts, np.unique(log.starts[log.splits != 0])))


def title_vectors(tables: Path, items: Any, cache: Path | None) -> npt.NDArray[np.float32]:
    """The items' title vectors in catalogue rows, float32 [N + 2, E].

    Read from the tables' folder; for tables built before it held them, embedded with the tables' own projection and
    written there.

    Raises:
        ArtifactError: if the projection is of an embedder other than the bundled one, or the rows do not match.
    """
    path = tables / TITLE_VECTORS_FILE
    count = items.num_rows + contract.FIRST_ITEM_ROW
    if not path.exists():
        projection = Projection.load(tables / PROJECTION_FILE)
        embedder = SentenceEmbedder(BUNDLED)
        if projection.identity != embedder.identity:
            raise ArtifactError(
                str(path), expected="the items' title vectors", got="no such file", remedy="build the tables again"
            )
        ordered = items.sort_by("item_id")
        embeddings, _ = embed_texts(embedder, ordered["title"].to_pylist(), cache)
        save_titles(path, projection.apply(embeddings))
    vectors: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
    if len(vectors) != count:
        raise ArtifactError(
            str(path), expected=f"{count} rows (the items)", got=str(len(vectors)), remedy="build the tables again"
        )
    return vectors


def derived_source(work: Path) -> tuple[str, IntentSource]:
    """Intents without a language model, see `airserve.intents.derived`."""
    settings = DeriveSettings()
    cache = work / "embeddings"
    return f"{SOURCE} {settings}", lambda data, out: derive_folder(data, out, settings, cache)


IntentSource = Callable[[Path, Path], Any]
"""Writes `answers.parquet` about the items of a data folder (first) into an intents folder (second)."""


def write_visible(dataset: Dataset, out: Path, *, learn_from_held_out: bool) -> None:
    """Write a data folder with all items and only those events that may be learned from.

    What makes intents of behaviour gets this folder, so that no held-out event can reach it.
    """
    behaviours = dataset.behaviours
    visible = pc.equal(behaviours["split"], "train")
    if not learn_from_held_out:
        visible = pc.and_(visible, pc.invert(is_held_out(behaviours)))
    write_parquet(dataset.items, out / ITEMS_FILE)
    write_parquet(behaviours.filter(visible), out / BEHAVIOURS_FILE)


def make_tables(data: Path, work: Path, source: IntentSource, name: str) -> Path:
    """Make intents and build tables of them; both are kept for as long as data and source stay the same.

    Args:
        data: data folder in our own schema, with only what intents may be made of.
        work: where `intents/` and `tables/` go.
        source: makes the intents.
        name: what the source is, with its settings.

    Returns:
        The tables' folder.
    """
    tables, memory = work / "tables", work / "tables.json"
    mark = {"source": name, "files": [file_sha256(data / file) for file in (ITEMS_FILE, BEHAVIOURS_FILE)]}
    if (tables / INTENTS_FOLDER / MANIFEST_FILE).exists() and memory.exists():
        with suppress(ValueError):
            if json.loads(memory.read_text(encoding="utf-8")) == mark:
                return tables
    source(data, work / "intents")
    build_tables(BuildSettings(data=data, intents=work / "intents", out=tables, cache=work / "embeddings"))
    write_json(memory, mark)
    return tables


def prepare(
    data: Path,
    tables: Path | tuple[str, IntentSource],
    work: Path,
    *,
    train: TrainSettings,
    protocol: Protocol,
    sample: Sample | None = None,
    device: torch.device = CPU,
) -> Study:
    """Make a study of a folder in any format that `import_folder` reads.

    Args:
        data: the user's folder; only read.
        tables: folder made by offline/build_tables.py for the same items, or a named source of intents to make one of.
        work: folder for the imported data, the tables and the embedded texts.
        train: sizes and schedule.
        protocol: the test protocol.
        sample: what is learned from; by default all but the held-out users.
        device: where models are trained and scored.

    Raises:
        DataError: if the data are not in their documented format, or have no test or valid targets.
        ArtifactError: if the tables are missing, damaged or of other items.
    """
    sample = sample or Sample()
    report = import_folder(data, work / "data")
    logger.info("%s: %d items, %d events, %d test targets", data, report.items, report.behaviours, report.test)
    whole = load_dataset(work / "data")
    dataset = sample.of(whole)
    logger.info("%d of %d events are left, %s", dataset.behaviours.num_rows, whole.behaviours.num_rows, sample)
    if sample.cold_items and isinstance(tables, Path):
        logger.warning("%s: nothing tells whether these intents were made without the cold items' events", tables)
    source = "given tables" if isinstance(tables, Path) else tables[0]
    if not isinstance(tables, Path):
        write_visible(dataset, work / "visible", learn_from_held_out=sample.learn_from_held_out)
        tables = make_tables(work / "visible", work, tables[1], tables[0])
    table = IntentTable.open(tables / INTENTS_FOLDER)
    titles_NE = title_vectors(tables, dataset.items, work / "embeddings")
    log = make_log(dataset.items, dataset.behaviours, table)
    if not sample.learn_from_held_out:
        log = without_held_out_histories(log)
    cold_rows = table.rows(sample.cold_ids(dataset.items))
    study = Study(
        table=table,
        titles_NE=titles_NE,
        log=log,
        sample=sample,
        cold_rows=np.sort(cold_rows[cold_rows >= contract.FIRST_ITEM_ROW]),
        train=train,
        protocol=protocol,
        source=source,
        device=device,
    )
    logger.info("%d test targets, %d valid targets", len(study.test.targets), len(study.valid.targets))
    return study


def study_settings(*, fast: bool) -> TrainSettings:
    """How the study's models are trained; `fast` is a toy for tests, whose figures mean nothing."""
    if not fast:
        return TrainSettings(
            ranker=RankerSettings(sequence=SequenceSettings(width=128, dropout=0.3, temperature=0.07)),
            sequence_fit=FitSettings(learning_rate=2e-3, epochs=8, patience=3, weight_decay=1e-2, average=0.999),
            sequence_negatives=1024,
            intent_fit=FitSettings(learning_rate=4e-3, epochs=2, patience=2, average=0.995),
            rank_batch=(16, 64),
            rank_negatives=256,
            train_history=Protocol().max_history,
            max_examples=30_000,
            last_targets=1,
            apart_share=0.5,
            valid_as_popular_as_training=True,
        )
    return TrainSettings(
        ranker=RankerSettings(sequence=SequenceSettings(width=16, blocks=1), hidden=16),
        sequence_fit=FitSettings(learning_rate=5e-3, epochs=2),
        intent_fit=FitSettings(learning_rate=5e-3, epochs=1),
        sequence_negatives=64,
        rank_negatives=32,
        steps_per_epoch=20,
        train_history=16,
        max_examples=600,
        valid_examples=100,
        apart_share=0.5,
    )
