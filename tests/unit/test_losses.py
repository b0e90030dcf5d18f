"""Sampled softmax and the sampler of its negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from airserve.errors import DataError
from airserve.model.losses import NegativeSampler, sampled_softmax_losses


def test_the_sampled_loss_is_that_of_the_whole_catalogue_on_average() -> None:
    generator = np.random.default_rng(0)
    scores = torch.from_numpy(generator.normal(size=40).astype(np.float32))
    rows = np.arange(2, 42, dtype=np.int32)
    sampler = NegativeSampler(rows, generator.pareto(1.0, size=40) * 10)
    target = torch.tensor([7], dtype=torch.int32)
    expected = float(-torch.log_softmax(scores, dim=0)[5])
    drawn = []
    for _ in range(50):
        negative_rows, log_chance = sampler.draw(2000, generator)
        losses = sampled_softmax_losses(
            scores[5:6], scores[negative_rows.long() - 2].unsqueeze(0), target, negative_rows, log_chance
        )
        drawn.append(float(losses[0]))
    assert np.mean(drawn) == pytest.approx(expected, abs=0.02)


def test_a_negative_that_is_the_target_is_left_out() -> None:
    rows = torch.tensor([4, 4], dtype=torch.int32)
    losses = sampled_softmax_losses(
        torch.zeros(1), torch.zeros(1, 2), torch.tensor([4], dtype=torch.int32), rows, torch.zeros(2)
    )
    assert float(losses[0]) == pytest.approx(0.0)


def test_the_sampler_knows_the_chance_of_what_it_draws() -> None:
    counts = np.array([0.0, 1.0, 100.0])
    sampler = NegativeSampler(np.array([5, 9, 11], dtype=np.int32), counts)
    rows, log_chance = sampler.draw(60_000, np.random.default_rng(0))
    for row in (5, 9, 11):
        share = float((rows == row).float().mean())
        assert share == pytest.approx(float(log_chance[rows == row][0].exp()), abs=0.01)


def test_without_any_training_count_all_items_are_drawn_alike() -> None:
    sampler = NegativeSampler(np.array([2, 3], dtype=np.int32), np.zeros(2))
    _, log_chance = sampler.draw(10, np.random.default_rng(0))
    assert log_chance.exp().tolist() == pytest.approx([0.5] * 10)


def test_nothing_to_rank_is_a_data_error() -> None:
    with pytest.raises(DataError, match="is_candidate"):
        NegativeSampler(np.zeros(0, dtype=np.int32), np.zeros(0))
