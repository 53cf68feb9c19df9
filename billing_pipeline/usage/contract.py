"""Stage 1: read the source against the contract, quarantine bad rows, report everything.

Row faults put rows into quarantine and let the rest go on; `row_contract.py` has their rules, and reads the source in
chunks, so that memory does not grow with the table.  Faults of the table as a whole are for the gate.
`source_contract.py` has what a source must be before it is read at all, `table_contract.py` what its rows must be as a
whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
from psycopg import Connection
from psycopg.sql import Composed
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.database.source import Source
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.contract_rules import SAMPLES_MAX, Fault, Severity, fault
from billing_pipeline.domain.reach import FUTURE_MAX, reach_start
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.errors import ContractBlocked
from billing_pipeline.usage.row_contract import (
    ROW_RULES,
    first_faults,
    property_missing,
    read_chunks,
    row_schema,
    rows_recorded_since,
    storable_times,
)
from billing_pipeline.usage.source_contract import SourceFault, remember_shape, source_faults
from billing_pipeline.usage.source_layout import missing_indexes
from billing_pipeline.usage.table_contract import table_faults

CONTRACT_VERSION = "1"
LOOKED_AT_LIMIT = 50_000
"""Rows of quarantine that an hourly flush looks at again although nothing recorded them anew."""


@dataclass(frozen=True, slots=True)
class ContractReport:
    """What one validation found; `passed` speaks of the table, never of single rows."""

    rows_read: int
    cutoff_at: datetime
    faults: tuple[Fault, ...] = ()
    source_was_read: bool = True
    """False for a source that cannot be counted: nothing is known of its rows."""

    @property
    def passed(self) -> bool:
        """No fault of the table as a whole."""
        return not any(fault.severity is Severity.TABLE for fault in self.faults)

    @property
    def quarantined(self) -> int:
        """Rows that were put into, or kept in, quarantine by this validation."""
        return sum(fault.count for fault in self.faults if fault.severity is Severity.ROW)


def validate_contract(
    connection: Connection[Any],
    database_url: str,
    *,
    source: Source,
    catalogue: Catalogue,
    since: datetime | None,
    lookback: timedelta,
    required_event_types: tuple[str, ...] = (),
    now: datetime,
) -> ContractReport:
    """Validate the rows recorded since `since`, quarantine the bad ones, store the report: the gate goes by it.

    None is the whole lookback, and whatever aggregation may count: also rows that were broken after they were recorded.
    A catalogue that is not the last validation's is reason to judge the whole lookback, too.
    Reads `source` only; writes `quarantined_events` and `contract_runs`.
    A source that cannot be counted is reported and not read.
    """
    judged = queries.fetch_dicts(connection, "latest_judgement")
    if judged and judged[0]["catalogue_version"] != catalogue.version:
        since = None  # what is known, and what needs a quantity, may be otherwise for every row
    report = examine_source(
        connection,
        database_url,
        source=source,
        catalogue=catalogue,
        since=since,
        lookback=lookback,
        required_event_types=required_event_types,
        now=now,
    )
    # What the source is now is what the next validation compares with; one that cannot be counted is not remembered.
    if report.source_was_read:
        remember_shape(connection, source, now=now)
    return _store(connection, report, catalogue, now)


def examine_source(
    connection: Connection[Any],
    database_url: str,
    *,
    source: Source,
    catalogue: Catalogue,
    since: datetime | None,
    lookback: timedelta,
    required_event_types: tuple[str, ...],
    now: datetime,
) -> ContractReport:
    """The same without storing the report, for a person who asks by other rules than a flush's."""
    of_source = source_faults(connection, source, catalogue)
    faults = [as_fault(found) for found in of_source]
    if any(found.blocks for found in of_source):
        return ContractReport(0, now, tuple(faults), source_was_read=False)
    lookback_start = min(hour_of(now - lookback), reach_start(now))
    rows = rows_recorded_since(
        source,
        # A row that was ever good was recorded at most this much before it occurred.
        recorded_since=since or lookback_start - FUTURE_MAX,
        occurred_since=None if since else lookback_start,
    )
    rows_read, found = judge_rows(connection, database_url, rows, catalogue, now)
    mend_rows(
        connection, source, catalogue, recorded_since=since, looked_at_limit=LOOKED_AT_LIMIT if since else None, now=now
    )
    faults += [fault(reason, *_counted(found[reason])) for reason in ROW_RULES if reason in found]
    faults += table_faults(
        connection, source, required_event_types=required_event_types, lookback_start=now - lookback, now=now
    )
    if missing := tuple(str(index) for index in missing_indexes(connection, source, since=lookback_start)):
        faults.append(fault("source_index_missing", len(missing), missing))
    return ContractReport(rows_read, now, tuple(faults))


