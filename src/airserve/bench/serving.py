"""Compare a served model with the same computation in process, interleaved in one run.

What limits it: one gRPC round trip on loopback, Triton's hand-over to the Python backend, and the client; the graph
itself is in both. On a machine that others use too, only the ratios mean something.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve.bench.inprocess import InProcess
from airserve.bench.load import Wire, closed_loop, encode_call, executed
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.client import RankClient
from airserve.client.wire import PLAIN_OUTPUTS
from airserve.errors import UserError

Array = npt.NDArray[Any]
TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class ServingBench:
    """What is measured."""

    rounds: int = 20
    """Blocks of single calls; each asks in process, through the client, and with encoded messages."""
    calls: int = 20
    """Calls of each kind in a block."""
    seconds: float = 3.0
    """Length of each throughput measurement; two are made of each kind."""
    concurrency: int = 16

    def __post_init__(self) -> None:
        for name in ("rounds", "calls", "seconds", "concurrency"):
            value = getattr(self, name)
            if value <= 0:
                raise UserError(name, expected="more than 0", got=str(value), remedy="raise it")


def _timed_ms(call: Any, requests: Sequence[Any]) -> list[float]:
    spent = []
    for request in requests:
        start = time.perf_counter()
        call(request)
        spent.append(1e3 * (time.perf_counter() - start))
    return spent


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its living descendants."""
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # ended meanwhile
            continue
        parents[int(entry.name)] = int(fields[1])
        used[int(entry.name)] = (int(fields[11]) + int(fields[12])) / tick
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(used.get(member, 0.0) for member in family)


def measure_latency(url: str, local: InProcess, bench: ServingBench) -> dict[str, float]:
    """One request at a time, L=C=128: in process, through the client, encoded, and with C doubled; interleaved.

    Returns:
        `p50_over_inprocess` and `p99_over_p50` through the client, `c_doubling`, and what they were made of.
    """
    settings = WorkloadSettings(count=bench.rounds * bench.calls)
    usual = make_requests(local.table, settings)
    wider = make_requests(local.table, WorkloadSettings(candidates=256, count=settings.count))
    spent: dict[str, list[float]] = {name: [] for name in ("inprocess", "client", "wire", "wider")}
    with RankClient(url, timeout_s=TIMEOUT_S) as client, Wire(url) as wire:

        def ask(tensors: Mapping[str, Array]) -> Any:
            return client.infer(tensors, PLAIN_OUTPUTS)

        for request in (*usual[:30], *wider[:10]):
            local.answer(request), ask(request)
        for number in range(bench.rounds):
            block = slice(number * bench.calls, (number + 1) * bench.calls)
            messages = [encode_call(request) for request in usual[block]]
            spent["inprocess"] += _timed_ms(local.answer, usual[block])
            spent["client"] += _timed_ms(ask, usual[block])
            spent["wire"] += _timed_ms(lambda message: wire.ask(message, TIMEOUT_S), messages)
            spent["wider"] += _timed_ms(ask, wider[block])
    p50 = {name: float(np.quantile(times, 0.5)) for name, times in spent.items()}
    p99 = {name: float(np.quantile(times, 0.99)) for name, times in spent.items()}
    return {
        "p50_over_inprocess": round(p50["client"] / p50["inprocess"], 3),
        "p99_over_p50": round(p99["client"] / p50["client"], 3),
        "c_doubling": round(p50["wider"] / p50["client"], 3),
        "rank_p50_ms": round(p50["client"], 3),
        "rank_p99_ms": round(p99["client"], 3),
        "rank_c256_p99_ms": round(p99["wider"], 3),
        "inprocess_p50_ms": round(p50["inprocess"], 3),
        "inprocess_p99_ms": round(p99["inprocess"], 3),
        "wire_p50_over_inprocess": round(p50["wire"] / p50["inprocess"], 3),
    }


def measure_throughput(url: str, pid: int, model: str, local: InProcess, bench: ServingBench) -> dict[str, float]:
    """Saturated throughput against in-process throughput, and the mean batch of a mixed stream.

    Args:
        url: of the server.
        pid: its process, for the CPU time that a request takes.
        model: the one whose executions are counted.
        local: the computation in process.
        bench: lengths and concurrency.
    """
    requests = make_requests(local.table, WorkloadSettings(count=64))
    messages = [encode_call(request) for request in requests]
    mixed = [encode_call(r) for r in make_requests(local.table, WorkloadSettings(count=64, mixed=True))]
    inprocess, served, server_cpu_ms, local_cpu_ms = [], [], [], []
    for _ in range(2):
        used_s = time.process_time()
        inprocess.append(local.throughput(requests, bench.seconds))
        local_cpu_ms.append(1e3 * (time.process_time() - used_s) / (inprocess[-1] * bench.seconds))
        used_s = cpu_s(pid)
        load = closed_loop(url, messages, concurrency=bench.concurrency, seconds=bench.seconds, timeout_s=TIMEOUT_S)
        served.append(load.per_second)
        server_cpu_ms.append(1e3 * (cpu_s(pid) - used_s) / max(sum(load.statuses.values()), 1))
    before = executed(url, model)
    closed_loop(url, mixed, concurrency=bench.concurrency, seconds=bench.seconds, timeout_s=TIMEOUT_S)
    return {
        "throughput_over_inprocess": round(float(np.mean(served) / np.mean(inprocess)), 3),
        "mean_batch": round(executed(url, model).mean_batch_since(before), 2),
        "throughput_per_s": round(float(np.mean(served)), 1),
        "inprocess_per_s": round(float(np.mean(inprocess)), 1),
        "server_cpu_ms_per_request": round(float(np.mean(server_cpu_ms)), 3),
        "inprocess_cpu_ms_per_request": round(float(np.mean(local_cpu_ms)), 3),
    }


def measure_sizes(url: str, local: InProcess, calls: int = 40) -> dict[str, dict[str, float]]:
    """p50 in milliseconds against L and against C, the other at 128, with encoded messages."""
    sizes = (16, 32, 64, 128, 256, 512, 1024)
    messages: dict[tuple[str, int], list[bytes]] = {}
    for size in sizes:
        for axis, settings in (
            ("L", WorkloadSettings(behaviours=size, count=8)),
            ("C", WorkloadSettings(candidates=size, count=8)),
        ):
            messages[axis, size] = [encode_call(request) for request in make_requests(local.table, settings)]
    spent: dict[tuple[str, int], list[float]] = {key: [] for key in messages}
    with Wire(url) as wire:
        for _ in range(max(calls // 8, 1)):
            for key, block in messages.items():
                spent[key] += _timed_ms(lambda message: wire.ask(message, TIMEOUT_S), block)
    medians = {key: round(float(np.quantile(times, 0.5)), 3) for key, times in spent.items()}
    return {axis: {str(size): medians[axis, size] for size in sizes} for axis in ("L", "C")}
