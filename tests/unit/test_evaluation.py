"""Expected values over draws, and the weights of held-out targets."""

from __future__ import annotations

import numpy as np
import pytest

from airserve.training.evaluation import expected_gains, gains, popularity_weights


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
