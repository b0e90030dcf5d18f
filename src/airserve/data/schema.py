"""The two input tables: what they hold, how they are read and checked, how they are written.

`items.parquet` has one row an item, `behaviours.parquet` one row an event, sorted by user, then time. Whatever reads
them gets exactly the columns and types below, without nulls.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airserve.artifact_schemas import BEHAVIOURS_SCHEMA, ITEMS_SCHEMA
from airserve.artifacts import BEHAVIOURS_FILE, ITEMS_FILE
from airserve.contract import ACTIONS, PAD_ITEM
from airserve.errors import DataError
from airserve.files import atomic_path

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Both tables, checked."""

    items: pa.Table
    """`ITEMS_SCHEMA`; `item_id` is unique."""
    behaviours: pa.Table
    """`BEHAVIOURS_SCHEMA`, sorted by user, then time."""


def read_parquet(path: Path, schema: pa.Schema, *, optional: frozenset[str] = frozenset()) -> pa.Table:
    """Read a Parquet file's columns of `schema`, in its order and types; other columns are left out.

    Args:
        path: the file.
        schema: what is wanted. A column of another type is converted where no value changes.
        optional: columns that may be missing; they are then missing in the result too.

    Raises:
        DataError: for a missing or unreadable file, a missing column, a type that does not fit, or a null.
    """
    if not path.is_file():
        raise DataError(str(path), expected="a Parquet file", got="no such file", remedy="write it, or name its folder")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            str(path), expected="a Parquet file", got=str(error).splitlines()[0], remedy="write it again"
        ) from error
    columns: dict[str, pa.ChunkedArray] = {}
    for field in schema:
        if field.name in table.column_names:
            columns[field.name] = _convert(path, field, table.column(field.name))
        elif field.name not in optional:
            raise _refuse(
                path, field.name, f"a column of {field.type}", f"columns {', '.join(table.column_names)}", "add it"
            )
    return pa.table(columns)


def check_items(items: pa.Table, source: Path) -> pa.Table:
    """Return `items` if its ids are unique and usable. Titles are data and may be anything, empty too.

    Raises:
        DataError: naming `source`, the column and the first bad value.
    """
    ids = items.column("item_id")
    counts = pc.value_counts(ids)
    repeated = pc.filter(counts.field("values"), pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise _refuse(
            source,
            "item_id",
            "unique ids",
            f"{len(repeated)} ids more than once, the first {repeated[0]}",
            "keep one row an item",
        )
    if pc.any(pc.equal(ids, PAD_ITEM)).as_py():
        raise _refuse(source, "item_id", "any other 64-bit id", str(PAD_ITEM), "this one is reserved for padding")
    return items


def check_behaviours(behaviours: pa.Table, items: pa.Table | None, source: Path) -> pa.Table:
    """Return `behaviours` sorted by user, then time (equal times keep their order), if every value is in range.

    Args:
        behaviours: `BEHAVIOURS_SCHEMA`.
        items: the items that may occur; None where this is not to be checked.
        source: the file, for messages.

    Raises:
        DataError: for an unknown action, split or item, a negative segment, or two targets of one user.
    """
    _check_known(source, "action", behaviours, list(ACTIONS), "map your actions to these")
    _check_known(source, "split", behaviours, list(SPLITS), "use these, or leave the column out")
    lowest = pc.min(behaviours.column("user_segment")).as_py()
    if lowest is not None and lowest < 0:
        raise _refuse(source, "user_segment", "a segment >= 0", str(lowest), "write 0 where it is not known")
    if items is not None:
        ids = behaviours.column("item_id")
        strange = pc.filter(ids, pc.invert(pc.is_in(ids, value_set=items.column("item_id").combine_chunks())))
        if len(strange):
            raise _refuse(
                source,
                "item_id",
                f"ids of {ITEMS_FILE}",
                f"{len(strange)} events on other items, the first {strange[0]}",
                f"add these items to {ITEMS_FILE} or leave their events out",
            )
    targets = pc.filter(behaviours.column("user_id"), pc.not_equal(behaviours.column("split"), "train"))
    if len(targets) != len(pc.unique(targets)):
        raise _refuse(
            source, "split", "one valid or test event a user", "users with several", "mark the others as train"
        )
    return _sorted(behaviours)


def load_items(folder: Path) -> pa.Table:
    """Read and check `items.parquet` of a data folder.

    Raises:
        DataError: naming file, column, what was expected, what came and the remedy.
    """
    path = folder / ITEMS_FILE
    return check_items(read_parquet(path, ITEMS_SCHEMA), path)


def load_behaviours(folder: Path, items: pa.Table | None = None) -> pa.Table:
    """Read and check `behaviours.parquet` of a data folder; unsorted events are sorted.

    Args:
        folder: the data folder.
        items: of `load_items`, to refuse events on other items.

    Raises:
        DataError: naming file, column, what was expected, what came and the remedy.
    """
    path = folder / BEHAVIOURS_FILE
    return check_behaviours(read_parquet(path, BEHAVIOURS_SCHEMA), items, path)


def load_dataset(folder: Path) -> Dataset:
    """Read and check both tables of a data folder.

    Raises:
        DataError: see `load_items` and `load_behaviours`.
    """
    items = load_items(folder)
    return Dataset(items=items, behaviours=load_behaviours(folder, items))


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a Parquet file atomically: a reader sees the old file or the new one."""
    with atomic_path(path) as part:
        pq.write_table(table, part, compression="zstd")


def _refuse(path: Path, column: str, expected: str, got: str, remedy: str) -> DataError:
    return DataError(f"{path}, column {column}", expected=expected, got=got, remedy=remedy)


def _convert(path: Path, field: pa.Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_boolean)
    source = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_large_string(source):
        source = pa.string()
    if not any(is_kind(source) and is_kind(field.type) for is_kind in kinds):
        raise _refuse(path, field.name, str(field.type), str(column.type), "convert the column")
    if column.null_count:
        raise _refuse(path, field.name, "no nulls", f"{column.null_count} nulls", "fill them or leave the rows out")
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise _refuse(path, field.name, str(field.type), str(error), "bring the values into range") from error


def _check_known(path: Path, column: str, table: pa.Table, known: list[str], remedy: str) -> None:
    strange = [value for value in pc.unique(table.column(column)).to_pylist() if value not in known]
    if strange:
        raise _refuse(path, column, f"one of {', '.join(known)}", repr(strange[0]), remedy)


def _sorted(behaviours: pa.Table) -> pa.Table:
    users = behaviours.column("user_id").to_numpy()
    times = behaviours.column("timestamp_s").to_numpy()
    in_order = (users[1:] > users[:-1]) | ((users[1:] == users[:-1]) & (times[1:] >= times[:-1]))
    if bool(in_order.all()):
        return behaviours
    return behaviours.take(pa.array(np.lexsort((times, users))))
