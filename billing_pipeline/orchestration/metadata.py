"""Renders reports as the metadata a person reads in the Dagster UI.

Used by assets and checks; nothing here reads the database.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal
from typing import Any

import dagster as dg

from billing_pipeline.domain.contract_rules import Fault
from billing_pipeline.domain.differences import Sides
from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.holds import HOLDS
from billing_pipeline.feed.upkeep import Misfit
from billing_pipeline.reconciliation.completeness import RowAccount
from billing_pipeline.reconciliation.expiry import Expiring
from billing_pipeline.reconciliation.invariants import Violation
from billing_pipeline.reconciliation.reconcile import ReconciliationReport
from billing_pipeline.usage.adjust import AdjustmentRow
from billing_pipeline.usage.hold import HeldUnits, HeldWindow
from billing_pipeline.usage.money import FailingEntry, MoneyAtRisk
from billing_pipeline.webhooks.health import Stuck, Unhandled
from billing_pipeline.webhooks.rebuild import RebuildReport

ROWS_MAX = 100
"""A metadata table is stored in Dagster's event log and loaded whole by the UI."""

CELL_MAX = 120
"""Characters of a cell: the UI breaks lines only at spaces and dashes, so a long id pushes the rest off the page."""


def fault_table(faults: Iterable[Fault]) -> dg.TableMetadataValue:
    """Each fault with its count and a few of its rows."""
    records = [
        dg.TableRecord(
            {
                "reason": fault.reason,
                "severity": str(fault.severity),
                "count": fault.count,
                "samples": _shortened(", ".join(fault.samples)),
            }
        )
        for fault in faults
    ]
    return _table(records, reason="string", severity="string", count="int", samples="string")


def quarantine_table(waiting: Iterable[Fault]) -> dg.TableMetadataValue:
    """What waits in quarantine by reason, whichever run put it there."""
    records = [
        dg.TableRecord({"reason": found.reason, "events": found.count, "samples": _shortened(", ".join(found.samples))})
        for found in waiting
    ]
    return _table(records, reason="string", events="int", samples="string")


