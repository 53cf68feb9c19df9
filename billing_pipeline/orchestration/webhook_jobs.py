"""The jobs and schedules of the webhooks' flow.

`serve` handles events as they come; these do what it left, find what never came, and prove what is kept.
"""

from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field

from billing_pipeline.domain.given_hours import instant_given
from billing_pipeline.domain.outcomes import Outcome
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.schedules import utc_schedule
from billing_pipeline.orchestration.usage_assets import RETRIES
from billing_pipeline.orchestration.webhook_assets import entitlements, invoices, stripe_events, subscriptions
from billing_pipeline.orchestration.webhook_checks import SERVICE_LEVELS, SWEEP_SCHEDULE, projection_equals_rebuild
from billing_pipeline.webhooks.claims import put_back, unfinished
from billing_pipeline.webhooks.dispatch import DispatchReport
from billing_pipeline.webhooks.health import inbox_counts
from billing_pipeline.webhooks.retention import purge_bodies

REREAD_RUNTIME = timedelta(hours=6)
"""Stripe shows features by customer only, so a re-read takes a second for every few customers."""
REPLAY_RUNTIME = timedelta(minutes=15)


class ReplayStatus(Enum):
    """Which events a replay takes."""

    due = "due"
    failed = Outcome.FAILED.value
    parked = Outcome.PARKED.value


class ReplayConfig(dg.Config):
    """What to handle again; as it stands, whatever is due now."""

    event_ids: list[str] = Field(default=[], description="Only these events, evt_...; none: all of the status.")
    status: ReplayStatus = Field(
        default=ReplayStatus.due,
        description="due: whose time has come; failed: also those that wait for their next attempt; parked: those that "
        "are not tried any more.",
    )
    limit: int = Field(default=500, ge=1, le=20_000, description="At most so many events.")


