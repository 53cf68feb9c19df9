"""The webhooks' service levels as asset checks; what each means and what to do is in docs/operations.md.

A check that fails is also a line in the log, `Webhook check failed`, for alerts that do not look into Dagster.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from billing_pipeline.domain.outcomes import Outcome
from billing_pipeline.orchestration.metadata import (
    ROWS_MAX,
    difference_table,
    rebuilt_table,
    stuck_table,
    unhandled_table,
)
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.switches import is_on
from billing_pipeline.orchestration.webhook_assets import entitlements, invoices, stripe_events
from billing_pipeline.webhooks import health

logger = logging.getLogger("billing_pipeline.checks")

SUCCESS_PERCENT = 95
DUPLICATE_PERCENT = 20
DELIVERIES_JUDGED_FROM = 20
"""Of fewer, a share says nothing: two repetitions of four are a quiet night."""
SIGNATURE_FAILURES_MAX = 10
COMPLETE_WITHIN = timedelta(hours=2)
SWEEP_SCHEDULE = "hourly_event_sweep"
WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


@dg.asset_check(asset=stripe_events.key)
def no_failed_events(billing: BillingResource) -> dg.AssetCheckResult:
    """No webhook event failed; one that is parked is not tried any more and waits for a person."""
    with billing.webhook_flow() as flow:
        found = health.unhandled(flow.connection)
    parked = sum(one.events for one in found if one.processing_outcome == Outcome.PARKED)
    failed = sum(one.events for one in found) - parked
    return _result(
        "no_failed_events",
        passed=not found,
        severity=ERROR if parked else WARN,
        found=f"{parked:,} parked, {failed:,} to be tried again" if found else None,
        do_next="`billing-pipeline events list --status failed` names them with their errors. Mend the cause, then "
        "`billing-pipeline events replay EVENT_ID`; what is not parked is tried again by itself.",
        metadata={"failed": failed, "parked": parked, "by_error": unhandled_table(found)},
    )


@dg.asset_check(asset=stripe_events.key)
def stuck_dispatches(billing: BillingResource) -> dg.AssetCheckResult:
    """Every event that is due was taken, and every one that was taken was ended, within the SLA."""
    with billing.webhook_flow() as flow:
        found = health.stuck(flow.connection, sla=flow.sla, now=flow.clock(), limit=ROWS_MAX)
    events = found[0].events if found else 0
    return _result(
        "stuck_dispatches",
        passed=not found,
        severity=ERROR,
        found=f"{events:,} events, the oldest since {found[0].since_at:%Y-%m-%d %H:%M} UTC" if found else None,
        do_next="Is `billing-pipeline serve` running, and the sensor stripe_events_to_replay on? Nothing is lost: "
        "materializing `subscriptions` handles what waits.",
        metadata={"events": events, "oldest": stuck_table(found)},
    )


@dg.asset_check(asset=stripe_events.key)
def webhook_success_rate(billing: BillingResource) -> dg.AssetCheckResult:
    """More than 95 % of the events of 24 hours were handled; deliveries with a bad signature are not among them."""
    with billing.webhook_flow() as flow:
        found = health.handled(flow.connection, sla=flow.sla, now=flow.clock())
    passed = found.events == 0 or found.handled * 100 > found.events * SUCCESS_PERCENT
    return _result(
        "webhook_success_rate",
        passed=passed,
        severity=ERROR,
        found=None if passed else f"{found.handled:,} of {found.events:,} events were handled",
        do_next="The check no_failed_events has the errors by kind.",
        metadata={"events": found.events, "handled": found.handled, "percent": _percent(found.handled, found.events)},
    )


@dg.asset_check(asset=stripe_events.key)
def duplicate_ratio(billing: BillingResource) -> dg.AssetCheckResult:
    """Less than 20 % of the deliveries of 24 hours were repetitions; more is a replay storm, or late answers."""
    with billing.webhook_flow() as flow:
        found = health.deliveries(flow.connection, now=flow.clock())
    total = sum(found.values())
    repeated = total - found.get("accepted", 0)
    passed = total < DELIVERIES_JUDGED_FROM or repeated * 100 < total * DUPLICATE_PERCENT
    return _result(
        "duplicate_ratio",
        passed=passed,
        severity=WARN,
        found=None if passed else f"{repeated:,} of {total:,} deliveries were repetitions",
        do_next="Repetitions change nothing. Stripe repeats what it got no 2xx for in time: look at the intake's "
        "answer times and at the endpoint's page in Stripe; somebody may also be resending events.",
        metadata={"deliveries": total, "repeated": repeated, "percent": _percent(repeated, total)},
    )


@dg.asset_check(asset=stripe_events.key)
def signature_failures(billing: BillingResource) -> dg.AssetCheckResult:
    """At most 10 deliveries of an hour were refused for their signature; more is a wrong secret or an attack."""
    with billing.webhook_flow() as flow:
        found = health.refused(flow.connection, now=flow.clock())
    total = sum(found.values())
    passed = total <= SIGNATURE_FAILURES_MAX
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in found.items())
    return _result(
        "signature_failures",
        passed=passed,
        severity=ERROR,
        found=None if passed else reasons,
        do_next="Compare STRIPE_WEBHOOK_SECRET with the endpoint's secret in Stripe, and the clock with the time. "
        "Where both are right, somebody else sends: nothing of it was stored; roll the secret if it may be known.",
        metadata={"deliveries": total, "by_reason": reasons or "none"},
    )


@dg.asset_check(asset=stripe_events.key)
def events_complete_through(context: dg.AssetCheckExecutionContext, billing: BillingResource) -> dg.AssetCheckResult:
    """Every event that Stripe listed is in the inbox; while the hourly sweep is on, until two hours ago."""
    with billing.webhook_flow() as flow:
        found, now = health.last_sweep(flow.connection), flow.clock()
        gap, unreadable = health.open_gap(flow.connection), health.unreadable_since(flow.connection, now=now)
    sweep_is_on = is_on(context.instance, SWEEP_SCHEDULE)
    late = found is None or found.complete_through < now - COMPLETE_WITHIN
    told: dict[str, Any] = {"sweep_is_on": sweep_is_on}
    wrong, steps = [], []
    if sweep_is_on and late:
        wrong.append(_since(found.complete_through if found else None))
        steps.append(
            "The run of sweep_stripe_events that failed says why; `billing-pipeline sweep-events` does it now."
        )
    if gap:
        wrong.append(f"Stripe lists no more what it told from {_minute(gap.gap_from)} to {_minute(gap.gap_until)} UTC")
        steps.append("`billing-pipeline sweep-events --objects` reads all objects anew, which makes up for it.")
    if unreadable:
        wrong.append(f"listed events could not be stored since {_minute(unreadable)} UTC")
        steps.append(
            "The log says why of each; after the cause is mended, `billing-pipeline sweep-events --since "
            f"{unreadable:%Y-%m-%dT%H:%M:%SZ}` reads them again."
        )
    if found is not None:
        told |= {
            "complete_through": dg.MetadataValue.timestamp(found.complete_through),
            "events_missing": found.events_missing,
        }
    return _result(
        "events_complete_through",
        passed=not wrong,
        severity=ERROR,
        found="; ".join(wrong) or None,
        do_next=" ".join(steps) or "Nothing.",
        metadata=told,
    )


@dg.asset_check(asset=invoices)
def invoice_transitions(billing: BillingResource) -> dg.AssetCheckResult:
    """Every step between states that the invoices' events of 24 hours tell of is one that Stripe's states allow."""
    with billing.webhook_flow() as flow:
        found = [step for step in health.invoice_steps(flow.connection, now=flow.clock()) if not step.is_legal]
    steps = "; ".join(f"{step.was} to {step.became}: {step.events:,}, such as {step.sample}" for step in found)
    return _result(
        "invoice_transitions",
        passed=not found,
        severity=WARN,
        found=steps or None,
        do_next="What is kept is right all the same: a final state is never left. Look at the event in Stripe; a new "
        "state of Stripe's wants a new version of this program.",
        metadata={"steps": len(found)},
    )


@dg.asset_check(asset=entitlements)
def projection_equals_rebuild(billing: BillingResource) -> dg.AssetCheckResult:
    """Every row that is kept of Stripe's objects is what the stored events and answers make anew."""
    with billing.webhook_flow() as flow:
        report = flow.rebuild()
    passed = report.differ == 0 and not report.replayed.unreadable
    return _result(
        "projection_equals_rebuild",
        passed=passed,
        severity=ERROR,
        found=None if passed else f"{report.differ:,} rows differ, {len(report.replayed.unreadable):,} cannot be read",
        do_next="`billing-pipeline rebuild-projections` names rows and columns; with `--apply` it puts them right.",
        metadata={
            "events_replayed": report.replayed.events,
            "payloads_gone": report.payloads_gone,
            "tables": rebuilt_table(report),
            "differences": difference_table(report),
        },
    )


def _result(
    name: str,
    *,
    passed: bool,
    severity: dg.AssetCheckSeverity,
    found: str | None,
    do_next: str,
    metadata: Mapping[str, Any],
) -> dg.AssetCheckResult:
    if not passed:
        level = logging.ERROR if severity is ERROR else logging.WARNING
        logger.log(level, "Webhook check failed", extra={"check": name, "found": found})
    return dg.AssetCheckResult(
        passed=passed,
        severity=severity,
        description=found,
        metadata={**metadata, "do_next": do_next},
    )


def _since(moment: datetime | None) -> str:
    return f"complete through {_minute(moment)} UTC only" if moment else "no sweep has ended yet"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _percent(part: int, whole: int) -> str:
    # In whole tenths, exactly.
    tenths = part * 1_000 // whole if whole else 0
    return f"{tenths // 10}.{tenths % 10} %" if whole else "-"


SERVICE_LEVELS = [
    no_failed_events,
    stuck_dispatches,
    webhook_success_rate,
    duplicate_ratio,
    signature_failures,
    events_complete_through,
    invoice_transitions,
]
WEBHOOK_CHECKS = [*SERVICE_LEVELS, projection_equals_rebuild]
