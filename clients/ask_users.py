"""Serve a model repository with a real Triton, ask it for logged users, print the answers and measure the requests."""

import logging
import sys
from pathlib import Path

import cyclopts
import numpy as np
from rich.console import Console

from airserve import contract
from airserve.artifacts import SAMPLE_ANSWERS_FILE
from airserve.bench.latency import time_calls
from airserve.cli import run_script
from airserve.client import NodeTexts, RankClient, to_tensors
from airserve.client.wire import PLAIN_OUTPUTS
from airserve.files import write_json
from airserve.progress import track
from airserve.showcase import Catalogue, Presenter, as_record, logged_users
from airserve.triton.server import ServerSettings, TritonServer

log = logging.getLogger("ask_users")


def main(
    *,
    data: Path = Path("artifacts/demo/data"),
    tables: Path = Path("artifacts/demo/tables"),
    repository: Path = Path("artifacts/demo/model_repository"),
    out: Path = Path("artifacts/demo") / SAMPLE_ANSWERS_FILE,
    show: int = 3,
    record: int = 10,
    requests: int = 500,
    candidates: int = 128,
) -> dict[str, object]:
    """Start Triton, rank for users of the test split, show and measure.

    Args:
        data: data folder.
        tables: tables folder, for the texts of the chains.
        repository: the model repository to serve.
        out: where sample answers go, JSON.
        show: users to print.
        record: users in `out`.
        requests: timed requests, one at a time.
        candidates: items that each request ranks.
    """
    catalogue = Catalogue.open(data)
    texts = NodeTexts.open(tables)
    users = logged_users(data, catalogue, count=requests, candidates=candidates)
    presenter = Presenter(Console(file=sys.stderr, width=min(Console().width, 100)), catalogue, texts)
    log.info("starting Triton on %s", repository)
    with TritonServer(ServerSettings(repository=repository)) as server, RankClient(server.grpc_url) as client:
        answers = [client.rank([user.request], explain=True)[0] for user in users[: max(show, record)]]
        for user, answer in zip(users[:show], answers[:show], strict=True):
            presenter.show(user, answer)
        tensors = [to_tensors([user.request]) for user in users]
        timed = time_calls(lambda request: client.infer(request, PLAIN_OUTPUTS), tensors)
        coverage = [
            float(client.infer(request, PLAIN_OUTPUTS)[contract.COVERAGE.name][0, 0])
            for request in track(tensors, "measuring coverage", len(tensors), "requests")
        ]
        version = server.version()
    records = [as_record(u, a, catalogue, texts, 3) for u, a in zip(users[:record], answers[:record], strict=True)]
    write_json(out, records)
    return {
        "coverage": round(float(np.mean(coverage)), 4),
        "rank_p50_ms": round(timed.p50_ms, 3),
        "rank_p99_ms": round(timed.p99_ms, 3),
        "requests": timed.calls,
        "candidates": candidates,
        "triton_version": version,
    }


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
