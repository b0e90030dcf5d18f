"""Tree weights, retrieval and evidence are those of the plain reference, and the served form is the trained one."""

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
from airserve.bench.synthetic import random_arrays, random_events, write_intents
from airserve.contract import TIE_STEP
from airserve.export.half import sample_requests
from airserve.export.onnx import export_ranker
from airserve.model import reference
from airserve.model.ranker import Ranker, RankerSettings
from airserve.model.request import RequestNetwork
from airserve.model.retrieval import chain_bias, retrieve
from airserve.model.sequence import SequenceSettings
from airserve.model.tree import TreeWeights, chain_support
from airserve.table.company import Company
from airserve.table.encode import Encoder, encode_table
from airserve.table.intents import IntentTable
from airserve.table.lookup import ServedTable, merge_lookups, ranker_inputs
from airserve.training.checkpoint import new_ranker

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
    sizes = RankerSettings(sequence=SequenceSettings(width=8))
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
        length, n_chains = max(len(self.rows), 1), max(len(self.chains), contract.MIN_CHAINS)
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
        levels=RANKER.levels().tolist(),
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
        scores, found, shown = RANKER(*case.tensors())
    assert torch.isfinite(scores).all()
    behaviours, tree, weights = case.behaviours(), case.tree(), learned()
    node_weights = reference.tree_weights(behaviours, tree, weights)
    for place, row in enumerate(case.candidates):
        best = reference.best_chains(tree, node_weights, ITEMS[row].tolist(), weights)
        missing = contract.CHAINS_PER_CANDIDATE - len(best)
        # A kept chain's weight is the key it was sorted by.
        keys = [score - TIE_STEP * index for index, score in best]
        assert found.weights_BCK[0, place].tolist() == pytest.approx(keys + [0.0] * missing, abs=2e-5)
        indices = found.index_BCK[0, place].tolist()
        assert indices[len(best) :] == [contract.NO_CHAIN] * missing
        assert sorted(found.kept_BCR[0, place].nonzero()[:, 0].tolist()) == sorted(indices[: len(best)])
        for chain, expected in zip(indices, best, strict=False):
            # Where two keys lie within rounding of one another either order is right.
            assert is_as_good(chain, expected, tree, node_weights, ITEMS[row].tolist(), weights)
    for chain in range(len(case.chains)):
        assert_evidence(case, chain, shown.evidence_BRM[0, chain].tolist(), weights)
    assert (shown.evidence_BRM[0, len(case.chains) :] == contract.NO_EVIDENCE).all()


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
    vectors, real = torch.ones(1, 12, SIZE), torch.ones(1, 12, dtype=torch.bool)
    found = retrieve(torch.ones(1, 1, SIZE) / SIZE, vectors, chain_bias(real))
    assert found.index_BCK[0, 0].tolist() == list(range(contract.CHAINS_PER_CANDIDATE))
    assert int(found.kept_BCR.sum()) == contract.CHAINS_PER_CANDIDATE


def test_a_user_who_buys_supports_a_node_more_than_one_who_looks() -> None:
    weights = TreeWeights().action_weights()
    assert weights[contract.ACTIONS["order"]] > weights[contract.ACTIONS["view"]]
    assert weights[contract.PAD_ACTION] == 0


INPUT_PADDING = (contract.PAD_ROW, contract.PAD_ACTION, 0, contract.PAD_CHAIN, contract.PAD_NODE, contract.PAD_SLOT, 0)


