"""The live billing feed as an asset, its check, and the job that keeps it whole and short.

`billing-pipeline serve` writes the feed within a second of an event; materializing the asset writes what it left, finds
what the feed lacks, and lets old rows go.
"""

from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from billing_pipeline.database import queries
from billing_pipeline.feed.broadcast import make_announcer
from billing_pipeline.feed.upkeep import find_unfed, judge_payloads, purge_feed
from billing_pipeline.orchestration.feed_parts import make_feed_writer
from billing_pipeline.orchestration.metadata import ROWS_MAX, fed_table, misfit_table
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.webhook_assets import entitlements, invoices, webhook_asset

EVENTS_MAX = 200_000
"""At once; more waits for the next time."""


class FeedConfig(dg.Config):
    """How far back to look for events that the feed lacks."""

    hours: int = Field(
        default=24,
        ge=0,
        description="Events that arrived within so many hours and that the feed lacks are told; 0: none. What is older "
        "than BILLING_FEED_KEPT_DAYS never is.",
    )


@webhook_asset(deps=[invoices, entitlements], kinds={"postgres", "redis"})
def billing_event_feed(config: FeedConfig, billing: BillingResource) -> dg.MaterializeResult[Any]:
    """What each organization is told of its webhook events as they are handled, once each and in order.

    The truth of `/api/v1/billing/stream`. Nothing is written while ENABLE_BILLING_STREAM is false; old rows go all the
    same.
    """
    with billing.webhook_flow() as flow:
        kept = timedelta(days=flow.settings.billing_feed_kept_days)
        told: dict[str, Any] = {"stream_is_on": flow.settings.enable_billing_stream}
        if flow.settings.enable_billing_stream:
            now = flow.clock()
            since = now - min(timedelta(hours=config.hours), kept)
            told["events_found"] = find_unfed(flow.connection, received_since=since, now=now)
            announce = make_announcer(flow.settings.feed_redis_url)
            report = make_feed_writer(flow.connection, flow.settings, flow.clock, announce).drain(events_max=EVENTS_MAX)
            told |= {
                "events_told": report.written,
                "events_of_nobody_yet": report.waiting,
                "events_left_out": report.left_out,
                "events_that_could_not_be_told": report.failed,
            }
        told["rows_purged"] = purge_feed(flow.connection, fed_before=flow.clock() - kept)
        by_type = queries.fetch_dicts(flow.connection, "feed_by_type")
        [waiting] = queries.fetch_dicts(flow.connection, "waiting_candidates")
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(int(row["rows"]) for row in by_type),
            "by_type": fed_table(by_type),
            "events_waiting": int(waiting["candidates"]),
            **told,
        }
    )


@dg.asset_check(asset=billing_event_feed)
def feed_payload_schema(billing: BillingResource) -> dg.AssetCheckResult:
    """Every payload of the last 24 hours fits the published schema of BillingEventPayload."""
    with billing.webhook_flow() as flow:
        found = judge_payloads(flow.connection, fed_since=flow.clock() - timedelta(hours=24), samples_max=ROWS_MAX)
    return dg.AssetCheckResult(
        passed=found.misfits == 0,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{found.misfits:,} of {found.looked_at:,} payloads do not fit" if found.misfits else None,
        metadata={
            "payloads": found.looked_at,
            "misfits": misfit_table(found.samples),
            "do_next": "Consumers may fail at these. Compare the version of `billing-pipeline serve` with this one; a "
            "payload that this version wrote itself is a defect: report it with the places that are named.",
        },
    )


feed_billing_events = dg.define_asset_job(
    "feed_billing_events",
    selection=dg.AssetSelection.assets(billing_event_feed).without_checks()
    | dg.AssetSelection.checks(feed_payload_schema),
    description="Tell organizations of events that the live feed lacks, let old rows go, and check every payload.",
    tags={"dagster/max_runtime": "2700"},
)


@dg.schedule(
    job=feed_billing_events,
    cron_schedule="8 * * * *",
    execution_timezone="UTC",
    description="Every hour, five minutes after what `serve` left was handled.",
)
def hourly_feed(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Off until somebody turns it on in the UI."""
    return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())


FEED_ASSETS = [billing_event_feed]
FEED_CHECKS = [feed_payload_schema]
FEED_JOBS: list[Any] = [feed_billing_events]
FEED_SCHEDULES = [hourly_feed]
