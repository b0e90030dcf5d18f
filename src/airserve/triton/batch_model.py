"""What the Python models have in common: a batch of requests in, an answer or a refusal for each out.

Requests that break the contract are refused alone, those beyond the bound of the queue together, the others are
answered as one batch; while some are refused, behind `execute` (`airserve/triton/late_answers.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from airserve.errors import InvalidRequestError
from airserve.triton.config_names import WARMUP_BATCHES
from airserve.triton.late_answers import LateAnswers
from airserve.triton.model_answers import PATIENCE_S, admission_of, refusal, refuse_from
from airserve.triton.model_metrics import ModelMetrics

Array = npt.NDArray[Any]
SWITCH_S = 0.0005
"""Python's threads take turns so often while they want the interpreter; at its 5 ms the one that computes waits for the
one that refuses."""
GATHER_S = 0.03
"""While requests are refused, they are gathered for so long: handing over a batch has a price of its own."""

LATE_S = 1.0
"""Requests are answered behind `execute` until so long after the last refusal."""


@dataclass(kw_only=True, eq=False)
class Job:
    """A request that will be answered."""

    request: Any
    cost: float
    """Its share of a batch, in any unit."""
    inputs: dict[str, Array] = field(default_factory=dict)
    """Tensors that are computed with."""
    found: dict[str, Array] = field(default_factory=dict)
    """Tensors that are known already."""
    sender: Any = None
    """Set when the answer is sent after `execute` returned."""

    def given_up(self) -> bool:
        """Whether nobody waits for the answer any more; asking Triton takes 0.1 to 5 ms."""
        return bool((self.sender or self.request).is_cancelled())


class BatchModel:
    """Base of the Python models.

    Args:
        name: of the model, for messages.
        settings: its parameters.
        metrics: its counters.
        late: whether to answer behind `execute` under overload.
    """

    def __init__(self, name: str, settings: dict[str, str], metrics: ModelMetrics, *, late: bool) -> None:
        self.name = name
        self.metrics = metrics
        self.admission = admission_of(settings)
        self._refused_at = -LATE_S
        # A warm-up that is refused, as on a busy machine whose first call was slow, would stop the load.
        self._warming_up = sum(WARMUP_BATCHES)
        if late:
            sys.setswitchinterval(SWITCH_S)
        self.late = LateAnswers[Job](self._answer_late, _send, self.admission) if late else None

    def close(self) -> None:
        """Called when the model is unloaded."""
        if self.late is not None:
            self.late.close()
        self.metrics.close()

    def prepare(self, request: Any) -> Job:
        """Read a request.

        Raises:
            InvalidRequestError: if it breaks the contract.
        """
        raise NotImplementedError

    def answer(self, jobs: list[Job], given_up: Callable[[Job], bool]) -> list[Any]:
        """The response to each; only called with some."""
        raise NotImplementedError

    def has_room(self) -> bool:
        """Whether one more request is answered."""
        return self.admission.has_room()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request or refuse it, in order; None stands for an answer that is sent later."""
        if self.late is not None and time.perf_counter() - self._refused_at > LATE_S:
            self.late.wait()
        began = time.perf_counter()
        responses: list[Any] = [None] * len(requests)
        jobs, places, refused = self._admit(requests, responses)
        if refused:
            self._refused_at = began
        if self.late is not None and began - self._refused_at <= LATE_S:
            for job in jobs:
                job.sender = job.request.get_response_sender()
            self.late.add(jobs)
        else:
            self._answer_now(jobs, places, responses, began)
        if refused:
            time.sleep(GATHER_S)
        return responses

    def _answer_now(self, jobs: list[Job], places: list[int], responses: list[Any], began: float) -> None:
        if jobs:
            answers = self.answer(jobs, lambda job: time.perf_counter() - began > PATIENCE_S and job.given_up())
            for at, answer in zip(places, answers, strict=True):
                responses[at] = answer
        seconds = time.perf_counter() - began
        self.admission.end(seconds)
        self.metrics.observe_batch(len(jobs), seconds)

    def _admit(self, requests: list[Any], responses: list[Any]) -> tuple[list[Job], list[int], bool]:
        """Read requests while there is room and refuse the others.

        Returns:
            What is to be answered, the places of it, and whether some were refused for lack of room.
        """
        jobs: list[Job] = []
        places: list[int] = []
        self.admission.begin(*(self.late.outstanding() if self.late is not None else (0, 0.0)))
        for at, request in enumerate(requests):
            if self._warming_up:
                self._warming_up -= 1
            elif not self.has_room():
                refuse_from(responses, at, self.admission, self.metrics)
                return jobs, places, True
            try:
                job = self.prepare(request)
            except InvalidRequestError as error:
                self.metrics.count_refusal(error.subject)
                responses[at] = refusal(str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # one request's fault must not fail the batch
                self.metrics.count_refusal("internal")
                responses[at] = refusal(f"{self.name}: {error!r}")
            else:
                self.admission.take(job.cost)
                jobs.append(job)
                places.append(at)
        return jobs, places, False

    def _answer_late(self, jobs: list[Job]) -> list[Any]:
        began = time.perf_counter()
        try:
            answers = self.answer(jobs, Job.given_up)
        except Exception as error:  # an end of this thread would leave every later request without an answer
            self.metrics.count_refusal("internal", len(jobs))
            answers = [refusal(f"{self.name}: {error!r}") for _ in jobs]
        self.metrics.observe_batch(len(jobs), time.perf_counter() - began)
        return answers


def _send(job: Job, answer: Any) -> None:
    job.sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
