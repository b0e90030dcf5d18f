"""Reading and checking of items and behaviours."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airserve.artifact_schemas import BEHAVIOURS_SCHEMA, ITEMS_SCHEMA
from airserve.contract import PAD_ITEM
from airserve.data.schema import load_behaviours, load_dataset, load_items
from airserve.errors import DataError

ITEMS = {
    "item_id": [3, 1, 2],
    "domain": ["shop"] * 3,
    "title": ["cat tree", "skillet", "tent"],
    "is_candidate": [True] * 3,
}
LOG = {
    "user_id": [1, 1, 2],
    "item_id": [3, 1, 2],
    "action": ["view", "order", "click"],
    "timestamp_s": [10, 20, 5],
    "user_segment": [0, 0, 2],
    "split": ["train", "test", "train"],
}


def write(folder, name, columns, **changed):
    columns = {**columns, **changed}
    pq.write_table(pa.table({key: value for key, value in columns.items() if value is not None}), folder / name)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "items.parquet", ITEMS)
    write(tmp_path, "behaviours.parquet", LOG)
    return tmp_path


def refusal(function, *args):
    with pytest.raises(DataError) as caught:
        function(*args)
    return str(caught.value)


def test_both_tables_are_read_in_the_documented_types(folder):
    data = load_dataset(folder)
    assert data.items.schema == ITEMS_SCHEMA
    assert data.behaviours.schema == BEHAVIOURS_SCHEMA
    assert data.items.column("title").to_pylist() == ["cat tree", "skillet", "tent"]


def test_narrower_integers_dictionaries_and_extra_columns_are_taken(folder):
    titles = pa.array(ITEMS["title"]).dictionary_encode()
    write(folder, "items.parquet", ITEMS, item_id=pa.array([3, 1, 2], pa.int16()), title=titles, price=[1.0, 2.0, 3.0])
    assert load_items(folder).schema == ITEMS_SCHEMA


def test_titles_may_be_anything(folder):
    titles = ["", " \x00\x1b[31m", "x" * 100_000]
    write(folder, "items.parquet", ITEMS, title=titles)
    assert load_items(folder).column("title").to_pylist() == titles


def test_unsorted_events_are_sorted_and_equal_times_keep_their_order(folder):
    write(
        folder,
        "behaviours.parquet",
        LOG,
        user_id=[2, 1, 1, 1],
        item_id=[2, 3, 1, 2],
        action=["view", "order", "click", "like"],
        timestamp_s=[1, 9, 5, 5],
        user_segment=[0] * 4,
        split=["train"] * 4,
    )
    log = load_behaviours(folder)
    assert log.column("user_id").to_pylist() == [1, 1, 1, 2]
    assert log.column("action").to_pylist() == ["click", "like", "order", "view"]


def test_a_missing_file_is_named(folder):
    (folder / "items.parquet").unlink()
    said = refusal(load_items, folder)
    assert "items.parquet" in said
    assert "no such file" in said


def test_a_file_that_is_not_parquet_is_named(folder):
    (folder / "items.parquet").write_text("item_id,title\n")
    assert "items.parquet: expected a Parquet file" in refusal(load_items, folder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"title": None}, ("column title", "add it")),
        ({"item_id": ["a", "b", "c"]}, ("column item_id", "int64", "string")),
        ({"item_id": [1, 1, 2]}, ("column item_id", "unique", "the first 1")),
        ({"item_id": [1, 2, PAD_ITEM]}, ("column item_id", "reserved")),
        ({"item_id": [1, 2, None]}, ("column item_id", "1 nulls")),
        ({"title": ["cat tree", None, "tent"]}, ("column title", "1 nulls")),
        ({"is_candidate": [1, 0, 1]}, ("column is_candidate", "bool", "int64")),
    ],
)
def test_bad_items_are_refused_by_file_and_column(folder, changed, words):
    write(folder, "items.parquet", ITEMS, **changed)
    said = refusal(load_items, folder)
    assert all(word in said for word in (*words, "items.parquet")), said


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"action": ["view", "purchase", "click"]}, ("column action", "'purchase'", "view, like, click, cart, order")),
        ({"split": ["train", "dev", "train"]}, ("column split", "'dev'")),
        ({"split": ["valid", "test", "train"]}, ("column split", "one valid or test event a user")),
        ({"user_segment": [0, -1, 2]}, ("column user_segment", ">= 0", "-1")),
        ({"user_segment": [0, 1 << 40, 2]}, ("column user_segment", "int32")),
        ({"item_id": [3, 1, 77]}, ("column item_id", "1 events on other items", "77")),
        ({"timestamp_s": [1.5, 2.0, 3.0]}, ("column timestamp_s", "int64", "double")),
        ({"user_id": None}, ("column user_id",)),
    ],
)
def test_bad_behaviours_are_refused_by_file_and_column(folder, changed, words):
    write(folder, "behaviours.parquet", LOG, **changed)
    said = refusal(load_dataset, folder)
    assert all(word in said for word in (*words, "behaviours.parquet")), said


def test_an_empty_log_is_no_error(folder):
    pq.write_table(BEHAVIOURS_SCHEMA.empty_table(), folder / "behaviours.parquet")
    assert load_dataset(folder).behaviours.num_rows == 0
