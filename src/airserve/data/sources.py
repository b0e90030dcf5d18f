"""Where items and behaviours may lie: Parquet, JSONL or CSV, one file or many, on any file system that fsspec knows.

DuckDB reads them, so a log of any size passes through in pieces: its memory is bounded and what does not fit is spilled
to a folder. Columns are checked by name and type before the first row is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import fsspec  # type: ignore[import-untyped]
import pyarrow as pa

from airserve.errors import DataError, UserError

SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".csv.gz": "csv",
}
_TYPES = {"int64": "BIGINT", "int32": "INTEGER", "string": "VARCHAR", "bool": "BOOLEAN"}
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """How much of the machine DuckDB may take."""

    memory_mib: int = 1024
    """Of DuckDB's working memory; what is over it goes to the spill folder."""
    threads: int = 0
    """0 takes every core."""
    spill: str | None = None
    """Folder for what does not fit; None makes one beside the system's temporary files."""

    def __post_init__(self) -> None:
        if self.memory_mib < 64:
            raise UserError("memory_mib", expected="at least 64", got=str(self.memory_mib), remedy="raise it")
        if self.threads < 0:
            raise UserError("threads", expected="0 (every core) or more", got=str(self.threads), remedy="raise it")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of one table."""

    location: str
    """The file, or the folder of files; for messages."""
    format: str
    """`parquet`, `jsonl` or `csv`."""
    files: tuple[str, ...]
    """Paths, with their protocol where they are not local."""


@contextmanager
def bounded_duckdb(settings: MemorySettings, database: Path | None = None) -> Iterator[Any]:
    """Open DuckDB with bounded memory; its spilled files go with it.

    Args:
        settings: bounds.
        database: a database file, None for one in memory.
    """
    with TemporaryDirectory(prefix="airserve-spill-", dir=settings.spill, ignore_cleanup_errors=True) as spill:
        config: dict[str, Any] = {"memory_limit": f"{settings.memory_mib}MiB", "temp_directory": spill}
        if settings.threads:
            config["threads"] = settings.threads
        with duckdb.connect(str(database) if database else ":memory:", config=config) as connection:
            connection.execute("SET enable_progress_bar = false")
            yield connection


def find_source(location: str, name: str | None = None) -> Source:
    """Find the files of one table.

    Args:
        location: a file, a glob, a folder of files of one format, or, with `name`, the folder that the table lies in.
        name: the table, e.g. `items`: then `location/items.parquet`, `.jsonl`, `.csv` (also `.gz`), or a folder
            `location/items/` of such files.

    Raises:
        DataError: if there is none, or files of several formats.
    """
    try:
        system, path = fsspec.core.url_to_fs(location)
        if name is None:
            patterns = [path] if not system.isdir(path) else [f"{path}/*{suffix}" for suffix in SUFFIXES]
        else:
            stem = f"{path.rstrip('/')}/{name}"
            patterns = [pattern for suffix in SUFFIXES for pattern in (f"{stem}{suffix}", f"{stem}/*{suffix}")]
        found = sorted({file for pattern in patterns for file in system.glob(pattern)})
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            location,
            expected="a path, or a URL of a file system that fsspec can open",
            got=f"{type(error).__name__}: {error}",
            remedy="check the path; s3:// and gs:// need s3fs and gcsfs installed",
        ) from error
    wanted = f"{name or 'a file'}.parquet, .jsonl or .csv" + (f", or a folder {name}/ of them" if name else "")
    if not found:
        raise DataError(location, expected=wanted, got="no such file", remedy="see docs/GENERATION.md, Input")
    formats = {_format_of(file) for file in found}
    if len(formats) > 1 or "" in formats:
        shown = ", ".join(Path(file).name for file in found[:4])
        raise DataError(location, expected=f"{wanted}, all of one format", got=shown, remedy="keep one of them")
    local = "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))
    files = tuple(found) if local else tuple(str(system.unstrip_protocol(file)) for file in found)
    shown = files[0] if len(files) == 1 else f"{location.rstrip('/')}/{name}" if name else location
    return Source(location=shown, format=formats.pop(), files=files)


def _format_of(file: str) -> str:
    return next((kind for suffix, kind in SUFFIXES.items() if file.lower().endswith(suffix)), "")


def scan(connection: Any, source: Source, schema: pa.Schema, *, optional: frozenset[str] = frozenset()) -> str:
    """Check a source's columns and return the SELECT that reads them in the types of `schema`.

    Args:
        connection: of `bounded_duckdb`.
        source: of `find_source`.
        schema: the columns wanted.
        optional: columns that may be missing; they are then missing in the result too.

    Raises:
        DataError: naming the column that is missing or of another type, or a file that cannot be read.
    """
    reader = _reader(connection, source)
    with data_errors(source):
        described = connection.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
    types = {name: str(kind) for name, kind, *_ in described}
    columns = []
    for field in schema:
        if field.name not in types:
            if field.name in optional:
                continue
            raise _refuse(
                source, field.name, f"a column of {field.type}", f"columns {', '.join(types) or 'none'}", "add it"
            )
        if source.format != "csv" and not _fits(types[field.name], str(field.type)):
            raise _refuse(source, field.name, str(field.type), types[field.name], "convert the column")
        column = f'"{field.name}"'
        if source.format == "csv" and str(field.type) == "string":
            # A CSV file cannot tell an empty text from none.
            column = f"coalesce({column}, '')"
        columns.append(f'CAST({column} AS {_TYPES[str(field.type)]}) AS "{field.name}"')
    return f"SELECT {', '.join(columns)} FROM {reader}"


def read_source(source: Source, schema: pa.Schema, *, optional: frozenset[str] = frozenset()) -> pa.Table:
    """Read a whole table, rows in the files' order.

    Raises:
        DataError: see `scan`; also for nulls and for values that are not of a column's type.
    """
    with bounded_duckdb(MemorySettings(memory_mib=4096)) as connection:
        select = scan(connection, source, schema, optional=optional)
        with data_errors(source):
            table = connection.sql(select).to_arrow_table()
    for name in table.column_names:
        nulls = table.column(name).null_count
        if nulls:
            raise _refuse(source, name, "no nulls", f"{nulls} nulls", "fill them or leave the rows out")
    return table.cast(pa.schema([schema.field(name) for name in table.column_names]))


@contextmanager
def data_errors(source: Source) -> Iterator[None]:
    """Turn what DuckDB says about a file's content into a `DataError`."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise UserError(
            "memory_mib", expected="room for the distinct event kinds", got=_first_line(error), remedy="raise it"
        ) from error
    except (duckdb.Error, OSError) as error:
        raise DataError(
            source.location,
            expected=f"readable {source.format} in the documented columns",
            got=_first_line(error),
            remedy="repair the file; docs/GENERATION.md, Input, has the columns",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__


def _reader(connection: Any, source: Source) -> str:
    if "://" in source.files[0]:
        system, _ = fsspec.core.url_to_fs(source.files[0])
        protocol = source.files[0].partition("://")[0]
        if not connection.filesystem_is_registered(protocol):
            connection.register_filesystem(system)
    files = ", ".join("'" + file.replace("'", "''") + "'" for file in source.files)
    if source.format == "parquet":
        return f"read_parquet([{files}])"
    if source.format == "jsonl":
        return f"read_json([{files}], format = 'newline_delimited', maximum_object_size = 67108864)"
    # Every value as text: casts then name the value that does not fit, whatever the first rows look like.
    return f"read_csv([{files}], header = true, all_varchar = true, max_line_size = 67108864)"


def _fits(got: str, wanted: str) -> bool:
    if wanted.startswith("int"):
        return got in _INTEGERS
    return got == "VARCHAR" or got.startswith("ENUM") if wanted == "string" else got == "BOOLEAN"


def _refuse(source: Source, column: str, expected: str, got: str, remedy: str) -> DataError:
    return DataError(f"{source.location}, column {column}", expected=expected, got=got, remedy=remedy)
