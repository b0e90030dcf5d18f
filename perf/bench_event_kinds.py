"""Measure how fast the distinct event kinds of a log are found, and in how much memory.

    python perf/bench_event_kinds.py --rows 50000000

What limits it: decoding three Parquet columns, then random access to the hash table of distinct kinds. The log is
synthetic (a catalogue of fixed size with a long tail), several Parquet files, written by a process of its own so that
its memory is not counted here.
"""

import multiprocessing
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cyclopts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airserve.artifacts import ITEMS_FILE
from airserve.cli import run_script
from airserve.contract import ACTIONS, USER_SEGMENT
from airserve.data.sources import MemorySettings, bounded_duckdb, find_source
from airserve.intents.event_kinds import load_kinds

FILE_ROWS = 1_000_000
USERS = 5_000_000


def write_world(folder: str, rows: int, catalogue: int) -> None:
    """Write `items.parquet` and the folder `behaviours/`, seeded."""
    rng = np.random.default_rng(0)
    ids = np.arange(catalogue, dtype=np.int64) * 7919
    titles = [f"item number {place}" for place in range(catalogue)]
    pq.write_table(pa.table({"item_id": ids, "title": titles}), Path(folder) / ITEMS_FILE)
    (Path(folder) / "behaviours").mkdir()
    names = pa.array(list(ACTIONS))
    for place, start in enumerate(range(0, rows, FILE_ROWS)):
        count = min(FILE_ROWS, rows - start)
        actions = rng.choice(len(ACTIONS), count, p=[0.6, 0.1, 0.2, 0.06, 0.04]).astype(np.int32)
        table = pa.table(
            {
                "user_id": rng.integers(0, USERS, count),
                "item_id": ids[(catalogue * rng.random(count) ** 3).astype(np.int64)],
                "action": names.take(pa.array(actions)),
                "timestamp_s": rng.integers(1_700_000_000, 1_760_000_000, count),
                USER_SEGMENT.name: rng.integers(0, 3, count, dtype=np.int32),
            }
        )
        pq.write_table(table, f"{folder}/behaviours/{place:05}.parquet", compression="snappy")


def main(
    *, rows: int = 10_000_000, catalogue: int = 50_000, memory_mib: int = 1024, threads: int = 2
) -> dict[str, object]:
    """Print `rows_per_s` and `peak_rss_mib` of finding the kinds and their prompts.

    Args:
        rows: events of the log.
        catalogue: items; kinds are up to 15 times as many.
        memory_mib: of DuckDB.
        threads: of DuckDB.
    """
    with TemporaryDirectory(prefix="airserve-") as folder:
        writer = multiprocessing.get_context("spawn").Process(target=write_world, args=(folder, rows, catalogue))
        writer.start()
        writer.join()
        start = time.perf_counter()
        with bounded_duckdb(MemorySettings(memory_mib=memory_mib, threads=threads)) as connection:
            load_kinds(connection, find_source(folder, "items"), find_source(folder, "behaviours"))
            kinds, prompts = connection.execute(
                "SELECT (FROM kinds SELECT count(*)), (FROM prompts SELECT count(*))"
            ).fetchall()[0]
        seconds = time.perf_counter() - start
    return {
        "rows": rows,
        "event_kinds": kinds,
        "prompts": prompts,
        "seconds": round(seconds, 2),
        "rows_per_s": round(rows / seconds),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "memory_mib": memory_mib,
        "threads": threads,
    }


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
