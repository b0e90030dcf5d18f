"""Replay a behaviours log (Parquet) against a running server at its recorded or a scaled rate, and report latencies."""

import asyncio
import dataclasses
import logging
from pathlib import Path

import cyclopts

from airserve.artifacts import BEHAVIOURS_FILE
from airserve.cli import run_script
from airserve.client import AsyncRankClient, RetryPolicy, TlsSettings
from airserve.client.replay import ReplayReport, ReplaySettings, Traffic, replay

log = logging.getLogger("replay_traffic")


def main(
    *,
    url: str = "127.0.0.1:8001",
    behaviours: Path = Path("artifacts/demo/data") / BEHAVIOURS_FILE,
    speed: float = 60.0,
    max_requests: int = 1000,
    duration_s: float = 60.0,
    skip_share: float = 0.5,
    candidates: int = 128,
    history: int = 1024,
    explain: bool = False,
    timeout_s: float = 5.0,
    attempts: int = 1,
    shared_memory: bool = False,
    root_certificates: Path | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Replay a log; ends by itself.

    Args:
        url: host:port of the server's gRPC endpoint.
        behaviours: the log; candidates are drawn from the items.parquet beside it, else from the log's own items.
        speed: seconds of the log in one second; 1 is the recorded rate.
        max_requests: stop sending after so many.
        duration_s: stop sending after so long.
        skip_share: share of the log that is history only.
        candidates: items that each request ranks.
        history: behaviours that a request carries at most.
        explain: ask for chains and evidence too.
        timeout_s: deadline of each request.
        attempts: calls sent at most for a request that finds the server unavailable.
        shared_memory: pass tensors through shared memory (server on this machine).
        root_certificates: PEM file; switches TLS on.
        seed: of the candidates.
    """
    settings = ReplaySettings(
        speed=speed,
        max_requests=max_requests,
        duration_s=duration_s,
        skip_share=skip_share,
        candidates=candidates,
        history=history,
        explain=explain,
        seed=seed,
    )
    traffic = Traffic(behaviours, settings)
    log.info("%d requests in %.1f s", len(traffic), traffic.due_s[-1])

    async def run() -> ReplayReport:
        async with AsyncRankClient(
            url,
            timeout_s=timeout_s,
            retry=RetryPolicy(attempts=attempts),
            tls=TlsSettings(root_certificates=root_certificates) if root_certificates else None,
            shared_memory=shared_memory,
        ) as client:
            return await replay(client, traffic, settings)

    return dataclasses.asdict(asyncio.run(run()))


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
