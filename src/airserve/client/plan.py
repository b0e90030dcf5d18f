"""Requests of any size as calls that the contract allows, and their answers put together again.

A candidate's score does not depend on the other candidates, so a long list can be scored in parts. The parts of one
request stay in one call where they fit, so that one table version answers all of them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic

import numpy as np

from airserve import contract
from airserve.client.request import Id, RankRequest
from airserve.client.result import Chain, RankResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Part(Generic[Id]):
    """What is sent of one request in one row of a batch."""

    of: int
    """Index of the request that it belongs to."""
    request: RankRequest[Id]
    """Within the contract's bounds, with the caller's ids."""
    dropped: int
    """Behaviours left out in front: the oldest."""


def split_request(request: RankRequest[Id], of: int) -> list[Part[Id]]:
    """The parts of one request, of about equal length, in the order of its candidates."""
    dropped = max(0, len(request.behaviours) - contract.MAX_BEHAVIOURS)
    count = len(request.candidates)
    if not dropped and count <= contract.MAX_CANDIDATES:
        return [Part(of=of, request=request, dropped=0)]
    kept = request.behaviours[dropped:]
    parts = max(1, -(-count // contract.MAX_CANDIDATES))
    cuts = [at * count // parts for at in range(parts + 1)]
    return [
        Part(
            of=of,
            request=replace(request, behaviours=kept, candidates=request.candidates[start:end]),
            dropped=dropped,
        )
        for start, end in itertools.pairwise(cuts)
    ]


def plan_calls(requests: Sequence[RankRequest[Id]]) -> list[list[Part[Id]]]:
    """Calls of 1 to `contract.MAX_BATCH` parts, in the order of the requests."""
    calls: list[list[Part[Id]]] = []
    for of, request in enumerate(requests):
        parts = split_request(request, of)
        room = contract.MAX_BATCH - len(calls[-1]) if calls else 0
        if len(parts) > room >= 1 and len(parts) <= contract.MAX_BATCH:
            calls.append([])
        for part in parts:
            if not calls or len(calls[-1]) == contract.MAX_BATCH:
                calls.append([])
            calls[-1].append(part)
    return calls


def _moved(chains: tuple[tuple[Chain, ...], ...], dropped: int) -> tuple[tuple[Chain, ...], ...]:
    """Evidence as indices into the caller's behaviours instead of the sent ones."""
    if not dropped:
        return chains
    return tuple(
        tuple(replace(chain, evidence=tuple(at + dropped for at in chain.evidence)) for chain in of_candidate)
        for of_candidate in chains
    )


def _joined(request: RankRequest[Id], parts: Sequence[Part[Id]], results: Sequence[RankResult[Id]]) -> RankResult[Id]:
    if len(parts) == 1 and not parts[0].dropped:
        return results[0]
    versions = sorted({result.table_version for result in results})
    if len(versions) > 1:
        log.warning("the parts of one request were answered by table versions %s; the oldest is reported", versions)
    told = [result.unknown for result in results]
    return RankResult(
        items=tuple(request.candidates),
        scores=np.concatenate([result.scores for result in results]),
        coverage=min(result.coverage for result in results),
        unknown_count=sum(result.unknown_count for result in results),
        table_version=versions[0],
        chains=tuple(
            chains
            for part, result in zip(parts, results, strict=True)
            for chains in _moved(result.chains, part.dropped)
        ),
        unknown=None if None in told else tuple(itertools.chain.from_iterable(each for each in told if each)),
    )


def merge_answers(
    requests: Sequence[RankRequest[Id]], calls: Sequence[Sequence[Part[Id]]], answers: Sequence[list[RankResult[Id]]]
) -> list[RankResult[Id]]:
    """One result a request, in their order.

    Args:
        requests: what was asked.
        calls: how `plan_calls` divided it.
        answers: of each call, the result of each part.
    """
    parts: list[list[Part[Id]]] = [[] for _ in requests]
    results: list[list[RankResult[Id]]] = [[] for _ in requests]
    for call, answer in zip(calls, answers, strict=True):
        for part, result in zip(call, answer, strict=True):
            parts[part.of].append(part)
            results[part.of].append(result)
    return [_joined(*row) for row in zip(requests, parts, results, strict=True)]
