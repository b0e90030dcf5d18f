"""How a client's channel is opened: TLS, keepalive, reconnecting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airserve.errors import UserError

NEVER_MS = 2**31 - 1
MAX_MESSAGE_BYTES = 2**31 - 1
FIRST_RECONNECT_MS = 100
MAX_RECONNECT_MS = 2_000
"""gRPC's own default is two minutes: a restarted server would be refused that long."""


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """Files of an encrypted connection, PEM."""

    root_certificates: Path | None = None
    """Authorities that may have signed the server's certificate; gRPC's own list when None."""
    certificate_chain: Path | None = None
    """This client's certificate, for servers that want one (mutual TLS)."""
    private_key: Path | None = None
    """Key of `certificate_chain`."""

    def __post_init__(self) -> None:
        if (self.certificate_chain is None) != (self.private_key is None):
            raise UserError(
                "certificate_chain, private_key",
                expected="both or neither",
                got=f"{self.certificate_chain} and {self.private_key}",
                remedy="give both for mutual TLS",
            )
        for name in ("root_certificates", "certificate_chain", "private_key"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise UserError(name, expected="a PEM file", got=f"{path}, no such file", remedy="check the path")


@dataclass(frozen=True, kw_only=True)
class KeepAlive:
    """Pings that keep an idle connection open and notice a dead one."""

    time_s: float = 300.0
    """Between pings, seconds. Servers close a connection that pings oftener than they allow; Triton's default allows
    one in 300 s (`--grpc-http2-min-recv-ping-interval-without-data`)."""
    timeout_s: float = 20.0
    """The connection is given up when a ping is not answered within this time, seconds."""
    while_idle: bool = False
    """Ping also while no call is running. Triton must allow it (`--grpc-keepalive-permit-without-calls`)."""

    def __post_init__(self) -> None:
        if self.time_s < 10:
            raise UserError("time_s", expected="at least 10 s (gRPC's bound)", got=str(self.time_s), remedy="raise it")
        if self.timeout_s <= 0:
            raise UserError("timeout_s", expected="seconds > 0", got=str(self.timeout_s), remedy="20 is gRPC's default")


def channel_settings(tls: TlsSettings | None, keepalive: KeepAlive | None) -> dict[str, Any]:
    """Keyword arguments of tritonclient's `InferenceServerClient`, blocking and asyncio alike."""
    arguments: list[tuple[str, int]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        ("grpc.keepalive_time_ms", NEVER_MS if keepalive is None else round(keepalive.time_s * 1e3)),
    ]
    if keepalive is not None:
        arguments += [
            ("grpc.keepalive_timeout_ms", round(keepalive.timeout_s * 1e3)),
            ("grpc.keepalive_permit_without_calls", int(keepalive.while_idle)),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    settings: dict[str, Any] = {"channel_args": arguments}
    if tls is not None:
        settings["ssl"] = True
        for name in ("root_certificates", "certificate_chain", "private_key"):
            path = getattr(tls, name)
            settings[name] = None if path is None else str(path)
    return settings
