"""What a flush would send, found by running one: the stages themselves, in a transaction that is undone.

A plan needs no lease, sends nothing, and leaves nothing behind but its own row, by which `flush-now --plan` knows what
a person has seen.  `cut_as_planned` is that half: it cuts, and keeps it only where that comes to the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from psycopg import Connection, IsolationLevel
from psycopg.sql import Composable
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import all_or_nothing
from billing_pipeline.errors import Refused, UserError
from billing_pipeline.stripe_api.catalogue import require_meters
from billing_pipeline.stripe_api.client import read_account
from billing_pipeline.stripe_api.subscriptions import ItemPeriod
from billing_pipeline.usage import gate
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.cut import CutReport
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.money import money_at_risk
from billing_pipeline.usage.periods import sync_periods

HASH_LENGTH = 16
"""Hex digits of a plan's name: enough that no two plans of one ledger share it, and short enough to type."""
KEPT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class PlannedLine:
    """What would be stated for one organization and meter, in Stripe units; `units_taken_back` counts upwards."""

    organization_id: str
    meter: str
    event_name: str
    entries: int
    units_added: int
    units_taken_back: int
    first_hour_at: datetime
    last_hour_at: datetime


@dataclass(frozen=True, slots=True)
class PlannedMeter:
    """The same over all organizations."""

    event_name: str
    entries: int
    units_added: int
    units_taken_back: int

    @property
    def counts(self) -> str:
        """In words."""
        return f"{self.entries:,} entries, +{self.units_added:,} -{self.units_taken_back:,} units"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a flush of everything would send that was never sent before.

    `lines` are the largest first, at most as many as were asked for; `meters` is all of it.
    `sent_again` counts entries that would go out once more under the identifier that Stripe may know: no new usage.
    """

    plan_hash: str
    made_at: datetime
    closed_before: datetime
    stripe_account: str
    livemode: bool
    meters: tuple[PlannedMeter, ...]
    lines: tuple[PlannedLine, ...]
    organizations: int
    sent_again: int
    cut: CutReport
    units_unmapped: Decimal

    @property
    def is_empty(self) -> bool:
        """Nothing new would be sent."""
        return not self.meters


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """What is kept of a plan; `meters` are the fields of `PlannedMeter`."""

    plan_hash: str
    made_at: datetime
    made_by: str
    closed_before: datetime
    meters: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Sendable:
    identifier: str
    value: int
    slot_at: datetime


class _Undo(Exception):
    """Carries the plan out of the transaction that it undoes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan


def make_plan(flow: UsageFlow, *, limit: int, actor: str) -> Plan:
    """The plan of a full flush now, stored under its hash; `limit` organizations and meters are listed.

    Raises what the flush would raise before it cuts: `StripeUnavailable`, `StripeRefused` for a meter that counts in
    another way, `ContractBlocked` for a source that cannot be counted, `GateClosed`.
    """
    # Whatever Stripe is asked comes before the transaction, which must not wait for it.
    require_meters(flow.catalogue, flow.meters_at_stripe)
    periods = flow.periods_at_stripe()
    account = read_account(flow.stripe, flow.settings)
    gate.require_clock(flow.clock(), account.stripe_time)
    plan = _rehearse(flow, account.account_id, periods, limit)
    if not plan.is_empty:
        _store(flow.connection, plan, actor)
    return plan


def read_plan(connection: Connection[Any], plan_hash: str) -> StoredPlan:
    """The plan of this hash as it was made.  Raises `UserError` for one that is not known."""
    found = queries.fetch(connection, "read_plan", StoredPlan, {"plan_hash": plan_hash})
    if not found:
        raise UserError(
            f"There is no plan {plan_hash}; plans are kept for {KEPT.days} days. Make one with `billing-pipeline plan`."
        )
    return found[0]


def cut_as_planned(flow: UsageFlow, plan: StoredPlan) -> CutReport:
    """Stage 3 of `flush-now --plan`: cut the hours that the plan cut, and nothing unless it comes to the plan.

    Raises `Refused` where the flush would send something else by now, and what `UsageFlow.cut` raises.
    """
    identity = flow.identity_to_cut()
    with all_or_nothing(flow.connection, name="The cut"):
        report = flow.cut_closed(identity, closed_before=plan.closed_before)
        if _hash(flow, identity) != plan.plan_hash:
            raise Refused(_difference(plan, _meters(flow)))
    return report


