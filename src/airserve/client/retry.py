"""When a failed call is sent again, and when it is given up; decisions only, no waiting.

Ranking reads and changes nothing, so sending a request twice is safe. It is useful only where the first one did not
run: the server could not be reached, or refused because it is full (UNAVAILABLE). A refused request (INVALID_ARGUMENT)
is refused again, and a request that ran out of time (DEADLINE_EXCEEDED) has none left.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from airserve.errors import TOO_BUSY, UserError

UNAVAILABLE = "StatusCode.UNAVAILABLE"
DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"
INTERNAL = "StatusCode.INTERNAL"
REFUSALS = frozenset({"StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "StatusCode.ALREADY_EXISTS"})
NOT_REACHED = "failed to connect"
"""In gRPC's message of a call that was never sent."""
QUEUE_FULL = "Exceeds maximum queue size"
"""In Triton's refusal of a call that was never run."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how soon an unavailable server is asked again, always within the call's deadline."""

    attempts: int = 4
    """Calls sent at most, the first one included; 1 switches retries off."""
    first_delay_s: float = 0.05
    """Longest wait before the second attempt, seconds."""
    factor: float = 2.0
    """Each further wait is longer by this factor."""
    max_delay_s: float = 1.0
    """Longest wait between two attempts, seconds."""
    jitter: float = 0.5
    """Share of each wait that is drawn at random, so that clients do not return all at once; 0 to 1."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise UserError("attempts", expected="at least 1", got=str(self.attempts), remedy="1 switches retries off")
        if self.first_delay_s < 0 or self.max_delay_s < self.first_delay_s:
            raise UserError(
                "first_delay_s",
                expected="0 or more, at most max_delay_s",
                got=f"{self.first_delay_s} with max_delay_s={self.max_delay_s}",
                remedy="raise max_delay_s or lower first_delay_s",
            )
        if self.factor < 1:
            raise UserError("factor", expected="at least 1", got=str(self.factor), remedy="1 keeps the wait constant")
        if not 0 <= self.jitter <= 1:
            raise UserError("jitter", expected="0 to 1", got=str(self.jitter), remedy="0.5 is a good value")

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait after attempt number `attempt` (from 1) failed."""
        longest = self.first_delay_s * self.factor ** min(attempt - 1, 64)
        return min(longest, self.max_delay_s) * (1 - self.jitter * rng.random())


class RetryBudget:
    """Keeps retries from multiplying the load of a server that is full.

    Each unavailable answer costs one token, each good one earns a tenth; below half there is no retry. This is the
    throttling rule of gRPC's own retry design (gRFC A6). A client that has seen good answers may retry; one that sees
    only refusals sends each request once.
    """

    TOKENS = 10.0
    EARNED = 0.1

    def __init__(self) -> None:
        self._tokens = self.TOKENS

    def earn(self) -> None:
        """A call was answered."""
        self._tokens = min(self._tokens + self.EARNED, self.TOKENS)

    def spend(self) -> bool:
        """A call found the server unavailable; returns whether it may be sent again."""
        self._tokens = max(self._tokens - 1.0, 0.0)
        return self._tokens > self.TOKENS / 2


class Deadline:
    """The end of a call, all its parts and attempts together.

    Args:
        timeout_s: seconds from now, > 0.
        clock: a monotonic clock, seconds.

    Raises:
        UserError: for a timeout that is not positive.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not timeout_s > 0:
            raise UserError("timeout_s", expected="seconds > 0", got=str(timeout_s), remedy="5.0 is the default")
        self.timeout_s = timeout_s
        self._clock = clock
        self._end = clock() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left; negative when it has passed."""
        return self._end - self._clock()


def next_delay_s(
    status: str,
    message: str,
    attempt: int,
    *,
    policy: RetryPolicy,
    budget: RetryBudget,
    remaining_s: float,
    rng: random.Random,
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up.

    Args:
        status: gRPC status of the failed attempt.
        message: what came with it.
        attempt: its number, from 1.
        policy: the client's.
        budget: the client's; charged for what reached a server, since a server that is gone has no load.
        remaining_s: time left until the deadline.
        rng: of the jitter.
    """
    if status != UNAVAILABLE:
        return None
    if NOT_REACHED not in message and not budget.spend():
        return None
    if attempt >= policy.attempts:
        return None
    delay_s = policy.delay_s(attempt, rng)
    return delay_s if delay_s < remaining_s else None


def was_answered(status: str, message: str) -> bool:
    """Whether a failed call is certainly over at the server, so that it no longer touches memory shared with it."""
    return status in REFUSALS or (
        status == UNAVAILABLE and any(sign in message for sign in (NOT_REACHED, QUEUE_FULL, TOO_BUSY))
    )
