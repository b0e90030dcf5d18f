"""Load on a served model over gRPC, cheap enough to run on the server's own cores.

Messages are encoded once and sent as bytes, answers are not decoded, so that the load generator takes little of what it
measures. `airserve.client` is measured apart, with its own costs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

from airserve.client.raw import INFER, encode_infer
from airserve.client.wire import PLAIN_OUTPUTS

Array = npt.NDArray[Any]
OK = "OK"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


def encode_call(tensors: Mapping[str, Array], outputs: Sequence[str] = PLAIN_OUTPUTS) -> bytes:
    """The gRPC message of a call to the public model."""
    return encode_infer(tensors, outputs)


class Wire:
    """One connection that sends encoded calls; threads may share it."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url, options=OPTIONS)
        self._infer = self._channel.unary_unary(INFER)

    def call(self, message: bytes, timeout_s: float) -> tuple[str, bytes]:
        """Send one call and wait; the gRPC status, and the encoded answer or the text of the refusal."""
        try:
            answer: bytes = self._infer(message, timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name), str(error.details()).encode()
        return OK, answer

    def ask(self, message: bytes, timeout_s: float) -> str:
        """Send one call and wait; the gRPC status, `OK` or its name."""
        return self.call(message, timeout_s)[0]

    def start(self, message: bytes, timeout_s: float, done: Callable[[str], None]) -> None:
        """Send one call; `done` is called with its status, from another thread."""
        future = self._infer.future(message, timeout=timeout_s)
        future.add_done_callback(lambda call: done(str(call.code().name)))

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()


@dataclass(kw_only=True)
class LoadResult:
    """What a load met with."""

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    """Of the calls that were answered with OK."""

    @property
    def per_second(self) -> float:
        """Calls answered with OK per second."""
        return self.statuses[OK] / self.seconds if self.seconds else 0.0

    def quantile_ms(self, share: float) -> float:
        """A quantile of the latencies, NaN without any."""
        return float(np.quantile(self.latencies_ms, share)) if self.latencies_ms else float("nan")


def closed_loop(
    url: str, messages: Sequence[bytes], *, concurrency: int, seconds: float, timeout_s: float = 10.0
) -> LoadResult:
    """Keep `concurrency` calls in flight for a time, each on a connection of its own thread."""
    result, lock = LoadResult(), threading.Lock()
    begin = time.perf_counter()

    def work(first: int) -> None:
        own = LoadResult()
        at = first
        with Wire(url) as wire:
            while time.perf_counter() - begin < seconds:
                start = time.perf_counter()
                status = wire.ask(messages[at % len(messages)], timeout_s)
                own.statuses[status] += 1
                if status == OK:
                    own.latencies_ms.append(1e3 * (time.perf_counter() - start))
                at += concurrency
        with lock:
            result.statuses.update(own.statuses)
            result.latencies_ms.extend(own.latencies_ms)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - begin
    return result


@dataclass(frozen=True, kw_only=True)
class Executed:
    """Counters of a model, as Triton counts."""

    inferences: int
    executions: int

    def mean_batch_since(self, before: Executed) -> float:
        """Inferences per execution after `before`; 0 when nothing was executed."""
        executions = self.executions - before.executions
        return (self.inferences - before.inferences) / executions if executions else 0.0


def executed(url: str, model: str) -> Executed:
    """Read a model's counters from the server."""
    client = triton.InferenceServerClient(url)
    try:
        stats = client.get_inference_statistics(model).model_stats[0]
        return Executed(inferences=stats.inference_count, executions=stats.execution_count)
    finally:
        client.close()
