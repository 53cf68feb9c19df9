"""Asynchronous refusals: Stripe's error reports name meter events that it accepted and then refused.

A report names only a sample, so it can prove a refusal but never the lack of one; summaries decide the rest.
Run before confirmation; reading a report twice changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.stripe_api.error_reports import ErrorReport

logger = logging.getLogger(__name__)

OVERLAP = timedelta(hours=1)
"""Stripe's events list is eventually consistent, so each reading reaches back behind the last."""
LOOK_BACK_MAX = timedelta(days=29)
"""Stripe keeps events for 30 days."""


@dataclass(frozen=True, slots=True)
class ErrorReportsRead:
    """What the reports said: how many errors Stripe counted, and how many entries of ours they named."""

    reports: int = 0
    errors: int = 0
    entries_rejected: int = 0


def read_since(connection: Connection[Any], *, now: datetime) -> datetime:
    """From when on error reports may be new."""
    latest = queries.fetch_dicts(connection, "latest_error_report")[0]["created_at"]
    return max(now - LOOK_BACK_MAX, latest - OVERLAP) if latest else now - LOOK_BACK_MAX


def apply_error_reports(
    connection: Connection[Any], reports: Iterable[ErrorReport], *, now: datetime
) -> ErrorReportsRead:
    """Reject the entries that the reports name; their amounts are owed and on hold."""
    total = ErrorReportsRead()
    for report in reports:
        write = partial(write_error_report, connection, report, now=now)
        rejected = in_transaction(connection, write, name="The error report")
        total = ErrorReportsRead(
            total.reports + 1, total.errors + report.error_count, total.entries_rejected + rejected
        )
    return total


def write_error_report(connection: Connection[Any], report: ErrorReport, *, now: datetime) -> int:
    """The same for one report, inside the caller's transaction; return how many entries it rejects."""
    params = {"identifiers": list(report.identifiers), "now": now}
    rejected = queries.execute(connection, "reject_reported_entries", params)
    queries.execute(
        connection,
        "record_error_report",
        {
            "stripe_event_id": report.stripe_event_id,
            "created_at": report.created_at,
            "rejected": report.error_count,
            "named": rejected,
            "codes": Jsonb(report.codes),
            "now": now,
        },
    )
    if rejected:
        logger.warning(
            "Stripe meter event submit failed",
            extra={"action": "error_report", "stripe_event_id": report.stripe_event_id, "codes": report.codes},
        )
    return rejected
