"""Load a served `air` ensemble over gRPC with Locust, and fail when a latency target is missed.

    make serve &
    .venv/bin/locust -f perf/locustfile.py --headless --users 8 --run-time 30s --host 127.0.0.1:8001

What limits it: Locust's own Python, about 2,000 requests/s a process; use --processes for more.

Environment: AIRSERVE_DATA (data folder, default artifacts/demo/data), AIRSERVE_CANDIDATES (128), AIRSERVE_P99_MS (20,
the target; the paper reports 20.134 ms), AIRSERVE_MAX_FAILURES (0, the share that may fail).
"""

# gRPC must be made cooperative before anything opens a channel; without it Locust stalls at a few requests per second.
import grpc.experimental.gevent as grpc_gevent

grpc_gevent.init_gevent()

import json  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from locust import User, constant, events, task  # noqa: E402

from airserve.client import RankClient, to_tensors  # noqa: E402
from airserve.client.wire import PLAIN_OUTPUTS  # noqa: E402
from airserve.errors import ServerError  # noqa: E402
from airserve.showcase import Catalogue, logged_users  # noqa: E402

DATA = Path(os.environ.get("AIRSERVE_DATA", "artifacts/demo/data"))
CANDIDATES = int(os.environ.get("AIRSERVE_CANDIDATES", "128"))
P99_MS = float(os.environ.get("AIRSERVE_P99_MS", "20"))
MAX_FAILURES = float(os.environ.get("AIRSERVE_MAX_FAILURES", "0"))
NAME = "rank"

requests: list[dict[str, Any]] = []


@events.test_start.add_listener
def load_requests(**_: object) -> None:
    """Real users' histories, made into tensors once."""
    users = logged_users(DATA, Catalogue.open(DATA), count=300, candidates=CANDIDATES)
    requests[:] = [to_tensors([user.request]) for user in users]


class Ranker(User):
    """One caller with one connection that asks again as soon as it has its answer."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Connect; `--host` is host:port of the gRPC endpoint."""
        self.client = RankClient(self.host or "127.0.0.1:8001", timeout_s=5)

    def on_stop(self) -> None:
        """Disconnect."""
        self.client.close()

    @task
    def rank(self) -> None:
        """One request of a random user."""
        tensors = random.choice(requests)
        start = time.perf_counter()
        error: Exception | None = None
        try:
            self.client.infer(tensors, PLAIN_OUTPUTS)
        except ServerError as refused:
            error = refused
        events.request.fire(
            request_type="grpc",
            name=NAME,
            response_time=(time.perf_counter() - start) * 1e3,
            response_length=0,
            exception=error,
        )


@events.quitting.add_listener
def judge(environment: Any, **_: object) -> None:
    """Exit 1 when p99 or the share of failures misses its target; the last line on stdout is JSON."""
    total = environment.stats.total
    p99 = total.get_response_time_percentile(0.99) or 0.0
    met = total.num_requests > 0 and p99 <= P99_MS and total.fail_ratio <= MAX_FAILURES
    environment.process_exit_code = 0 if met else 1
    print(
        json.dumps(
            {
                "requests": total.num_requests,
                "requests_per_s": round(total.total_rps, 1),
                "p50_ms": total.get_response_time_percentile(0.5),
                "p99_ms": p99,
                "p99_target_ms": P99_MS,
                "fail_share": total.fail_ratio,
                "met": met,
            }
        )
    )


@events.quit.add_listener
def leave(exit_code: int, **_: object) -> None:
    """End at once: gRPC's threads under gevent kept the process alive after the report."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
