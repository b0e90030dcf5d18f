"""Ranks, metrics, intervals, expected values over draws, and the weights of held-out targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from airserve import contract
from airserve.study.metrics import measure
from airserve.training.evaluation import (
    Bootstrap,
    EvaluationSettings,
    difference,
    expected_gains,
    gains,
    popularity_weights,
    rivals,
    summarise,
    target_ranks,
)
from airserve.training.measure import summarise_ranks


def known_ranks() -> tuple[np.ndarray, np.ndarray]:
    """Ranks [S, W, X] of a model with three seeds and of one without."""
    rng = np.random.default_rng(5)
    return rng.integers(1, 40, size=(3, 2, 50)), rng.integers(1, 60, size=(1, 2, 50))


def test_figures_of_a_study_are_those_of_the_published_ones_code() -> None:
    """The right sides were printed by the study's own statistics before training and study shared theirs."""
    ours, other = (measure(ranks, ranks[:, 0]) for ranks in known_ranks())
    bootstrap = Bootstrap(resamples=500)
    assert summarise(ours["ndcg10"], bootstrap) == {
        "mean": 0.1213, "interval": [0.08253, 0.16549], "by_seed": [0.14616, 0.09552, 0.12221],
    }  # fmt: skip
    assert difference(ours["hr5"], other["hr5"], bootstrap) == {
        "mean": -0.00667, "interval": [-0.08, 0.07175],
        "relative": -0.05556, "relative_interval": [-0.53333, 1.0], "seeds": 3,
    }  # fmt: skip
    assert difference(ours["full_mrr"], other["full_mrr"], bootstrap)["interval"] == [-0.00953, 0.09412]


def test_figures_of_a_training_are_as_before_and_its_intervals_as_wide() -> None:
    """The means are those of the earlier code; its resamples were others, so intervals agree to their noise."""
    ours, other = known_ranks()
    settings = EvaluationSettings(draws=2)
    report = summarise_ranks({"air": ours[0], "sequence": other[0]}, settings, ours="air", against=["sequence"])
    assert report["hr10"] == {"air": 0.29, "sequence": 0.18}
    assert report["ndcg10"] == {"air": 0.1462, "sequence": 0.0881}
    assert report["air_minus_sequence"]["ndcg10"]["mean"] == 0.0581
    assert report["air_minus_sequence"]["ndcg10"]["interval"] == pytest.approx([-0.0052, 0.1228], abs=0.005)
    assert report["ndcg10_interval"]["air"] == pytest.approx([0.0983, 0.2013], abs=0.005)
    assert (report["test_users"], report["draws"]) == (50, 2)


def test_a_training_and_the_study_rank_alike() -> None:
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(rng.integers(0, 6, size=(20, 9)).astype(np.float32))
    scores[3, 4], scores[5, 0] = float("nan"), float("nan")
    rows = torch.arange(2, 11).expand(20, -1).clone()
    first = torch.zeros(20, dtype=torch.int64)
    assert torch.equal(target_ranks(scores, rows), 1 + rivals(scores, first).sum(1))
    assert not rivals(scores, first)[:, 0].any(), "a target is no rival of its own, even without a number"
    rows[:, 5:] = contract.PAD_ROW
    assert torch.equal(target_ranks(scores, rows), target_ranks(scores[:, :5], rows[:, :5]))


def test_expected_gains_are_the_mean_over_draws_from_the_pool() -> None:
    rng = np.random.default_rng(3)
    ranks, pool, negatives = np.asarray([1, 2, 15, 40, 200]), 199, 60
    drawn = np.stack([rng.choice(pool, size=negatives, replace=False) for _ in range(20_000)])
    sampled = [gains(1 + (drawn < rank - 1).sum(1)).mean() for rank in ranks]
    assert expected_gains(ranks, pool, negatives) == pytest.approx(sampled, abs=0.01)
    assert expected_gains(ranks, pool, 999) == pytest.approx(gains(ranks))
    pools = np.asarray([0, 1, 199])
    assert expected_gains(np.asarray([1, 2, 2]), pools, 999) == pytest.approx(gains(np.asarray([1, 2, 2])))


def test_popularity_weights_make_targets_as_popular_as_training() -> None:
    counts = np.array([0, 0, 1, 1, 10, 100])
    training = np.repeat([2, 4, 5], [10, 10, 10])
    targets = np.repeat([2, 4, 5], [5, 5, 50])
    weights = popularity_weights(targets, training, counts)
    assert weights.mean() == pytest.approx(1.0)
    shares = [weights[targets == row].sum() / weights.sum() for row in (2, 4, 5)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.02)
    assert (popularity_weights(targets, training[:0], counts) == 1).all()