@dg.op(out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def handle_stripe_events(context: dg.OpExecutionContext, config: ReplayConfig, billing: BillingResource) -> None:
    """Handles stored events again; what another worker has, or has handled, is left alone."""
    with billing.webhook_flow() as flow:
        only: list[str] | None = config.event_ids or None
        if config.status is not ReplayStatus.due:
            chosen = unfinished(flow.connection, config.status.value, only=only, limit=config.limit)
            put_back(flow.connection, chosen, sla=flow.sla)
            only = chosen
        report = DispatchReport()
        if only is None or only:
            report = flow.dispatcher.drain(events_max=config.limit, only=only)
    context.add_output_metadata(
        {
            "processed": report.processed,
            "ignored": report.ignored,
            "failed": report.failed,
            "parked": report.parked,
        }
    )


@dg.job(
    description="Handle stored webhook events again: what is due, or what the Launchpad's config names.",
    tags={"dagster/max_runtime": str(int(REPLAY_RUNTIME.total_seconds()))},
)
def replay_stripe_events() -> None:
    """One batch of events."""
    handle_stripe_events()


def replay_config(event_ids: Sequence[str]) -> dg.RunConfig:
    """Handle these events, as far as they are still due."""
    return dg.RunConfig(ops={handle_stripe_events.name: ReplayConfig(event_ids=list(event_ids), limit=len(event_ids))})


class SweepConfig(dg.Config):
    """How far back to look."""

    since: str | None = Field(
        default=None,
        description="How far back, a time with its offset; at least an hour before the last end, at most 30 days.",
    )
    objects: bool = Field(default=False, description="Whether to read all of Stripe's objects anew as well.")


@dg.op(out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def find_missed_events(context: dg.OpExecutionContext, config: SweepConfig, billing: BillingResource) -> None:
    """Stores what Stripe lists and never delivered, handles it, and says how far the inbox is complete."""
    with billing.webhook_flow() as flow:
        since = instant_given("since", config.since) if config.since else None
        report = flow.sweep(since)
        read = flow.reread() if config.objects else None
        handled, _ = flow.dispatch()
        counts = inbox_counts(flow.connection)
    told: dict[str, Any] = {
        "complete_from": dg.MetadataValue.timestamp(report.complete_from),
        "complete_through": dg.MetadataValue.timestamp(report.complete_through),
        "events_listed": report.listed,
        "events_missing": report.missing.total(),
        "missing_by_type": dict(report.missing.most_common(50)),
        "events_unreadable": report.unreadable,
        "events_processed": handled.processed,
        "events_waiting": counts.waiting,
        "events_estimated": counts.events_estimated,
    }
    if report.gap_from is not None:
        told["gap_from"] = dg.MetadataValue.timestamp(report.gap_from)
    if read is not None:
        told |= {"objects_read": read.read, "objects_changed": read.changed, "objects_unreadable": read.unreadable}
    context.log_event(dg.AssetMaterialization(stripe_events.key, metadata=told))
    context.add_output_metadata(told)


@dg.job(
    description="Find the webhook events that Stripe lists and never delivered, and handle them.",
    tags={"dagster/max_runtime": "2700"},
)
def sweep_stripe_events() -> None:
    """Since the last sweep, or for 30 days."""
    find_missed_events()


@dg.op(out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def take_old_bodies(context: dg.OpExecutionContext, billing: BillingResource) -> None:
    """Takes the payloads of handled events and of Stripe's answers whose retention is over; the rest stays."""
    with billing.webhook_flow() as flow:
        before = flow.clock() - timedelta(days=flow.settings.billing_event_bodies_kept_days)
        purged = purge_bodies(flow.connection, received_before=before)
    context.add_output_metadata(
        {
            "events_purged": purged.events,
            "answers_purged": purged.answers,
            "received_before": dg.MetadataValue.timestamp(before),
        }
    )


@dg.job(
    description="Take the payloads of handled webhook events and of Stripe's answers that are older than "
    "BILLING_EVENT_BODIES_KEPT_DAYS.",
    tags={"dagster/max_runtime": "2700"},
)
def purge_event_bodies() -> None:
    """Bodies only."""
    take_old_bodies()


dispatch_stripe_events = dg.define_asset_job(
    "dispatch_stripe_events",
    selection=(
        dg.AssetSelection.assets(subscriptions, invoices, entitlements).without_checks()
        | dg.AssetSelection.checks(*SERVICE_LEVELS)
    ),
    description="Handle what is due, decide every entitlement anew, and judge the service levels.",
    tags={"dagster/max_runtime": "2700"},
)

rebuild_projections = dg.define_asset_job(
    "rebuild_projections",
    selection=dg.AssetSelection.checks(projection_equals_rebuild),
    description="Make every projection anew from what was stored, and compare; changes nothing.",
    tags={"dagster/max_runtime": "2700"},
)


WEBHOOK_SCHEDULES = [
    utc_schedule(
        dispatch_stripe_events,
        name="hourly_dispatch",
        cron="3 * * * *",
        description="Every hour, ten minutes before the flush, for what `serve` left behind.",
    ),
    utc_schedule(
        sweep_stripe_events,
        name=SWEEP_SCHEDULE,
        cron="43 * * * *",
        description="Every hour at minute 43, half an hour away from a flush.",
    ),
    utc_schedule(
        sweep_stripe_events,
        name="daily_object_reread",
        cron="58 2 * * *",
        description="Every day, the sweep with all of Stripe's objects: for what no event ever told.",
        tags=lambda: {"dagster/max_runtime": str(int(REREAD_RUNTIME.total_seconds()))},
        run_config=dg.RunConfig(ops={find_missed_events.name: SweepConfig(objects=True)}),
    ),
    utc_schedule(
        rebuild_projections,
        name="daily_rebuild",
        cron="28 4 * * *",
        description="Every day before working hours, so that somebody is there to look.",
    ),
    utc_schedule(
        purge_event_bodies,
        name="daily_purge",
        cron="58 4 * * *",
        description="Every day after the rebuild, which needs the bodies.",
    ),
]

WEBHOOK_JOBS: list[Any] = [
    replay_stripe_events,
    dispatch_stripe_events,
    sweep_stripe_events,
    rebuild_projections,
    purge_event_bodies,
]