def judge_rows(
    connection: Connection[Any], database_url: str, rows: Composed, catalogue: Catalogue, now: datetime
) -> tuple[int, dict[str, tuple[int, list[str]]]]:
    """Put those of `rows` that break the contract into quarantine.

    Returns how many were read, and by reason how many are bad, with a few of their ids.
    """
    schema = row_schema(catalogue)
    rows_read = 0
    found: dict[str, tuple[int, list[str]]] = {}
    for chunk in read_chunks(connection, database_url, catalogue, rows):
        rows_read += len(chunk)
        bad = first_faults(schema, chunk)
        if len(bad):
            _quarantine(connection, bad, now)
            for reason, those in bad.groupby("reason"):
                count, samples = found.get(str(reason), (0, []))
                found[str(reason)] = (count + len(those), (samples + those["event_id"].tolist())[:SAMPLES_MAX])
    return rows_read, found


def mend_rows(
    connection: Connection[Any],
    source: Source,
    catalogue: Catalogue,
    *,
    now: datetime,
    recorded_since: datetime | None = None,
    looked_at_limit: int | None = None,
    event_ids: list[str] | None = None,
) -> int:
    """Let rows leave quarantine that are right in the source now, or gone from it; returns how many did.

    Looks at all, at those recorded since then and the latest `looked_at_limit` of the others, or at `event_ids` only.
    """
    params = {
        "now": now,
        "recorded_since": recorded_since,
        "looked_at_limit": looked_at_limit,
        "event_ids": event_ids,
        "known_event_types": sorted(catalogue.known_event_types),
        "summed_event_types": sorted(catalogue.summed_event_types),
    }
    parts = source.parts | {"property_missing": property_missing(connection, catalogue)}
    # A person's retry may meet a flush in the same rows.
    return in_transaction(
        connection,
        lambda: queries.execute(connection, "mend_quarantined_events", params, parts=parts),
        name="Mending quarantine",
    )


def judged_since(connection: Connection[Any], overlap: timedelta) -> datetime | None:
    """From when on rows may not have been validated; None before the first validation that could read the source."""
    judged = queries.fetch_dicts(connection, "latest_judgement")
    return judged[0]["cutoff_at"] - overlap if judged else None


def latest_report(connection: Connection[Any]) -> ContractReport | None:
    """What the last validation found, or None when there was none yet."""
    rows = queries.fetch_dicts(connection, "latest_contract_run")
    if not rows:
        return None
    faults = tuple(
        Fault(found["reason"], Severity(found["severity"]), found["count"], tuple(found["samples"]))
        for found in rows[0]["faults"]
    )
    return ContractReport(rows[0]["rows_read"], rows[0]["cutoff_at"], faults)


def rows_in_quarantine(connection: Connection[Any]) -> list[Fault]:
    """What waits in quarantine now, whichever validation put it there; one fault per reason."""
    return [
        Fault(row["reason"], Severity.ROW, row["events"], tuple(row["sample_event_ids"]))
        for row in queries.fetch_dicts(connection, "quarantine_summary")
    ]


def require_contract(connection: Connection[Any], *, fail_closed: bool, now: datetime, age_max: timedelta) -> None:
    """The gate's part: when failing closed, go on only after a validation that passed and is no older than `age_max`.

    Raises `ContractBlocked`.
    """
    if not fail_closed:
        return
    latest = latest_report(connection)
    if latest is None or now - latest.cutoff_at > age_max:
        last = f"the last was at {latest.cutoff_at:%Y-%m-%d %H:%M} UTC" if latest else "there was none yet"
        raise ContractBlocked(
            "STRIPE_BILLING_CONTRACT_FAIL_CLOSED is on, and no validation of the data contract is recent enough "
            f"({last}; at most {age_max} old). Run the whole flush, which validates first."
        )
    if not latest.passed:
        reasons = ", ".join(fault.reason for fault in latest.faults if fault.severity is Severity.TABLE)
        raise ContractBlocked(
            f"The data contract failed ({reasons}) and STRIPE_BILLING_CONTRACT_FAIL_CLOSED is on. "
            "Mend the source, then flush again."
        )


def _counted(found: tuple[int, list[str]]) -> tuple[int, tuple[str, ...]]:
    count, samples = found
    return count, tuple(str(sample) for sample in samples)


def as_fault(found: SourceFault) -> Fault:
    """As a fault of the contract; a change that forbids nothing is a notice, whatever its rule says of the others."""
    told = fault(found.reason, len(found.details), found.details)
    return told if found.blocks else replace(told, severity=Severity.NOTICE)


def _quarantine(connection: Connection[Any], bad: pd.DataFrame, now: datetime) -> None:
    named = bad[bad["event_id"].notna() & (bad["event_id"] != "")]

    def column(name: str) -> list[Any]:
        return [None if pd.isna(value) else value for value in named[name].tolist()]

    params = {
        "event_ids": column("event_id"),
        "reasons": column("reason"),
        "organization_ids": column("organization_id"),
        "event_types": column("event_type"),
        "quantities": column("quantity"),
        "occurred_ats": [None if pd.isna(value) else value for value in storable_times(named["occurred_at"])],
        "contract_version": CONTRACT_VERSION,
        "now": now,
    }
    in_transaction(
        connection, lambda: queries.execute(connection, "quarantine_events", params), name="Filling quarantine"
    )


def _store(connection: Connection[Any], report: ContractReport, catalogue: Catalogue, now: datetime) -> ContractReport:
    known = sorted(catalogue.known_event_types) if report.source_was_read else None
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
            "known_event_types": known,
            "now": now,
        },
    )
    return report
