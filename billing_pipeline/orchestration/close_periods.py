"""Period close in Dagster: an asset that closes the periods whose drafts wait, and the sensor that launches it.

Stripe makes the draft when a period ends and makes it final an hour later, so no hourly schedule is waited for.
"""

import hashlib
from datetime import timedelta
from typing import Any

import dagster as dg

from billing_pipeline.database import queries
from billing_pipeline.orchestration.metadata import adjustments_table, states_table
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import RETRIES, STRIPE_POOL, meter_events
from billing_pipeline.orchestration.webhook_assets import GROUP, invoices
from billing_pipeline.settings import Level
from billing_pipeline.usage.adjust import has_due_adjustments, latest_adjustments
from billing_pipeline.usage.close_periods import close_periods as close
from billing_pipeline.usage.close_periods import waits_to_be_closed
from billing_pipeline.usage.lease import LeaseHeld

AGAIN_AFTER = timedelta(minutes=5)
"""A draft that a run has not closed, because another flush was under way, gets another run so much later."""
SHOWN = 50


@dg.asset(
    deps=[invoices, meter_events],
    group_name=GROUP,
    owners=["team:billing"],
    tags={"billing/flow": GROUP},
    kinds={"postgres", "stripe"},
    pool=STRIPE_POOL,
    retry_policy=RETRIES,
)
def invoice_adjustments(context: dg.AssetExecutionContext, billing: BillingResource) -> dg.MaterializeResult[Any]:
    """What was put on drafts for usage that came after its own period's invoice, each once.

    Flushes first, so that what a meter event can still state is stated while the invoice is a draft.
    Only drafts that nobody has closed yet are looked at; without any, nothing is flushed.
    """
    try:
        with billing.usage_flow(context.run.run_id, context.instance) as flow:
            report = close(flow)
            latest = latest_adjustments(flow.connection, limit=SHOWN)
            states = queries.fetch_dicts(flow.connection, "adjustments_by_state")
    except LeaseHeld as exc:
        return dg.MaterializeResult(metadata={"skipped": True, "reason": str(exc)})
    return dg.MaterializeResult(
        metadata={
            "skipped": False,
            "dagster/row_count": sum(int(row["rows"]) for row in states),
            "states": states_table(states),
            "invoices_closed": len(report.closed),
            "invoices_too_late": sum(invoice.is_late for invoice in report.closed),
            "items_applied": report.sent.applied,
            "items_refused": report.sent.refused,
            "items_in_doubt": report.sent.in_doubt,
            "left_for_a_person": sum(len(invoice.left) for invoice in report.closed),
            "latest": adjustments_table(latest),
        }
    )


close_periods = dg.define_asset_job(
    "close_periods",
    selection=dg.AssetSelection.assets(invoice_adjustments).without_checks(),
    description="Flush, then put what sealed periods are owed on the drafts that Stripe has made. Does nothing while "
    "no draft waits, and ends well beside another flush.",
    tags={"dagster/max_runtime": "2700"},
)


@dg.sensor(
    job=close_periods,
    minimum_interval_seconds=60,
    description="Launches a run when a draft of a subscription's period waits to be closed, a few minutes after "
    "invoice.created and well before Stripe makes it final, or when an invoice item is in doubt.",
)
def invoices_to_close(billing: BillingResource) -> dg.RunRequest | dg.SkipReason:
    """Off until somebody turns it on in the UI."""
    with billing.usage_flow() as flow:
        if flow.settings.level is not Level.LIVE:
            return dg.SkipReason("Billing is not live.")
        now = flow.clock()
        waiting = [draft.stripe_invoice_id for draft in waits_to_be_closed(flow)]
        if not waiting and not has_due_adjustments(flow.connection, now=now):
            return dg.SkipReason("No draft waits to be closed, and no invoice item is in doubt.")
    bucket = int(now.timestamp() // AGAIN_AFTER.total_seconds())
    digest = hashlib.sha256("\n".join(waiting).encode()).hexdigest()[:32]
    return dg.RunRequest(run_key=f"{digest}:{bucket}")
