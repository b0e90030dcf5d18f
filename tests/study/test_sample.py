"""Cold items and thin logs: what is left out reaches nothing that is learned, and nothing of the test is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from airserve import contract
from airserve.artifacts import BEHAVIOURS_FILE, ITEMS_FILE, VECTORS_FILE
from airserve.data.schema import Dataset, load_dataset, write_parquet
from airserve.errors import UserError
from airserve.study import metrics
from airserve.study.plots import markdown
from airserve.study.prepare import derived_source, prepare, study_settings
from airserve.study.protocol import Protocol
from airserve.study.report import headline, results_json
from airserve.study.run import Runner, run_study
from airserve.study.sample import COLD_SEED, USERS_SEED, Sample, is_chosen, is_held_out, without_items
from airserve.study.subject import Study
from airserve.training.baselines import log_neighbours, target_counts
from airserve.training.evaluation import Bootstrap
from airserve.training.examples import make_request, next_targets, rank_batches, sequence_batches, training_targets

COLD, FEW = Sample(cold_items=0.3), Protocol(negatives=12, draws=4)
FAST = study_settings(fast=True)


@pytest.fixture(scope="module")
def cold(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study of the other tests, three items of ten cold."""
    return prepare(*folders, tmp_path_factory.mktemp("cold"), train=FAST, protocol=FEW, sample=COLD)


@pytest.fixture(scope="module")
def dataset(folders: tuple[Path, Path]) -> Dataset:
    return load_dataset(folders[1].parent / "data")


def users_of(behaviours: pa.Table) -> set[int]:
    return set(behaviours["user_id"].to_pylist())


def test_a_share_is_chosen_by_id_alone_and_a_larger_one_holds_it() -> None:
    ids = np.random.default_rng(0).integers(-(2**62), 2**62, size=50_000)
    for some_ids in (ids, np.arange(50_000)):
        fifth, half = is_chosen(some_ids, 0.2, COLD_SEED), is_chosen(some_ids, 0.5, COLD_SEED)
        assert fifth.mean() == pytest.approx(0.2, abs=0.01)
        assert not (fifth & ~half).any()
        assert np.array_equal(is_chosen(some_ids[::-1], 0.2, COLD_SEED), fifth[::-1])
        both = fifth & is_chosen(some_ids, 0.2, USERS_SEED)
        assert both.mean() == pytest.approx(0.04, abs=0.01), "items and users are chosen independently"
    assert not is_chosen(ids, 0.0, COLD_SEED).any()
    assert is_chosen(ids, 1.0, COLD_SEED).all()
    assert np.flatnonzero(is_chosen(np.arange(20), 0.2, COLD_SEED)).tolist() == [3, 10, 18], "for ever"


def test_without_items_users_that_are_learned_from_lose_their_events_and_others_none(dataset: Dataset) -> None:
    before, cold_ids = dataset.behaviours, set(COLD.cold_ids(dataset.items).tolist())
    after = without_items(before, np.array(sorted(cold_ids)))
    of_held_out = is_held_out(before).to_pylist()
    expected = [
        row
        for row, held_out in zip(before.to_pylist(), of_held_out, strict=True)
        if held_out or row["item_id"] not in cold_ids
    ]
    assert after.to_pylist() == expected
    assert 0 < after.num_rows < before.num_rows
    assert cold_ids & {row["item_id"] for row in expected}, "held-out users keep theirs"


def test_no_cold_item_is_an_input_or_a_target_of_any_training(cold: Study) -> None:
    log, rows = cold.log, set(cold.cold_rows.tolist())
    assert len(rows) > 5
    targets = training_targets(log, cold.task)
    assert targets.size
    assert not rows & set(log.rows[targets].tolist())
    following = next_targets(log, cold.task)[0]
    assert not rows & set(log.rows[following[following >= 0]].tolist())
    for batch in sequence_batches(log, cold.task, window=16, batch=8):
        assert not rows & set(batch.rows_BT.flatten().tolist())
        assert not rows & set(batch.target_rows_BT.flatten().tolist())
    for looked_up in rank_batches(cold.table, log, targets, cold.task, batch=32):
        assert not rows & set(looked_up.inputs[0].flatten().tolist())
        assert not rows & set(looked_up.target_rows_B.tolist())


