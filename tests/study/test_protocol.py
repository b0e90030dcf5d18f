"""The study's protocol, statistics, controls and counted baselines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from airserve import contract
from airserve.study import metrics
from airserve.study.prepare import without_held_out_histories
from airserve.study.subject import Study
from airserve.study.variants import with_items_for_intents, with_shuffled_intents
from airserve.training.baselines import Recency, log_neighbours
from airserve.training.evaluation import Bootstrap, difference, rivals


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
    more = replace(study.test, protocol=replace(study.protocol, draws=6))
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
    found = difference(other + 0.01, other, Bootstrap())
    assert found["mean"] == pytest.approx(0.01)
    assert found["interval"] == pytest.approx([0.01, 0.01])
    assert found["relative"] == pytest.approx(0.01 / other.mean(), abs=1e-4)


def test_a_model_without_seeds_is_compared_with_every_seed() -> None:
    ours = np.arange(6.0).reshape(3, 2)
    found = difference(ours, np.ones((1, 2)), Bootstrap())
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
    plain, shrunk = log_neighbours(log, 0.0).toarray(), log_neighbours(log, 5.0).toarray()
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
