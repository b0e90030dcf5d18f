"""Tree weights, retrieval and evidence in plain Python: the reference that the tensor code is held equal to.

One request, one candidate, dictionaries and loops, double precision. Slow, and meant to be read beside AIR's formulas
(arXiv 2606.10357). Ties are settled as in `retrieval.py`: `TIE_STEP` per index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from airserve import contract
from airserve.contract import TIE_STEP
from airserve.model.tree import SECONDS_PER_DAY

Vector = Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The learned numbers of tree and retrieval."""

    actions: Sequence[float]
    """a(action), by action number."""
    decay_per_day: float
    """Lambda."""
    levels: Sequence[float]
    """Weight of each level, coarse to fine."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """One behaviour and the chains its intents became."""

    action: int
    age_s: float
    chains: frozenset[int]
    vector: Vector


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A request's tree: each chain is its node slots, coarse to fine, without padding; slot -> node vector."""

    chains: Sequence[Sequence[int]]
    vectors: dict[int, Vector]


def dot(a: Vector, b: Vector) -> float:
    """Dot product; the cosine, for unit vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def tree_weights(behaviours: Sequence[Behaviour], tree: Tree, weights: Weights) -> dict[int, float]:
    """w_u = log(1 + N(u)) * sum_k a(action_k) * exp(-lambda * dt_k), by slot."""
    result: dict[int, float] = {}
    for slot in {slot for chain in tree.chains for slot in chain}:
        supporting = [b for b in behaviours if any(slot in tree.chains[chain] for chain in b.chains)]
        fused = 0.0
        for behaviour in supporting:
            age_days = behaviour.age_s / SECONDS_PER_DAY
            fused += weights.actions[behaviour.action] * math.exp(-weights.decay_per_day * age_days)
        result[slot] = math.log1p(len(supporting)) * fused
    return result


def chain_score(
    chain: Sequence[int], tree: Tree, node_weights: dict[int, float], candidate: Vector, weights: Weights
) -> float:
    """Mean over the chain's levels of cos(e_u, e_v) * log(1 + w_u), levels weighing as in `weights`."""
    total = sum(weights.levels[: len(chain)])
    score = 0.0
    for level, slot in enumerate(chain):
        score += weights.levels[level] / total * dot(tree.vectors[slot], candidate) * math.log1p(node_weights[slot])
    return score


def best_chains(
    tree: Tree, node_weights: dict[int, float], candidate: Vector, weights: Weights
) -> list[tuple[int, float]]:
    """The at most K best chains of a candidate with their scores, best first; of equal ones the lowest index."""
    scored = []
    for index, chain in enumerate(tree.chains):
        if chain:
            scored.append((index, chain_score(chain, tree, node_weights, candidate, weights)))
    scored.sort(key=lambda pair: -(pair[1] - TIE_STEP * pair[0]))
    return scored[: contract.CHAINS_PER_CANDIDATE]


def evidence(chain: int, behaviours: Sequence[Behaviour], tree: Tree, weights: Weights) -> list[int]:
    """The at most M behaviours shown for a chain, best first; of equal ones the youngest (the last)."""
    leaf = tree.vectors[tree.chains[chain][-1]]
    ranked = []
    for index, behaviour in enumerate(behaviours):
        if chain in behaviour.chains:
            fresh = math.exp(-weights.decay_per_day * behaviour.age_s / SECONDS_PER_DAY)
            ranked.append((index, (1 + dot(behaviour.vector, leaf)) / 2 * fresh))
    ranked.sort(key=lambda pair: -(pair[1] + TIE_STEP * pair[0]))
    return [index for index, _ in ranked[: contract.MAX_EVIDENCE]]
