"""Answers that are sent after their batch: all are, in order, and the cost of what is left is known."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from airserve.triton.admission import Admission
from airserve.triton.late_answers import CHUNK_S, LateAnswers


@dataclass
class Job:
    """A request for the double of a number."""

    number: int
    cost: float = 1.0


class Recorder:
    """Computes, on command, and keeps what was sent."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.chunks: list[int] = []
        self.sent: list[tuple[int, int]] = []

    def answer(self, jobs: list[Job]) -> list[int]:
        assert self.go.wait(30)
        self.chunks.append(len(jobs))
        return [2 * job.number for job in jobs]

    def send(self, job: Job, answer: int) -> None:
        if job.number == 3:
            raise RuntimeError("the connection is gone")
        self.sent.append((job.number, answer))


def admission_of_speed(seconds_per_cost: float) -> Admission:
    admission = Admission(max_requests=100, budget_s=1.0)
    admission.learn(1.0, seconds_per_cost)
    return admission


def test_all_that_was_added_is_answered_before_the_end_in_order_and_one_failure_stops_nothing() -> None:
    recorder = Recorder()
    late = LateAnswers[Job](recorder.answer, recorder.send, admission_of_speed(1e-6))
    late.add([Job(number) for number in range(4)])
    late.add([Job(4)])
    recorder.go.set()
    late.close()
    assert recorder.sent == [(0, 0), (1, 2), (2, 4), (4, 8)]


def test_what_is_not_computed_yet_counts_as_outstanding() -> None:
    recorder = Recorder()
    late = LateAnswers[Job](recorder.answer, recorder.send, admission_of_speed(1e-6))
    assert late.outstanding() == (0, 0.0)
    late.add([Job(1, cost=2.5), Job(2, cost=4.0)])
    assert late.outstanding() == (2, 6.5)
    recorder.go.set()
    late.wait()
    assert late.outstanding() == (0, 0.0)
    late.close()


def test_as_much_is_computed_together_as_takes_the_time_of_a_chunk() -> None:
    recorder = Recorder()
    recorder.go.set()
    late = LateAnswers[Job](recorder.answer, recorder.send, admission_of_speed(CHUNK_S / 4))
    with late._changed:  # all of them are there before the first is looked at
        late.add([Job(number) for number in range(10, 16)])
    late.close()
    assert recorder.chunks[0] == 4
    assert sum(recorder.chunks) == 6


def test_computing_teaches_the_speed() -> None:
    recorder = Recorder()
    admission = Admission(max_requests=100, budget_s=1.0)
    late = LateAnswers[Job](recorder.answer, recorder.send, admission)
    late.add([Job(1)])
    recorder.go.set()
    late.close()
    assert admission.seconds_per_cost > 0


def test_closing_with_nothing_to_do_returns() -> None:
    recorder = Recorder()
    LateAnswers[Job](recorder.answer, recorder.send, admission_of_speed(1.0)).close()
    assert recorder.sent == []