def test_nothing_that_is_counted_knows_a_cold_item(cold: Study, study: Study) -> None:
    rows = cold.cold_rows
    assert target_counts(study.log, study.task)[rows].any()
    assert not target_counts(cold.log, cold.task)[rows].any()
    assert log_neighbours(study.log, 0.0)[rows].nnz
    assert not log_neighbours(cold.log, 0.0)[rows].nnz
    assert not log_neighbours(cold.log, 0.0)[:, rows].nnz


def test_the_log_says_which_rows_were_never_trained_on(cold: Study, study: Study) -> None:
    untrained = cold.log.untrained_rows
    assert set(cold.cold_rows) <= set(untrained)
    assert untrained.min() >= contract.FIRST_ITEM_ROW
    assert set(untrained) == set(range(2, len(cold.table.items) + 2)) - set(cold.log.rows[cold.log.splits == 0])
    assert not len(study.cold_rows)
    assert not set(cold.cold_rows) <= set(study.log.untrained_rows)


def test_a_cold_study_is_tested_on_the_same_targets_histories_and_candidates(cold: Study, study: Study) -> None:
    assert np.array_equal(cold.log.candidate_rows, study.log.candidate_rows)
    for ours, whole in ((cold.test, study.test), (cold.valid, study.valid)):
        asked = make_request(cold.log, ours.targets, ours.task, 50)
        of_whole = make_request(study.log, whole.targets, whole.task, 50)
        assert all(np.array_equal(asked[name], of_whole[name]) for name in asked)
    cold_ids = COLD.cold_ids(pa.table({"item_id": cold.table.items}))
    assert np.isin(asked[contract.BEHAVIOUR_ITEMS.name], cold_ids).any(), "they stay in held-out histories"
    assert np.isin(asked[contract.CANDIDATE_ITEMS.name], cold_ids).any(), "blends are chosen with cold targets too"


