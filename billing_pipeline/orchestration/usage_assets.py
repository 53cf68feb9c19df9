"""The usage assets, one per stage of the flow, in the order usage passes them.

They are unpartitioned: what is left to do is in the ledger, so a flush after a day of outage does all of it.
"""

from typing import Any

import dagster as dg

from billing_pipeline.orchestration.metadata import fault_table, sides_table
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.reconciliation.reconcile import reconcile

GROUP = "usage"
STRIPE_POOL = "stripe"


@dg.asset(group_name=GROUP, kinds={"postgres", "pandera"})
def billable_events(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """What the product did, one row per event, owned by the upstream team.

    Materializing it reads the rows recorded since the last flush against the data contract.
    Bad rows wait in quarantine with a reason; good rows go on.
    """
    with billing.usage_flow() as flow:
        report = flow.validate_contract()
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": report.rows_read,
            "quarantined": report.quarantined,
            "cutoff_at": dg.MetadataValue.timestamp(report.cutoff_at),
            "faults": fault_table(report),
        }
    )


@dg.asset(group_name=GROUP, kinds={"postgres"}, deps=[billable_events])
def usage_windows(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """What each organization used per meter and UTC clock hour, according to the source now.

    A touched hour is recomputed whole, so late, changed and deleted rows need no treatment of their own.
    """
    with billing.usage_flow() as flow:
        report = flow.aggregate()
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": report.windows_computed,
            "windows_changed": report.windows_changed,
            "scope": str(report.scope),
            "cutoff_at": dg.MetadataValue.timestamp(report.cutoff_at),
        }
    )


@dg.asset(group_name=GROUP, kinds={"postgres"}, deps=[usage_windows])
def ledger_entries(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Immutable amounts stated to Stripe: for each closed window, target minus what was stated before."""
    with billing.usage_flow() as flow:
        report = flow.cut()
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": report.entries,
            "units_added": report.units_added,
            "units_taken_back": report.units_taken_back,
            "windows_held": report.windows_held,
        }
    )


@dg.asset(group_name=GROUP, kinds={"stripe"}, deps=[ledger_entries], pool=STRIPE_POOL)
def meter_events(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Ledger entries as Stripe received them; each attempt is committed before its request leaves."""
    with billing.usage_flow() as flow:
        report = flow.submit()
    return dg.MaterializeResult(
        metadata={
            "attempts": report.attempts,
            "accepted": report.accepted,
            "duplicates": report.duplicates,
            "rejected": report.rejected,
            "unknown": report.unknown,
            "not_executed": report.not_executed,
            "units_accepted": report.units_accepted,
        }
    )


@dg.asset(group_name=GROUP, kinds={"stripe"}, deps=[meter_events])
def meter_event_confirmations(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Entries that Stripe's own summaries show with exactly their value."""
    with billing.usage_flow() as flow:
        report = flow.confirm()
    return dg.MaterializeResult(
        metadata={
            "confirmed": report.confirmed,
            "units_confirmed": report.units_confirmed,
            "waiting_for_summaries": report.waiting,
        }
    )


@dg.asset(group_name=GROUP, kinds={"postgres"}, deps=[meter_event_confirmations])
def usage_reconciliation(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Source, ledger and Stripe side by side for every organization and meter, with each difference named."""
    with billing.usage_flow() as flow:
        report = reconcile(flow.connection, settings=flow.settings, catalogue=flow.catalogue, now=flow.clock())
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(report.sides),
            "unexplained": len(report.faults),
            "sides": sides_table(report),
        }
    )


USAGE_ASSETS = [
    billable_events,
    usage_windows,
    ledger_entries,
    meter_events,
    meter_event_confirmations,
    usage_reconciliation,
]
