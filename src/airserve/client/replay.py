"""Replay a behaviours log against a server: each event is one ranking request, just before it happened.

Open loop: requests are sent when the log says so, whether or not earlier ones were answered, and a latency counts from
the moment at which its request was due. A server that stalls is therefore charged for the requests that waited behind
the stall (what closed-loop generators leave out is known as coordinated omission).

What limits it: one Python thread, about 0.4 ms a request; `sent_late_p99_ms` tells when it could not keep up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.artifacts import ITEMS_FILE
from airserve.client.aio import AsyncRankClient
from airserve.client.wire import EXPLAINED_OUTPUTS, PLAIN_OUTPUTS
from airserve.errors import DataError, ServerError, UserError
from airserve.progress import Progress

COLUMNS = ("user_id", "item_id", "action", "timestamp_s")
SEGMENT_COLUMN = contract.USER_SEGMENT.name
"""Optional; the column is named like the tensor."""
SPIN_S = 1.5e-3
"""An event loop wakes up to a millisecond late; the last bit is waited for awake."""


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """Which part of the log is sent, how fast, and what each request asks."""

    speed: float = 60.0
    """Seconds of the log in one second of the replay; 1 is the recorded rate."""
    max_requests: int = 1000
    """Stop sending after so many."""
    duration_s: float = 60.0
    """Stop sending after this time, seconds."""
    skip_share: float = 0.5
    """Share of the log, in time order, that is history only: at its start nobody has one."""
    candidates: int = 128
    """Items that each request ranks."""
    history: int = contract.MAX_BEHAVIOURS
    """Behaviours that a request carries at most: the last ones."""
    explain: bool = False
    """Ask for chains and evidence too."""
    seed: int = 0
    """Of the candidates."""

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "speed": (1e-9, 1e12),
            "max_requests": (1, 10**9),
            "duration_s": (1e-3, 1e9),
            "skip_share": (0, 1),
            "candidates": (1, contract.MAX_CANDIDATES),
            "history": (0, contract.MAX_BEHAVIOURS),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(name, expected=f"{low:g} to {high:g}", got=str(value), remedy="choose one in between")


def _read(log: Path) -> dict[str, npt.NDArray[Any]]:
    import pyarrow.parquet as pq

    if not log.is_file():
        raise DataError(str(log), expected="a behaviours log, Parquet", got="no such file", remedy="see docs/DATA.md")
    names = pq.read_schema(log).names
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(
            str(log),
            expected=f"columns {', '.join(COLUMNS)}",
            got=f"no {', '.join(missing)}",
            remedy="see docs/DATA.md",
        )
    wanted = [*COLUMNS, *([SEGMENT_COLUMN] if SEGMENT_COLUMN in names else [])]
    table = pq.read_table(log, columns=wanted)
    actions = table.column("action").to_pylist()
    unknown = set(actions) - set(contract.ACTIONS)
    if unknown or not actions:
        raise DataError(
            f"{log}, column action",
            expected=f"events of {', '.join(contract.ACTIONS)}",
            got=repr(sorted(map(str, unknown))[:3]) if unknown else "no event",
            remedy="map your actions to these",
        )
    columns = {name: table.column(name).to_numpy() for name in wanted if name != "action"}
    for name, values in columns.items():
        if values.dtype.kind not in "iu":
            raise DataError(
                f"{log}, column {name}",
                expected="whole numbers",
                got=str(values.dtype),
                remedy="fill nulls and map ids to int64, see docs/DATA.md",
            )
    columns["action"] = np.array([contract.ACTIONS[action] for action in actions], dtype=np.int32)
    columns.setdefault(SEGMENT_COLUMN, np.zeros(len(actions), dtype=np.int32))
    return columns


def _candidate_pool(log: Path, logged_items: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Rankable items of the `items.parquet` beside the log; without it, the items of the log."""
    import pyarrow.parquet as pq

    items = log.with_name(ITEMS_FILE)
    if not items.is_file():
        return np.unique(logged_items).astype(np.int64)
    table = pq.read_table(items)
    pool = table.column("item_id").to_numpy().astype(np.int64)
    if "is_candidate" in table.column_names:
        pool = pool[np.asarray(table.column("is_candidate").to_pylist(), dtype=bool)]
    return np.asarray(pool, dtype=np.int64)


