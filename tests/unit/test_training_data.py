"""Training examples, the held-out protocol, checkpoints and a small training from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from airserve import contract
from airserve.errors import ArtifactError, UserError
from airserve.model.ranker import RankerSettings
from airserve.model.sequence import SequenceSettings
from airserve.table.company import Company
from airserve.table.format import NO_PATH, IntentArrays, TableManifest, kind_keys, text_key
from airserve.table.intents import IntentTable
from airserve.training.checkpoint import Trained, load_ranker, new_ranker, read_config, save_ranker
from airserve.training.device import device_of, moved, pick_device
from airserve.training.evaluation import (
    EvaluationSettings,
    draw_candidates,
    gains,
    hits,
    target_ranks,
)
from airserve.training.examples import (
    Log,
    Task,
    find_task,
    history,
    last_of_users,
    make_log,
    next_targets,
    rank_batches,
    sequence_batches,
    training_targets,
    without_training,
)
from airserve.training.loop import FitSettings, fit
from airserve.training.measure import evaluate_ranker, summarise_ranks
from airserve.training.objectives import hidesome
from airserve.training.stages import Training, TrainSettings, air_scorer

N_ITEMS, N_LEAVES, SIZE = 40, 5, 8
ORDER, VIEW = contract.ACTIONS["order"], contract.ACTIONS["view"]


def make_table(catalogue: str = "c1") -> IntentTable:
    """Items 100.., item i of leaf i % N_LEAVES; even items are contents, odd ones products."""
    rng = np.random.default_rng(0)
    leaf_of = np.arange(N_ITEMS) // 2 % N_LEAVES
    nodes = rng.normal(size=(2 + N_LEAVES, SIZE)).astype(np.float32)
    nodes /= np.linalg.norm(nodes, axis=1, keepdims=True)
    nodes[0] = 0
    paths = np.zeros((N_LEAVES, contract.MAX_DEPTH), dtype=np.int32)
    paths[:, 0], paths[:, 1] = 1, 2 + np.arange(N_LEAVES)
    item_paths = np.full((N_ITEMS + 2, contract.MAX_PATHS), NO_PATH, dtype=np.int32)
    item_paths[2:, 0] = leaf_of
    vectors = np.zeros((N_ITEMS + 2, SIZE), dtype=np.float32)
    vectors[2:] = nodes[2 + leaf_of]
    arrays = IntentArrays(
        items=np.arange(100, 100 + N_ITEMS, dtype=np.int64),
        kinds=kind_keys(np.zeros(0, dtype=np.int64), np.zeros(0), 0, 1).astype(np.uint64),
        kind_paths=np.zeros((0, contract.MAX_PATHS), dtype=np.int32),
        item_paths=item_paths,
        paths=paths,
        node_vectors=nodes,
        item_vectors=vectors,
        title_keys=np.array([text_key(f"item {n}") for n in range(N_ITEMS)], dtype=np.uint64),
        node_keys=np.arange(len(nodes), dtype=np.uint64),
    )
    manifest = TableManifest(
        contract_version=contract.CONTRACT_VERSION,
        table_version=7,
        n_segments=1,
        counts=arrays.counts(),
        catalogue_sha256=catalogue,
        vocabulary_sha256="v1",
        files={},
        sizes={},
    )
    return IntentTable(manifest, arrays)


def items_table() -> pa.Table:
    numbers = np.arange(N_ITEMS)
    return pa.table(
        {
            "item_id": numbers + 100,
            "domain": ["product" if n % 2 else "content" for n in numbers],
            "title": [f"item {n}" for n in numbers],
            "is_candidate": numbers % 2 == 1,
        }
    )


def behaviours_table(events: list[tuple[int, int, str, int, str]]) -> pa.Table:
    """Events as (user, item number, action, time, split)."""
    return pa.table(
        {
            "user_id": pa.array([e[0] for e in events], pa.int64()),
            "item_id": pa.array([e[1] + 100 for e in events], pa.int64()),
            "action": [e[2] for e in events],
            "timestamp_s": pa.array([e[3] for e in events], pa.int64()),
            "user_segment": pa.array([0] * len(events), pa.int32()),
            "split": [e[4] for e in events],
        }
    )


def log_of(*events: tuple[int, int, str, int, str]) -> Log:
    return make_log(items_table(), behaviours_table(list(events)), make_table())


TWO_USERS = (
    (1, 0, "view", 0, "train"),
    (1, 1, "click", 50, "train"),
    (1, 2, "view", 60, "train"),
    (1, 1, "order", 100, "train"),
    (1, 3, "order", 160, "valid"),
    (2, 4, "view", 10, "train"),
    (2, 5, "order", 30, "train"),
    (2, 7, "order", 90, "test"),
)


def test_the_task_is_read_off_the_valid_targets() -> None:
    task = find_task(log_of(*TWO_USERS))
    assert task.actions == (ORDER,)
    assert task.novel


def test_training_targets_are_training_events_with_a_history_and_of_the_tasks_action() -> None:
    log = log_of(*TWO_USERS)
    assert training_targets(log, find_task(log)).tolist() == [3, 6]


def test_a_novel_targets_own_item_is_not_in_its_history() -> None:
    log = log_of(*TWO_USERS)
    assert history(log, 3, find_task(log), 10).tolist() == [0, 2]
    assert history(log, 4, find_task(log), 2).tolist() == [2, 3]
    assert history(log, 6, find_task(log), 10).tolist() == [5], "another user's events are not in it"


def test_held_out_events_are_never_targets_of_training() -> None:
    log = log_of(*TWO_USERS)
    targets, weights = next_targets(log, find_task(log))
    assert targets.tolist() == [1, -1, -1, -1, -1, 6, -1, -1]
    assert weights[5] == 1.0
    assert weights[0] < 1.0, "a click counts less where orders are asked for"
    asked = {
        int(row) for b in sequence_batches(log, find_task(log), window=4, batch=8) for row in b.target_rows_BT.ravel()
    }
    assert asked <= {contract.PAD_ROW, *log.rows[[1, 6]].tolist()}


def test_a_long_history_is_cut_into_windows_that_cover_it() -> None:
    events = [(1, 2 * n + 1, "order", n, "train") for n in range(11)]
    log = log_of(*events)
    batches = sequence_batches(log, find_task(log), window=4, batch=8)
    asked = sorted(int(row) for b in batches for row in b.target_rows_BT[b.target_rows_BT != contract.PAD_ROW])
    assert asked == sorted(log.rows[1:].tolist())


def test_examples_carry_ages_as_of_their_target_and_the_tables_answer() -> None:
    log = log_of(*TWO_USERS)
    (batch,) = rank_batches(make_table(), log, np.array([7, 4]), find_task(log), batch=4)
    rows, actions, ages_s = batch.inputs[:3]
    assert batch.places.tolist() == [0, 1]
    assert rows[0].tolist() == [6, 7, 0, 0]
    assert ages_s[0].tolist() == [80.0, 60.0, 0.0, 0.0]
    assert actions[1].tolist() == [VIEW, contract.ACTIONS["click"], VIEW, ORDER]
    assert batch.target_rows_B.tolist() == [9, 5]


def test_negatives_are_distinct_candidates_of_the_targets_domain() -> None:
    log = log_of(*TWO_USERS)
    targets = log.targets("test")
    drawn = draw_candidates(log, targets, EvaluationSettings(draws=3, negatives=9))
    assert drawn.shape == (3, 1, 10)
    for row in drawn[:, 0]:
        assert row[0] == log.rows[targets[0]]
        assert len(set(row.tolist())) == 10
        assert set(row.tolist()) <= set(log.candidate_rows.tolist())
    assert (drawn[0] != drawn[1]).any(), "each draw is another"
    everything = draw_candidates(log, targets, EvaluationSettings(draws=1, negatives=999))
    assert everything.shape[2] == N_ITEMS // 2


def test_ties_and_not_a_number_count_against_the_target() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0, 2.0], [float("nan"), 0.0, 0.0, 0.0]])
    rows = torch.tensor([[2, 3, 4, 5], [2, 3, 4, contract.PAD_ROW]])
    assert target_ranks(scores, rows).tolist() == [3, 3]


def test_metrics_of_known_ranks() -> None:
    ranks = np.array([1, 3, 10, 11])
    assert hits(ranks).tolist() == [1, 1, 1, 0]
    assert gains(ranks).tolist() == pytest.approx([1.0, 0.5, 1 / np.log2(11), 0.0])
    settings = EvaluationSettings(draws=1)
    better, worse = np.ones((1, 200), dtype=np.int64), np.tile([1, 50], 100)[None]
    report = summarise_ranks({"air": better, "sequence": worse}, settings, ours="air", against=["sequence"])
    assert report["hr10"] == {"air": 1.0, "sequence": 0.5}
    assert report["air_minus_sequence"]["hr10"]["mean"] == 0.5
    low, high = report["air_minus_sequence"]["hr10"]["interval"]
    assert 0.4 < low < 0.5 < high < 0.6
    assert settings.bootstrap.interval(np.zeros((1, 0))) == [0.0, 0.0]


def test_training_keeps_the_best_epoch_and_takes_up_an_interrupted_one(tmp_path: Path) -> None:
    def new() -> torch.nn.Linear:
        torch.manual_seed(0)
        return torch.nn.Linear(1, 1)

    def run(model: torch.nn.Linear, epochs: int, measures: list[float], mark: str) -> tuple[int, int]:
        left = iter(measures)
        report = fit(
            "test",
            model,
            model.parameters(),
            [torch.ones(4, 1)] * 3,
            lambda batch, rng: model(batch).pow(2).mean(),
            lambda: next(left),
            FitSettings(epochs=epochs, patience=5),
            state_path=tmp_path / "state.pt",
            fingerprint=mark,
        )
        return report.epochs, report.best_epoch

    model = new()
    assert run(model, 3, [0.1, 0.5, 0.2], "a") == (3, 2)
    after = [parameter.clone() for parameter in model.parameters()]
    again = new()
    assert run(again, 3, [], "a") == (3, 2), "a finished training is not repeated"
    for left, right in zip(after, again.parameters(), strict=True):
        torch.testing.assert_close(left, right)
    assert run(new(), 1, [0.3], "b") == (1, 1), "another fingerprint starts anew"
    (tmp_path / "state.pt").write_bytes(b"torn")
    assert run(new(), 1, [0.3], "b") == (1, 1)


def test_averaged_weights_are_kept_and_survive_an_interruption(tmp_path: Path) -> None:
    def run(epochs: int, average: float, state: str, stop_after: int | None = None) -> float:
        torch.manual_seed(0)
        model, measured = torch.nn.Linear(1, 1), 0

        def validate() -> float:
            nonlocal measured
            measured += 1
            if stop_after is not None and measured > stop_after:
                raise KeyboardInterrupt
            return float(model.weight.detach())

        fit(
            "test",
            model,
            model.parameters(),
            [torch.ones(4, 1)] * 20,
            lambda batch, rng: (model(batch) - 3.0).pow(2).mean(),
            validate,
            FitSettings(epochs=epochs, learning_rate=0.5, warmup_steps=1, weight_decay=0.0, average=average),
            state_path=tmp_path / state,
        )
        return float(model.weight.detach())

    plain, averaged = run(4, 0.0, "plain"), run(4, 0.9, "averaged")
    assert plain != pytest.approx(averaged, abs=1e-6)
    with pytest.raises(KeyboardInterrupt):
        run(4, 0.9, "torn", stop_after=2)
    assert run(4, 0.9, "torn") == pytest.approx(averaged, abs=1e-5)


SMALL = RankerSettings(sequence=SequenceSettings(width=8), hidden=8)


TASK, COMPANY = Task(actions=(ORDER,), novel=True), Company(scale=0.5, shrinkage=50.0, last=50, decay=0.9)


def test_a_checkpoint_comes_back_as_it_was_with_its_company_and_its_task(tmp_path: Path) -> None:
    table = make_table()
    torch.manual_seed(0)
    ranker = new_ranker(table, SMALL)
    known = torch.arange(N_ITEMS + 2) % 3 == 2
    ranker.base.items.ids.set_known(known)
    save_ranker(tmp_path, Trained(ranker, COMPANY, TASK), table, {"note": "x"})
    loaded, company, task = load_ranker(tmp_path, table)
    assert read_config(tmp_path)["note"] == "x"
    assert loaded.settings == SMALL
    assert not loaded.training
    assert (company, task) == (COMPANY, TASK)
    assert torch.equal(loaded.state_dict()["base.items.ids.known_N"], known), "who has no id is learned too"
    for name, tensor in ranker.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)


def test_a_ranker_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    table = make_table()
    save_ranker(tmp_path, Trained(new_ranker(table, SMALL), COMPANY, TASK), table, {})
    with pytest.raises(ArtifactError, match=r"catalogue.*train the ranker on these tables"):
        load_ranker(tmp_path, make_table("another"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "contract_version": 99}))
    with pytest.raises(ArtifactError, match="99"):
        load_ranker(tmp_path, table)
    (tmp_path / "config.json").write_text(json.dumps({**config, "contract_version": 1}))
    with pytest.raises(ArtifactError, match=r"got 1 \(the ranker\).*train_ranker\.py again"):
        load_ranker(tmp_path, table)
    del config["company"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="company"):
        load_ranker(tmp_path, table)
    (tmp_path / "ranker.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"ranker\.safetensors"):
        load_ranker(tmp_path, table)


def shop_log(users: int) -> Log:
    """Users look at two contents of a leaf, then order a random product of it; ids alone say little."""
    rng = np.random.default_rng(1)
    events = []
    for user in range(users):
        leaf = int(rng.integers(N_LEAVES))
        contents = rng.choice(N_ITEMS // N_LEAVES // 2, size=2, replace=False)
        for at, number in enumerate(contents):
            events.append((user, 2 * (leaf + N_LEAVES * int(number)), "view", at * 1000, "train"))
        product = 2 * (leaf + N_LEAVES * int(rng.integers(N_ITEMS // N_LEAVES // 2))) + 1
        events.append((user, product, "order", 5000, ("train", "train", "valid", "test")[user % 4]))
    return log_of(*events)


def test_a_small_training_learns_from_intents_what_users_order(tmp_path: Path) -> None:
    settings = TrainSettings(
        ranker=SMALL,
        sequence_fit=FitSettings(epochs=3, learning_rate=5e-3),
        intent_fit=FitSettings(epochs=6, learning_rate=1e-2),
        evaluation=EvaluationSettings(resamples=100),
    )
    trained, metrics = Training(make_table(), shop_log(300), settings, tmp_path, "mark").run()
    assert metrics["test_users"] == 75
    # 20 products, 4 of the right leaf: chance is 10 of 20, the intents alone give all of the leaf.
    assert metrics["hr10"]["air"] > 0.9
    assert metrics["ndcg10"]["air"] > metrics["ndcg10"]["popularity"]
    assert set(metrics["by_domain"]) == {"product"}
    table = make_table()
    base = trained.ranker.base
    scorer = air_scorer(trained.ranker, shop_log(300), trained.company)
    alone = evaluate_ranker(scorer, base, table, shop_log(300), settings.evaluation)
    assert alone["hr10"] == {name: metrics["hr10"][name] for name in ("air", "base", "popularity")}
    assert "air_minus_sequence" not in alone
    scores = replace(SMALL, use_intents=False)
    assert new_ranker(table, scores).settings.use_intents is False


def test_items_that_training_never_saw_are_no_negatives_and_have_no_id(tmp_path: Path) -> None:
    log = shop_log(40)
    unseen = np.setdiff1d(log.candidate_rows, log.rows[log.splits == 0])
    assert unseen.size, "some product was never ordered in training"
    training = Training(make_table(), log, TrainSettings(ranker=SMALL, minutes_budget=0.01), tmp_path, "mark")
    drawn, _ = training.sampler.draw(20_000, np.random.default_rng(0))
    assert set(drawn.tolist()) == set(np.setdiff1d(log.candidate_rows, unseen).tolist())
    ranker = new_ranker(make_table(), SMALL)
    training.fit_sequence("base", ranker.base, 1.0)
    known = ranker.base.items.ids.known_N
    assert not known[torch.from_numpy(log.untrained_rows).long()].any()
    assert not known[: contract.FIRST_ITEM_ROW].any()
    assert known.sum() == N_ITEMS - len(log.untrained_rows)


def test_the_intent_stage_learns_from_users_that_the_base_apart_has_not_seen(tmp_path: Path) -> None:
    settings = TrainSettings(
        ranker=SMALL,
        sequence_fit=FitSettings(epochs=1),
        intent_fit=FitSettings(epochs=6, learning_rate=1e-2),
        evaluation=EvaluationSettings(resamples=100),
        apart_share=0.5,
    )
    log = shop_log(300)
    training = Training(make_table(), log, settings, tmp_path, "mark")
    apart = training.is_apart()
    assert 0.4 < apart.mean() < 0.6
    assert all(len(set(apart[log.starts == start])) == 1 for start in np.unique(log.starts)), "users are whole"
    left = without_training(log, apart)
    assert not set(training_targets(left, training.task)) & set(np.flatnonzero(apart))
    assert (left.splits[log.splits != 0] == log.splits[log.splits != 0]).all()
    trained, metrics = training.run()
    assert metrics["hr10"]["air"] > 0.9
    assert "base_apart" in metrics["fits"]
    assert not trained.ranker.base_scale.requires_grad


def test_everything_a_step_needs_is_where_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No GPU here: PyTorch's meta device computes shapes only, and refuses to mix its tensors with the CPU's. It has
    # no `unique`; row by row is the same.
    monkeypatch.setattr(
        "airserve.model.ranker.of_distinct",
        lambda rows, compute: compute(rows.flatten()).unflatten(0, rows.shape),
    )
    training = Training(make_table(), shop_log(40), TrainSettings(ranker=SMALL), tmp_path, "mark")
    ranker, elsewhere = new_ranker(make_table(), SMALL).to("meta"), torch.device("meta")
    assert device_of(ranker) == elsewhere
    batch = moved(training.valid_batches[0], elsewhere)
    rows = batch.target_rows_B[:, None]
    assert ranker.intent_score(ranker.user_tree(*batch.inputs), rows)[0].is_meta
    (window, *_) = sequence_batches(training.log, training.task, window=8, batch=4)
    there = moved(window, elsewhere)
    hidden = hidesome(there.rows_BT, np.random.default_rng(0))
    assert ranker.base(hidden, there.actions_BT, there.ages_s_BT).is_meta
    assert ranker.base.score(ranker.base.user_vector(*batch.inputs[:3]), rows).is_meta
    assert moved(window, torch.device("cpu")) is window


def test_a_device_that_is_not_there_is_refused() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"--device cpu"):
        pick_device("abacus")


def test_the_last_targets_of_each_user_are_the_latest() -> None:
    starts = np.array([0, 0, 0, 3, 3, 5])
    log = SimpleNamespace(starts=starts)
    assert last_of_users(log, np.array([1, 2, 4, 5]), 1).tolist() == [2, 4, 5]
    assert last_of_users(log, np.array([0, 1, 2, 4]), 2).tolist() == [1, 2, 4]
