"""Stage 1: read the source against the contract, quarantine bad rows, report everything.

One pandera schema is the contract.  It runs over Arrow-backed frames that ADBC reads in chunks, so memory does not
grow with the table.  Row faults put rows into quarantine and let the rest go on; table faults are for the gate.
`schema/contract.sql` states the same row rules for aggregation, and a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pandas as pd
import pandera.pandas as pa
import pyarrow
from psycopg import Connection
from psycopg.sql import SQL, Literal
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.errors import ContractBlocked

CONTRACT_VERSION = "1"
SAMPLES_MAX = 5
FUTURE_MAX = timedelta(minutes=5)  # Stripe: a meter event may lie at most 5 minutes ahead
PAST_MAX = timedelta(days=35)  # Stripe: and at most 35 days back
_MICROSECOND = timedelta(microseconds=1)
_TEXT = pd.ArrowDtype(pyarrow.string())
_BIGINT = pd.ArrowDtype(pyarrow.int64())
_INSTANT = pd.ArrowDtype(pyarrow.timestamp("us", tz="UTC"))

SOURCE_COLUMNS = {
    "event_id": "text",
    "organization_id": "text",
    "event_type": "text",
    "quantity": "numeric",
    "occurred_at": "timestamp with time zone",
    "recorded_at": "timestamp with time zone",
}
"""The columns the source must have, with their PostgreSQL types; `properties jsonb` is welcome but not needed."""


class Severity(StrEnum):
    """What a fault does."""

    ROW = "row"  # its rows wait in quarantine
    NOTICE = "notice"  # a person should know
    TABLE = "table"  # stops the flush when the pipeline is set to fail closed


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule: its stable reason code, how many rows, and up to five of their ids."""

    reason: str
    severity: Severity
    count: int
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContractReport:
    """What one validation found; `passed` speaks of the table, never of single rows."""

    rows_read: int
    cutoff_at: datetime
    faults: tuple[Fault, ...] = ()

    @property
    def passed(self) -> bool:
        """No fault of the table as a whole."""
        return not any(fault.severity is Severity.TABLE for fault in self.faults)

    @property
    def quarantined(self) -> int:
        """Rows that were put into, or kept in, quarantine by this validation."""
        return sum(fault.count for fault in self.faults if fault.severity is Severity.ROW)


ROW_RULES = (
    "event_id_missing",
    "organization_id_missing",
    "event_type_missing",
    "quantity_missing",
    "quantity_not_finite",
    "quantity_negative",
    "quantity_too_many_digits",
    "occurred_at_missing",
    "occurred_at_in_future",
    "occurred_at_too_old",
    "event_type_unknown",
)
"""Reason codes in order; a row with several faults is quarantined under the first."""


def contract_schema(catalogue: Catalogue) -> pa.DataFrameSchema:
    """The contract as pandera sees a chunk of the source; each check is named by its reason code."""

    def present(reason: str) -> list[pa.Check]:
        return [
            pa.Check(lambda column: column.notna(), name=reason, ignore_na=False),
            pa.Check(lambda column: column != "", name=reason),
        ]

    known = sorted(catalogue.known_event_types)
    earliest_lag, latest_lag = -FUTURE_MAX // _MICROSECOND, PAST_MAX // _MICROSECOND
    return pa.DataFrameSchema(
        {
            "event_id": pa.Column(_TEXT, present("event_id_missing"), nullable=True),
            "organization_id": pa.Column(_TEXT, present("organization_id_missing"), nullable=True),
            "event_type": pa.Column(
                _TEXT,
                [*present("event_type_missing"), pa.Check(lambda c: c.isin(known), name="event_type_unknown")],
                nullable=True,
            ),
            "quantity": pa.Column(
                _TEXT,
                [
                    pa.Check(lambda c: c.notna(), name="quantity_missing", ignore_na=False),
                    pa.Check(lambda c: ~c.isin(["NaN", "Infinity", "-Infinity"]), name="quantity_not_finite"),
                    pa.Check(lambda c: ~c.str.startswith("-"), name="quantity_negative"),
                    pa.Check(lambda c: c.str.fullmatch(r"\d{1,15}(\.\d{1,12})?"), name="quantity_too_many_digits"),
                ],
                nullable=True,
            ),
            "occurred_at": pa.Column(_INSTANT, nullable=True),
            "lag_microseconds": pa.Column(
                _BIGINT,
                [
                    pa.Check(lambda c: c.notna(), name="occurred_at_missing", ignore_na=False),
                    pa.Check(lambda c: c >= earliest_lag, name="occurred_at_in_future"),
                    pa.Check(lambda c: c <= latest_lag, name="occurred_at_too_old"),
                ],
                nullable=True,
            ),
        },
        strict=True,
        ordered=True,
    )


