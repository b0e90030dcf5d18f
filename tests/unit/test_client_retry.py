"""Which failed calls are sent again, after how long, and which never."""

from __future__ import annotations

import random

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve.client import RetryPolicy
from airserve.client.retry import (
    NOT_REACHED,
    QUEUE_FULL,
    UNAVAILABLE,
    Deadline,
    RetryBudget,
    next_delay_s,
    was_answered,
)
from airserve.errors import UserError
from airserve.triton.admission import Admission


class Top(random.Random):
    """Draws no jitter at all."""

    def random(self) -> float:
        return 0.0


def decide(
    status: str = UNAVAILABLE,
    message: str = "busy",
    attempt: int = 1,
    *,
    policy: RetryPolicy | None = None,
    budget: RetryBudget | None = None,
    remaining_s: float = 60.0,
) -> float | None:
    return next_delay_s(
        status,
        message,
        attempt,
        policy=policy or RetryPolicy(),
        budget=budget or RetryBudget(),
        remaining_s=remaining_s,
        rng=Top(),
    )


@pytest.mark.parametrize("status", [code for code in grpc.StatusCode if code is not grpc.StatusCode.UNAVAILABLE])
def test_only_unavailable_is_sent_again(status: grpc.StatusCode) -> None:
    assert decide(str(status)) is None
    assert decide(str(grpc.StatusCode.UNAVAILABLE)) is not None


def test_waits_grow_to_a_bound() -> None:
    policy = RetryPolicy(attempts=99, first_delay_s=0.1, factor=2.0, max_delay_s=0.5)
    assert [decide(attempt=at, policy=policy) for at in (1, 2, 3, 4, 90)] == [0.1, 0.2, 0.4, 0.5, 0.5]


@given(st.integers(1, 10**6), st.floats(0, 1), st.integers(0, 2**32))
def test_a_wait_is_within_its_jitter(attempt: int, jitter: float, seed: int) -> None:
    policy = RetryPolicy(jitter=jitter, first_delay_s=0.5, max_delay_s=0.5)
    assert 0.5 * (1 - jitter) - 1e-9 <= policy.delay_s(attempt, random.Random(seed)) <= 0.5


def test_the_last_attempt_is_not_followed_by_another() -> None:
    assert decide(attempt=3, policy=RetryPolicy(attempts=4)) is not None
    assert decide(attempt=4, policy=RetryPolicy(attempts=4)) is None


def test_a_wait_that_would_outlast_the_deadline_is_not_begun() -> None:
    assert decide(remaining_s=0.01) is None
    assert decide(remaining_s=-1.0) is None


def test_a_client_that_sees_only_refusals_stops_retrying_until_it_sees_answers() -> None:
    budget = RetryBudget()
    decisions = [decide(budget=budget) for _ in range(20)]
    assert decisions[0] is not None
    assert decisions[-1] is None
    for _ in range(200):
        budget.earn()
    assert decide(budget=budget) is not None


def test_a_server_that_cannot_be_reached_costs_no_budget() -> None:
    budget = RetryBudget()
    assert all(decide(message=f"{NOT_REACHED} to all", budget=budget) is not None for _ in range(100))


def test_a_deadline_counts_down_from_its_start() -> None:
    now = 100.0
    deadline = Deadline(2.0, clock=lambda: now)
    assert deadline.remaining_s() == 2.0
    now = 101.5
    assert deadline.remaining_s() == 0.5
    now = 103.0
    assert deadline.remaining_s() < 0


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_deadline_that_is_no_time_is_refused(timeout_s: float) -> None:
    with pytest.raises(UserError, match="timeout_s"):
        Deadline(timeout_s)


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first_delay_s": -1}, {"first_delay_s": 9}, {"factor": 0.5}, {"jitter": 1.5}]
)
def test_an_impossible_policy_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        RetryPolicy(**wrong)  # type: ignore[arg-type]


def test_only_calls_that_are_certainly_over_leave_their_memory_free() -> None:
    assert was_answered("StatusCode.INVALID_ARGUMENT", "anything")
    assert was_answered(UNAVAILABLE, f"[request id: 1] {QUEUE_FULL} of 16")
    assert was_answered(UNAVAILABLE, Admission(max_requests=8, budget_s=1.0).refusal())
    assert not was_answered(UNAVAILABLE, "Socket closed")
    assert not was_answered("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded")
    assert not was_answered("StatusCode.CANCELLED", "")