def test_what_training_users_did_with_cold_items_changes_neither_the_log_nor_derived_intents(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Leaks by any way at all: other cold events, down to who has them, must give the same study."""
    behaviours = dataset.behaviours
    items = behaviours["item_id"].to_numpy().copy()
    moved = np.isin(items, COLD.cold_ids(dataset.items)) & ~is_held_out(behaviours).to_numpy()
    items[moved] = np.random.default_rng(3).permutation(items[moved])
    other = behaviours.set_column(1, "item_id", pa.array(items))
    more = other.filter(pa.array(~moved | (np.arange(len(items)) % 3 > 0)))
    studies = []
    for name, events in (("as it was", behaviours), ("others", more)):
        write_parquet(dataset.items, tmp_path / name / "raw" / ITEMS_FILE)
        write_parquet(events, tmp_path / name / "raw" / BEHAVIOURS_FILE)
        for sample in (COLD, Sample()):
            work = tmp_path / name / str(sample.cold_items)
            source = derived_source(tmp_path)
            studies.append(
                (
                    prepare(tmp_path / name / "raw", source, work, train=FAST, protocol=FEW, sample=sample),
                    np.load(work / "intents" / VECTORS_FILE)["vectors"],
                )
            )
    (cold, vectors), (whole, _), (cold_too, vectors_too), (whole_too, _) = studies
    assert cold.data_digest == cold_too.data_digest
    assert cold.table_digest == cold_too.table_digest
    assert np.array_equal(vectors, vectors_too)
    assert whole.data_digest != whole_too.data_digest
    assert whole.table_digest != whole_too.table_digest
    paths = cold.table.arrays.item_paths[cold.cold_rows]
    assert (paths[:, 0] >= 0).all(), "the group of its title"
    leaves = cold.table.arrays.paths[paths[:, 0]]
    for leaf in np.unique(leaves, axis=0):
        alike = paths[(leaves == leaf).all(axis=1)]
        assert len(np.unique(alike, axis=0)) == 1, "and what follows that group, the same for all of it"


def test_what_a_run_depends_on_holds_the_cold_share_and_the_thin_one(study: Study, tmp_path: Path) -> None:
    # The log is the same here: the shares count by themselves.
    places = {
        Runner(replace(study, sample=sample), tmp_path).place(name, 0)[1]
        for sample in (Sample(), Sample(cold_items=0.1), Sample(thin=0.5))
        for name in ("popularity", "sasrec_id", "air")
    }
    assert len(places) == 9


def test_a_thin_log_has_fewer_whole_users_and_all_held_out_ones(
    dataset: Dataset, folders: tuple[Path, Path], study: Study, tmp_path: Path
) -> None:
    whole = dataset.behaviours
    held_out = users_of(whole.filter(is_held_out(whole)))
    thin = Sample(thin=0.4).of(dataset).behaviours
    assert held_out <= users_of(thin)
    assert len(users_of(thin) - held_out) == pytest.approx(0.4 * len(users_of(whole) - held_out), rel=0.2)
    kept = users_of(thin)
    assert thin.to_pylist() == [row for row in whole.to_pylist() if row["user_id"] in kept]
    small = prepare(*folders, tmp_path / "work", train=FAST, protocol=FEW, sample=Sample(thin=0.4))
    assert len(small.test.targets) == len(study.test.targets)
    assert (small.log.splits == 0).sum() < 0.6 * (study.log.splits == 0).sum()
    results = run_study(small, ["item_knn"], [0], tmp_path / "runs", lambda results: None)
    report = results_json(small, results, Bootstrap(resamples=50), minutes=0.0)
    assert report["data"]["sample"] == {
        "cold_items": 0.0, "thin": 0.4, "learn_from_held_out": False, "cold_rows": 0,
    }  # fmt: skip
    assert "40 % of the training users" in markdown(json.loads(json.dumps(report)))
    assert "cold" not in report["slices"]


def test_cold_and_warm_targets_are_reported_for_all_models_with_intervals(cold: Study, tmp_path: Path) -> None:
    results = run_study(cold, ["popularity", "air"], [0], tmp_path, lambda results: None)
    report = results_json(cold, results, Bootstrap(resamples=50), minutes=0.0)
    parts = [report["slices"][name] for name in ("cold", "warm")]
    assert sum(part["users"] for part in parts) == report["slices"]["all"]["users"]
    assert parts[0]["users"] == np.isin(cold.log.rows[cold.test.targets], cold.cold_rows).sum() > 0
    for part in parts:
        assert set(part["metrics"]) == set(results)
        assert len(part["metrics"]["air"]["ndcg10"]["interval"]) == 2
        assert set(part["air_minus"]) == {"popularity", "sasrec_id_text"}
    printed = headline(report)
    assert set(printed["hr10_ndcg10"]) == {"food", "kitchen"}
    assert printed["hr10_ndcg10_cold"]["air"][0] == parts[0]["metrics"]["air"]["hr10"]["mean"]
    assert set(printed["hr10_ndcg10_warm"]) == set(results)
    assert "30 % of the items are cold" in markdown(json.loads(json.dumps(report)))


def test_without_cold_items_there_are_no_such_slices(study: Study) -> None:
    assert not {"cold", "warm"} & set(metrics.slices(study.test, study.cold_rows))


def test_cold_items_and_learning_from_the_histories_that_keep_them_exclude_each_other() -> None:
    with pytest.raises(UserError, match="--learn-from-held-out"):
        Sample(cold_items=0.1, learn_from_held_out=True)


@pytest.mark.parametrize("shares", [{"cold_items": 1.0}, {"cold_items": -0.1}, {"thin": 0.0}, {"thin": 2.0}])
def test_shares_that_leave_nothing_or_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(UserError, match="a share in"):
        Sample(**shares)
