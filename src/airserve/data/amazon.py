"""Amazon Reviews 2023 (amazon-reviews-2023.github.io): reviews as purchases, one domain a category.

A folder holds, for each category, `CATEGORY.jsonl` (the reviews) and `meta_CATEGORY.jsonl` (the products), also
gzipped. Of a review `user_id`, `parent_asin` and `timestamp` (milliseconds) are read, of a product `parent_asin` and
`title`. A user's first review of a product counts, its words and stars do not. Ids are 63-bit hashes of the strings,
see `airserve.ids`. DuckDB reads the files with bounded memory; only the reviews that stay are held.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from airserve.artifact_schemas import BEHAVIOURS_SCHEMA, ITEMS_SCHEMA
from airserve.contract import ACTIONS
from airserve.data.sources import MemorySettings, Source, bounded_duckdb, data_errors, scan
from airserve.errors import DataError, UserError
from airserve.ids import ItemIds

SUFFIXES = (".jsonl", ".jsonl.gz")
META = "meta_"
ACTION = "order"
assert ACTION in ACTIONS
MILLISECONDS = 1000
REVIEW_SCHEMA = pa.schema([("user_id", pa.string()), ("parent_asin", pa.string()), ("timestamp", pa.int64())])
PRODUCT_SCHEMA = pa.schema([("parent_asin", pa.string()), ("title", pa.string())])


def find_categories(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The categories of a folder: name -> (reviews, products); empty where it holds no `meta_*.jsonl`.

    Raises:
        DataError: if a category has products but no reviews.
    """
    found = {}
    for products in sorted(folder.glob(f"{META}*")) if folder.is_dir() else []:
        name = products.name.removeprefix(META)
        stem = next((name.removesuffix(suffix) for suffix in SUFFIXES[::-1] if name.endswith(suffix)), None)
        if stem is None:
            continue
        reviews = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
        if not reviews:
            raise DataError(
                str(products),
                expected=f"the reviews {stem}.jsonl beside it",
                got="no such file",
                remedy="download them",
            )
        found[stem] = (reviews[0], products)
    return found


def read_amazon(folder: Path, min_events: int = 5) -> tuple[pa.Table, pa.Table]:
    """Read all categories of a folder.

    Args:
        folder: see the module.
        min_events: users with fewer products and products with fewer users are left out until none is left (the
            usual k-core).

    Returns:
        `items` in `ITEMS_SCHEMA`, and `behaviours` in `BEHAVIOURS_SCHEMA` without `split`, sorted by user, then time.

    Raises:
        DataError: for a file that cannot be read, a missing field, or when nothing is left.
        UserError: for `min_events` below 1.
    """
    if min_events < 1:
        raise UserError("min_events", expected="at least 1", got=str(min_events), remedy="5 is usual")
    with bounded_duckdb(MemorySettings(memory_mib=4096)) as connection:
        connection.execute("CREATE TABLE product (parent_asin VARCHAR, title VARCHAR, domain VARCHAR)")
        connection.execute("CREATE TABLE review (user_id VARCHAR, parent_asin VARCHAR, time_ms BIGINT)")
        for name, files in find_categories(folder).items():
            reviews, products = (Source(location=str(file), format="jsonl", files=(str(file),)) for file in files)
            with data_errors(products):
                select = scan(connection, products, PRODUCT_SCHEMA)
                connection.execute(f"INSERT INTO product SELECT parent_asin, title, ? FROM ({select})", [name])
            with data_errors(reviews):
                connection.execute(f"INSERT INTO review {scan(connection, reviews, REVIEW_SCHEMA)}")
        events = connection.sql(
            """
            SELECT r.user_id, r.parent_asin, min(r.time_ms) AS time_ms, any_value(p.title) AS title,
                   any_value(p.domain) AS domain
            FROM review r JOIN (
                SELECT parent_asin, min(title) AS title, min(domain) AS domain FROM product
                WHERE trim(title) <> '' GROUP BY parent_asin
            ) p USING (parent_asin)
            WHERE r.user_id IS NOT NULL AND r.time_ms >= 0
            GROUP BY r.user_id, r.parent_asin
            ORDER BY r.user_id, time_ms, r.parent_asin
            """
        ).to_arrow_table()
    kept = core(_codes(events["user_id"]), _codes(events["parent_asin"]), min_events)
    events = events.filter(pa.array(kept))
    if events.num_rows == 0:
        raise DataError(
            str(folder),
            expected=f"users and titled products with at least {min_events} events each",
            got="none",
            remedy="give larger categories, or lower min_events",
        )
    return _items(events), _behaviours(events)


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    codes: npt.NDArray[np.int32] = column.combine_chunks().dictionary_encode().indices.to_numpy()
    return codes


def core(users: npt.NDArray[Any], items: npt.NDArray[Any], least: int) -> npt.NDArray[np.bool_]:
    """Which events stay when users and items with fewer than `least` are left out until none is left; bool [X].

    Args:
        users: int [X], each event's user, a pair of user and item at most once.
        items: int [X].
        least: events.
    """
    kept = np.ones(len(users), dtype=np.bool_)
    while True:
        enough = kept.copy()
        for codes in (users, items):
            counts = np.bincount(codes[kept], minlength=int(codes.max(initial=0)) + 1)
            enough &= counts[codes] >= least
        if bool((enough == kept).all()):
            return kept
        kept = enough


def _items(events: pa.Table) -> pa.Table:
    distinct = events.group_by("parent_asin").aggregate([("title", "min"), ("domain", "min")]).sort_by("parent_asin")
    return pa.table(
        {
            "item_id": ItemIds().encode(distinct["parent_asin"].to_pylist()),
            "domain": distinct["domain_min"],
            "title": [html.unescape(title) for title in distinct["title_min"].to_pylist()],
            "is_candidate": np.ones(distinct.num_rows, dtype=np.bool_),
        },
        schema=ITEMS_SCHEMA,
    )


def _ids(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    coded = column.combine_chunks().dictionary_encode()
    numbers: npt.NDArray[np.int64] = ItemIds().encode(coded.dictionary.to_pylist())[coded.indices.to_numpy()]
    return numbers


def _behaviours(events: pa.Table) -> pa.Table:
    schema = pa.schema([field for field in BEHAVIOURS_SCHEMA if field.name != "split"])
    return pa.table(
        {
            "user_id": _ids(events["user_id"]),
            "item_id": _ids(events["parent_asin"]),
            "action": pa.array([ACTION]).take(pa.array(np.zeros(events.num_rows, dtype=np.int64))),
            "timestamp_s": events["time_ms"].to_numpy() // MILLISECONDS,
            "user_segment": np.zeros(events.num_rows, dtype=np.int32),
        },
        schema=schema,
    ).sort_by([("user_id", "ascending"), ("timestamp_s", "ascending")])