@settings(max_examples=20, deadline=None)
@given(case=cases(), other=cases())
def test_a_request_scores_the_same_alone_and_padded_into_a_batch(case: Case, other: Case) -> None:
    parts = [case.tensors(), other.tensors()]
    merged = []
    for fill, first, second in zip(INPUT_PADDING, *parts, strict=True):
        shape = [2, *(max(a, b) for a, b in zip(first.shape[1:], second.shape[1:], strict=True))]
        joined = torch.full(shape, fill, dtype=first.dtype)
        for place, part in enumerate((first, second)):
            joined[(place, *(slice(size) for size in part.shape[1:]))] = part[0]
        merged.append(joined)
    with torch.no_grad():
        together, alone = RANKER(*merged), RANKER(*parts[0])
    count = len(case.candidates)
    torch.testing.assert_close(together[0][0, :count], alone[0][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[1].weights_BCK[0, :count], alone[1].weights_BCK[0], atol=1e-4, rtol=1e-4)


def test_an_unknown_candidate_and_an_empty_history_have_finite_scores() -> None:
    case = Case(
        rows=[], actions=[], ages_s=[], behaviour_chains=[], nodes=[], chains=[], candidates=[contract.UNKNOWN_ROW, 2]
    )
    with torch.no_grad():
        scores, found, tree = RANKER(*case.tensors())
    assert torch.isfinite(scores).all()
    assert (found.index_BCK == contract.NO_CHAIN).all()
    assert not found.weights_BCK.any()
    assert (tree.evidence_BRM == contract.NO_EVIDENCE).all()


@dataclass
class Served:
    """A ranker in both forms: trained, and cut into encoders, table and request network."""

    ranker: Ranker
    intents: IntentTable
    table: ServedTable
    network: RequestNetwork

    def trained(self, request: dict[str, Array]) -> tuple[Array, ...]:
        """Scores, kept chains and their weights by the trained form, without what is met together."""
        rows = torch.from_numpy(self.intents.rows(request[contract.CANDIDATE_ITEMS.name]))
        with torch.no_grad():
            scores, found, _ = self.ranker(*map(torch.from_numpy, self.intents.trees(request)), rows)
        return scores.numpy(), found.index_BCK.numpy(), found.weights_BCK.numpy()

    def rank(self, looked_up: dict[str, Array]) -> tuple[Array, ...]:
        inputs = ranker_inputs(looked_up)
        with torch.no_grad():
            return tuple(array.numpy() for array in self.network(*map(torch.from_numpy, inputs.values())))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Random learned vectors, some items without one."""
    folder = tmp_path_factory.mktemp("forms")
    intents = write_intents(folder / "tables", random_arrays(n_items=300, n_nodes=90, n_paths=70))
    torch.manual_seed(3)
    ranker = new_ranker(intents, RankerSettings(sequence=SequenceSettings(width=16))).eval()
    with torch.no_grad():
        ranker.base_scale.fill_(0.7)
        for ids in (
            ranker.base.items.ids,
            ranker.node_tokens.ids,
            ranker.queries.main_nodes,
            ranker.queries.other_nodes,
        ):
            ids.weight_NH.normal_(std=0.3)
            ids.none_H.normal_(std=0.3)
        known = torch.rand(len(intents.item_vectors)) < 0.7
        known[: contract.FIRST_ITEM_ROW] = False
        ranker.base.items.ids.set_known(known)
        for block in ranker.base.blocks:
            block.distance_GT.normal_()
            block.key_value.bias.normal_()
    export_ranker(ranker, intents, folder / "engine", company=Company())
    encode_table(intents, Encoder.open(folder / "engine"), random_events(300), folder / "serving")
    return Served(ranker, intents, ServedTable.open(folder / "serving"), RequestNetwork(ranker).eval())


def cut(request: dict[str, Array], length: int) -> dict[str, Array]:
    """A sample request with a history of its latest behaviours only."""
    return {
        name: array[:, array.shape[1] - length :] if name.startswith("behaviour") else array[:, :40]
        for name, array in request.items()
    }


@pytest.mark.parametrize("length", [1, 2, 7, 48])
def test_lookup_encoders_and_request_network_score_as_the_trained_form(served: Served, length: int) -> None:
    for request in sample_requests(served.intents, 4, seed=length):
        request = cut(request, length)
        expected, expected_chains, expected_weights = served.trained(request)
        scores, chains, weights = served.rank(served.table.lookup(request))
        # The table's rows are fp16: of nearly equal chains another may be the last that is kept.
        same = (np.sort(chains, axis=-1) == np.sort(expected_chains, axis=-1)).all(axis=-1)
        assert same.mean() > 0.9
        np.testing.assert_allclose(scores[same], expected[same], atol=1e-2)
        np.testing.assert_allclose(weights, expected_weights, atol=5e-3)
        assert np.abs(expected).max() > 0.1


def test_an_unknown_item_in_the_history_is_served_as_it_was_trained(served: Served) -> None:
    request = cut(sample_requests(served.intents, 1, seed=9)[0], 6)
    items = request[contract.BEHAVIOUR_ITEMS.name].copy()
    items[0, [2, 5]] = 10**15
    request[contract.BEHAVIOUR_ITEMS.name] = items
    scores = served.rank(served.table.lookup(request))[0]
    np.testing.assert_allclose(scores, served.trained(request)[0], atol=1e-2)


def test_an_unknown_candidate_scores_below_all_known_ones(served: Served) -> None:
    request = cut(sample_requests(served.intents, 1, seed=4)[0], 6)
    candidates = request[contract.CANDIDATE_ITEMS.name].copy()
    candidates[0, [3, 8]] = [10**15, 10**15 + 1]
    request[contract.CANDIDATE_ITEMS.name] = candidates
    scores = served.rank(served.table.lookup(request))[0][0]
    known = np.delete(scores, [3, 8])
    assert scores[3] == scores[8] < known.min() - 100


def test_padding_a_served_request_into_a_batch_changes_nothing(served: Served) -> None:
    requests = sample_requests(served.intents, 3, seed=1)
    lengths, candidates = (1, 48, 9), (40, 3, 17)
    looked_up = []
    for request, length, count in zip(requests, lengths, candidates, strict=True):
        short = cut(request, length)
        short[contract.CANDIDATE_ITEMS.name] = short[contract.CANDIDATE_ITEMS.name][:, :count]
        looked_up.append(served.table.lookup(short))
    together = served.rank(merge_lookups(looked_up))
    for place, (one, count) in enumerate(zip(looked_up, candidates, strict=True)):
        scores, chains, weights = served.rank(one)
        np.testing.assert_allclose(together[0][place, :count], scores[0], atol=1e-4)
        np.testing.assert_array_equal(together[1][place, :count], chains[0])
        np.testing.assert_allclose(together[2][place, :count], weights[0], atol=1e-5)
        assert np.isneginf(together[0][place, count:]).all()
