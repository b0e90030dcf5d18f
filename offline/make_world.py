"""Write the demo world: items with titles, a behaviour log of users with drifting intents, and the truth."""

import logging
from pathlib import Path

import cyclopts
import pyarrow as pa

from airserve.artifact_schemas import BEHAVIOURS_SCHEMA, ITEMS_SCHEMA, TRUTH_SCHEMA
from airserve.artifacts import BEHAVIOURS_FILE, ITEMS_FILE, TRUTH_FILE
from airserve.cli import run_script
from airserve.data.schema import write_parquet
from airserve.progress import track
from airserve.world.log import World, WorldSettings, behaviour_columns
from airserve.world.ontology import load_ontology

log = logging.getLogger("make_world")


def write(path: Path, columns: dict[str, list[object]], schema: pa.Schema) -> None:
    """Write one Parquet file, whole or not at all."""
    table = pa.table(columns, schema=schema)
    write_parquet(table, path)
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
    write(
        out / ITEMS_FILE,
        {
            "item_id": [item.item_id for item in world.items],
            "domain": [item.domain for item in world.items],
            "title": [item.title for item in world.items],
            "is_candidate": [item.domain == "product" for item in world.items],
        },
        ITEMS_SCHEMA,
    )
    write(
        out / TRUTH_FILE,
        {
            "item_id": [item.item_id for item in world.items],
            "leaf": [" > ".join(item.leaf.path) for item in world.items],
        },
        TRUTH_SCHEMA,
    )
    write(out / BEHAVIOURS_FILE, columns, BEHAVIOURS_SCHEMA)
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
