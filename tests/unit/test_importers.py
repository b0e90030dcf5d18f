"""Importers: our own Parquet files with columns missing, and the LLMCDSR text files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airserve.data.importers import DAY_S, NOW_S, import_folder, read_own
from airserve.data.schema import load_dataset
from airserve.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def llmcdsr(tmp_path):
    folder = tmp_path / "llmcdsr"
    folder.mkdir()
    lines = ["index\tdomain\tasin\ttitle", "0\tfood\tB0\tSalt &amp; Pepper &quot;fine&quot;", "1\tfood\tB1\tGreen Tea"]
    lines += ["2\tkitchen\tB2\tTea Kettle", "3\tkitchen\tB3\tPepper Mill", ""]
    (folder / "items.tsv").write_text("\n".join(lines))
    (folder / "train_overlap.txt").write_text("1\t0,2,3\n2\t1,2\n")
    (folder / "train_A.txt").write_text("1\t0,1\n")
    (folder / "train_B.txt").write_text("1\t3,2\n")
    (folder / "valid.txt").write_text("1\t1,0,2\n")
    (folder / "test.txt").write_text("1\t0,3\n2\t2,1,0\n")
    return folder


def own_folder(folder, users, events_each):
    """Items 1..4, of which 3 and 4 are candidates; user u has `events_each` events, the last one on content."""
    folder.mkdir()
    items = {"item_id": [1, 2, 3, 4], "domain": ["x"] * 4, "title": ["a", "b", "c", "d"]}
    items["is_candidate"] = [False, False, True, True]
    pq.write_table(pa.table(items), folder / "items.parquet")
    rows = [(user, 3 + at % 2 if at < events_each - 1 else 1, at) for user in users for at in range(events_each)]
    log = {"user_id": [row[0] for row in rows], "item_id": [row[1] for row in rows], "action": ["order"] * len(rows)}
    log["timestamp_s"] = [row[2] for row in rows]
    pq.write_table(pa.table(log), folder / "behaviours.parquet")
    return folder


def test_llmcdsr_text_files_become_the_two_tables(llmcdsr, tmp_path):
    report = import_folder(llmcdsr, tmp_path / "out")
    data = load_dataset(tmp_path / "out")
    assert (report.format, report.items, report.users, report.behaviours) == ("llmcdsr", 4, 7, 17)
    assert (report.valid, report.test) == (1, 2)
    assert data.items.column("title").to_pylist()[0] == 'Salt & Pepper "fine"'
    assert data.items.column("domain").to_pylist() == ["food", "food", "kitchen", "kitchen"]
    assert all(data.items.column("is_candidate").to_pylist())


def test_the_last_event_of_a_valid_or_test_line_is_the_target(llmcdsr, tmp_path):
    import_folder(llmcdsr, tmp_path / "out")
    rows = load_dataset(tmp_path / "out").behaviours.to_pylist()
    of_user = {user: [(row["item_id"], row["split"]) for row in rows if row["user_id"] == user] for user in range(1, 8)}
    assert of_user[1] == [(0, "train"), (2, "train"), (3, "train")]
    assert of_user[5] == [(1, "train"), (0, "train"), (2, "valid")]
    assert of_user[7] == [(2, "train"), (1, "train"), (0, "test")]


def test_made_up_times_are_a_day_apart_and_end_together(llmcdsr, tmp_path):
    import_folder(llmcdsr, tmp_path / "out")
    rows = load_dataset(tmp_path / "out").behaviours.to_pylist()
    times = [row["timestamp_s"] for row in rows if row["user_id"] == 1]
    assert times == [NOW_S - 3 * DAY_S, NOW_S - 2 * DAY_S, NOW_S - DAY_S]
    assert {max(row["timestamp_s"] for row in rows if row["user_id"] == user) for user in range(1, 8)} == {
        NOW_S - DAY_S
    }


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("train_A.txt", "1\t0,1\n2\t0;1\n", "train_A.txt, line 2"),
        ("test.txt", "1\t0,9\n", "test.txt, line 1: expected item indices of items.tsv, got 9"),
        ("items.tsv", "id\ttitle\n", "items.tsv, line 1"),
        ("items.tsv", "index\tdomain\tasin\ttitle\n0\tfood\tB0\n", "items.tsv, line 2"),
    ],
)
def test_a_damaged_text_file_is_refused_by_file_and_line(llmcdsr, tmp_path, name, text, words):
    (llmcdsr / name).write_text(text)
    with pytest.raises(DataError, match=words):
        import_folder(llmcdsr, tmp_path / "out")


def test_a_folder_of_neither_format_is_refused_by_what_is_in_it(tmp_path):
    (tmp_path / "clicks.csv").write_text("")
    with pytest.raises(DataError, match=r"got clicks\.csv"):
        import_folder(tmp_path, tmp_path / "out")


def test_missing_columns_are_filled_in_and_reported(tmp_path):
    report = import_folder(own_folder(tmp_path / "own", range(200), 5), tmp_path / "out")
    assert report.filled_in == ("split", "user_segment")
    assert report.candidates == 2
    assert load_dataset(tmp_path / "out").behaviours.column("user_segment").to_pylist()[0] == 0


def test_a_tenth_of_the_users_each_is_held_out_and_always_the_same_ones(tmp_path):
    folder = own_folder(tmp_path / "own", range(2000), 5)
    first, _ = read_own(folder)
    second, _ = read_own(folder)
    assert first.behaviours == second.behaviours
    splits = first.behaviours.column("split").to_pylist()
    assert 150 < splits.count("test") < 250
    assert 150 < splits.count("valid") < 250


def test_a_target_is_the_users_last_event_on_a_candidate_and_nothing_follows_it(tmp_path):
    data, _ = read_own(own_folder(tmp_path / "own", range(300), 5))
    rows = data.behaviours.to_pylist()
    targets = {row["user_id"]: row for row in rows if row["split"] != "train"}
    assert targets
    for user, target in targets.items():
        own = [row for row in rows if row["user_id"] == user]
        assert own[-1] == target
        assert target["timestamp_s"] == 3
        assert len(own) > 1


def test_a_user_without_a_history_gives_no_target(tmp_path):
    data, _ = read_own(own_folder(tmp_path / "own", range(300), 2))
    assert set(data.behaviours.column("split").to_pylist()) == {"train"}
    assert data.behaviours.num_rows == 600


def test_a_split_that_is_there_is_kept(tmp_path):
    folder = own_folder(tmp_path / "own", range(3), 3)
    log = pq.read_table(folder / "behaviours.parquet")
    pq.write_table(log.append_column("split", pa.array(["train"] * 8 + ["test"])), folder / "behaviours.parquet")
    assert read_own(folder)[0].behaviours.column("split").to_pylist() == ["train"] * 8 + ["test"]


def run_script(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "offline" / "import_data.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_script_prints_its_counts_as_one_json_line(llmcdsr, tmp_path):
    done = run_script("--data", llmcdsr, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["users"] == 7


def test_the_script_ends_with_2_and_one_line_for_a_users_mistake(tmp_path):
    done = run_script("--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no such folder" in done.stderr