def spread(timestamps_s: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Whole-second times, ascending, as times from the first one, float64 [n]; events of one second share it evenly."""
    _, first, counts = np.unique(timestamps_s, return_index=True, return_counts=True)
    place = np.arange(len(timestamps_s)) - np.repeat(first, counts)
    return np.asarray((timestamps_s - timestamps_s[0]) + place / np.repeat(counts, counts), dtype=np.float64)


class Traffic:
    """The requests of a log, made when they are sent.

    Attributes:
        due_s: when each is to be sent, seconds from the start of the replay, ascending, float64 [n].
    """

    def __init__(self, log: Path, settings: ReplaySettings) -> None:
        columns = _read(log)
        by_user = np.lexsort((columns["timestamp_s"], columns["user_id"]))
        users = columns["user_id"][by_user]
        self._items = columns["item_id"][by_user].astype(np.int64)
        self._actions = columns["action"][by_user]
        self._times = columns["timestamp_s"][by_user].astype(np.int64)
        self._segments = columns[SEGMENT_COLUMN][by_user].astype(np.int32)
        self._starts = np.searchsorted(users, users)
        rng = np.random.default_rng(settings.seed)
        self._pool = rng.permutation(_candidate_pool(log, self._items))
        self._width = min(settings.candidates, len(self._pool))
        if not self._width:
            raise DataError(str(log), expected="items to rank", got="no candidate", remedy="set is_candidate of some")
        self._offsets = rng.integers(0, len(self._pool), size=settings.max_requests)
        self._history = settings.history
        in_time = np.argsort(self._times, kind="stable")
        in_time = in_time[min(int(settings.skip_share * len(in_time)), len(in_time) - 1) :]
        due_s = spread(self._times[in_time]) / settings.speed
        count = min(settings.max_requests, int(np.searchsorted(due_s, settings.duration_s, side="right")))
        self.due_s = due_s[:count]
        self._rows = in_time[:count]

    def __len__(self) -> int:
        return len(self._rows)

    def tensors(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Request `number`, from 0: a batch of one."""
        row = int(self._rows[number])
        past = slice(max(int(self._starts[row]), row - self._history), row)
        window = (self._offsets[number] + np.arange(self._width)) % len(self._pool)
        return {
            contract.BEHAVIOUR_ITEMS.name: self._items[None, past],
            contract.BEHAVIOUR_ACTIONS.name: self._actions[None, past],
            contract.BEHAVIOUR_AGES_S.name: (self._times[row] - self._times[None, past]).astype(np.float32),
            contract.USER_SEGMENT.name: self._segments[None, row : row + 1],
            contract.CANDIDATE_ITEMS.name: self._pool[None, window],
        }


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What a replay measured. Percentiles are over answered requests, from the due time; None when none was."""

    requests: int
    errors: dict[str, int]
    """Number of requests without an answer, by gRPC status."""
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    planned_rate: float
    """Requests per second that the log asks for at this speed."""
    achieved_rate: float
    """Answers per second, until the last one."""
    duration_s: float
    sent_late_p99_ms: float
    """How late the generator itself was; large values mean that it, not the server, is too slow."""


def _report(
    traffic: Traffic, latencies_s: list[float], late_s: list[float], errors: Counter[str], spent_s: float
) -> ReplayReport:
    percentiles: list[float | None] = [None, None, None]
    if latencies_s:
        percentiles = [round(float(value) * 1e3, 3) for value in np.percentile(latencies_s, [50, 90, 99])]
    p50_ms, p90_ms, p99_ms = percentiles
    span_s = float(traffic.due_s[-1])
    return ReplayReport(
        requests=len(traffic),
        errors=dict(errors),
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        planned_rate=round((len(traffic) - 1) / span_s, 3) if span_s > 0 else float(len(traffic)),
        achieved_rate=round(len(latencies_s) / spent_s, 3),
        duration_s=round(spent_s, 3),
        sent_late_p99_ms=round(float(np.percentile(late_s, 99)) * 1e3, 3),
    )


async def replay(client: AsyncRankClient, traffic: Traffic, settings: ReplaySettings) -> ReplayReport:
    """Send all requests when they are due and wait for the answers.

    Every request ends at the client's deadline, so the replay ends by itself.
    """
    await client.connect()
    loop = asyncio.get_running_loop()
    outputs = EXPLAINED_OUTPUTS if settings.explain else PLAIN_OUTPUTS
    latencies_s: list[float] = []
    late_s: list[float] = []
    errors: Counter[str] = Counter()

    async def one(number: int, due: float) -> None:
        try:
            await client.infer(traffic.tensors(number), outputs)
        except ServerError as error:
            errors[error.status] += 1
        else:
            latencies_s.append(loop.time() - due)

    began = loop.time()
    with Progress("replaying", len(traffic), "requests") as progress:
        async with asyncio.TaskGroup() as group:
            for number, due_s in enumerate(traffic.due_s.tolist()):
                due = began + due_s
                await asyncio.sleep(max(due - loop.time() - SPIN_S, 0))
                while loop.time() < due:
                    await asyncio.sleep(0)
                late_s.append(loop.time() - due)
                group.create_task(one(number, due))
                failed = errors.total()
                in_flight = number + 1 - len(latencies_s) - failed
                progress.advance(note=f"{in_flight} in flight, {failed} errors")
    return _report(traffic, latencies_s, late_s, errors, loop.time() - began)
