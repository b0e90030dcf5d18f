"""The same computation without a server: the lower bound that serving is measured against.

What limits it: one core; NumPy calls of the lookup and small ONNX Runtime kernels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from airserve import contract
from airserve.artifacts import ONNX_FILE, SERVING_FOLDER
from airserve.table.lookup import ServedTable, ranker_inputs
from airserve.triton.ranker_session import RankerSession

Array = npt.NDArray[Any]
TOLD = (contract.COVERAGE, contract.UNKNOWN_COUNT, contract.TABLE_VERSION)
"""What a client is always told beside the scores."""


class InProcess:
    """Table and graph in this process, on one thread.

    Args:
        tables: tables folder, with `serving/` in it.
        engine: folder with the exported graph.
    """

    def __init__(self, tables: Path, engine: Path) -> None:
        self.table = ServedTable.open(tables / SERVING_FOLDER)
        self.ranker = RankerSession(engine / ONNX_FILE)
        self.ranker.check_encoder(self.table.manifest.encoder)

    def answer(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Scores of a call, with coverage and table version: what a client gets that asks for no explanation."""
        contract.validate_request(tensors)
        found = self.table.lookup(tensors)
        scores = self.ranker.run([ranker_inputs(found)], [contract.SCORES.name])[0]
        return {**scores, **{spec.name: found[spec.name] for spec in TOLD}}

    def throughput(self, requests: Sequence[Mapping[str, Array]], seconds: float) -> float:
        """Calls per second, one after the other, over a time."""
        done, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            self.answer(requests[done % len(requests)])
            done += 1
        return done / spent
