"""Items without a learned id: dropped in training as whole items, *none* ever after, and part of the blend's choice."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from airserve import contract
from airserve.model.ranker import Ranker
from airserve.model.sequence import IdVectors, SequenceModel, SequenceSettings, dropped
from airserve.table.company import Company
from airserve.training import blend
from airserve.training.blend import BlendTargets, choose, without_ids
from airserve.training.examples import Log, RankBatch

N_ROWS, WIDTH = 5000, 4


def id_vectors(share: float = 0.2) -> IdVectors:
    torch.manual_seed(0)
    ids = IdVectors(N_ROWS, WIDTH, std=1.0, drop_share=share)
    ids.set_known(torch.arange(N_ROWS) >= contract.FIRST_ITEM_ROW)
    with torch.no_grad():
        ids.none_H.copy_(torch.full((WIDTH,), 7.0))
    return ids


def is_none(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors == 7.0).all(-1)


def test_a_dropped_item_is_dropped_wherever_it_stands_in_a_step() -> None:
    ids = id_vectors().train()
    ids.redraw(np.random.default_rng(0))
    rows = torch.randint(2, 60, (40, 50), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    gone = is_none(ids(rows))
    for row in range(2, 60):
        assert len(set(gone[rows == row].tolist())) == 1
    assert 0 < gone.float().mean() < 1
    assert torch.equal(is_none(ids(rows[:1, :3])), gone[:1, :3])


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3, 0.9])
def test_about_the_stated_share_of_the_items_is_dropped_and_others_the_next_step(share: float) -> None:
    ids, rows, rng = id_vectors(share).train(), torch.arange(2, N_ROWS), np.random.default_rng(1)
    seen = []
    for _ in range(3):
        ids.redraw(rng)
        seen.append(is_none(ids(rows)))
        assert float(seen[-1].float().mean()) == pytest.approx(share, abs=0.03)
    both = float((seen[0] & seen[1]).float().mean())
    assert both == pytest.approx(share**2, abs=0.03), "steps are drawn independently"


def test_every_row_can_be_dropped_and_neighbouring_rows_are_not_dropped_together() -> None:
    often = torch.stack([dropped(torch.arange(2000), salt, 0.2) for salt in range(0, 2**31, 2**31 // 100)]).float()
    assert often.mean(0).min() > 0.02
    assert often.mean(0).max() < 0.5
    assert float((often[:, 1:] * often[:, :-1]).mean()) == pytest.approx(0.04, abs=0.01)


def test_nothing_is_dropped_when_a_model_is_asked_or_the_share_is_0() -> None:
    rows = torch.arange(2, N_ROWS)
    assert not is_none(id_vectors(0.9).eval()(rows)).any()
    assert not is_none(id_vectors(0.0).train()(rows)).any()


def test_rows_that_were_never_trained_on_are_none_whatever_their_weights_hold() -> None:
    ids = id_vectors(0.0).eval()
    known = torch.ones(N_ROWS, dtype=torch.bool)
    known[[0, 1, 17, 99]] = False
    ids.set_known(known)
    with torch.no_grad():
        ids.weight_NH[17] = 1e6
        ids.weight_NH[99] = float("nan")
    assert is_none(ids(torch.tensor([0, 1, 17, 99]))).all()
    assert not is_none(ids(torch.tensor([16, 18]))).any()


def test_items_that_are_none_learn_none_and_not_their_own_vectors() -> None:
    ids = id_vectors(0.0)
    known = torch.ones(N_ROWS, dtype=torch.bool)
    known[17] = False
    ids.set_known(known)
    ids(torch.tensor([16, 17])).sum().backward()
    assert ids.none_H.grad is not None
    assert ids.weight_NH.grad is not None
    assert ids.none_H.grad.any()
    gradient = ids.weight_NH.grad.to_dense() if ids.weight_NH.grad.is_sparse else ids.weight_NH.grad
    assert gradient[16].any()
    assert not gradient[17].any()


def test_two_cold_items_of_one_title_have_one_token() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(8, 6), dim=-1)
    vectors[5] = vectors[4]
    model = SequenceModel(vectors, SequenceSettings(width=8)).eval()
    assert not torch.allclose(model.items(torch.tensor([4])), model.items(torch.tensor([5])))
    model.items.ids.set_known(torch.tensor([False, False, True, True, False, False, True, True]))
    torch.testing.assert_close(model.items(torch.tensor([4])), model.items(torch.tensor([5])))


class FakeRanker(torch.nn.Module):
    """The parts of a ranker that the blend sets."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.base = torch.nn.Module()
        self.base.items = torch.nn.Module()
        self.base.items.ids = IdVectors(n_rows, 2, std=1.0, drop_share=0.0)
        self.base.items.ids.set_known(torch.arange(n_rows) % 5 != 3)
        self.base_scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("intent_scale", torch.ones(()))
        self.register_buffer("item_vectors_NE", torch.zeros(n_rows, 2))


