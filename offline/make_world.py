"""Write the demo world: items with titles, a behaviour log of users with drifting intents, and the truth."""

import logging
import os
from pathlib import Path

import cyclopts
import pyarrow as pa
import pyarrow.parquet as pq

from airserve.cli import run_script
from airserve.progress import track
from airserve.world.log import World, WorldSettings, behaviour_columns
from airserve.world.ontology import load_ontology

log = logging.getLogger("make_world")
TYPES = {"user_segment": pa.int32()}


def write(path: Path, columns: dict[str, list[object]]) -> None:
    """Write one Parquet file, whole or not at all."""
    table = pa.table({name: pa.array(values, type=TYPES.get(name)) for name, values in columns.items()})
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    pq.write_table(table, part)
    part.replace(path)
    log.info("wrote %s, %d rows", path, table.num_rows)


def main(*, out: Path = Path("artifacts/demo/data"), size: float = 1.0, seed: int = 0) -> dict[str, object]:
    """Write the demo world.

    Args:
        out: folder for items.parquet, behaviours.parquet and truth.parquet.
        size: 1.0 is 2,000 contents, 2,000 products, 5,000 users and 200,000 events.
        seed: of everything random.
    """
    world = World(load_ontology(), WorldSettings(seed=seed).scaled(size))
    columns: dict[str, list[object]] = {}
    users = range(world.settings.users)
    for user in track(users, "simulating users", len(users), "users"):
        for name, values in behaviour_columns(world, [user]).items():
            columns.setdefault(name, []).extend(values)
    noise = columns.pop("is_noise")
    out.mkdir(parents=True, exist_ok=True)
    write(
        out / "items.parquet",
        {
            "item_id": [item.item_id for item in world.items],
            "domain": [item.domain for item in world.items],
            "title": [item.title for item in world.items],
            "is_candidate": [item.domain == "product" for item in world.items],
        },
    )
    write(
        out / "truth.parquet",
        {
            "item_id": [item.item_id for item in world.items],
            "leaf": [" > ".join(item.leaf.path) for item in world.items],
        },
    )
    write(out / "behaviours.parquet", columns)
    return {
        "items": len(world.items),
        "users": world.settings.users,
        "events": len(noise),
        "noise_share": round(sum(map(bool, noise)) / max(len(noise), 1), 4),
        "leaves": len(world.ontology.leaves),
        "test_users": columns["split"].count("test"),
        "valid_users": columns["split"].count("valid"),
    }


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
