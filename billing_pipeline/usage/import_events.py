"""Before stage 1: fills `billable_events` from a CSV or Parquet file, all of it or nothing.

    import_mapping -> import_file -> import_columns -> COPY to a staging table -> one insert -> conflicts

A second import of the same file adds nothing.  An id that is known with other contents is never overwritten: it
stops the import, or is left out and listed when the caller asked for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import Connection
from psycopg.errors import UniqueViolation
from psycopg.sql import Composable
from pyarrow import csv

from billing_pipeline.database import queries
from billing_pipeline.domain.source_columns import DEFAULT_RELATION
from billing_pipeline.errors import ImportRefused
from billing_pipeline.settings import Settings
from billing_pipeline.usage.import_columns import billable_events
from billing_pipeline.usage.import_file import check_file, id_prefix, read_batches
from billing_pipeline.usage.import_mapping import ImportMapping

INSERT_TRIES = 5
"""A try fails only if another writer commits one of our ids during it, and the next try sees that."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class ImportResult:
    """Where every billable event of the file went: `read = added + already_there + conflicts`.

    `conflict_ids` holds the first 10 ids in conflict, sorted.
    """

    read: int
    added: int
    already_there: int
    conflicts: int
    conflict_ids: tuple[str, ...]


@dataclass(frozen=True)
class _Conflicts:
    events: int
    event_ids: list[str]


def own_source(settings: Settings) -> str:
    """The one relation that files are imported into.  Raises `ImportRefused` where the settings name another source."""
    others = []
    if settings.billing_source_relation != DEFAULT_RELATION:
        others.append(f"BILLING_SOURCE_RELATION names {settings.billing_source_relation}")
    if any(ours != theirs for ours, theirs in settings.source_columns.items()):
        others.append("BILLING_SOURCE_COLUMNS maps columns")
    if others:
        raise ImportRefused(
            f"Files are imported into {DEFAULT_RELATION} with its own columns only, but {' and '.join(others)}: a "
            "source of yours is only read. Nothing was imported; have your product write it, or unset that."
        )
    return DEFAULT_RELATION


def import_events(
    connection: Connection[Any],
    file: Path,
    mapping: ImportMapping,
    *,
    relation: str,
    shift_to_end_at: datetime | None,
    skip_conflicts: bool,
    progress: Callable[[int], None],
) -> ImportResult:
    """Load `file` into `relation` in one transaction; `recorded_at` is the database's clock at the insert.

    `shift_to_end_at` moves all times by one amount, so that the latest becomes exactly that instant.
    `progress` receives the number of input rows of each batch, after it was staged.
    Raises `ImportRefused`, with nothing imported, for a file or a value that cannot be read exactly, for what the
    database refuses, and for conflicts unless `skip_conflicts`.
    """
    parts = {"source": queries.relation(relation)}
    with _refusals_name(file, relation):
        check_file(file, mapping)
        shift = _shift_microseconds(file, mapping, shift_to_end_at)
        with connection.transaction():
            queries.execute(connection, "create_import_staging")
            read = _stage(connection, file, mapping, shift, progress)
            queries.execute(connection, "set_import_repeats_aside")
            added = _insert(connection, parts)
            conflicts = _find_conflicts(connection, parts) if added < read else _Conflicts(0, [])
            if conflicts.events and not skip_conflicts:
                raise ImportRefused(
                    f"{conflicts.events} of {read} events contradict what is known under the same id, first "
                    f"{', '.join(conflicts.event_ids)}; correct the file, or leave them out with --skip-conflicts"
                )
    already_there = read - added - conflicts.events
    return ImportResult(read, added, already_there, conflicts.events, tuple(conflicts.event_ids))


def _shift_microseconds(file: Path, mapping: ImportMapping, end_at: datetime | None) -> int:
    """How far to move every time; a first pass over the file finds the latest."""
    if end_at is None:
        return 0
    batches = read_batches(file, mapping)
    latest = [pc.max(batch.times(mapping.time_column, mapping.timezone).cast(pa.int64())).as_py() for batch in batches]
    known = [microseconds for microseconds in latest if microseconds is not None]
    return (end_at - _EPOCH) // _MICROSECOND - max(known) if known else 0


def _stage(
    connection: Connection[Any], file: Path, mapping: ImportMapping, shift: int, progress: Callable[[int], None]
) -> int:
    """COPY every billable event of the file to the staging table; return how many there are."""
    prefix = id_prefix(file, mapping)
    staged = 0
    with connection.cursor() as cursor:
        with cursor.copy("COPY import_staging FROM STDIN (FORMAT csv)") as copy:
            for batch in read_batches(file, mapping):
                for events in billable_events(batch, mapping, id_prefix=prefix, shift_microseconds=shift):
                    text = pa.BufferOutputStream()
                    csv.write_csv(events, text, csv.WriteOptions(include_header=False))
                    copy.write(text.getvalue())
                    staged += events.num_rows
                progress(batch.rows.num_rows)
        # Nothing analyzes a temporary table by itself, and the joins would be planned for a few rows.
        cursor.execute("ANALYZE import_staging")
    return staged


def _insert(connection: Connection[Any], parts: Mapping[str, Composable]) -> int:
    for _ in range(INSERT_TRIES - 1):
        try:
            with connection.transaction():
                return queries.execute(connection, "insert_staged_events", parts=parts)
        except UniqueViolation:
            continue
    return queries.execute(connection, "insert_staged_events", parts=parts)


def _find_conflicts(connection: Connection[Any], parts: Mapping[str, Composable]) -> _Conflicts:
    return queries.fetch(connection, "find_import_conflicts", _Conflicts, parts=parts)[0]


@contextmanager
def _refusals_name(file: Path, relation: str) -> Iterator[None]:
    """Say of every refusal which file it is about, and that nothing was imported."""
    try:
        yield
    except ImportRefused as exc:
        raise ImportRefused(f"{file}: {exc}. Nothing was imported.") from None
    except OSError as exc:
        raise ImportRefused(f"{file} cannot be read: {exc.strerror or exc}. Check the path.") from None
    except (UnicodeDecodeError, pa.ArrowException) as exc:
        fault = str(exc).splitlines()[0]
        mend = "save it as UTF-8" if "utf" in fault.lower() else "check how it was exported"
        raise ImportRefused(f"{file} cannot be read: {fault}. Nothing was imported; {mend}.") from None
    except psycopg.OperationalError:
        raise  # the server's trouble, not the file's
    except psycopg.Error as exc:
        # The context of a COPY ends with the column and the value.
        where = re.search(r"column \w+(: .*)?$", exc.diag.context or "")
        fault = f"{exc.diag.message_primary}{f' ({where[0]})' if where else ''}"
        raise ImportRefused(
            f"{file}: PostgreSQL refuses it for {relation}: {fault}. Nothing was imported; check the file's values "
            "and what BILLING_SOURCE_RELATION names."
        ) from None