def _rehearse(flow: UsageFlow, account_id: str, periods: list[ItemPeriod], limit: int) -> Plan:
    try:
        with all_or_nothing(flow.connection, name="The plan", isolation=IsolationLevel.REPEATABLE_READ):
            now = flow.clock()
            identity = gate.bind(flow.connection, stripe_account=account_id, livemode=flow.settings.livemode, now=now)
            if (reason := gate.reason_to_stop(flow.connection, identity, flow.mark)) is not None:
                raise gate.frozen(identity, reason, now=now)
            sync_periods(flow.connection, lambda: periods, clock=flow.clock)
            flow.recompute(Scope.FULL)
            closed_before = flow.closed_before()
            report = flow.cut_closed(identity, closed_before=closed_before)
            raise _Undo(_plan(flow, identity, report, closed_before, limit))
    except _Undo as undone:
        return undone.plan


def _plan(flow: UsageFlow, identity: gate.Identity, report: CutReport, closed_before: datetime, limit: int) -> Plan:
    now, times = flow.clock(), flow.settings.protocol_times
    span = {"now": now, "past_max": times.past_max}
    again = queries.fetch_dicts(flow.connection, "sent_again", span | {"safe_send": times.safe_send})[0]["entries"]
    organizations = queries.fetch_dicts(flow.connection, "planned_organizations", span, parts=_never_sent())[0]
    return Plan(
        plan_hash=_hash(flow, identity),
        made_at=now,
        closed_before=closed_before,
        stripe_account=identity.stripe_account,
        livemode=identity.livemode,
        meters=_meters(flow),
        lines=tuple(
            queries.fetch(flow.connection, "planned_lines", PlannedLine, span | {"limit": limit}, parts=_never_sent())
        ),
        organizations=organizations["organizations"],
        sent_again=again,
        cut=report,
        units_unmapped=money_at_risk(flow.connection, now=now).units_unmapped,
    )


def _hash(flow: UsageFlow, identity: gate.Identity) -> str:
    """Of every entry: whose it is, what it states, and the minute that it states it for."""
    digest = hashlib.sha256(f"{identity.stripe_account} {identity.livemode} {identity.epoch}".encode())
    span = {"now": flow.clock(), "past_max": flow.settings.protocol_times.past_max}
    for entry in queries.stream(flow.connection, "planned_entries", _Sendable, span, parts=_never_sent()):
        digest.update(f"\n{entry.identifier} {entry.value} {entry.slot_at:%Y-%m-%dT%H:%M}".encode())
    return digest.hexdigest()[:HASH_LENGTH]


def _meters(flow: UsageFlow) -> tuple[PlannedMeter, ...]:
    span = {"now": flow.clock(), "past_max": flow.settings.protocol_times.past_max}
    return tuple(queries.fetch(flow.connection, "planned_meters", PlannedMeter, span, parts=_never_sent()))


def _never_sent() -> dict[str, Composable]:
    return {"never_sent": queries.part("never_sent")}


def _store(connection: Connection[Any], plan: Plan, actor: str) -> None:
    params = {
        "plan_hash": plan.plan_hash,
        "now": plan.made_at,
        "actor": actor,
        "closed_before": plan.closed_before,
        "meters": Jsonb([asdict(meter) for meter in plan.meters]),
    }
    with connection.transaction():
        queries.execute(connection, "drop_old_plans", {"made_before": plan.made_at - KEPT})
        queries.execute(connection, "store_plan", params)


def _difference(plan: StoredPlan, now: tuple[PlannedMeter, ...]) -> str:
    before = {meter.event_name: meter for meter in (PlannedMeter(**stored) for stored in plan.meters)}
    after = {meter.event_name: meter for meter in now}
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    told = "; ".join(f"{name} {_counts(before.get(name))} then, {_counts(after.get(name))} now" for name in changed)
    return (
        f"The plan {plan.plan_hash} of {plan.made_at:%Y-%m-%d %H:%M} UTC no longer holds: "
        f"{told or 'the same amounts, of other hours'}. Nothing was cut or sent. "
        "Make a new one: `billing-pipeline plan`."
    )


def _counts(meter: PlannedMeter | None) -> str:
    return meter.counts if meter else "nothing"
