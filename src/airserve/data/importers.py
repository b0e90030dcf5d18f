"""Bring a folder of items and behaviours into the project's two tables.

Three formats are told apart by their files:

- our own schema as `parquet`, `jsonl` or `csv`: `items.parquet` and `behaviours.parquet` (or `.jsonl`, `.csv`, `.gz` of
  these, or folders `items/` and `behaviours/` of such files); `domain`, `is_candidate`, `user_segment` and `split` may
  be missing (see `split_users`).
- `llmcdsr`: the text files of github.com/xhran2010/LLMCDSR with its dictionaries as one table `items.tsv`. It has no
  times and one kind of event: events are given one day each, the last one of every user a day before `NOW_S`.
- `amazon`: Amazon Reviews 2023, see `airserve.data.amazon`; users are held out as in our own schema without `split`.
"""

from __future__ import annotations

import html
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from airserve.artifact_schemas import BEHAVIOURS_SCHEMA, ITEMS_SCHEMA
from airserve.artifacts import BEHAVIOURS_FILE, ITEMS_FILE
from airserve.contract import ACTIONS
from airserve.data.amazon import find_categories, read_amazon
from airserve.data.schema import (
    Dataset,
    check_behaviours,
    check_items,
    read_parquet,
    write_parquet,
)
from airserve.data.sources import find_source, read_source
from airserve.errors import DataError

