"""Stage 1: read the source against the contract, quarantine bad rows, report everything.

Row faults put rows into quarantine and let the rest go on; `row_contract.py` has their rules, and reads the source in
chunks, so that memory does not grow with the table.  Faults of the table as a whole are for the gate.
`source_contract.py` has what a source must be before it is read at all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import pandas as pd
from psycopg import Connection
from psycopg.sql import Composed
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.reach import FUTURE_MAX, reach_start
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.errors import ContractBlocked
from billing_pipeline.usage.row_contract import (
    ROW_RULES,
    first_faults,
    read_chunks,
    row_schema,
    rows_recorded_since,
    storable_times,
)
from billing_pipeline.usage.source_contract import source_fault

CONTRACT_VERSION = "1"
SAMPLES_MAX = 5
LOOKED_AT_LIMIT = 50_000
"""Rows of quarantine that an hourly flush looks at again although nothing recorded them anew."""


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
    """Validate the rows recorded since `since`, quarantine the bad ones, store the report.

    None is the whole lookback, and whatever aggregation may count: also rows that were broken after they were recorded.
    A catalogue that is not the last validation's is reason to judge the whole lookback, too.
    Reads `source` only; writes `quarantined_events` and `contract_runs`.
    A source that cannot be counted is reported and not read.
    """
    if wrong := source_fault(connection, source):
        reason, details = wrong
        fault = Fault(reason, Severity.TABLE, len(details), details)
        return _store(connection, ContractReport(0, now, (fault,)), catalogue, now)
    judged = queries.fetch_dicts(connection, "latest_judgement")
    if judged and judged[0]["catalogue_version"] != catalogue.version:
        since = None  # what is known, and what needs a quantity, may be otherwise for every row
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
    faults = [Fault(reason, Severity.ROW, *_counted(found[reason])) for reason in ROW_RULES if reason in found]
    faults += _notices(connection, source, now - lookback)
    report = ContractReport(rows_read, now, tuple(faults))
    return _store(connection, report, catalogue, now, known=sorted(catalogue.known_event_types))


def judge_rows(
    connection: Connection[Any], database_url: str, rows: Composed, catalogue: Catalogue, now: datetime
) -> tuple[int, dict[str, tuple[int, list[str]]]]:
    """Put those of `rows` that break the contract into quarantine.

    Returns how many were read, and by reason how many are bad, with a few of their ids.
    """
    schema = row_schema(catalogue)
    rows_read = 0
    found: dict[str, tuple[int, list[str]]] = {}
    for chunk in read_chunks(connection, database_url, rows):
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
    source: str,
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
    parts = {"source": queries.relation(source)}
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
        Fault(fault["reason"], Severity(fault["severity"]), fault["count"], tuple(fault["samples"]))
        for fault in rows[0]["faults"]
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


def _store(
    connection: Connection[Any],
    report: ContractReport,
    catalogue: Catalogue,
    now: datetime,
    *,
    known: list[str] | None = None,
) -> ContractReport:
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
