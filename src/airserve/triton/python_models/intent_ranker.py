"""Triton Python model `intent_ranker` for servers without an ONNX Runtime backend: runs the compiled graph in process.

The requests of one dynamic batch have different lengths; they are padded together, run once, and cut apart again. In
the Triton container the `tensorrt` or `onnxruntime` backend takes this model's place in the same ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.artifacts import ONNX_FILE
from airserve.triton.batch_model import Job
from airserve.triton.model_answers import file_of, instances_of, parameters_of, settle
from airserve.triton.model_metrics import ModelMetrics
from airserve.triton.padding import extent_of
from airserve.triton.ranker_session import RankerSession
from airserve.triton.ranking_model import RankingModel
from airserve.triton.speed_note import SpeedNote, note_path


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and check that it was exported for this contract."""
        settings = parameters_of(args)
        ranker = RankerSession(file_of(args, ONNX_FILE), threads=int(settings["threads"]))
        self.model = RankerModel(contract.RANKER_MODEL, settings, ModelMetrics(), ranker)
        self.instances = instances_of(args)
        self.note = SpeedNote(note_path(contract.RANKER_MODEL), write=True)
        settle()

    def finalize(self) -> None:
        """Called when the model is unloaded."""
        self.model.close()
        self.note.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests of a dynamic batch together, and note how fast that went."""
        responses = self.model.execute(requests)
        self.note.write(self.model.admission.seconds_per_cost / self.instances)
        return responses


class RankerModel(RankingModel):
    """Reads what the lookup found."""

    def prepare(self, request: Any) -> Job:
        """The request's tensors."""
        inputs = {
            spec.name: pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy()
            for spec in contract.RANKER_INPUTS
        }
        return Job(request=request, cost=extent_of(inputs).cost(), inputs=inputs)

    def answer(self, jobs: list[Job], given_up: Callable[[Job], bool]) -> list[Any]:
        """As its base, but all: a step of an ensemble is not told that its client gave up (Triton 2.51)."""
        return super().answer(jobs, lambda job: False)
