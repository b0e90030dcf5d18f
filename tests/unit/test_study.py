"""The study: its protocol, statistics, cache, controls and a small one from end to end."""

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
import torch

from airserve import contract
from airserve.data.importers import import_folder
from airserve.data.schema import load_dataset, write_parquet
from airserve.errors import DataError, UserError
from airserve.study import metrics
from airserve.study.cache import Run, source_digest
from airserve.study.metrics import Bootstrap
from airserve.study.models import MODELS, Study
from airserve.study.plots import write_figures
from airserve.study.prepare import prepare, study_settings, without_held_out_histories
from airserve.study.protocol import Protocol, Ranks, rivals
from airserve.study.report import results_json
from airserve.study.run import Results, Runner, run_study, with_bases
from airserve.study.truth import compare_with_truth
from airserve.study.variants import with_items_for_intents, with_shuffled_intents
from airserve.table.build import BuildSettings, build_tables
from airserve.training.baselines import Recency, cosine_neighbours

ROOT = Path(__file__).resolve().parents[2]
N_FOOD, N_KITCHEN, THEMES = 30, 40, 5
FEW = Protocol(negatives=12, draws=4)


class ThemeEmbedder:
    """Texts of one theme word lie near each other; enough text understanding for these tests, and instant."""

    identity = "theme words"

    def embed(self, texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 16), dtype=np.float32)
        for place, text in enumerate(texts):
            rng = np.random.default_rng(sum(map(ord, text)))
            vectors[place] = 0.1 * rng.normal(size=16)
            vectors[place, [int(word[5:]) for word in text.split() if word.startswith("theme")]] += 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def theme(item: int) -> int:
    return item % THEMES


def write_llmcdsr(folder: Path) -> None:
    """Users who stay with a theme: what comes next can be learned from it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    count = N_FOOD + N_KITCHEN
    lines = ["index\tdomain\tasin\ttitle"]
    lines += [f"{i}\t{'food' if i < N_FOOD else 'kitchen'}\tA{i}\ttheme{theme(i)} thing {i}" for i in range(count)]
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")

    def users(number: int, low: int, high: int) -> str:
        made = []
        for user in range(number):
            of_theme = [i for i in range(low, high) if theme(i) == user % THEMES]
            chosen = rng.permutation(of_theme)[: int(rng.integers(3, 7))]
            made.append(f"{user}\t{','.join(map(str, chosen))}")
        return "\n".join(made) + "\n"

    for name, number, low, high in (
        ("train_overlap", 60, 0, count),
        ("train_A", 40, 0, N_FOOD),
        ("train_B", 40, N_FOOD, count),
        ("valid", 30, 0, count),
        ("test", 40, 0, count),
    ):
        (folder / f"{name}.txt").write_text(users(number, low, high))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """LLMCDSR's files and the tables of true intents."""
    folder = tmp_path_factory.mktemp("study")
    write_llmcdsr(folder / "raw")
    count = N_FOOD + N_KITCHEN
    answers = pa.table(
        {
            "item_id": pa.array(range(count), pa.int64()),
            "action": ["order"] * count,
            "user_segment": pa.array([0] * count, pa.int32()),
            "text": [""] * count,
            "paths": [[["things", f"theme{theme(i)} things"]] for i in range(count)],
            "valid": [True] * count,
            "raw": [""] * count,
        }
    )
    import_folder(folder / "raw", folder / "data")
    write_parquet(answers, folder / "intents" / "answers.parquet")
    settings = BuildSettings(data=folder / "data", intents=folder / "intents", out=folder / "tables", cache=None)
    build_tables(settings, ThemeEmbedder())
    return folder / "raw", folder / "tables"


@pytest.fixture(scope="module")
def study(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Study:
    work = tmp_path_factory.mktemp("work")
    return prepare(*folders, work, train=study_settings(fast=True), protocol=FEW)


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return run_study(study, list(MODELS), [0, 1], cache, lambda results: None), cache


def test_a_tie_and_a_score_that_is_no_number_rank_before_the_target() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, float("nan"), 3.0], [1.0, 5.0, 0.0, 0.0, 0.0]])
    found = rivals(scores, torch.tensor([1, 1]))
    assert found.tolist() == [[False, False, True, True, True], [False] * 5]


