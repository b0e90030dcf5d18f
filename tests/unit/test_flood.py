"""The raw generator of overloads speaks to gRPC's own server, and tells the status of every call."""

from __future__ import annotations

import concurrent.futures
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from airserve.bench.flood import LARGEST_FRAME, Flood, status_of
from airserve.bench.overload import OverloadSettings, open_loop, peak_per_s
from airserve.client.raw import INFER
from airserve.errors import EngineError

ANSWER = b"x" * 5_000


class Handler(grpc.GenericRpcHandler):
    """Answers a message by its first letter; keeps the lengths it saw."""

    def __init__(self) -> None:
        self.lengths: Counter[int] = Counter()

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self.answer) if details.method == INFER else None

    def answer(self, message: bytes, context: Any) -> bytes:
        self.lengths[len(message)] += 1
        if message[:1] == b"u":
            context.abort(grpc.StatusCode.UNAVAILABLE, "too many requests")
        if message[:1] == b"s":
            time.sleep(1.5)
        return ANSWER


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def url(handler: Handler) -> Iterator[str]:
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def statuses(flood: Flood, numbers: list[int]) -> list[str]:
    """The status of each call, in the order in which they were started."""
    streams = [flood.start(number) for number in numbers]
    found: dict[int, str] = {}
    deadline = time.monotonic() + 60
    while len(found) < len(streams) and time.monotonic() < deadline:
        found.update(flood.ended(0.1))
    return [found[stream] for stream in streams]


def test_each_call_ends_with_the_status_that_the_server_gave_it(url: str) -> None:
    with Flood(url, [b"good", b"unavailable", b""], timeout_s=30) as flood:
        assert statuses(flood, [0, 1, 0, 1, 2]) == ["OK", "UNAVAILABLE", "OK", "UNAVAILABLE", "OK"]


def test_messages_of_many_frames_arrive_whole_and_do_not_overrun_the_connection(url: str, handler: Handler) -> None:
    sizes = (LARGEST_FRAME - 5, LARGEST_FRAME, 60_000)
    with Flood(url, [b"g" * size for size in sizes], timeout_s=30) as flood:
        assert statuses(flood, [0, 1, 2] * 40) == ["OK"] * 120
    assert handler.lengths == dict.fromkeys(sizes, 40)


def test_the_server_is_told_the_deadline(url: str) -> None:
    with Flood(url, [b"slow"], timeout_s=1) as flood:
        assert statuses(flood, [0]) in (["DEADLINE_EXCEEDED"], ["CANCELLED"])


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError, match="no connection"):
        Flood("127.0.0.1:1", [b"good"], timeout_s=1)


def test_a_server_that_goes_away_is_an_error_and_not_a_silence(handler: Handler) -> None:
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Flood(f"127.0.0.1:{port}", [b"good"], timeout_s=30) as flood:
        assert statuses(flood, [0]) == ["OK"]
        server.stop(None).wait()
        with pytest.raises(EngineError, match="connection"):
            statuses(flood, [0])


def test_the_open_loop_sends_what_it_was_told_and_counts_every_call(url: str) -> None:
    settings = OverloadSettings(seconds=1.0, lead_s=0.2)
    outcome = open_loop(url, [b"good", b"unavailable"], 200.0, settings)
    assert 0 < outcome.sent <= 201
    assert outcome.statuses.total() == outcome.sent
    assert outcome.statuses["OK"] == (outcome.sent + 1) // 2
    assert len(outcome.refused_ms) == outcome.sent // 2


def test_calls_that_are_never_answered_are_counted_as_hung(url: str) -> None:
    settings = OverloadSettings(seconds=0.3, lead_s=0.0, watchdog_s=0.5)
    outcome = open_loop(url, [b"slow"], 20.0, settings)
    assert outcome.statuses["DEADLINE_EXCEEDED"] == outcome.sent > 0


def test_the_peak_counts_good_answers_only(url: str) -> None:
    settings = OverloadSettings(seconds=0.5, lead_s=0.0)
    assert peak_per_s(url, [b"good"], settings) > 0
    assert peak_per_s(url, [b"unavailable"], settings) == 0


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"\x40\x0bgrpc-status\x010", "OK"),
        (b"\x00\x0bgrpc-status\x0214\x00\x0cgrpc-message\x04busy", "UNAVAILABLE"),
        (b"\x00\x0bgrpc-status\x0299", "UNKNOWN"),
        (b"\x88", "UNKNOWN"),
    ],
)
def test_the_status_is_read_from_the_trailers(block: bytes, status: str) -> None:
    assert status_of(block) == status
