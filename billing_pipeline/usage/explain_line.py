"""Beside the flow: the usage behind one line of an invoice, day by day, and the hours whose sides disagree.

The line itself is Stripe's (`stripe_api/invoices.py`); here its period is put beside what the ledger has proved there.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from psycopg import Connection, IsolationLevel

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.amounts import amount, units_of
from billing_pipeline.domain.standing import Verdict
from billing_pipeline.stripe_api.invoices import InvoiceLine
from billing_pipeline.usage.explain import only_reading
from billing_pipeline.usage.explained import Seal
from billing_pipeline.usage.page import Fact, Grid, Page, Section, visible

DAYS_MAX = 35
HOURS_MAX = 20


@dataclass(frozen=True, slots=True)
class LaneSpan:
    """Units of a day or an hour of a customer's meter; `observed` is None where Stripe was not asked yet."""

    starts_at: datetime
    target: Decimal
    proved: Decimal
    unproved: Decimal
    observed: Decimal | None


@dataclass(frozen=True, slots=True)
class LineExplanation:
    """A line beside its period's usage, in Stripe units.

    `target` is what the source is worth, `proved` what Stripe shows of the entries, `unproved` what it does not yet.
    """

    line: InvoiceLine
    event_name: str
    organization_ids: tuple[str, ...]
    target: Decimal
    proved: Decimal
    unproved: Decimal
    days: tuple[LaneSpan, ...]
    hours_differing: int
    hours: tuple[LaneSpan, ...]
    seals: tuple[Seal, ...]
    verdict: Verdict


def explain_line(connection: Connection[Any], line: InvoiceLine, event_name: str) -> LineExplanation:
    """What the ledger knows of the line's period."""
    with only_reading(connection):
        return in_transaction(
            connection,
            lambda: _read(connection, line, event_name),
            name="The explanation",
            isolation=IsolationLevel.REPEATABLE_READ,
        )


def _read(connection: Connection[Any], line: InvoiceLine, event_name: str) -> LineExplanation:
    lane: dict[str, Any] = {
        "stripe_customer_id": line.stripe_customer_id,
        "event_name": event_name,
        "period_start": line.starts_at,
        "period_end": line.ends_at,
    }
    organizations = [row["organization_id"] for row in queries.fetch_dicts(connection, "organizations_of_lane", lane)]
    lane["organization_ids"] = organizations
    parts = {"hours_of_lane": queries.part("hours_of_lane"), "differs": queries.part("differs")}
    sums = queries.fetch_dicts(connection, "sums_of_lane", lane, parts=parts)[0]
    days = queries.fetch_dicts(connection, "days_of_lane", lane | {"limit": DAYS_MAX}, parts=parts)
    hours = queries.fetch_dicts(connection, "differing_hours_of_lane", lane | {"limit": HOURS_MAX}, parts=parts)
    seals = queries.fetch(connection, "seals_of_lane_with_reason", Seal, lane)
    differing = tuple(_span(row, "hour_at") for row in hours)
    return LineExplanation(
        line=line,
        event_name=event_name,
        organization_ids=tuple(organizations),
        target=sums["target"],
        proved=sums["proved"],
        unproved=sums["unproved"],
        days=tuple(_span(row, "day_at") for row in days),
        hours_differing=sums["hours_differing"],
        hours=differing,
        seals=tuple(seals),
        verdict=line_verdict(line, organizations, sums["target"], sums["proved"], sums["unproved"], differing),
    )


def line_verdict(
    line: InvoiceLine,
    organizations: list[str],
    target: Decimal,
    proved: Decimal,
    unproved: Decimal,
    differing: tuple[LaneSpan, ...],
) -> Verdict:
    """What the line comes to; Stripe bills 0 where a period's usage is below nothing."""
    command = None
    if differing and organizations:
        whose, hour_at = shlex.quote(organizations[-1]), differing[0].starts_at
        command = f"billing-pipeline explain --org {whose} --at {hour_at:%Y-%m-%dT%H}Z"
    billed, difference = f"The line bills {units_of(line.quantity)}", max(proved, Decimal(0)) - line.quantity
    if difference == 0 and unproved == 0 and target == proved:
        return Verdict(f"{billed}; the ledger's proved entries come to the same; nothing is owed.", is_settled=True)
    text = f"{billed}; the ledger has proved {amount(proved)} in its period"
    if unproved:
        text += f" and waits for the proof of {amount(unproved)}"
    if target != proved:
        text += f"; by the source it is worth {amount(target)}"
    if difference:
        which = "too few" if difference > 0 else "too many"
        text += f". The line has {units_of(abs(difference))} {which}"
        text += ", and is final: the invoice needs an adjustment" if line.is_final else ", and is still a draft"
    return Verdict(f"{text}.", command)


def page_of_line(found: LineExplanation) -> Page:
    """The explanation in words."""
    line = found.line
    status = "still a draft" if not line.is_final else "final"
    if line.finalized_at is not None:
        status += f" since {line.finalized_at:%Y-%m-%d %H:%M} UTC"
    whose = ", ".join(visible(organization_id) for organization_id in found.organization_ids) or "nobody of ours"
    facts = (
        Fact("customer", f"{line.stripe_customer_id}, which is {whose}"),
        Fact("period", f"{line.starts_at:%Y-%m-%d %H:%M:%S} to {line.ends_at:%Y-%m-%d %H:%M:%S} UTC"),
        Fact(
            "line",
            f"{units_of(line.quantity)} of {found.event_name}, {amount(line.amount)} minor units of "
            f"{line.currency}; the invoice is {status}",
        ),
        Fact("ledger", f"{units_of(found.proved)} proved, {amount(found.unproved)} stated and not proved yet"),
        Fact("source", f"{units_of(found.target)} when last counted"),
        *(
            Fact("sealed", f"{seal.sealed_at:%Y-%m-%d %H:%M} UTC by {visible(seal.actor)}: {visible(seal.reason)}")
            for seal in found.seals
        ),
    )
    return Page(
        f"{line.invoice_id}, line {line.line_id}",
        (),
        (Section("The line", facts), *_grids(found)),
        found.verdict.text,
        found.verdict.command,
    )


def _grids(found: LineExplanation) -> Iterator[Section]:
    titles = ("source", "proved", "not proved", "Stripe")
    if found.days:
        rows = tuple(_row(f"{day.starts_at:%Y-%m-%d}", day) for day in found.days)
        yield Section("By UTC day", grid=Grid(("day", *titles), rows))
    if found.hours:
        rows = tuple(_row(f"{hour.starts_at:%Y-%m-%d %H:%M}", hour) for hour in found.hours)
        left = found.hours_differing - len(found.hours)
        more = (Fact("", f"the first {len(found.hours)} of {found.hours_differing:,}"),) if left else ()
        yield Section("Hours whose sides disagree", more, Grid(("hour", *titles), rows))


def _row(label: str, span: LaneSpan) -> tuple[str, ...]:
    shown = "not asked" if span.observed is None else amount(span.observed)
    return (label, amount(span.target), amount(span.proved), amount(span.unproved), shown)


def _span(row: dict[str, Any], start: str) -> LaneSpan:
    return LaneSpan(row[start], row["target"], row["proved"], row["unproved"], row["observed"])
