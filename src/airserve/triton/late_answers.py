"""Requests of a Python model that are answered after `execute` returned, while more is asked than can be answered.

Triton hands a batch over, waits for its answers and only then hands over the next. Under overload most of a batch is
there to be refused, and handing it over takes a fifth of the time, in which nothing is computed. So as long as requests
are refused, those that are not are answered by a thread, while `execute` refuses the next ones. An answer that does not
go with its batch is a message of its own that waits for Triton (0.1 to 1 ms), hence a second thread that sends.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from airserve.triton.admission import Admission

log = logging.getLogger(__name__)

CHUNK_S = 0.05
"""Predicted seconds of what is computed together: a client that gave up is noticed in between."""


class Costs(Protocol):
    """What is known of a request."""

    cost: float
    """Its share of a batch, in the admission's unit."""


Job = TypeVar("Job", bound=Costs)


class LateAnswers(Generic[Job]):
    """Two threads: one computes, one sends.

    Args:
        answer: computes the answers of some requests, in order; must not raise.
        send: sends one answer.
        admission: learns from each computation, and tells how much is computed together.
    """

    def __init__(
        self, answer: Callable[[list[Job]], list[Any]], send: Callable[[Job, Any], None], admission: Admission
    ) -> None:
        self._answer = answer
        self._send = send
        self._admission = admission
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._requests, self._cost = 0, 0.0
        self._ending = False
        self._answers: queue.SimpleQueue[tuple[Job, Any] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._compute_all, name="late answers", daemon=True),
            threading.Thread(target=self._send_all, name="late sending", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def outstanding(self) -> tuple[int, float]:
        """Requests that are not computed yet, and their cost."""
        with self._changed:
            return self._requests, self._cost

    def add(self, jobs: list[Job]) -> None:
        """Answer these too."""
        with self._changed:
            self._waiting.extend(jobs)
            self._requests += len(jobs)
            self._cost += sum(job.cost for job in jobs)
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when everything is computed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._requests)

    def close(self) -> None:
        """Answer what is left, then end the threads."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _next_chunk(self) -> list[Job]:
        """Jobs to compute together; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            chunk: list[Job] = []
            cost = 0.0
            while self._waiting:
                cost += self._waiting[0].cost
                if chunk and cost * self._admission.seconds_per_cost > CHUNK_S:
                    break
                chunk.append(self._waiting.popleft())
            return chunk

    def _compute_all(self) -> None:
        while chunk := self._next_chunk():
            began = time.perf_counter()
            answers = self._answer(chunk)
            cost = sum(job.cost for job in chunk)
            self._admission.learn(cost, time.perf_counter() - began)
            for pair in zip(chunk, answers, strict=True):
                self._answers.put(pair)
            with self._changed:
                self._requests -= len(chunk)
                self._cost = self._cost - cost if self._requests else 0.0
                self._changed.notify_all()
        self._answers.put(None)

    def _send_all(self) -> None:
        while (pair := self._answers.get()) is not None:
            try:
                self._send(*pair)
            except Exception as error:  # one answer's fault must not silence the others
                log.warning("an answer could not be sent: %r", error)