DAY_S = 86_400
NOW_S = 1_767_225_600
"""2026-01-01 00:00 UTC: where the made-up times of a log without times end."""
LLMCDSR_ITEMS = "items.tsv"
LLMCDSR_TRAIN = ("train_overlap.txt", "train_A.txt", "train_B.txt")
LLMCDSR_TARGETS = {"valid": "valid.txt", "test": "test.txt"}
LLMCDSR_ACTION = "order"
assert LLMCDSR_ACTION in ACTIONS


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What came in; the counts are rows."""

    format: str
    items: int
    candidates: int
    users: int
    behaviours: int
    valid: int
    test: int
    filled_in: tuple[str, ...]
    """Columns that the source did not have."""


def detect_format(folder: Path) -> str:
    """Tell which format a folder is in, by its files.

    Raises:
        DataError: if it is none of the known ones.
    """
    if (folder / ITEMS_FILE).is_file():
        return "parquet"
    if find_categories(folder):
        return "amazon"
    if folder.is_dir() and not (folder / LLMCDSR_ITEMS).is_file():
        with suppress(DataError):
            return find_source(str(folder), "items").format
    if (folder / LLMCDSR_ITEMS).is_file():
        return "llmcdsr"
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
    raise DataError(
        str(folder),
        expected=f"{ITEMS_FILE} and {BEHAVIOURS_FILE} (or .jsonl, .csv), "
        f"or {LLMCDSR_ITEMS}, train_*.txt, valid.txt and test.txt, or Amazon's CATEGORY.jsonl and meta_CATEGORY.jsonl",
        got=found or "an empty folder",
        remedy="see docs/ARCHITECTURE.md, Schemas",
    )


def import_folder(source: Path, out: Path, *, min_events: int = 5) -> ImportReport:
    """Read a folder of any of the formats, check it, and write the project's two tables.

    Args:
        source: the user's folder; only read.
        out: data folder to write; its two files are replaced.
        min_events: of a user and of an item of Amazon's reviews, see `read_amazon`.

    Raises:
        DataError: naming file, column or line, what was expected, what came and the remedy.
    """
    kind = detect_format(source)
    filled_in: tuple[str, ...]
    if kind == "amazon":
        data, filled_in = _held_out(*read_amazon(source, min_events), source), ("action", "user_segment", "split")
    else:
        data, filled_in = read_llmcdsr(source) if kind == "llmcdsr" else read_own(source)
    write_parquet(data.items, out / ITEMS_FILE)
    write_parquet(data.behaviours, out / BEHAVIOURS_FILE)
    splits = data.behaviours.column("split").to_numpy(zero_copy_only=False)
    return ImportReport(
        format=kind,
        items=data.items.num_rows,
        candidates=int(np.sum(data.items.column("is_candidate").to_numpy(zero_copy_only=False))),
        users=len(data.behaviours.column("user_id").unique()),
        behaviours=data.behaviours.num_rows,
        valid=int(np.sum(splits == "valid")),
        test=int(np.sum(splits == "test")),
        filled_in=filled_in,
    )


def read_own(folder: Path) -> tuple[Dataset, tuple[str, ...]]:
    """Read our own schema, of any format, and fill in what may be missing.

    Returns:
        the checked tables and the names of the columns that were filled in.

    Raises:
        DataError: see `airserve.data.schema`.
    """
    optional = frozenset({"domain", "is_candidate", "user_segment", "split"})
    items = _read_own_table(folder, ITEMS_FILE, ITEMS_SCHEMA, optional)
    behaviours = _read_own_table(folder, BEHAVIOURS_FILE, BEHAVIOURS_SCHEMA, optional)
    missing = tuple(sorted(optional - set(items.column_names) - set(behaviours.column_names)))
    if "domain" in missing:
        items = items.append_column("domain", pa.array([""] * items.num_rows, pa.string()))
    if "is_candidate" in missing:
        items = items.append_column("is_candidate", pa.array(np.ones(items.num_rows, dtype=bool)))
    if "user_segment" in missing:
        behaviours = behaviours.append_column("user_segment", pa.array(np.zeros(behaviours.num_rows, dtype=np.int32)))
    if "split" in missing:
        behaviours = split_users(items, behaviours)
    items = check_items(items.select(ITEMS_SCHEMA.names), folder / ITEMS_FILE)
    behaviours = check_behaviours(behaviours.select(BEHAVIOURS_SCHEMA.names), items, folder / BEHAVIOURS_FILE)
    return Dataset(items=items, behaviours=behaviours), missing


def _read_own_table(folder: Path, name: str, schema: pa.Schema, optional: frozenset[str]) -> pa.Table:
    if (folder / name).is_file():
        return read_parquet(folder / name, schema, optional=optional)
    return read_source(find_source(str(folder), Path(name).stem), schema, optional=optional)


def _held_out(items: pa.Table, behaviours: pa.Table, source: Path) -> Dataset:
    behaviours = split_users(items, behaviours).cast(BEHAVIOURS_SCHEMA)
    return Dataset(items=check_items(items, source), behaviours=check_behaviours(behaviours, items, source))


def split_users(items: pa.Table, behaviours: pa.Table) -> pa.Table:
    """Add `split`: a held-out target for a fifth of the users, the same ones on every run.

    Users are chosen by a hash of their id: a tenth give their last event on a candidate to `test`, another tenth to
    `valid`. A user without an event before that one gives none. What such a user did after the target is left out, so
    that nothing is learned from a future that the target does not know.
    """
    names = ", ".join(f"b.{name}" for name in BEHAVIOURS_SCHEMA.names if name != "split")
    with duckdb.connect() as connection:
        connection.register("items", items)
        connection.register("behaviours", behaviours)
        return connection.sql(
            f"""
            WITH numbered AS (
                SELECT b.*, i.is_candidate IS TRUE AS is_candidate,
                       md5_number_lower(b.user_id::VARCHAR) % 10 AS tenth,
                       row_number() OVER (PARTITION BY b.user_id ORDER BY b.timestamp_s, b.position) AS place
                FROM (SELECT *, row_number() OVER () AS position FROM behaviours) b LEFT JOIN items i USING (item_id)
            ), targets AS (
                SELECT user_id, max(place) AS place FROM numbered
                WHERE is_candidate AND place > 1 AND tenth < 2 GROUP BY user_id
            )
            SELECT {names},
                   CASE WHEN t.place IS NULL OR b.place < t.place THEN 'train'
                        WHEN b.tenth = 0 THEN 'test' ELSE 'valid' END AS split
            FROM numbered b LEFT JOIN targets t USING (user_id)
            WHERE t.place IS NULL OR b.place <= t.place
            ORDER BY b.user_id, b.place
            """
        ).to_arrow_table()


def read_llmcdsr(folder: Path) -> tuple[Dataset, tuple[str, ...]]:
    """Read the LLMCDSR text format: titles are HTML-unescaped, users numbered in file order, valid and test last.

    Returns:
        the checked tables and the names of the columns that were made up.

    Raises:
        DataError: naming file and line.
    """
    items = check_items(_read_items_tsv(folder / LLMCDSR_ITEMS), folder / LLMCDSR_ITEMS)
    known = frozenset(items.column("item_id").to_pylist())
    files = [("train", name) for name in LLMCDSR_TRAIN] + list(LLMCDSR_TARGETS.items())
    sequences: list[list[int]] = []
    last_splits: list[str] = []
    for split, name in files:
        found = _read_sequences(folder / name, known)
        sequences += found
        last_splits += [split] * len(found)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    ends = np.cumsum(lengths)
    total = int(lengths.sum())
    users = np.repeat(np.arange(1, len(sequences) + 1, dtype=np.int64), lengths)
    left = np.repeat(ends, lengths) - np.arange(total, dtype=np.int64)
    splits = np.full(total, "train", dtype=object)
    splits[ends - 1] = last_splits
    behaviours = pa.table(
        {
            "user_id": users,
            "item_id": np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=total),
            "action": pa.array([LLMCDSR_ACTION]).take(pa.array(np.zeros(total, dtype=np.int64))),
            "timestamp_s": NOW_S - left * DAY_S,
            "user_segment": np.zeros(total, dtype=np.int32),
            "split": pa.array(splits, type=pa.string()),
        },
        schema=BEHAVIOURS_SCHEMA,
    )
    made_up = ("action", "is_candidate", "timestamp_s", "user_segment")
    return Dataset(items=items, behaviours=check_behaviours(behaviours, items, folder)), made_up


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path), expected="a UTF-8 text file", got=str(error), remedy="see the data's README"
        ) from error


def _refuse_line(path: Path, number: int, expected: str, got: str) -> DataError:
    return DataError(f"{path}, line {number}", expected=expected, got=got, remedy="repair the line or take it out")


def _read_items_tsv(path: Path) -> pa.Table:
    rows = [line.rstrip("\r").split("\t") for line in _lines(path)]
    header = ["index", "domain", "asin", "title"]
    if rows[0] != header:
        raise _refuse_line(path, 1, f"the header {' '.join(header)}", repr("\t".join(rows[0])[:80]))
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header) or not row[0].isdecimal():
            raise _refuse_line(path, number, "index, domain, asin and title, tab-separated", repr("\t".join(row)[:80]))
    return pa.table(
        {
            "item_id": [int(row[0]) for row in rows[1:]],
            "domain": [row[1] for row in rows[1:]],
            "title": [html.unescape(row[3]) for row in rows[1:]],
            "is_candidate": [True] * (len(rows) - 1),
        },
        schema=ITEMS_SCHEMA,
    )


def _read_sequences(path: Path, known: frozenset[int]) -> list[list[int]]:
    sequences = []
    for number, line in enumerate(_lines(path), start=1):
        _user, _tab, events = line.rstrip("\r").partition("\t")
        try:
            sequence = [int(event) for event in events.split(",")]
        except ValueError as error:
            expected = "a user, a tab and comma-separated item indices"
            raise _refuse_line(path, number, expected, repr(line[:80])) from error
        strange = [item for item in sequence if item not in known]
        if strange:
            raise _refuse_line(path, number, f"item indices of {LLMCDSR_ITEMS}", str(strange[0]))
        sequences.append(sequence)
    return sequences
