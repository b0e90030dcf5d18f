"""Tree weights, retrieval and evidence of the tensor code are those of the plain reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve import contract
from airserve.model import reference
from airserve.model.ranker import Ranker, RankerSettings
from airserve.model.retrieval import TIE_STEP, TargetAwareRetrieval
from airserve.model.sequence import SequenceSettings
from airserve.model.tree import TreeWeights, chain_support

N_ROWS, N_NODES, SIZE = 12, 9, 6
Array = npt.NDArray[Any]


def unit_rows(count: int, reserved: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed))
    rows = torch.nn.functional.normalize(rows, dim=-1)
    rows[:reserved] = 0
    # Two equal rows, so that scores tie.
    rows[-1] = rows[-2]
    return rows


ITEMS, NODES = unit_rows(N_ROWS, 2, 1), unit_rows(N_NODES, 1, 2)


def make_ranker() -> Ranker:
    torch.manual_seed(0)
    sizes = RankerSettings(sequence=SequenceSettings(width=8, window=4))
    return Ranker(ITEMS, NODES, torch.arange(N_NODES) % contract.MAX_DEPTH, sizes).eval()


RANKER = make_ranker()


@dataclass
class Case:
    """One request with its tree."""

    rows: list[int]
    actions: list[int]
    ages_s: list[float]
    behaviour_chains: list[list[int]]
    nodes: list[int]
    chains: list[list[int]]
    candidates: list[int]

    def tensors(self) -> list[torch.Tensor]:
        length, n_chains = max(len(self.rows), 1), max(len(self.chains), 1)
        chains = np.full((1, length, contract.MAX_PATHS), contract.PAD_CHAIN, dtype=np.int32)
        for place, numbers in enumerate(self.behaviour_chains):
            chains[0, place, : len(numbers)] = numbers
        slots = np.zeros((1, n_chains, contract.MAX_DEPTH), dtype=np.int32)
        for place, chain in enumerate(self.chains):
            slots[0, place, : len(chain)] = chain

        def row(values: list[Any], dtype: type[np.generic]) -> Array:
            return np.array([values or [0]], dtype=dtype)

        return [
            torch.from_numpy(array)
            for array in (
                row(self.rows, np.int32),
                row(self.actions, np.int32),
                row(self.ages_s, np.float32),
                chains,
                row([contract.PAD_NODE, *self.nodes], np.int32),
                slots,
                row(self.candidates, np.int32),
            )
        ]

    def behaviours(self) -> list[reference.Behaviour]:
        return [
            reference.Behaviour(
                action=action, age_s=float(np.float32(age_s)), chains=frozenset(chains), vector=ITEMS[row].tolist()
            )
            for row, action, age_s, chains in zip(
                self.rows, self.actions, self.ages_s, self.behaviour_chains, strict=True
            )
        ]

    def tree(self) -> reference.Tree:
        return reference.Tree(
            chains=self.chains,
            vectors={slot: NODES[node].tolist() for slot, node in enumerate(self.nodes, start=1)},
        )


def learned() -> reference.Weights:
    return reference.Weights(
        actions=RANKER.tree.action_weights().tolist(),
        decay_per_day=RANKER.tree.decay_per_day().item(),
        levels=RANKER.retrieval.level_weights().tolist(),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n_nodes = draw(st.integers(1, N_NODES - 1))
    nodes = draw(st.permutations(range(1, N_NODES)))[:n_nodes]
    chain = st.lists(st.integers(1, n_nodes), min_size=1, max_size=min(contract.MAX_DEPTH, n_nodes), unique=True)
    chains = draw(st.lists(chain, max_size=14, unique_by=tuple))
    supported = (
        st.lists(st.integers(0, len(chains) - 1), max_size=contract.MAX_PATHS, unique=True) if chains else st.just([])
    )
    ages = st.sampled_from([0.0, 1.0, 3600.0, 86400.0, 86400.0 * 30, 1e9])
    behaviour = st.tuples(st.integers(1, N_ROWS - 1), st.integers(1, contract.N_ACTIONS - 1), ages, supported)
    history = draw(st.lists(behaviour, max_size=10))
    return Case(
        rows=[b[0] for b in history],
        actions=[b[1] for b in history],
        ages_s=[b[2] for b in history],
        behaviour_chains=[b[3] for b in history],
        nodes=list(nodes),
        chains=chains,
        candidates=draw(st.lists(st.integers(1, N_ROWS - 1), min_size=1, max_size=4)),
    )


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_node_weights_are_the_formula_of_the_paper(case: Case) -> None:
    _, actions, ages_s, chains, nodes, slots, _ = case.tensors()
    with torch.no_grad():
        support = chain_support(chains, slots.shape[1])
        got = RANKER.tree(actions, RANKER.tree.freshness(ages_s), support, slots, nodes.shape[1])[0]
    expected = reference.tree_weights(case.behaviours(), case.tree(), learned())
    assert got[contract.PAD_SLOT] == 0
    for slot in range(1, nodes.shape[1]):
        assert float(got[slot]) == pytest.approx(expected.get(slot, 0.0), rel=1e-4, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_each_candidate_gets_its_best_chains_with_their_scores_and_evidence(case: Case) -> None:
    with torch.no_grad():
        scores, chain_nodes, chain_weights, evidence = RANKER(*case.tensors())
    assert torch.isfinite(scores).all()
    behaviours, tree, weights = case.behaviours(), case.tree(), learned()
    node_weights = reference.tree_weights(behaviours, tree, weights)
    for place, row in enumerate(case.candidates):
        best = reference.best_chains(tree, node_weights, ITEMS[row].tolist(), weights)
        assert chain_weights[0, place].tolist() == pytest.approx(
            [score for _, score in best] + [0.0] * (contract.CHAINS_PER_CANDIDATE - len(best)), abs=2e-5
        )
        for rank in range(contract.CHAINS_PER_CANDIDATE):
            shown = [node for node in chain_nodes[0, place, rank].tolist() if node != contract.PAD_NODE]
            if rank >= len(best):
                assert shown == []
                assert set(evidence[0, place, rank].tolist()) == {contract.NO_EVIDENCE}
                continue
            chain = find_chain(case, shown)
            # Where two keys lie within rounding of one another either order is right.
            assert is_as_good(chain, best[rank], tree, node_weights, ITEMS[row].tolist(), weights)
            assert_evidence(case, chain, evidence[0, place, rank].tolist(), weights)


def find_chain(case: Case, shown: list[int]) -> int:
    return [[case.nodes[slot - 1] for slot in chain] for chain in case.chains].index(shown)


def is_as_good(
    chain: int,
    expected: tuple[int, float],
    tree: reference.Tree,
    node_weights: dict[int, float],
    candidate: list[float],
    weights: reference.Weights,
) -> bool:
    key = reference.chain_score(tree.chains[chain], tree, node_weights, candidate, weights) - TIE_STEP * chain
    return chain == expected[0] or math.isclose(key, expected[1] - TIE_STEP * expected[0], abs_tol=3e-6)


def assert_evidence(case: Case, chain: int, got: list[int], weights: reference.Weights) -> None:
    behaviours, tree = case.behaviours(), case.tree()
    expected = reference.evidence(chain, behaviours, tree, weights)
    real = [index for index in got if index != contract.NO_EVIDENCE]
    assert len(real) == len(expected)
    assert len(set(real)) == len(real)
    for index, wanted in zip(real, expected, strict=True):
        assert chain in behaviours[index].chains
        keys = [
            (1 + reference.dot(behaviours[i].vector, tree.vectors[tree.chains[chain][-1]]))
            / 2
            * math.exp(-weights.decay_per_day * behaviours[i].age_s / 86400)
            + TIE_STEP * i
            for i in (index, wanted)
        ]
        assert index == wanted or math.isclose(*keys, abs_tol=1e-6)


def test_of_equal_chains_the_lowest_index_comes_first() -> None:
    retrieval = TargetAwareRetrieval()
    vectors = torch.ones(1, 12, SIZE)
    found = retrieval(torch.ones(1, 1, SIZE) / SIZE, vectors, torch.ones(1, 12, dtype=torch.bool))
    assert found.index_BCK[0, 0].tolist() == list(range(contract.CHAINS_PER_CANDIDATE))
    assert int(found.kept_BCR.sum()) == contract.CHAINS_PER_CANDIDATE


def test_a_user_who_buys_supports_a_node_more_than_one_who_looks() -> None:
    weights = TreeWeights().action_weights()
    assert weights[contract.ACTIONS["order"]] > weights[contract.ACTIONS["view"]]
    assert weights[contract.PAD_ACTION] == 0


@settings(max_examples=20, deadline=None)
@given(case=cases(), other=cases())
def test_a_request_scores_the_same_alone_and_padded_into_a_batch(case: Case, other: Case) -> None:
    parts = [case.tensors(), other.tensors()]
    merged = []
    for spec, first, second in zip(contract.RANKER_INPUTS, *parts, strict=True):
        shape = [2, *(max(a, b) for a, b in zip(first.shape[1:], second.shape[1:], strict=True))]
        fill = contract.PAD_CHAIN if spec is contract.BEHAVIOUR_CHAINS else 0
        joined = torch.full(shape, fill, dtype=first.dtype)
        for place, part in enumerate((first, second)):
            joined[(place, *(slice(size) for size in part.shape[1:]))] = part[0]
        merged.append(joined)
    with torch.no_grad():
        together, alone = RANKER(*merged), RANKER(*parts[0])
    count = len(case.candidates)
    torch.testing.assert_close(together[0][0, :count], alone[0][0], atol=1e-4, rtol=1e-4)
    assert torch.isneginf(together[0][0, count:]).all()
    torch.testing.assert_close(together[2][0, :count], alone[2][0], atol=1e-4, rtol=1e-4)


def test_folding_the_tables_changes_no_score() -> None:
    case = Case(
        rows=[2, 3, 4],
        actions=[1, 5, 3],
        ages_s=[1e6, 1e5, 10.0],
        behaviour_chains=[[0], [0, 1], [1]],
        nodes=[1, 2, 3],
        chains=[[1, 2], [1, 3]],
        candidates=[2, 3, 1, 3],
    )
    with torch.no_grad():
        trained, folded = RANKER(*case.tensors())[0], RANKER.folded()(*case.tensors())[0]
    torch.testing.assert_close(trained, folded)
    assert trained[0, 1] == trained[0, 3], "duplicates score the same"


def test_an_unknown_candidate_and_an_empty_history_have_finite_scores() -> None:
    case = Case(
        rows=[], actions=[], ages_s=[], behaviour_chains=[], nodes=[], chains=[], candidates=[contract.UNKNOWN_ROW, 2]
    )
    with torch.no_grad():
        scores, nodes, weights, evidence = RANKER(*case.tensors())
    assert torch.isfinite(scores).all()
    assert not nodes.any()
    assert not weights.any()
    assert (evidence == contract.NO_EVIDENCE).all()