def test_a_targets_draws_are_distinct_others_and_the_same_each_time(study: Study) -> None:
    pool = study.test.pool(0)
    first = study.test.negatives(3, pool, target_at=7)
    assert first.shape == (4, 12)
    assert 7 not in first
    assert first.max() < len(pool)
    assert all(len(set(draw)) == 12 for draw in first.tolist())
    assert np.array_equal(first, study.test.negatives(3, pool, target_at=7))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, study.test.negatives(4, pool, target_at=7))


def test_more_draws_leave_the_earlier_draws_as_they_are(study: Study) -> None:
    more = replace(study.test, protocol=replace(FEW, draws=6))
    pool = study.test.pool(1)
    assert np.array_equal(more.negatives(0, pool, 2)[:4], study.test.negatives(0, pool, 2))


def test_ranks_of_draws_are_those_of_ranking_the_candidates_alone(study: Study) -> None:
    rng = np.random.default_rng(1)
    of_row = torch.from_numpy(rng.integers(0, 9, size=len(study.log.domain_of_row)).astype(np.float32))
    found = study.test.rank(lambda batch, rows: of_row[rows.long()], study.table, title="t", batch=3)
    for place, target in enumerate(study.test.targets):
        row = study.log.rows[target]
        pool = study.test.pool(int(study.test.domains[place]))
        scores, ours = of_row[torch.from_numpy(pool).long()].numpy(), float(of_row[row])
        assert found.full_X[place] == (scores >= ours).sum(), "all that score as much, itself among them"
        for draw, others in enumerate(study.test.negatives(place, pool, int(np.searchsorted(pool, row)))):
            assert found.drawn_WX[draw, place] == 1 + (scores[others] >= ours).sum()


def test_metrics_of_a_rank_are_the_textbooks() -> None:
    ranks = np.array([[[1, 2, 10, 11]]])
    values = metrics.measure(ranks, ranks[:, 0])
    assert values["hr1"].tolist() == [[1, 0, 0, 0]]
    assert values["hr10"].tolist() == [[1, 1, 1, 0]]
    assert values["ndcg10"] == pytest.approx(np.array([[1, 1 / np.log2(3), 1 / np.log2(11), 0]]))
    assert values["full_mrr"] == pytest.approx(np.array([[1, 0.5, 0.1, 1 / 11]]))


def test_an_interval_over_seeds_and_users_is_wider_than_over_users_alone_when_seeds_disagree() -> None:
    rng = np.random.default_rng(0)
    users = rng.random(400)
    agreeing = np.tile(users, (5, 1))
    disagreeing = agreeing + np.array([-0.2, -0.1, 0.0, 0.1, 0.2])[:, None]
    low, high = Bootstrap().interval(agreeing)
    wide_low, wide_high = Bootstrap().interval(disagreeing)
    error = 1.96 * users.std() / np.sqrt(len(users))
    assert (high - low) / 2 == pytest.approx(error, rel=0.1), "without disagreement it is the users' standard error"
    assert (wide_high - wide_low) / 2 == pytest.approx(1.96 * np.hypot(error / 1.96, 0.141 / np.sqrt(5)), rel=0.1)


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    other = rng.random((3, 200))
    found = metrics.difference(other + 0.01, other, Bootstrap())
    assert found["mean"] == pytest.approx(0.01)
    assert found["interval"] == pytest.approx([0.01, 0.01])
    assert found["relative"] == pytest.approx(0.01 / other.mean(), abs=1e-4)


def test_a_model_without_seeds_is_compared_with_every_seed() -> None:
    ours = np.arange(6.0).reshape(3, 2)
    found = metrics.difference(ours, np.ones((1, 2)), Bootstrap())
    assert found["seeds"] == 3
    assert found["mean"] == 1.5


