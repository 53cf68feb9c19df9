"""The jobs and schedules of the webhooks' flow.

`serve` handles events as they come; these do what it left, find what never came, and prove what is kept.
"""

from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field

from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import RETRIES
from billing_pipeline.orchestration.webhook_assets import entitlements, invoices, subscriptions
from billing_pipeline.orchestration.webhook_checks import SERVICE_LEVELS, projection_equals_rebuild
from billing_pipeline.webhooks.claims import put_back, unfinished
from billing_pipeline.webhooks.dispatch import DispatchReport

REPLAY_RUNTIME = timedelta(minutes=15)


class ReplayStatus(Enum):
    """Which events a replay takes."""

    due = "due"
    failed = "failed"
    parked = "parked"


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


@dg.schedule(
    job=dispatch_stripe_events,
    cron_schedule="3 * * * *",
    execution_timezone="UTC",
    description="Every hour, ten minutes before the flush.",
)
def hourly_dispatch(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Off until somebody turns it on in the UI."""
    return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())


@dg.schedule(
    job=rebuild_projections,
    cron_schedule="28 4 * * *",
    execution_timezone="UTC",
    description="Every day before working hours.",
)
def daily_rebuild(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Off until somebody turns it on in the UI."""
    return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())


WEBHOOK_JOBS: list[Any] = [replay_stripe_events, dispatch_stripe_events, rebuild_projections]
WEBHOOK_SCHEDULES = [hourly_dispatch, daily_rebuild]
