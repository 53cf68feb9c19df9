"""Says where every row of the source is, and which rows are in no place or in two.

Asked by the invariant `v13_completeness`, by `billing-pipeline reconcile` and by the last asset of a flush.
The rules are those of the contract and of the catalogue's history; what is compared with them is what validation put
into quarantine and what aggregation counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Composable, Literal

from billing_pipeline.database import queries
from billing_pipeline.database.properties import kinds_of_counting, property_parts
from billing_pipeline.database.source import read_source
from billing_pipeline.domain.reach import FUTURE_MAX, reach_end, reach_start
from billing_pipeline.domain.windows import HOUR
from billing_pipeline.settings import Settings

LONG_AGO = datetime.fromisoformat("0001-01-01T00:00:00+00:00")


class Place(StrEnum):
    """Where a row is.  The last two are of windows, which keep no names of rows: only a finding can be of them."""

    COUNTED = "counted"
    WAITING = "waiting"  # in quarantine
    DISMISSED = "dismissed"  # in quarantine, and a person decided that it is nobody's usage
    WITHOUT_EVENT_ID = "without_event_id"  # breaks the contract, and has no name to keep it under
    IGNORED_EVENT_TYPE = "ignored_event_type"
    FILTERED_OUT = "filtered_out"  # meters count its type, and the filter of none takes it
    NO_METER_IN_ITS_HOUR = "no_meter_in_its_hour"  # a meter counts its type at other times
    BEFORE_BILLING_START = "before_billing_start"
    OUTSIDE_REACH = "outside_reach"  # occurred too long ago for Stripe; what was counted in time stays counted
    NOT_JUDGED_YET = "not_judged_yet"  # recorded or mended since the last flush looked
    NOT_QUARANTINED = "not_quarantined"  # breaks the contract, and is not in quarantine
    COUNTED_AND_QUARANTINED = "counted_and_quarantined"
    NOT_COUNTED = "not_counted"
    GONE_SINCE_COUNTED = "gone_since_counted"  # deleted or moved; only the daily full aggregation notices


@dataclass(frozen=True, slots=True)
class Finding:
    """Rows of one organization and hour that are not where the rules put them."""

    place: Place
    rows: int
    offender: str
    detail: str


@dataclass(frozen=True, slots=True)
class RowAccount:
    """How many rows of the source are in each place, and what contradicts that."""

    rows: Mapping[Place, int]
    findings: tuple[Finding, ...]

    @property
    def total(self) -> int:
        """Rows within reach."""
        return sum(self.rows.values())

    @property
    def faults(self) -> tuple[Finding, ...]:
        """Findings that no later flush explains: a row in no place, or in two."""
        return tuple(found for found in self.findings if found.place is not Place.GONE_SINCE_COUNTED)


def account_for_rows(connection: Connection[Any], *, settings: Settings, now: datetime) -> RowAccount:
    """Put every row of the source within reach in its place, and compare with quarantine and windows.

    Rows that the last validation and aggregation cannot have seen are `not_judged_yet`, bounded by their cutoffs.
    """
    with connection.transaction():
        queries.execute(connection, "use_working_memory")
        return _account(connection, settings, now)


def _account(connection: Connection[Any], settings: Settings, now: datetime) -> RowAccount:
    overlap = timedelta(seconds=settings.billing_cutoff_overlap_seconds)
    # Read first: what a stage does from here on only makes rows look newer than they are.
    aggregated = queries.fetch_dicts(connection, "latest_aggregation")[0]["cutoff_at"]
    validated = queries.fetch_dicts(connection, "latest_judgement")
    params = {
        "known_event_types": validated[0]["known_event_types"] if validated else None,
        "judged_before": validated[0]["cutoff_at"] - overlap if validated else LONG_AGO,
        "counted_before": aggregated - overlap if aggregated else LONG_AGO,
    }
    by_filter = kinds_of_counting(connection)["properties"]
    parts: dict[str, Composable] = {
        "filtered_meters": queries.part("meters_by_filter") if by_filter else SQL("NULL::text[]"),
        "reach_start": Literal(reach_start(now)),
        "recorded_since": Literal(reach_start(now) - FUTURE_MAX),
        # The oldest hour may have left the reach since it was counted.
        "counted_from": Literal(reach_start(now) + HOUR),
        "counted_until": Literal(reach_end(aggregated or now)),
    }
    parts |= read_source(connection, settings).parts | property_parts(connection)
    rows: dict[Place, int] = {}
    findings = []
    for row in queries.fetch_dicts(connection, "account_for_source_rows", params, parts=parts):
        if row["offender"] is None:
            rows[Place(row["place"])] = row["rows"]
        else:
            findings.append(Finding(Place(row["place"]), row["rows"], row["offender"], row["detail"]))
    return RowAccount({place: rows[place] for place in Place if place in rows}, tuple(findings))
