"""Triton Python model `intent_lookup`: item ids in, rows and weights for the ranker out.

One call handles all requests that Triton's dynamic batcher put together; each keeps its own lengths (ragged batch).
A request that breaks the contract is answered with INVALID_ARGUMENT and does not touch its neighbours. One that the
ranker could not answer in time is refused here, before it costs anything (`airserve/triton/speed_note.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.artifacts import TABLE_FOLDER
from airserve.table.lookup import ServedTable, ranker_inputs
from airserve.triton.batch_model import BatchModel, Job
from airserve.triton.config_names import PADS
from airserve.triton.model_answers import file_of, look_up, parameters_of, settle, table_metrics
from airserve.triton.padding import extent_of, pad_to_class
from airserve.triton.speed_note import Pace, SpeedNote, note_path


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Map the table that lies beside this model's version; a damaged or foreign one stops the load."""
        table = ServedTable.open(file_of(args, TABLE_FOLDER))
        self.model = LookupModel(parameters_of(args), table, args)
        settle()

    def finalize(self) -> None:
        """Called when the model is unloaded."""
        self.model.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its own tree."""
        return self.model.execute(requests)


class LookupModel(BatchModel):
    """Its answers are made when it reads a request."""

    def __init__(self, settings: dict[str, str], table: ServedTable, args: dict[str, str]) -> None:
        super().__init__(contract.LOOKUP_MODEL, settings, table_metrics(table, args), late=False)
        self.table = table
        self.pads = settings.get(PADS) == "1"
        ranker = SpeedNote(note_path(contract.RANKER_MODEL), write=False)
        # A compiled backend notes no speed, and has a queue that Triton bounds.
        self.pace = None if self.pads else Pace(ranker, self.admission.budget_s)

    def has_room(self) -> bool:
        """Whether one more request is looked up, and then ranked in time."""
        return super().has_room() and (self.pace is None or self.pace.has_room())

    def prepare(self, request: Any) -> Job:
        """The request with its tree."""
        found = look_up(self.table, request, self.metrics)
        inputs = ranker_inputs(found)
        if self.pads:
            found |= pad_to_class(inputs)
        if self.pace is not None:
            self.pace.take(extent_of(inputs).cost())
        return Job(request=request, cost=1.0, found=found)

    def answer(self, jobs: list[Job], given_up: Callable[[Job], bool]) -> list[Any]:
        """The trees, one by one."""
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(spec.name, job.found[spec.name]) for spec in contract.LOOKUP_OUTPUTS]
            )
            for job in jobs
        ]