def first_faults(schema: pa.DataFrameSchema, chunk: pd.DataFrame) -> pd.DataFrame:
    """The rows of `chunk` that break a rule, with a column `reason`: the first rule in `ROW_RULES` order.

    Raises `pandera.errors.SchemaErrors` only for faults that are not a row's, such as a wrong type.
    """
    try:
        schema.validate(chunk, lazy=True)
    except pa.errors.SchemaErrors as exc:
        cases = exc.failure_cases
        if not cases["check"].isin(ROW_RULES).all():
            raise
        rank = cases["check"].map({reason: position for position, reason in enumerate(ROW_RULES)})
        first = cases.assign(rank=rank).sort_values("rank").drop_duplicates("index").set_index("index")["check"]
        return chunk.loc[first.index].assign(reason=first)
    return chunk.iloc[0:0].assign(reason=[])


def validate_contract(
    connection: Connection[Any],
    database_url: str,
    *,
    source: str,
    catalogue: Catalogue,
    since: datetime | None,
    lookback: timedelta,
    now: datetime,
) -> ContractReport:
    """Validate the rows recorded since `since` (None: the whole lookback), quarantine the bad ones, store the report.

    Reads `source` only; writes `quarantined_events` and `contract_runs`.
    A source that lacks a column is reported and not read.
    """
    faults = _drift(connection, source)
    if any(fault.severity is Severity.TABLE for fault in faults):
        return _store(connection, ContractReport(0, now, tuple(faults)), catalogue, now)
    schema = contract_schema(catalogue)
    rows_read = 0
    found: dict[str, tuple[int, list[str]]] = {}
    for chunk in _chunks(connection, database_url, source, since or now - lookback):
        rows_read += len(chunk)
        bad = first_faults(schema, chunk)
        if len(bad):
            _quarantine(connection, bad, now)
            for reason, rows in bad.groupby("reason"):
                count, samples = found.get(str(reason), (0, []))
                found[str(reason)] = (count + len(rows), (samples + rows["event_id"].tolist())[:SAMPLES_MAX])
    queries.execute(
        connection,
        "mend_quarantined_events",
        {"now": now, "known_event_types": sorted(catalogue.known_event_types)},
        parts={"source": queries.relation(source)},
    )
    faults += [Fault(reason, Severity.ROW, *_counted(found[reason])) for reason in ROW_RULES if reason in found]
    faults += _notices(connection, source, now - lookback)
    return _store(connection, ContractReport(rows_read, now, tuple(faults)), catalogue, now)


def latest_report(connection: Connection[Any]) -> ContractReport | None:
    """What the last validation found, or None when there was none yet."""
    rows = queries.fetch_dicts(connection, "latest_contract_run")
    if not rows:
        return None
    faults = tuple(
        Fault(fault["reason"], Severity(fault["severity"]), fault["count"], tuple(fault["samples"]))
        for fault in rows[0]["faults"]
    )
    return ContractReport(rows[0]["rows_read"], rows[0]["cutoff_at"], faults)


