"""What a ranking request comes back with: scores, and the intents that explain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.artifacts import VOCABULARY_FILE
from airserve.client.request import Id, RankRequest
from airserve.errors import ArtifactError
from airserve.files import write_json


class NodeTexts(dict[int, str]):
    """Node id to text, from a tables folder, so that chains can be read."""

    @classmethod
    def open(cls, tables: Path) -> NodeTexts:
        """Read `vocabulary.parquet` of a tables folder (needs pyarrow).

        Raises:
            ArtifactError: if it is not there.
        """
        import pyarrow.parquet as pq

        path = tables / VOCABULARY_FILE
        if not path.exists():
            raise ArtifactError(
                str(path), expected="a vocabulary", got="no such file", remedy="run offline/build_tables.py"
            )
        table = pq.read_table(path, columns=["node_id", "text"]).to_pydict()
        return cls(zip(table["node_id"], table["text"], strict=True))

    def save(self, path: Path) -> None:
        """Write as JSON, for clients without pyarrow."""
        write_json(path, self, indent=None)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One intent chain that a candidate was matched with."""

    nodes: tuple[int, ...]
    """Node ids, coarse to fine."""
    weight: float
    """Target-aware score of the chain."""
    evidence: tuple[int, ...]
    """Indices into the request's behaviours, strongest first."""

    def text(self, texts: Mapping[int, str]) -> str:
        """`pet supplies > cat furniture > cat bed`."""
        return " > ".join(texts.get(node, f"node {node}") for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class RankedItem(Generic[Id]):
    """A candidate with its score, and its chains when they were asked for."""

    item: Id
    score: float
    chains: tuple[Chain, ...]


@dataclass(frozen=True, kw_only=True)
class RankResult(Generic[Id]):
    """The answer to one `RankRequest`, in the order of its candidates."""

    items: tuple[Id, ...]
    """The candidates, with the ids of the request."""
    scores: npt.NDArray[np.float32]
    """float32 [C]."""
    coverage: float
    """Share of the behaviours that have intents, 0 to 1."""
    unknown_count: int
    """Candidates that the table does not know, each as often as it was asked for. They score below all others."""
    table_version: int
    chains: tuple[tuple[Chain, ...], ...]
    """Of each candidate, strongest first; empty when no explanation was asked for."""
    unknown: tuple[Id, ...] | None = None
    """The unknown candidates themselves, with the ids of the request; None when they were not asked for."""

    def top(self, k: int) -> list[RankedItem[Id]]:
        """The `k` best candidates, best first; ties in the order of the request."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [
            RankedItem(item=self.items[at], score=float(self.scores[at]), chains=self.chains[at] if self.chains else ())
            for at in order
        ]


def _chains(tensors: Mapping[str, npt.NDArray[Any]], at: int, count: int) -> tuple[tuple[Chain, ...], ...]:
    """Chains of the first candidates of a request in a batch; chains that candidates share are made once."""
    index_CK, weights_CK, nodes_RD, evidence_RM = (tensors[spec.name][at].tolist() for spec in contract.EXPLANATION)
    parts = [
        (
            tuple(node for node in nodes_D if node != contract.PAD_NODE),
            tuple(place for place in evidence_M if place != contract.NO_EVIDENCE),
        )
        for nodes_D, evidence_M in zip(nodes_RD, evidence_RM, strict=True)
    ]
    return tuple(
        tuple(
            Chain(nodes=parts[chain][0], weight=weight, evidence=parts[chain][1])
            for chain, weight in zip(index_K, weights_K, strict=True)
            if chain != contract.NO_CHAIN
        )
        for index_K, weights_K in zip(index_CK[:count], weights_CK[:count], strict=True)
    )


def from_tensors(
    requests: Sequence[RankRequest[Id]],
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    explained: bool,
    tell_unknown: bool = False,
) -> list[RankResult[Id]]:
    """Cut a batched response back into one result a request."""
    scores = tensors[contract.SCORES.name]
    coverage = tensors[contract.COVERAGE.name]
    unknown = tensors[contract.UNKNOWN_COUNT.name]
    versions = tensors[contract.TABLE_VERSION.name]
    results = []
    for at, request in enumerate(requests):
        items = tuple(request.candidates)
        told = None
        if tell_unknown:
            places = np.flatnonzero(tensors[contract.UNKNOWN_MASK.name][at, : len(items)]).tolist()
            told = tuple(items[place] for place in places)
        results.append(
            RankResult(
                items=items,
                scores=scores[at, : len(items)],
                coverage=float(coverage[at, 0]),
                unknown_count=int(unknown[at, 0]),
                table_version=int(versions[at, 0]),
                chains=_chains(tensors, at, len(items)) if explained else (),
                unknown=told,
            )
        )
    return results
