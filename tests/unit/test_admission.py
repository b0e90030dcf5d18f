"""What waits beyond the bound of a Python model's queue is refused, by number or by predicted time."""

from __future__ import annotations

import pytest

from airserve.errors import TOO_BUSY, UserError
from airserve.triton.admission import LARGEST_CHANGE, Admission


def run(admission: Admission, costs: list[float], seconds_per_cost: float) -> int:
    """Requests answered of a batch, which then takes what it costs."""
    admission.begin()
    answered = 0
    for cost in costs:
        if not admission.has_room():
            break
        admission.take(cost)
        answered += 1
    admission.end(seconds_per_cost * sum(costs[:answered]))
    return answered


def test_before_the_first_batch_only_the_number_bounds() -> None:
    assert run(Admission(max_requests=4, budget_s=0.1), [1e9] * 9, 1.0) == 4


def test_a_batch_holds_what_the_learned_speed_says_fits() -> None:
    admission = Admission(max_requests=1000, budget_s=0.25)
    run(admission, [1.0], 0.01)
    assert run(admission, [1.0] * 100, 0.01) == 25


def test_one_request_is_always_answered() -> None:
    admission = Admission(max_requests=8, budget_s=0.01)
    run(admission, [1.0], 5.0)
    assert run(admission, [1.0, 1.0], 5.0) == 1


def test_what_is_still_being_answered_takes_room() -> None:
    admission = Admission(max_requests=10, budget_s=0.25)
    run(admission, [1.0], 0.01)
    admission.begin(4, 24.0)
    assert admission.has_room()
    admission.take(1.0)
    assert not admission.has_room()
    admission.begin(10, 10.0)
    assert not admission.has_room()


def test_one_pause_changes_the_learned_speed_a_little() -> None:
    admission = Admission(max_requests=8, budget_s=1.0)
    run(admission, [1.0], 0.01)
    run(admission, [1.0], 30.0)
    assert admission.seconds_per_cost <= 0.01 * LARGEST_CHANGE


def test_a_slower_machine_is_learned() -> None:
    admission = Admission(max_requests=8, budget_s=1.0)
    for _ in range(60):
        run(admission, [1.0], 0.05)
    assert admission.seconds_per_cost == pytest.approx(0.05)


def test_a_batch_of_refused_requests_teaches_nothing() -> None:
    admission = Admission(max_requests=8, budget_s=1.0)
    admission.begin()
    admission.end(9.0)
    assert admission.seconds_per_cost == 0.0


def test_the_refusal_says_what_to_do() -> None:
    text = Admission(max_requests=8, budget_s=0.25).refusal()
    assert TOO_BUSY in text
    assert "8 requests or 250 ms" in text


@pytest.mark.parametrize(("requests", "budget_s"), [(0, 1.0), (1, 0.0)])
def test_bounds_that_let_nothing_through_are_refused(requests: int, budget_s: float) -> None:
    with pytest.raises(UserError, match="expected more than 0"):
        Admission(max_requests=requests, budget_s=budget_s)
