"""Amazon Reviews 2023: what is read of the published JSONL, what is left out, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airserve.data.amazon import core, find_categories, read_amazon
from airserve.data.importers import detect_format, import_folder
from airserve.data.schema import load_dataset
from airserve.errors import DataError, UserError
from airserve.ids import item_id


def review(user: str, product: str, time_ms: int) -> dict[str, Any]:
    """As published, with the fields that are not read."""
    return {
        "rating": 5.0,
        "title": "Good",
        "text": "I like it",
        "images": [],
        "asin": f"child of {product}",
        "parent_asin": product,
        "user_id": user,
        "timestamp": time_ms,
        "helpful_vote": 0,
        "verified_purchase": True,
    }


def product(name: str, title: str | None) -> dict[str, Any]:
    return {
        "main_category": "Things",
        "title": title,
        "average_rating": 4.5,
        "parent_asin": name,
        "details": {"a": "b"},
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "meta_Food.jsonl", [product("F1", "Tea &amp; Milk"), product("F2", "Salt"), product("F3", None)])
    write(tmp_path / "meta_Kitchen.jsonl.gz", [product("K1", "Pan")])
    reviews = [
        review("ann", "F2", 3_000),
        review("ann", "F1", 1_500),
        review("ann", "F1", 9_000),
        review("bob", "F3", 1_000),
        review("bob", "F2", 2_000),
        review("bob", "F9", 2_500),
    ]
    write(tmp_path / "Food.jsonl", reviews)
    write(tmp_path / "Kitchen.jsonl.gz", [review("ann", "K1", 2_000), review("bob", "K1", 4_999)])
    return tmp_path


def test_reviews_become_orders_in_time_order_and_titles_lose_their_html(folder: Path) -> None:
    items, behaviours = read_amazon(folder, min_events=1)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    domains = dict(zip(items["item_id"].to_pylist(), items["domain"].to_pylist(), strict=True))
    ann = [row for row in behaviours.to_pylist() if row["user_id"] == item_id("ann")]
    assert [titles[row["item_id"]] for row in ann] == ["Tea & Milk", "Pan", "Salt"]
    assert [row["timestamp_s"] for row in ann] == [1, 2, 3], "milliseconds, and the first review of a product counts"
    assert {row["action"] for row in ann} == {"order"}
    assert domains[item_id("K1")] == "Kitchen"


def test_a_product_without_a_title_or_without_metadata_is_left_out(folder: Path) -> None:
    items, behaviours = read_amazon(folder, min_events=1)
    assert not {item_id("F3"), item_id("F9")} & set(items["item_id"].to_pylist())
    bob = [row["item_id"] for row in behaviours.to_pylist() if row["user_id"] == item_id("bob")]
    assert bob == [item_id("F2"), item_id("K1")]


def test_the_core_is_what_is_left_when_nobody_is_below_the_bound() -> None:
    users = np.array([0, 0, 1, 1, 2, 2, 3])
    items = np.array([0, 1, 0, 1, 1, 2, 0])
    # User 3 has one event; item 2 one user, and without it user 2 has one event.
    assert core(users, items, 2).tolist() == [True, True, True, True, False, False, False]
    assert core(users, items, 1).all()
    assert not core(users, items, 3).any()


def test_the_import_finds_the_format_and_holds_users_out(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw / "meta_Food.jsonl", [product(f"F{i}", f"food {i}") for i in range(6)])
    rows = [review(f"user {u}", f"F{i}", 1_000 * (u + i)) for u in range(60) for i in range(6)]
    write(raw / "Food.jsonl", rows)
    assert detect_format(raw) == "amazon"
    report = import_folder(raw, tmp_path / "data")
    data = load_dataset(tmp_path / "data")
    assert report.format == "amazon"
    assert report.users == 60
    assert report.items == data.items.num_rows == 6
    assert report.test > 0
    assert report.valid > 0


def test_products_without_their_reviews_are_refused(folder: Path) -> None:
    (folder / "Food.jsonl").unlink()
    with pytest.raises(DataError, match=r"Food\.jsonl beside it"):
        find_categories(folder)


def test_a_missing_field_is_named(folder: Path) -> None:
    write(folder / "Food.jsonl", [{"user_id": "ann", "asin": "F1", "timestamp": 1}])
    with pytest.raises(DataError, match=r"Food\.jsonl, column parent_asin"):
        read_amazon(folder)


def test_a_broken_line_is_refused(folder: Path) -> None:
    with (folder / "Food.jsonl").open("a") as file:
        file.write("{not json\n")
    with pytest.raises(DataError, match=r"Food\.jsonl"):
        read_amazon(folder, min_events=1)


def test_nothing_left_is_refused_and_says_why(folder: Path) -> None:
    with pytest.raises(DataError, match="at least 5 events each"):
        read_amazon(folder)
    with pytest.raises(UserError, match="min_events"):
        read_amazon(folder, min_events=0)
