"""Which of the waiting requests are answered, and which are refused at once: the bound of a Python model's queue.

Triton can bound a queue itself (`max_queue_size`, `default_timeout_microseconds`), but either one makes its dynamic
batcher wait for a model instance that announces itself, and on Triton 2.51 an announcement can be missed: a request on
an idle server then waits for the batcher's 500 ms poll, or is refused when its own timeout is as long. In
`perf/probe_queue_stalls.py` 3 to 8 % of single calls met it. So Python models take all that waits in one batch, answer
as many as can be done in time, and refuse the rest: no request waits longer than one batch before it is looked at.
"""

from __future__ import annotations

from airserve.errors import TOO_BUSY, UserError

SMOOTHING = 0.2
"""Weight of the newest batch in the learned speed."""
LARGEST_CHANGE = 2.0
"""A batch changes the learned speed by this factor at most: one pause of the machine must not refuse what follows."""


class Admission:
    """The bound of one model's queue, in requests and in predicted seconds.

    Args:
        max_requests: answered in one batch at most, >= 1.
        budget_s: predicted seconds of a batch at most, > 0; its first request is always answered.

    Raises:
        UserError: for bounds that let nothing through.
    """

    def __init__(self, *, max_requests: int, budget_s: float) -> None:
        for name, value in (("max_requests", max_requests), ("budget_s", budget_s)):
            if value <= 0:
                raise UserError(name, expected="more than 0", got=str(value), remedy="raise it")
        self.max_requests = max_requests
        self.budget_s = budget_s
        self.seconds_per_cost = 0.0
        """Learned; 0 before the first batch."""
        self._before = 0, 0.0
        self._taken = 0
        self._cost = 0.0

    def begin(self, requests: int = 0, cost: float = 0.0) -> None:
        """A batch begins, while so many requests are still being answered."""
        self._before = requests, cost
        self._taken, self._cost = 0, 0.0

    def has_room(self) -> bool:
        """Whether one more request of this batch is answered."""
        requests, cost = self._before[0] + self._taken, self._before[1] + self._cost
        return requests == 0 or (requests < self.max_requests and cost * self.seconds_per_cost < self.budget_s)

    def take(self, cost: float) -> None:
        """One request is answered; `cost` is its share of a batch, in any unit."""
        self._taken += 1
        self._cost += cost

    def end(self, seconds: float) -> None:
        """The batch took so long; learn from it."""
        self.learn(self._cost, seconds)

    def learn(self, cost: float, seconds: float) -> None:
        """What cost so much took so long."""
        if cost <= 0:
            return
        seen = seconds / cost
        if self.seconds_per_cost:
            low, high = self.seconds_per_cost / LARGEST_CHANGE, self.seconds_per_cost * LARGEST_CHANGE
            seen = SMOOTHING * min(max(seen, low), high) + (1 - SMOOTHING) * self.seconds_per_cost
        self.seconds_per_cost = seen

    def refusal(self) -> str:
        """What a refused caller is told; `TOO_BUSY` is in it."""
        return (
            f"{TOO_BUSY}: expected at most {self.max_requests} requests or {1e3 * self.budget_s:g} ms of work waiting, "
            "got more; send it again later, or add servers"
        )
