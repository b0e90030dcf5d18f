"""Merge the intent paths of one request's behaviours into one tree, and weigh it.

Runs once per request on the serving host. Bound by NumPy's call overhead (1-5 us a call) up to about L=128, so it
saves calls, not elements. NumPy (1.26 and 2.x) only.

Shapes: L behaviours, P paths per behaviour, R chains (distinct paths) kept, D levels, U tree nodes with slot 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.table.format import NO_PATH

Array = npt.NDArray[Any]


class Tree(NamedTuple):
    """A request's tree, ids only."""

    behaviour_chains: npt.NDArray[np.int32]
    """[L, P] indices into the chains, PAD_CHAIN where none."""
    nodes: npt.NDArray[np.int32]
    """[U] distinct node ids, ascending; slot 0 is node 0."""
    chain_slots: npt.NDArray[np.int32]
    """[R, D] each chain as indices into `nodes`, slot 0 behind the last; R = 0 where there is no chain."""


DENSE_BOUND = 1 << 16
"""Below it a mark per possible value is faster than sorting (12 against 19 us at L=128 with NumPy 1.26)."""


_COUNTING = np.arange(DENSE_BOUND, dtype=np.int32)


def renumber(values: Array, bound: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Number the distinct values of an array.

    Args:
        values: integers in [0, bound), any shape.
        bound: chooses the method, see DENSE_BOUND; both give the same.

    Returns:
        0 and the distinct values, ascending; and for each of `values` its index among them.
    """
    if bound > DENSE_BOUND:
        distinct = _sorted_distinct(np.concatenate(([0], values.ravel()))).astype(np.int32)
        return distinct, np.searchsorted(distinct, values).astype(np.int32)
    mark = np.zeros(bound, dtype=np.bool_)
    mark[0] = True
    mark[values] = True
    distinct = mark.nonzero()[0].astype(np.int32)
    index_of = np.empty(bound, dtype=np.int32)
    index_of[distinct] = _COUNTING[: len(distinct)]
    return distinct, index_of.take(values)


def _sorted_distinct(values: Array) -> Array:
    """np.unique without its overhead."""
    ordered = np.sort(values)
    keep = np.empty(ordered.size, dtype=np.bool_)
    keep[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=keep[1:])
    return ordered[keep]


def compose_tree(paths_ND: Array, n_nodes: int, path_numbers_LP: Array, ages_s_L: Array) -> Tree:
    """Build the tree of one request.

    Args:
        paths_ND: int32, the table's paths.
        n_nodes: nodes of the vocabulary, with node 0.
        path_numbers_LP: int32, each behaviour's path numbers, distinct in a row, NO_PATH where none.
        ages_s_L: float32, age of each behaviour in seconds; used only to choose among more than MAX_CHAINS chains.

    Returns:
        The tree of at most MAX_CHAINS chains, ordered by path number.
    """
    # Path numbers shifted by one: NO_PATH becomes 0, and leaves as index 0, which shifts back to PAD_CHAIN.
    shifted, index_LP = renumber(path_numbers_LP - NO_PATH, len(paths_ND) - NO_PATH)
    chains = shifted[1:] + NO_PATH
    behaviour_chains = index_LP + contract.PAD_CHAIN
    if len(chains) == 0:
        no_chain = np.zeros((0, contract.MAX_DEPTH), dtype=np.int32)
        return Tree(behaviour_chains, np.zeros(1, dtype=np.int32), no_chain)
    if len(chains) > contract.MAX_CHAINS:
        kept = _strongest_chains(behaviour_chains, ages_s_L, len(chains))
        renumbered = np.full(len(chains) + 1, contract.PAD_CHAIN, dtype=np.int32)
        renumbered[kept] = np.arange(len(kept), dtype=np.int32)
        # PAD_CHAIN is -1 and reads the last place, which stays PAD_CHAIN.
        behaviour_chains = renumbered[behaviour_chains]
        chains = chains[kept]
    nodes, chain_slots = renumber(paths_ND.take(chains, axis=0), n_nodes)
    return Tree(behaviour_chains, nodes, chain_slots)


def _strongest_chains(behaviour_chains: Array, ages_s_L: Array, n_chains: int) -> Array:
    """Indices, ascending, of the MAX_CHAINS chains kept: most behaviours, then youngest, then lowest path number."""
    behaviour, place = np.nonzero(behaviour_chains != contract.PAD_CHAIN)
    chain_of = behaviour_chains[behaviour, place]
    support = np.bincount(chain_of, minlength=n_chains)
    youngest_s = np.full(n_chains, np.inf, dtype=np.float32)
    np.minimum.at(youngest_s, chain_of, ages_s_L[behaviour])
    # lexsort is stable: what is equal in both stays in the order of path numbers.
    order = np.lexsort((youngest_s, -support))
    return np.sort(order[: contract.MAX_CHAINS])


def weigh_nodes(tree: Tree, strength_L: Array) -> npt.NDArray[np.float32]:
    """log(1 + w_u) of every node, w_u = log(1 + N(u)) * sum of the strengths of the N(u) behaviours that support it.

    A behaviour counts once per node, however many of its chains pass it.

    Args:
        tree: of `compose_tree`.
        strength_L: a(action) * exp(-lambda * age) of each behaviour.

    Returns:
        float32 [U], 0 for node 0.

    Source: AIR (arXiv 2606.10357), unified intent tree; `airserve.model.tree.TreeWeights` is its trained form.
    """
    n_behaviours, n_nodes = len(strength_L), len(tree.nodes)
    # No chain (-1) reads the row of zeros at the end: slot 0.
    slots_RD = np.concatenate((tree.chain_slots, _NO_SLOTS))
    slots_LX = slots_RD.take(tree.behaviour_chains, axis=0, mode="wrap").reshape(n_behaviours, -1)
    member_LU = np.zeros((n_behaviours, n_nodes), dtype=np.float32)
    member_LU[_COUNTING[:n_behaviours, None], slots_LX] = 1.0
    terms_2L = np.ones((2, n_behaviours), dtype=np.float32)
    terms_2L[1] = strength_L
    number_U, fused_U = terms_2L.dot(member_LU)
    weights_U: npt.NDArray[np.float32] = np.log1p(np.log1p(number_U) * fused_U)
    weights_U[contract.PAD_SLOT] = 0.0
    return weights_U


_NO_SLOTS = np.full((1, contract.MAX_DEPTH), contract.PAD_SLOT, dtype=np.int32)


def choose_evidence(behaviour_chains_LP: Array, relevance_LP: Array, n_chains: int) -> npt.NDArray[np.int32]:
    """The M most relevant behaviours of each chain.

    Args:
        behaviour_chains_LP: int32, chains of each behaviour, `PAD_CHAIN` where none.
        relevance_LP: float, of each behaviour to each of its chains, in [0, 1].
        n_chains: R.

    Returns:
        int32 [R, M] indices into the behaviours, best first, of equal ones the younger (later) first; `NO_EVIDENCE`
        where none.
    """
    chosen = np.full((n_chains, contract.MAX_EVIDENCE), contract.NO_EVIDENCE, dtype=np.int32)
    flat = behaviour_chains_LP.ravel()
    at = (flat != contract.PAD_CHAIN).nonzero()[0]
    chain, behaviour = flat.take(at), at // behaviour_chains_LP.shape[1]
    # One number to sort by: the chain before the point, what is less relevant behind it.
    key = chain - (relevance_LP.ravel().take(at) + contract.TIE_STEP * behaviour) * 0.4
    order = key.argsort()
    chain = chain.take(order)
    place = _COUNTING[: len(order)] - chain.searchsorted(_COUNTING[:n_chains]).take(chain)
    best = (place < contract.MAX_EVIDENCE).nonzero()[0]
    flat_places = chain.take(best) * contract.MAX_EVIDENCE + place.take(best)
    chosen.reshape(-1)[flat_places] = behaviour.take(order.take(best))
    return chosen
