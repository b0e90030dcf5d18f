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
    table_version: int
    chains: tuple[tuple[Chain, ...], ...]
    """Of each candidate, strongest first; empty when no explanation was asked for."""

    def top(self, k: int) -> list[RankedItem[Id]]:
        """The `k` best candidates, best first; ties in the order of the request."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [
            RankedItem(item=self.items[at], score=float(self.scores[at]), chains=self.chains[at] if self.chains else ())
            for at in order
        ]


def _chains(nodes: npt.NDArray[Any], weights: npt.NDArray[Any], evidence: npt.NDArray[Any]) -> tuple[Chain, ...]:
    return tuple(
        Chain(
            nodes=tuple(int(node) for node in nodes[k] if node != contract.PAD_NODE),
            weight=float(weights[k]),
            evidence=tuple(int(at) for at in evidence[k] if at != contract.NO_EVIDENCE),
        )
        for k in range(len(weights))
        if nodes[k, 0] != contract.PAD_NODE
    )


def from_tensors(
    requests: Sequence[RankRequest[Id]], tensors: Mapping[str, npt.NDArray[Any]], *, explained: bool
) -> list[RankResult[Id]]:
    """Cut a batched response back into one result a request."""
    results = []
    for at, request in enumerate(requests):
        count = len(request.candidates)
        chains: tuple[tuple[Chain, ...], ...] = ()
        if explained:
            nodes, weights, evidence = (tensors[spec.name][at, :count] for spec in contract.EXPLANATION)
            chains = tuple(_chains(nodes[c], weights[c], evidence[c]) for c in range(count))
        results.append(
            RankResult(
                items=tuple(request.candidates),
                scores=tensors[contract.SCORES.name][at, :count],
                coverage=float(tensors[contract.COVERAGE.name][at, 0]),
                table_version=int(tensors[contract.TABLE_VERSION.name][at, 0]),
                chains=chains,
            )
        )
    return results