N_TARGETS, N_RIVALS, N_ITEMS = 24, 30, 60
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def right(targets_B: torch.Tensor, rows_BC: torch.Tensor) -> torch.Tensor:
    """A scorer that knows."""
    return (rows_BC == targets_B.unsqueeze(1)).float()


def wrong(targets_B: torch.Tensor, rows_BC: torch.Tensor) -> torch.Tensor:
    """One that is sure of something else."""
    return -1000.0 * right(targets_B, rows_BC)


def blended(
    monkeypatch: pytest.MonkeyPatch, base: Score, company: Score, intents: Score | None
) -> tuple[FakeRanker, Company, list[torch.Tensor]]:
    """The blend that is chosen of three scorers, and who was known when the base was asked for."""
    rng = np.random.default_rng(0)
    ranker, known = FakeRanker(N_ITEMS), []
    rows = np.stack([rng.permutation(np.arange(2, N_ITEMS))[: 1 + N_RIVALS] for _ in range(N_TARGETS)]).astype(np.int32)
    targets = torch.from_numpy(rows[:, 0].copy())
    batch = cast(RankBatch, SimpleNamespace(places=np.arange(N_TARGETS), target_rows_B=targets))

    def scorer(score: Score) -> Any:
        return lambda batch, rows_BC: score(batch.target_rows_B, rows_BC)

    def of_base(model: Any) -> Any:
        known.append(ranker.base.items.ids.known_N.clone())
        return scorer(base)

    monkeypatch.setattr(blend, "sequence_scorer", of_base)
    monkeypatch.setattr(blend, "company_scorer", lambda similarity, vectors_NE, recency: scorer(company))
    monkeypatch.setattr(blend, "_choose_company", lambda log, targets: Company(shrinkage=50.0, last=50, decay=0.9))
    none = np.zeros(0, dtype=np.int64)
    log = cast(Log, SimpleNamespace(domain_of_row=np.zeros(N_ITEMS), splits=none, starts=none, rows=none))
    setting = BlendTargets(batches=[batch], candidates_XC=rows, weights_X=np.ones(N_TARGETS), negatives=N_RIVALS)
    chosen = choose(cast(Ranker, ranker), log, setting, None if intents is None else lambda ranker: scorer(intents))
    return ranker, chosen.company, known


def test_the_blend_can_be_company_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, company, _ = blended(monkeypatch, wrong, right, wrong)
    assert (float(ranker.base_scale), float(ranker.intent_scale)) == (0.0, 0.0)
    assert company.scale > 0
    assert (company.shrinkage, company.last, company.decay) == (50.0, 50, 0.9)


def test_the_blend_can_be_the_base_alone_and_stays_as_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, company, _ = blended(monkeypatch, right, wrong, wrong)
    assert (float(ranker.base_scale), float(ranker.intent_scale), company.scale) == (1.0, 0.0, 0.0)


def test_the_blend_can_be_intents_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, company, _ = blended(monkeypatch, wrong, wrong, right)
    assert (float(ranker.base_scale), float(ranker.intent_scale), company.scale) == (0.0, 1.0, 0.0)


def test_a_ranker_without_intents_is_blended_without(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, company, _ = blended(monkeypatch, right, wrong, None)
    assert (float(ranker.base_scale), float(ranker.intent_scale), company.scale) == (1.0, 0.0, 0.0)


def test_a_share_of_the_items_is_cold_in_half_of_the_measure_and_known_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranker, _, (as_they_are, with_cold) = blended(monkeypatch, right, wrong, right)
    before = torch.arange(N_ITEMS) % 5 != 3
    assert torch.equal(as_they_are, before)
    assert not (with_cold & ~before).any()
    assert 0.05 < float((before & ~with_cold)[contract.FIRST_ITEM_ROW :].float().mean()) < 0.4
    assert torch.equal(ranker.base.items.ids.known_N, before)


def test_the_known_ids_come_back_even_when_something_fails() -> None:
    ranker = FakeRanker(N_ITEMS)
    before = ranker.base.items.ids.known_N.clone()

    def fail() -> None:
        with without_ids(cast(Ranker, ranker), torch.ones(N_ITEMS, dtype=torch.bool)):
            assert not ranker.base.items.ids.known_N.any()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(ranker.base.items.ids.known_N, before)


def test_company_of_cold_items_is_left_out_on_both_sides() -> None:
    from scipy import sparse

    kept = blend._without(sparse.csr_matrix(np.ones((4, 4))), np.array([False, True, False, False])).toarray()
    assert not kept[1].any()
    assert not kept[:, 1].any()
    assert kept[0, 2] == 1
