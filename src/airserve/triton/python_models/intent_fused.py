"""Triton Python model that serves the public name in one process: the lookup, then the compiled graph.

Saves what the two steps of the ensemble cost each other on a machine without a GPU: a second queue, a second process,
and the copies of seven tensors between them. Requests of one dynamic batch keep their own lengths (ragged batch).
A request that breaks the contract is answered with INVALID_ARGUMENT and does not touch its neighbours.
"""

from __future__ import annotations

import time
from typing import Any

from airserve import contract
from airserve.artifacts import ONNX_FILE, TABLE_FOLDER
from airserve.table.lookup import ServedTable, ranker_inputs
from airserve.triton.batch_model import Job
from airserve.triton.model_answers import file_of, look_up, parameters_of, settle, table_metrics
from airserve.triton.padding import extent_of
from airserve.triton.ranker_session import RankerSession
from airserve.triton.ranking_model import COMPUTED, RankingModel
from airserve.triton.warmup import warmup_requests

LOOKED_UP = [spec.name for spec in contract.LOOKED_UP]


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open table and graph, check that they fit, and run both once at the usual sizes."""
        settings = parameters_of(args)
        table = ServedTable.open(file_of(args, TABLE_FOLDER))
        ranker = RankerSession(file_of(args, ONNX_FILE), threads=int(settings["threads"]))
        ranker.check_encoder(table.manifest.encoder)
        self.model = FusedModel(settings, table, ranker, args)
        settle()

    def finalize(self) -> None:
        """Called when the model is unloaded."""
        self.model.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Look every request up, rank those that are sound together, and answer in order."""
        return self.model.execute(requests)


class FusedModel(RankingModel):
    """Looks up when it reads a request."""

    def __init__(
        self, settings: dict[str, str], table: ServedTable, ranker: RankerSession, args: dict[str, str]
    ) -> None:
        super().__init__(contract.ENSEMBLE_MODEL, settings, table_metrics(table, args), ranker)
        self.table = table
        for request in warmup_requests(table.items):
            began = time.perf_counter()
            inputs = ranker_inputs(table.lookup(request))
            ranker.run([inputs], COMPUTED)
            self.admission.learn(extent_of(inputs).cost(), time.perf_counter() - began)

    def prepare(self, request: Any) -> Job:
        """The request with what its items mean."""
        found = look_up(self.table, request, self.metrics)
        inputs = ranker_inputs(found)
        known = {name: found[name] for name in LOOKED_UP}
        return Job(request=request, cost=extent_of(inputs).cost(), inputs=inputs, found=known)
