"""Reads one large result as Arrow, in batches, so that memory does not grow with the table.

Used by the contract, which reads the whole lookback once a day.  ADBC speaks PostgreSQL's binary COPY on a connection
of its own; its errors become the same two of ours that psycopg's become.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import adbc_driver_postgresql.dbapi as adbc
import pyarrow

from billing_pipeline.database.connection import describe, first_line, require_well_formed
from billing_pipeline.errors import DatabaseUnavailable

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each next one made by a thread while the caller works on the one before."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item


def read_batches(database_url: str, statement: str) -> Iterator[pyarrow.RecordBatch]:
    """The rows of a SELECT without parameters, in batches of about 16 MB, in one snapshot.

    Raises `DatabaseUnavailable` when the server does not answer or fails on the way.
    """
    require_well_formed(database_url)
    try:
        with adbc.connect(database_url) as reader, reader.cursor() as cursor:
            cursor.execute(statement)
            yield from cursor.fetch_record_batch()
    except (adbc.Error, pyarrow.ArrowException, OSError) as exc:
        if str(getattr(exc, "sqlstate", None)).startswith("42"):
            raise  # a table, a column or a right is missing: `connect` tells a person what to do, for both drivers
        raise DatabaseUnavailable(
            f"PostgreSQL could not be read at {describe(database_url)}: {first_line(exc)}. "
            "Nothing was changed; mend that, and run it again."
        ) from None