def sides_table(report: ReconciliationReport) -> dg.TableMetadataValue:
    """Source, ledger and Stripe side by side, those with differences first; one number where all three agree, so that
    the columns fit a page."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for found in report.differences:
        reasons.setdefault((found.organization_id, found.meter), []).append(f"{found.kind} {units_text(found.units)}")
    sides = sorted(
        report.sides, key=lambda s: ((s.organization_id, s.meter) not in reasons, s.organization_id, s.meter)
    )
    records = [
        dg.TableRecord(
            {
                "organization": side.organization_id,
                "meter": side.meter,
                "units": _sides_text(side),
                "differs": ", ".join(reasons.get((side.organization_id, side.meter), [])),
            }
        )
        for side in sides[:ROWS_MAX]
    ]
    return _table(records, organization="string", meter="string", units="string", differs="string")


def _sides_text(side: Sides) -> str:
    if side.source_units == side.stated == side.observed:
        return units_text(side.stated)
    shown = (("source", side.source_units), ("ledger", side.stated), ("Stripe", side.observed))
    return ", ".join(f"{name} {units_text(units)}" for name, units in shown)


def rows_table(account: RowAccount) -> dg.TableMetadataValue:
    """How many rows of the source are in each place."""
    records = [dg.TableRecord({"place": str(place), "rows": rows}) for place, rows in account.rows.items()]
    return _table(records, place="string", rows="int")


def difference_text(report: ReconciliationReport) -> dg.MarkdownMetadataValue:
    """One line per difference, faults first."""
    ordered = sorted(report.differences, key=lambda difference: not difference.is_fault)
    lines = [f"- {d.organization_id} · {d.meter}: {units_text(d.units)} units {d.kind}" for d in ordered[:ROWS_MAX]]
    return dg.MetadataValue.md("\n".join(lines) or "no differences")


def violation_table(violations: list[Violation]) -> dg.TableMetadataValue:
    """Which invariant, which offender, and what is wrong with it."""
    records = [
        dg.TableRecord({"invariant": found.invariant, "offender": found.offender, "detail": _shortened(found.detail)})
        for found in violations[:ROWS_MAX]
    ]
    return _table(records, invariant="string", offender="string", detail="string")


def fault_text(report: ReconciliationReport) -> str | None:
    """The first difference that nothing explains, and how many there are."""
    if not report.faults:
        return None
    first, others = report.faults[0], len(report.faults) - 1
    more = f", and {others} more" if others else ""
    return f"{first.organization_id} · {first.meter}: {units_text(first.units)} units {first.kind}{more}"


def expiring_text(found: list[Expiring]) -> str | None:
    """Whose usage has waited longest."""
    if not found:
        return None
    first = found[0]
    waits = f"{units_text(first.units)} units wait, since {first.oldest_at:%Y-%m-%d %H:%M} UTC"
    return f"{first.organization_id} · {first.meter}: {waits}"


def expiring_table(found: list[Expiring]) -> dg.TableMetadataValue:
    """Whose usage waits, how much, and since when."""
    records = [
        dg.TableRecord(
            {
                "organization": _shortened(one.organization_id),
                "meter": one.meter,
                "units": units_text(one.units),
                "oldest hour": f"{one.oldest_at:%Y-%m-%d %H:%M}",
            }
        )
        for one in found[:ROWS_MAX]
    ]
    return _table(records, organization="string", meter="string", units="string", **{"oldest hour": "string"})


def held_table(held: list[HeldWindow]) -> dg.TableMetadataValue:
    """What waits for a person, and the limit that was exceeded."""
    records = [
        dg.TableRecord(
            {
                "window": window.window_id,
                "organization": _shortened(window.organization_id),
                "meter": window.meter,
                "hour": f"{window.starts_at:%Y-%m-%d %H:%M}",
                "units": units_text(window.units),
                "reason": window.reason,
                "detail": _shortened(window.detail or ""),
            }
        )
        for window in held[:ROWS_MAX]
    ]
    texts = ("organization", "meter", "hour", "units", "reason", "detail")
    return _table(records, window="int", **dict.fromkeys(texts, "string"))


def held_text(sums: list[HeldUnits]) -> dg.TextMetadataValue:
    """What each reason means, and what to do."""
    rules = [HOLDS[HoldReason(reason)] for reason in dict.fromkeys(one.reason for one in sums)]
    # As text: on a check's page Dagster hides Markdown behind a click.
    return dg.MetadataValue.text(" ".join(f"{rule.meaning} {rule.remedy}" for rule in rules) or "nothing")


def adjustments_table(found: Iterable[AdjustmentRow]) -> dg.TableMetadataValue:
    """What was put on which invoice, and what Stripe said."""
    records = [
        dg.TableRecord(
            {
                "organization": _shortened(one.organization_id),
                "meter": one.meter,
                "units": units_text(one.units),
                "invoice": one.stripe_invoice_id,
                "state": one.state,
                "error": _shortened(one.last_error or ""),
            }
        )
        for one in found
    ]
    return _table(records, **dict.fromkeys(("organization", "meter", "units", "invoice", "state", "error"), "string"))


def counts_table(rows: list[dict[str, int | str]]) -> dg.TableMetadataValue:
    """Rows of the same columns, as they are; at least one."""
    types = {name: "int" if isinstance(value, int) else "string" for name, value in rows[0].items()}
    return _table([dg.TableRecord(row) for row in rows], **types)


def _table(records: list[dg.TableRecord], **types: str) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name, column_type) for name, column_type in types.items()]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def units_text(units: Decimal) -> str:
    """All digits: a number of more than 2^53 or with a fraction would lose some in a browser."""
    text = f"{units:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shortened(text: str) -> str:
    return text if len(text) <= CELL_MAX else f"{text[:CELL_MAX]}…"


def money_metadata(found: MoneyAtRisk) -> dict[str, Any]:
    """One entry per number, so that each has its own line and, where it counts, its own plot."""
    return {name: _number(value) for name, value in asdict(found).items()}


def failing_table(found: list[FailingEntry]) -> dg.MetadataValue[Any]:
    """Entries that were sent again and again, with what the log calls them."""
    rows = [
        dg.TableRecord(
            {
                "organization_id": entry.organization_id,
                "identifier": entry.identifier,
                "sends": entry.sends,
                "since": f"{entry.first_attempt_at:%Y-%m-%d %H:%M} UTC",
                "last_error": entry.last_error,
            }
        )
        for entry in found
    ]
    return dg.MetadataValue.table(rows) if rows else dg.MetadataValue.text("none")


def states_table(states: Iterable[dict[str, Any]]) -> dg.TableMetadataValue:
    """How many rows are in each state."""
    records = [dg.TableRecord({"state": row["status"], "rows": row["rows"]}) for row in states]
    return _table(records[:ROWS_MAX], state="string", rows="int")


def unhandled_table(found: Iterable[Unhandled]) -> dg.TableMetadataValue:
    """Failed and parked events by what went wrong."""
    records = [
        dg.TableRecord(
            {
                "outcome": one.processing_outcome,
                "error": one.error_class,
                "events": one.events,
                "oldest": f"{one.oldest_at:%Y-%m-%d %H:%M}",
                "samples": _shortened(", ".join(one.samples)),
            }
        )
        for one in found
    ]
    return _table(records, outcome="string", error="string", events="int", oldest="string", samples="string")


def fed_table(rows: Iterable[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """What is kept of the live feed, by type of event."""
    records = [
        dg.TableRecord(
            {
                "event_type": row["event_type"],
                "rows": row["rows"],
                "organizations": row["organizations"],
                "newest": f"{row['newest_at']:%Y-%m-%d %H:%M}",
            }
        )
        for row in rows
    ]
    return _table(records, event_type="string", rows="int", organizations="int", newest="string")


def misfit_table(found: Iterable[Misfit]) -> dg.TableMetadataValue:
    """Payloads of the feed that break its schema, and where."""
    records = [
        dg.TableRecord(
            {
                "feed_id": one.feed_id,
                "event": one.stripe_event_id,
                "event_type": one.event_type,
                "faults": _shortened("; ".join(one.faults)),
            }
        )
        for one in found
    ]
    return _table(records, feed_id="int", event="string", event_type="string", faults="string")


def stuck_table(found: Iterable[Stuck]) -> dg.TableMetadataValue:
    """Events whose work was not ended in time."""
    records = [
        dg.TableRecord(
            {
                "event": one.stripe_event_id,
                "type": one.event_type,
                "attempts": one.attempts,
                "since": f"{one.since_at:%Y-%m-%d %H:%M}",
                "how": "taken, not ended"
                if one.is_claimed
                else "never taken"
                if not one.attempts
                else "not taken again",
            }
        )
        for one in found
    ]
    return _table(records, event="string", type="string", attempts="int", since="string", how="string")


def rebuilt_table(report: RebuildReport) -> dg.TableMetadataValue:
    """Each table's rows, and how many of them differ."""
    records = [
        dg.TableRecord({"table": one.table_name, "rows": one.rows, "differ": one.differ}) for one in report.tables
    ]
    return _table(records, table="string", rows="int", differ="int")


def difference_table(report: RebuildReport) -> dg.TableMetadataValue:
    """The first rows that differ, and where."""
    records = [
        dg.TableRecord(
            {
                "table": one.table_name,
                "row": _shortened(one.object_id),
                "how": one.kind,
                "columns": _shortened(", ".join(one.columns)),
            }
        )
        for one in report.differences[:ROWS_MAX]
    ]
    return _table(records, table="string", row="string", how="string", columns="string")


def _number(value: int | Decimal | timedelta | None) -> dg.MetadataValue[Any]:
    if value is None:
        return dg.MetadataValue.text("-")
    if isinstance(value, timedelta):
        return dg.MetadataValue.text(str(value))
    # Dagster plots integers; whole units are almost always some.
    return dg.MetadataValue.int(int(value)) if value == int(value) else dg.MetadataValue.text(str(value))