def test_slices_hold_the_users_they_name(study: Study) -> None:
    found = metrics.slices(study.test)
    log = study.log
    for place, target in enumerate(study.test.targets):
        before = log.domain_of_row[log.rows[log.starts[target] : target]]
        same = before == study.test.domains[place]
        assert found["short_history"][place] == (len(before) <= 5)
        assert found["few_in_domain"][place] == (same.sum() <= 2)
        assert found["last_in_other_domain"][place] == (not same[-1])
        assert found["domain:food"][place] == (study.test.domains[place] == log.domains.index("food"))


def test_nothing_is_learned_from_the_histories_of_held_out_users(study: Study) -> None:
    kept = study.log
    held_out = np.isin(kept.starts, kept.starts[np.isin(kept.splits, (1, 2))])
    assert not (kept.splits[held_out] == 0).any()
    assert np.array_equal(without_held_out_histories(kept).splits, kept.splits)


def test_shuffled_intents_are_other_items_intents_and_no_items_own(study: Study) -> None:
    wrong = with_shuffled_intents(study.table, study.titles_NE, seed=3)
    true_paths, wrong_paths = study.table.arrays.item_paths[2:, 0], wrong.arrays.item_paths[2:, 0]
    assert sorted(true_paths) == sorted(wrong_paths)
    assert (true_paths == wrong_paths).mean() < 0.5, "about one in THEMES by chance"
    assert np.array_equal(wrong.items, study.table.items)


def test_without_intents_a_history_is_looked_up_as_its_items(study: Study) -> None:
    table = with_items_for_intents(study.table, study.titles_NE)
    batch = next(iter(study.test.batches(table, 1)))[1]
    rows, chains, nodes = batch.inputs[0][0], batch.inputs[3][0], batch.inputs[4][0]
    vectors = table.node_vectors[nodes[1:].numpy()]
    assert (chains[:, 0] >= 0).all(), "every behaviour has a chain"
    assert np.allclose(np.sort(vectors, axis=0), np.sort(study.titles_NE[rows.numpy()], axis=0))


def test_item_knn_counts_users_in_common_and_shrinks(study: Study) -> None:
    log = study.log
    plain, shrunk = cosine_neighbours(log, 0.0).toarray(), cosine_neighbours(log, 5.0).toarray()
    sets = {int(s): set(log.rows[(log.starts == s) & (log.splits == 0)]) for s in np.unique(log.starts)}
    i, j = np.argwhere(plain > 0)[0]
    both = sum(i in rows and j in rows for rows in sets.values())
    root = np.sqrt(sum(i in rows for rows in sets.values()) * sum(j in rows for rows in sets.values()))
    assert plain[i, j] == pytest.approx(both / root)
    assert shrunk[i, j] == pytest.approx(both / (root + 5.0))
    assert not plain.diagonal().any()


def test_recency_weighs_the_last_behaviour_most_and_padding_not_at_all() -> None:
    rows = np.array([[5, 6, 7, contract.PAD_ROW], [5, contract.UNKNOWN_ROW, 0, 0]])
    weights = Recency(last=2, decay=0.5).weights(rows)
    assert weights.tolist() == [[0.0, 0.5, 1.0, 0.0], [0.5, 0.0, 0.0, 0.0]]


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
    more = Study(
        table=study.table, titles_NE=study.titles_NE, log=study.log, train=study.train, protocol=replace(FEW, draws=6)
    )
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
    other = Study(table=study.table, titles_NE=study.titles_NE, log=study.log, train=slower, protocol=FEW)
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
        work, train = tmp_path / str(learn), study_settings(fast=True)
        return prepare(folders[0], ("themes", source), work, train=train, protocol=FEW, learn_from_held_out=learn)

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
    count = N_FOOD + N_KITCHEN
    truth = pa.table(
        {
            "item_id": pa.array(range(count), pa.int64()),
            "leaf": [f"things > theme{theme(i)} things" for i in range(count)],
        }
    )
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
