"""What the two Python models that run the graph have in common: jobs in, scores and chains out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from airserve import contract
from airserve.triton.batch_model import BatchModel, Job
from airserve.triton.model_answers import given_up_response, refusal
from airserve.triton.model_metrics import ModelMetrics
from airserve.triton.ranker_session import RankerSession

COMPUTED = [spec.name for spec in contract.RANKER_OUTPUTS]


class RankingModel(BatchModel):
    """A Python model around a `RankerSession`.

    Args:
        name: of the model, for messages.
        settings: its parameters.
        metrics: its counters.
        ranker: the graph.
    """

    def __init__(self, name: str, settings: dict[str, str], metrics: ModelMetrics, ranker: RankerSession) -> None:
        super().__init__(name, settings, metrics, late=True)
        self.ranker = ranker

    def answer(self, jobs: list[Job], given_up: Callable[[Job], bool]) -> list[Any]:
        """Run the graph for all, those of like size as one padded batch."""
        asked = [set(job.request.requested_output_names()) for job in jobs]
        wanted = [name for name in COMPUTED if any(name in names for names in asked)]
        try:
            answers = self.ranker.run([job.inputs for job in jobs], wanted, lambda at: given_up(jobs[at]))
        except Exception as error:
            self.metrics.count_refusal("internal", len(jobs))
            return [refusal(f"{self.name}: {error!r}") for _ in jobs]
        responses = []
        for job, names, answer in zip(jobs, asked, answers, strict=True):
            if not answer:
                responses.append(given_up_response(self.metrics))
                continue
            tensors = [pb_utils.Tensor(name, array) for name, array in answer.items() if name in names]
            tensors += [
                pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in job.found.items() if name in names
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
