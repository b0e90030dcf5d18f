"""Items and behaviours in Parquet, JSONL and CSV, on any file system, and what is said about bad ones."""

import csv
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airserve.data.importers import import_folder
from airserve.data.schema import load_dataset
from airserve.data.sources import MemorySettings, bounded_duckdb, find_source
from airserve.errors import DataError, UserError
from airserve.intents.event_kinds import load_kinds

ITEMS = [
    {"item_id": 1, "title": "cat tree", "is_candidate": True},
    {"item_id": 2, "title": "tent", "is_candidate": False},
]
LOG = [
    {"item_id": 2, "action": "view", "user_segment": 0},
    {"item_id": 2, "action": "view", "user_segment": 0},
    {"item_id": 1, "action": "like", "user_segment": 1},
]
EXPECTED = [(2, "view", 0, 2), (1, "like", 1, 1), (1, "order", 0, 0)]


def write(path, rows, system=None):
    path = str(path)
    if path.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    with system.open(path, "w") if system else open(path, "w", newline="") as file:
        if path.endswith(".jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def kinds_of(folder):
    with bounded_duckdb(MemorySettings(threads=1)) as connection:
        foreign = load_kinds(connection, find_source(str(folder), "items"), find_source(str(folder), "behaviours"))
        rows = connection.execute(
            "SELECT item_id, action, user_segment, events FROM kinds ORDER BY events DESC, item_id, action"
        ).fetchall()
    return rows, foreign


def refusal(folder):
    with pytest.raises(DataError) as caught:
        kinds_of(folder)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_the_same_kinds_come_from_every_format(tmp_path, suffix):
    write(tmp_path / f"items.{suffix}", ITEMS)
    write(tmp_path / f"behaviours.{suffix}", LOG)
    assert kinds_of(tmp_path) == (EXPECTED, 0)


def test_a_log_may_be_a_folder_of_files(tmp_path):
    write(tmp_path / "items.csv", ITEMS)
    (tmp_path / "behaviours").mkdir()
    for place, row in enumerate(LOG):
        write(tmp_path / "behaviours" / f"{place}.parquet", [row])
    assert kinds_of(tmp_path) == (EXPECTED, 0)


def test_files_may_lie_on_another_file_system():
    system = fsspec.filesystem("memory")
    write("/shop/items.csv", ITEMS, system)
    write("/shop/behaviours.jsonl", LOG, system)
    assert kinds_of("memory://shop") == (EXPECTED, 0)


def test_a_missing_segment_is_segment_zero_and_missing_candidates_are_all_items(tmp_path):
    write(tmp_path / "items.csv", [{"item_id": 1, "title": "cat tree"}])
    write(tmp_path / "behaviours.csv", [{"item_id": 1, "action": "view"}])
    assert kinds_of(tmp_path)[0] == [(1, "view", 0, 1), (1, "order", 0, 0)]


def test_events_on_unknown_items_are_counted_and_left_out(tmp_path):
    write(tmp_path / "items.csv", ITEMS)
    write(tmp_path / "behaviours.csv", [*LOG, {"item_id": 99, "action": "view", "user_segment": 0}])
    assert kinds_of(tmp_path) == (EXPECTED, 1)


@pytest.mark.parametrize(
    ("items", "log", "words"),
    [
        ([{"item_id": 1, "name": "x"}], LOG, ["column title", "item_id, name", "add it"]),
        (ITEMS, [{**LOG[0], "action": "stare"}], ["column action", "'stare' (1 events)", "view, like"]),
        (ITEMS, [{**LOG[0], "item_id": "abc"}], ["behaviours", "abc"]),
        (ITEMS, [{**LOG[0], "user_segment": -1}], ["column user_segment", "-1"]),
        (ITEMS, [{**LOG[0], "item_id": 77}], ["column item_id", "none of them"]),
        ([ITEMS[0], ITEMS[0]], LOG, ["unique ids", "the first 1"]),
        (ITEMS, [{**LOG[0], "item_id": ""}], ["column item_id"]),
    ],
)
def test_a_bad_column_is_named_with_what_came_and_the_remedy(tmp_path, items, log, words):
    write(tmp_path / "items.csv", items)
    write(tmp_path / "behaviours.csv", log)
    message = refusal(tmp_path)
    assert all(word in message for word in words), message


def test_a_folder_without_the_table_and_a_format_mix_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path)
    write(tmp_path / "items.csv", ITEMS)
    write(tmp_path / "items.jsonl", ITEMS)
    assert "all of one format" in refusal(tmp_path)


def test_memory_that_nothing_fits_in_is_refused():
    with pytest.raises(UserError, match="at least 64"):
        MemorySettings(memory_mib=1)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_folder_of_another_format_is_imported_like_parquet(tmp_path, suffix):
    log = [{"user_id": 1, "timestamp_s": at, **row} for at, row in enumerate(LOG)]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / f"items.{suffix}", ITEMS)
    write(tmp_path / "in" / f"behaviours.{suffix}", log)
    report = import_folder(tmp_path / "in", tmp_path / "out")
    assert (report.format, report.items, report.candidates, report.behaviours) == (suffix, 2, 1, 3)
    assert report.filled_in == ("domain", "split")
    assert load_dataset(tmp_path / "out").items.column("title").to_pylist() == ["cat tree", "tent"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_empty_title_is_data_for_the_importer_as_for_the_job(tmp_path, suffix):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / f"items.{suffix}", [{**ITEMS[0], "title": ""}, ITEMS[1]])
    write(tmp_path / "in" / f"behaviours.{suffix}", [{"user_id": 1, "timestamp_s": 1, **LOG[0]}])
    import_folder(tmp_path / "in", tmp_path / "out")
    assert load_dataset(tmp_path / "out").items.column("title").to_pylist() == ["", "tent"]
    assert kinds_of(tmp_path / "in") == kinds_of(tmp_path / "out")
