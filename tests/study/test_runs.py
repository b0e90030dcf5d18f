"""The study's runs: kept, taken up and put together; a small study from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from airserve.data.schema import load_dataset, write_parquet
from airserve.errors import DataError, UserError
from airserve.study.cache import Run, source_digest
from airserve.study.models import MODELS
from airserve.study.plots import write_figures
from airserve.study.prepare import prepare, study_settings
from airserve.study.protocol import Protocol, Ranks
from airserve.study.report import results_json
from airserve.study.run import Results, Runner, run_study, with_bases
from airserve.study.sample import Sample
from airserve.study.subject import Study
from airserve.study.truth import compare_with_truth
from airserve.training.evaluation import Bootstrap

ROOT = Path(__file__).resolve().parents[2]


def test_the_base_of_a_wanted_model_is_trained_first() -> None:
    assert with_bases(["air", "popularity"]) == ["popularity", "sasrec_id_text", "air"]
    with pytest.raises(UserError, match="some of popularity"):
        with_bases(["bert4rec"])


def test_every_model_finishes_and_air_beats_popularity_where_themes_decide(
    study: Study, finished: tuple[Results, Path]
) -> None:
    results, _ = finished
    report = results_json(study, results, Bootstrap(resamples=200), minutes=1.0)
    json.dumps(report)
    assert {name: len(model["runs"]) for name, model in report["models"].items()} == {
        name: 2 if model.seeded else 1 for name, model in MODELS.items()
    }
    found = {name: of["hr5"]["mean"] for name, of in report["slices"]["all"]["metrics"].items()}
    assert found["air"] > found["popularity"] + 0.1, found
    assert found["text_cosine"] > found["popularity"] + 0.1, found
    assert report["slices"]["all"]["air_minus"]["sasrec_id"]["hr10"]["seeds"] == 2


def test_the_control_without_intents_has_no_fewer_parameters_than_air(finished: tuple[Results, Path]) -> None:
    sizes = {name: finished[0][name][0].report["parameters"] for name in ("air", "no_intents", "air_neither")}
    assert sizes["no_intents"] >= sizes["air"] == sizes["air_neither"], sizes


def test_finished_runs_are_not_repeated(study: Study, finished: tuple[Results, Path]) -> None:
    results, cache = finished
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    again = run_study(study, list(MODELS), [0, 1], cache, lambda results: None)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == before
    assert np.array_equal(again["air"][1].ranks.drawn_WX, results["air"][1].ranks.drawn_WX)


def test_another_number_of_draws_ranks_again_without_training(study: Study, finished: tuple[Results, Path]) -> None:
    results, cache = finished
    more = replace(study, protocol=replace(study.protocol, draws=6))
    run, _ = Runner(more, cache).place("air", 0)
    trained = (run.folder / "run.json").stat().st_mtime_ns
    found = Runner(more, cache).finished("air", 0)
    assert found.ranks.drawn_WX.shape[0] == 6
    assert np.array_equal(found.ranks.drawn_WX[:4], results["air"][0].ranks.drawn_WX)
    assert (run.folder / "run.json").stat().st_mtime_ns == trained


def test_a_damaged_file_of_a_run_is_made_again(study: Study, finished: tuple[Results, Path]) -> None:
    results, cache = finished
    run, _ = Runner(study, cache).place("popularity", 0)
    (path,) = run.folder.glob("ranks-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    found = Runner(study, cache).finished("popularity", 0)
    assert np.array_equal(found.ranks.full_X, results["popularity"][0].ranks.full_X)


def test_a_run_depends_on_its_settings_and_on_its_base(study: Study, tmp_path: Path) -> None:
    slower = replace(study.train, sequence_fit=replace(study.train.sequence_fit, learning_rate=1e-3))
    other = Study(table=study.table, titles_NE=study.titles_NE, log=study.log, train=slower, protocol=study.protocol)
    mine, others = Runner(study, tmp_path), Runner(other, tmp_path)
    assert mine.place("air", 0) != others.place("air", 0), "through its base"
    assert mine.place("item_knn", 0) == others.place("item_knn", 0)
    assert mine.place("air", 0) != mine.place("air", 1)


def test_comments_and_docstrings_do_not_change_what_code_is() -> None:
    def first(x: int) -> int:
        return x + 1

    plain = source_digest([first])

    def first(x: int) -> int:  # type: ignore[no-redef]
        """Words."""
        # More words.
        return x + 1

    assert source_digest([first]) == plain

    def first(x: int) -> int:  # type: ignore[no-redef]
        return x + 2

    assert source_digest([first]) != plain


def test_ranks_come_back_as_they_were_kept(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    assert run.ranks("p") is None
    ranks = Ranks(drawn_WX=np.array([[1, 2]], dtype=np.int32), full_X=np.array([3, 4], dtype=np.int32))
    run.keep_ranks("p", ranks)
    found = run.ranks("p")
    assert found is not None
    assert np.array_equal(found.drawn_WX, ranks.drawn_WX)
    assert np.array_equal(found.full_X, ranks.full_X)


def test_data_without_test_targets_is_refused(study: Study) -> None:
    log = replace(study.log, splits=np.zeros_like(study.log.splits))
    with pytest.raises(DataError, match="mark the last event"):
        replace(study.test, log=log)


def test_intents_are_made_without_any_held_out_event(folders: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[Path] = []

    def source(data: Path, intents: Path) -> None:
        seen.append(data)
        intents.mkdir(parents=True)
        (intents / "answers.parquet").write_bytes((folders[1].parent / "intents" / "answers.parquet").read_bytes())

    def make(learn: bool) -> Study:
        work, train, sample = tmp_path / str(learn), study_settings(fast=True), Sample(learn_from_held_out=learn)
        return prepare(folders[0], ("themes", source), work, train=train, protocol=Protocol(draws=4), sample=sample)

    # The bundled embedder reads the titles here: these tables are real ones.
    for learn in (False, True):
        study = make(learn)
        visible, whole = load_dataset(seen[-1]), load_dataset(seen[-1].parent / "data")
        assert visible.items.num_rows == whole.items.num_rows
        assert set(visible.behaviours["split"].to_pylist()) == {"train"}
        held_out = {row["user_id"] for row in whole.behaviours.to_pylist() if row["split"] != "train"}
        assert bool(held_out & set(visible.behaviours["user_id"].to_pylist())) == learn
        assert visible.behaviours.num_rows == int((study.log.splits == 0).sum())
    make(True)
    assert len(seen) == 2, "nothing has changed: the tables are kept"


def test_the_truth_is_found_where_intents_are_the_truth(
    study: Study, finished: tuple[Results, Path], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    items = study.table.items.tolist()
    leaves = [f"things > theme{item % 5} things" for item in items]
    truth = pa.table({"item_id": pa.array(items, pa.int64()), "leaf": leaves})
    write_parquet(truth, tmp_path / "truth.parquet")
    (found,) = compare_with_truth(study, Runner(study, finished[1]), [0], tmp_path / "truth.parquet", folders[1])
    assert found["targets"] == len(study.test.targets)
    assert found["reachable"] == 1.0, "users stay with their theme"
    assert found["target_chain"] == 1.0
    with pytest.raises(DataError, match="leave --truth out"):
        compare_with_truth(study, Runner(study, finished[1]), [0], folders[0] / "items.tsv", folders[1])


def test_figures_and_table_are_drawn_from_the_json_alone_and_the_same_each_time(
    study: Study, finished: tuple[Results, Path], tmp_path: Path
) -> None:
    report = json.loads(json.dumps(results_json(study, finished[0], Bootstrap(resamples=200), minutes=1.0)))
    files = write_figures(report, tmp_path / "a")
    assert set(files) == {"models.svg", "differences.svg", "slices.svg", "training.svg", "README.md"}
    assert write_figures(report, tmp_path / "b") == files
    for name in files:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert len(content) < 100_000, name
    text = (tmp_path / "a" / "README.md").read_text()
    assert all(model.label in text for model in MODELS.values())


def test_a_study_without_air_has_figures_too(study: Study, tmp_path: Path) -> None:
    results = run_study(study, ["popularity"], [0], tmp_path / "runs", lambda results: None)
    files = write_figures(results_json(study, results, Bootstrap(resamples=50), minutes=0.0), tmp_path)
    assert files == ["models.svg", "README.md"]


@pytest.mark.slow
def test_a_study_killed_at_any_time_ends_with_the_same_results(folders: tuple[Path, Path], tmp_path: Path) -> None:
    raw, tables = folders

    def command(cache: Path) -> list[str]:
        script = [sys.executable, "offline/evaluate_ranker.py", "--data", str(raw), "--tables", str(tables), "--fast"]
        options = ["--models", "popularity,sasrec_id,air", "--seeds", "2", "--draws", "3", "--threads", "1"]
        return [*script, *options, "--cache", str(cache), "--out", str(cache / "out.json")]

    def start(cache: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        return subprocess.Popen(command(cache), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    killed_runs = tmp_path / "killed" / "runs"
    process, kills = start(tmp_path / "killed"), 0
    # Killed once a training is under way, and again when some runs are finished and others are not.
    for pattern in ("sasrec_id-0-*/resume-*.pt", "air-0-*/run.json"):
        while process.poll() is None and not list(killed_runs.glob(pattern)):
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            process = start(tmp_path / "killed")
    assert kills == 2
    for one in (process, whole):
        assert one.stdout is not None
        last = one.communicate()[0].strip().splitlines()[-1]
        assert one.returncode == 0
        assert json.loads(last)["runs"]["air"] == 2
    results = [json.loads((tmp_path / name / "out.json").read_text()) for name in ("whole", "killed")]
    assert results[0]["slices"] == results[1]["slices"]