def require_contract(connection: Connection[Any], *, fail_closed: bool) -> None:
    """The gate's part: refuse to go on after a failed validation.  Raises `ContractBlocked` when failing closed."""
    latest = latest_report(connection)
    if latest is not None and not latest.passed and fail_closed:
        reasons = ", ".join(fault.reason for fault in latest.faults if fault.severity is Severity.TABLE)
        raise ContractBlocked(
            f"The data contract failed ({reasons}) and STRIPE_BILLING_CONTRACT_FAIL_CLOSED is on. "
            "Mend the source, then flush again."
        )


def _counted(found: tuple[int, list[str]]) -> tuple[int, tuple[str, ...]]:
    count, samples = found
    return count, tuple(str(sample) for sample in samples)


def _drift(connection: Connection[Any], source: str) -> list[Fault]:
    quoted = queries.relation(source).as_string(connection)
    found = {
        row["name"]: row["type"] for row in queries.fetch_dicts(connection, "source_columns", {"relation": quoted})
    }
    if not found:
        return [Fault("source_missing", Severity.TABLE, 1, (source,))]
    wrong = [
        f"{name}: {found.get(name, 'absent')}, expected {expected}"
        for name, expected in SOURCE_COLUMNS.items()
        if found.get(name) != expected
    ]
    return [Fault("source_columns_wrong", Severity.TABLE, len(wrong), tuple(wrong))] if wrong else []


def _notices(connection: Connection[Any], source: str, lookback_start: datetime) -> list[Fault]:
    notices = []
    has_rows = queries.fetch_dicts(
        connection, "source_has_rows_since", {"since": lookback_start}, parts={"source": queries.relation(source)}
    )[0]["found"]
    if not has_rows:
        notices.append(Fault("lookback_empty", Severity.TABLE, 1))
    unmapped = queries.fetch_dicts(connection, "unmapped_organizations")
    if unmapped:
        ids = tuple(row["organization_id"] for row in unmapped[:SAMPLES_MAX])
        notices.append(Fault("organization_unmapped", Severity.NOTICE, len(unmapped), ids))
    return notices


def _chunks(connection: Connection[Any], database_url: str, source: str, since: datetime) -> Iterator[pd.DataFrame]:
    statement = SQL(queries.statements()["read_for_contract"]).format(
        source=queries.relation(source), since=Literal(since)
    )
    with adbc.connect(database_url) as reader, reader.cursor() as cursor:
        cursor.execute(statement.as_string(connection))
        for batch in cursor.fetch_record_batch():
            table = pyarrow.Table.from_batches([batch]).cast(
                pyarrow.schema(
                    [
                        ("event_id", pyarrow.string()),
                        ("organization_id", pyarrow.string()),
                        ("event_type", pyarrow.string()),
                        ("quantity", pyarrow.string()),
                        ("occurred_at", pyarrow.timestamp("us", tz="UTC")),
                        ("lag_microseconds", pyarrow.int64()),
                    ]
                )
            )
            yield table.to_pandas(types_mapper=pd.ArrowDtype)


def _quarantine(connection: Connection[Any], bad: pd.DataFrame, now: datetime) -> None:
    named = bad[bad["event_id"].notna() & (bad["event_id"] != "")]

    def column(name: str) -> list[Any]:
        return [None if pd.isna(value) else value for value in named[name].tolist()]

    queries.execute(
        connection,
        "quarantine_events",
        {
            "event_ids": column("event_id"),
            "reasons": column("reason"),
            "organization_ids": column("organization_id"),
            "event_types": column("event_type"),
            "quantities": column("quantity"),
            "occurred_ats": column("occurred_at"),
            "contract_version": CONTRACT_VERSION,
            "now": now,
        },
    )


def _store(connection: Connection[Any], report: ContractReport, catalogue: Catalogue, now: datetime) -> ContractReport:
    queries.execute(
        connection,
        "record_contract_run",
        {
            "contract_version": CONTRACT_VERSION,
            "catalogue_version": catalogue.version,
            "cutoff_at": report.cutoff_at,
            "rows_read": report.rows_read,
            "faults": Jsonb([asdict(fault) for fault in report.faults]),
            "passed": report.passed,
            "now": now,
        },
    )
    return report
