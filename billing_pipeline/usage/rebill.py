"""A person's decision beside stage 2: count old hours of a meter by the definition that the catalogue gives it now.

A changed catalogue never does that by itself (`meter_versions.py`).  Here the history of definitions is rewritten and
everything is counted anew in one transaction; a preview is the same transaction, undone.  Nothing is sent: the next
flush states the differences like those of late rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from psycopg import Connection, IsolationLevel

from billing_pipeline.database import queries
from billing_pipeline.database.source import Source
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.reach import reach_start
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.errors import UserError
from billing_pipeline.usage.aggregate import Scope, aggregate_once
from billing_pipeline.usage.gate import record_operation
from billing_pipeline.usage.meter_versions import keep_meter_versions


@dataclass(frozen=True, slots=True)
class Rebilled:
    """What an organization's hours within Stripe's reach are worth, in Stripe units, before and after.

    `sealed` is the part of the difference that lies in sealed periods: it is owed, and never sent.
    """

    organization_id: str
    before: Decimal
    after: Decimal
    sealed: Decimal

    @property
    def difference(self) -> Decimal:
        """Below zero: units that are taken back."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class RebillReport:
    """Each organization whose units change, the largest change first."""

    meter: str
    since: datetime
    organizations: tuple[Rebilled, ...]

    @property
    def difference(self) -> Decimal:
        """Of all organizations together."""
        return sum((rebilled.difference for rebilled in self.organizations), Decimal(0))

    @property
    def sealed(self) -> Decimal:
        """The part of it that is never sent."""
        return sum((rebilled.sealed for rebilled in self.organizations), Decimal(0))


@dataclass(frozen=True, slots=True)
class Decision:
    """Who applies a rebilling and why, and the difference that the preview showed them."""

    actor: str
    reason: str
    difference: Decimal


class _Previewed(Exception):
    """Carries the preview out of the transaction that it undoes."""

    def __init__(self, report: RebillReport) -> None:
        self.report = report


def rebill(
    connection: Connection[Any],
    *,
    source: Source,
    catalogue: Catalogue,
    meter: str,
    since: datetime,
    overlap: timedelta,
    clock: Callable[[], datetime],
    decision: Decision | None = None,
) -> RebillReport:
    """What counting `meter` by its current definition from `since` on changes; done only with a `decision`.

    Raises `UserError` for a meter or an hour that cannot be counted so, and where the difference is no longer the one
    that was decided about; then nothing was changed.
    """

    def work() -> RebillReport:
        # Before the snapshot, like the aggregation that takes it again.
        queries.execute(connection, "lock_aggregations")
        now = clock()
        reach = {"meter": meter, "reach_start": reach_start(now)}
        keep_meter_versions(connection, catalogue, start_at=None, now=now)
        _require_possible(connection, catalogue, meter, since, now)
        before = _units(connection, reach)
        for statement in ("drop_definitions_since", "end_definitions_at", "begin_current_definition_at"):
            queries.execute(connection, statement, {"meter": meter, "since": since})
        aggregate_once(connection, source, catalogue, None, overlap, lambda: now, Scope.FULL)
        report = RebillReport(meter, since, _compared(before, _units(connection, reach)))
        if decision is None:
            raise _Previewed(report)
        _record(connection, report, decision, now)
        return report

    try:
        return in_transaction(connection, work, name="The rebilling", isolation=IsolationLevel.REPEATABLE_READ)
    except _Previewed as previewed:
        return previewed.report


def _require_possible(
    connection: Connection[Any], catalogue: Catalogue, meter: str, since: datetime, now: datetime
) -> None:
    names = [known.name for known in catalogue.meters]
    if meter not in names:
        raise UserError(f"The catalogue has no meter {meter}; it has {', '.join(names)}.")
    if since != hour_of(since):
        raise UserError(f"{since:%Y-%m-%d %H:%M:%S} UTC is not a full hour; an hour is counted by one definition.")
    if since < reach_start(now):
        raise UserError(f"Stripe takes no usage of before {reach_start(now):%Y-%m-%d %H:%M} UTC any more.")
    first_hour_at = queries.fetch_dicts(connection, "first_billed_hour")[0]["first_hour_at"]
    if since < first_hour_at:
        raise UserError(f"Nothing is billed of before {first_hour_at:%Y-%m-%d %H:%M} UTC (BILLING_START_AT).")
    definitions = queries.fetch_dicts(connection, "definitions_to_replace", {"meter": meter, "since": since})
    current = definitions[-1]
    if current["valid_from"] <= since:
        raise UserError(f"Every hour since {since:%Y-%m-%d %H:%M} UTC is counted by today's definition already.")
    if others := {row["event_name"] for row in definitions} - {current["event_name"]}:
        raise UserError(
            f"Some of these hours were sent to {', '.join(sorted(others))}, not to {current['event_name']}; "
            "what one Stripe meter has counted cannot be moved to another."
        )


def _units(connection: Connection[Any], reach: dict[str, Any]) -> dict[str, tuple[Decimal, Decimal]]:
    rows = queries.fetch_dicts(connection, "units_by_organization", reach)
    return {row["organization_id"]: (row["units"], row["sealed"]) for row in rows}


def _compared(
    before: dict[str, tuple[Decimal, Decimal]], after: dict[str, tuple[Decimal, Decimal]]
) -> tuple[Rebilled, ...]:
    nothing = (Decimal(0), Decimal(0))
    found = []
    for organization_id in before.keys() | after.keys():
        units, sealed = before.get(organization_id, nothing)
        units_after, sealed_after = after.get(organization_id, nothing)
        found.append(Rebilled(organization_id, units, units_after, sealed_after - sealed))
    changed = [rebilled for rebilled in found if rebilled.difference or rebilled.sealed]
    return tuple(sorted(changed, key=lambda rebilled: (-abs(rebilled.difference), rebilled.organization_id)))


def _record(connection: Connection[Any], report: RebillReport, decision: Decision, now: datetime) -> None:
    if report.difference != decision.difference:
        raise UserError(
            f"The difference is {report.difference:+,f} units by now, not {decision.difference:+,f}. "
            "Nothing was changed; look at the preview again."
        )
    details = {
        "meter": report.meter,
        "since": report.since.isoformat(),
        "difference": str(report.difference),
        "organizations": len(report.organizations),
    }
    record_operation(connection, "rebill", actor=decision.actor, reason=decision.reason, now=now, details=details)
