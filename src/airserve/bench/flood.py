"""gRPC calls on one raw HTTP/2 connection, for loads of ten times what a server can answer on the cores it runs on.

What limits it: the kernel's copy of each message. A call through grpcio takes 0.3 ms of CPU, as much as the server
needs to refuse it; here it takes 0.05 ms, because messages are framed once and only their stream number is written
anew. It asks for unary calls over plain TCP, reads of an answer no more than its status, and knows just enough of
HTTP/2 (RFC 9113) and its header compression (RFC 7541) for that.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from airserve.client.raw import INFER
from airserve.errors import EngineError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
TABLE_SIZE, PUSH, STREAM_WINDOW = 1, 2, 4
LARGEST_WINDOW = 2**31 - 1
FIRST_WINDOW = 65_535
"""Bytes that may be sent before the other side announces more, on the connection and on each stream."""
LARGEST_FRAME = 16_384
STATUS_HEADER = b"grpc-status"
STATUSES = {b"0": "OK", b"3": "INVALID_ARGUMENT", b"4": "DEADLINE_EXCEEDED", b"13": "INTERNAL", b"14": "UNAVAILABLE"}
RECEIVE_BYTES = 1 << 18


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that is not to be remembered, in HPACK; both shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Prepared:
    """The frames of a unary call, complete but for the number of its stream.

    Args:
        message: the encoded request, at most what a stream may carry before it is allowed more.
        authority: `host:port`.
        timeout_s: deadline that the server is told, whole seconds >= 1.
    """

    def __init__(self, message: bytes, authority: str, timeout_s: int) -> None:
        headers = b"".join(
            _literal(name, value)
            for name, value in (
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", INFER.encode()),
                (b":authority", authority.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"grpc-timeout", b"%dS" % timeout_s),
            )
        )
        body = b"\x00" + struct.pack(">I", len(message)) + message
        frames = [frame(HEADERS, END_HEADERS, 0, headers)]
        starts = range(0, len(body), LARGEST_FRAME)
        for start in starts:
            last = END_STREAM if start == starts[-1] else 0
            frames.append(frame(DATA, last, 0, body[start : start + LARGEST_FRAME]))
        self.data_bytes = len(body)
        self._frames = bytearray(b"".join(frames))
        self._places: list[int] = []
        at = 0
        for part in frames:
            self._places.append(at + 5)
            at += len(part)

    def on(self, stream: int) -> bytearray:
        """The frames for one stream; overwritten by the next call."""
        for place in self._places:
            struct.pack_into(">I", self._frames, place, stream)
        return self._frames


class Flood:
    """One connection on which calls are started without waiting for their answers.

    Args:
        url: `host:port` of the server.
        messages: encoded requests; calls are made of them by number.
        timeout_s: deadline of each call, whole seconds.

    Raises:
        EngineError: when the server cannot be reached or ends the connection.
    """

    def __init__(self, url: str, messages: Sequence[bytes], *, timeout_s: int) -> None:
        host, port = url.rsplit(":", 1)
        try:
            self._socket = socket.create_connection((host, int(port)), timeout=10)
        except OSError as error:
            raise EngineError(f"{url}: no connection ({error}); is the server up?") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._calls = [Prepared(message, url, timeout_s) for message in messages]
        self._next_stream = 1
        self._window = FIRST_WINDOW
        self._waiting: list[tuple[int, int]] = []
        """Stream and message number of calls that the connection's window has no room for yet."""
        self._unsent = bytearray()
        self._received = bytearray()
        settings = struct.pack(">HIHIHI", TABLE_SIZE, 0, PUSH, 0, STREAM_WINDOW, LARGEST_WINDOW)
        more = struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW)
        self._write(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, more))

    def start(self, number: int) -> int:
        """Start a call with message `number`; the name under which `ended` will report it."""
        stream = self._next_stream
        self._next_stream += 2
        self._waiting.append((stream, number))
        self._send_waiting()
        return stream

    def ended(self, wait_s: float) -> list[tuple[int, str]]:
        """Calls that ended, with their status; waits for input for `wait_s` at most."""
        readable, writable, _ = select.select([self._socket], [self._socket] if self._unsent else [], [], wait_s)
        if writable:
            self._write(b"")
        if not readable:
            return []
        try:
            read = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise EngineError(f"connection: broken ({error}); look at the server's log") from error
        if not read:
            raise EngineError("connection: ended by the server; look at its log")
        self._received += read
        return self._read_frames()

    def _write(self, frames: bytes | bytearray) -> None:
        if self._unsent:
            self._unsent += frames
            frames = self._unsent
        try:
            sent = self._socket.send(frames)
        except BlockingIOError:
            sent = 0
        self._unsent = bytearray(memoryview(frames)[sent:])

    def _send_waiting(self) -> None:
        done = 0
        for stream, number in self._waiting:
            call = self._calls[number]
            if call.data_bytes > self._window:
                break
            self._window -= call.data_bytes
            self._write(call.on(stream))
            done += 1
        del self._waiting[:done]

    def _read_frames(self) -> list[tuple[int, str]]:
        ended: list[tuple[int, str]] = []
        buffer, at = self._received, 0
        while at + 9 <= len(buffer):
            head, flags, stream = struct.unpack_from(">IBI", buffer, at)
            length, kind = head >> 8, head & 0xFF
            if at + 9 + length > len(buffer):
                break
            payload = bytes(buffer[at + 9 : at + 9 + length]) if kind != DATA else b""
            at += 9 + length
            if kind == HEADERS and flags & END_STREAM:
                ended.append((stream, status_of(payload)))
            elif kind == RESET:
                ended.append((stream, "CANCELLED"))
            elif kind == WINDOW_UPDATE and stream == 0:
                self._window += struct.unpack(">I", payload)[0]
            elif kind == PING and not flags & ACK:
                self._write(frame(PING, ACK, 0, payload))
            elif kind == SETTINGS and not flags & ACK:
                self._write(frame(SETTINGS, ACK, 0, b""))
            elif kind == GO_AWAY:
                raise EngineError("connection: the server wants no more calls on it; start it again")
        del buffer[:at]
        self._send_waiting()
        return ended

    def __enter__(self) -> Flood:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def status_of(headers: bytes) -> str:
    """The gRPC status in a block of trailers that was encoded without a table, its name; `UNKNOWN` for any other."""
    at = headers.find(STATUS_HEADER)
    if at < 0:
        return "UNKNOWN"
    at += len(STATUS_HEADER)
    return STATUSES.get(headers[at + 1 : at + 1 + (headers[at] & 0x7F)], "UNKNOWN")
