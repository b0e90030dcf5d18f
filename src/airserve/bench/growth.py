"""What the number of items costs: the same engine over a small table and over one that was grown, calls in turn.

What limits it: binary searches that miss the caches (24 steps at 10^7 items), and pages of the mapped files that were
never touched. Requests are Zipf-distributed over all items of each table, as catalogues are asked for.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve import contract
from airserve.artifacts import SERVING_FOLDER, TABLE_FOLDER
from airserve.bench.grow import grow_table
from airserve.bench.load import OK, Wire, encode_call
from airserve.errors import EngineError
from airserve.table.lookup import ServedTable
from airserve.triton.config import ServingSettings
from airserve.triton.repository import VERSION, RepositorySource, write_repository
from airserve.triton.server import ServerSettings, TritonServer

log = logging.getLogger("bench_serving")
Array = npt.NDArray[Any]
ZIPF = 1.1
TIMEOUT_S = 30.0


def zipf_items(items: Array, count: int, rng: np.random.Generator) -> Array:
    """Items of a Zipf stream; the popular ones lie anywhere in the table."""
    ranks = rng.zipf(ZIPF, count)
    return items[(ranks * 0x9E3779B1) % len(items)]


def zipf_requests(items: Array, count: int, *, size: int = 128, seed: int = 0) -> list[dict[str, Array]]:
    """Calls of one request each, L = C = `size`, over items int64 [N] of a table."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(count):
        ages_s = -np.sort(-(10.0 ** rng.uniform(1.0, 7.0, (1, size))))
        interests = zipf_items(items, 25, rng)
        requests.append(
            {
                contract.BEHAVIOUR_ITEMS.name: rng.choice(interests, (1, size)),
                contract.BEHAVIOUR_ACTIONS.name: rng.integers(1, contract.N_ACTIONS, (1, size)).astype(np.int32),
                contract.BEHAVIOUR_AGES_S.name: ages_s.astype(np.float32),
                contract.USER_SEGMENT.name: np.zeros((1, 1), dtype=np.int32),
                contract.CANDIDATE_ITEMS.name: zipf_items(items, size, rng)[None],
            }
        )
    return requests


def measure_growth(
    tables: Path, engine: Path, scratch: Path, *, rows: int, settings: ServingSettings, rounds: int, calls: int = 20
) -> dict[str, Any]:
    """Serve the table and a grown one side by side, and ask both in turn.

    Args:
        tables: tables folder.
        engine: folder with the exported graph.
        scratch: an empty folder on a disk with room (1.1 kB an item).
        rows: items of the grown table.
        settings: of both servers.
        rounds: blocks of calls of each.
        calls: of each in a block.

    Returns:
        `rows`, `table_gb`, `open_s` (of the grown table), `small_p50_ms`, `large_p50_ms`, `p50_over_small`.

    Raises:
        EngineError: if a call is refused.
    """
    source = RepositorySource(tables=tables, engine=engine, settings=settings)
    repositories = [write_repository(source, scratch / name) for name in ("small", "large")]
    small = ServedTable.open(tables / SERVING_FOLDER)
    served = next(repositories[1].glob(f"*/{VERSION}/{TABLE_FOLDER}"))
    shutil.rmtree(served)
    log.info("writing a table of %d items ...", rows)
    manifest = grow_table(small, rows, served)
    start = time.perf_counter()
    large = ServedTable.open(served)
    open_s = time.perf_counter() - start
    messages = [
        [encode_call(request) for request in zipf_requests(table.items, rounds * calls)] for table in (small, large)
    ]
    spent_ms: list[list[float]] = [[], []]
    with (
        TritonServer(ServerSettings(repository=repositories[0])) as first,
        TritonServer(ServerSettings(repository=repositories[1])) as second,
        Wire(first.grpc_url) as to_first,
        Wire(second.grpc_url) as to_second,
    ):
        for number in range(-1, rounds):  # the first block warms up
            block = slice(max(number, 0) * calls, (max(number, 0) + 1) * calls)
            for which, wire in enumerate((to_first, to_second)):
                for message in messages[which][block]:
                    start = time.perf_counter()
                    status = wire.ask(message, TIMEOUT_S)
                    if status != OK:
                        raise EngineError(f"growth: a call was answered with {status}")
                    if number >= 0:
                        spent_ms[which].append(1e3 * (time.perf_counter() - start))
    p50 = [float(np.median(times)) for times in spent_ms]
    return {
        "rows": rows,
        "table_gb": round(sum(manifest.sizes.values()) / 1e9, 2),
        "open_s": round(open_s, 3),
        "small_rows": len(small.items),
        "small_p50_ms": round(p50[0], 3),
        "large_p50_ms": round(p50[1], 3),
        "p50_over_small": round(p50[1] / p50[0], 3),
    }
