"""The usage assets, one per stage of the flow, in the order usage passes them.

They are unpartitioned: what is left to do is in the ledger, so a flush after a day of outage does all of it.
A run that meets another flush under way ends well, with `skipped` true and no effect.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import dagster as dg

from billing_pipeline.domain.contract_rules import Fault
from billing_pipeline.domain.volume import MeterVolume
from billing_pipeline.orchestration.metadata import (
    fault_table,
    money_metadata,
    quarantine_table,
    rows_table,
    sides_table,
)
from billing_pipeline.orchestration.progress_plots import proof_plots, stated_plots, waiting_plots
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.volume_plot import volume_plots
from billing_pipeline.reconciliation.completeness import RowAccount, account_for_rows
from billing_pipeline.reconciliation.reconcile import ReconciliationReport, reconcile
from billing_pipeline.usage.aggregate import AggregationReport
from billing_pipeline.usage.confirm import ConfirmReport
from billing_pipeline.usage.contract import ContractReport, rows_in_quarantine
from billing_pipeline.usage.cut import CutReport
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.lease import LeaseHeld
from billing_pipeline.usage.money import MoneyAtRisk, tell_money
from billing_pipeline.usage.periods import PeriodsReport
from billing_pipeline.usage.progress import owed_by_age, proof_lag_by_hour, stated_by_hour, unsettled_by_age
from billing_pipeline.usage.resubmit import submit_until_answered
from billing_pipeline.usage.submit import SubmitReport

GROUP = "usage"
USAGE_FLUSH = "usage_flush"
"""The job that runs all of these."""
STRIPE_POOL = "stripe"
RETRIES = dg.RetryPolicy(max_retries=2, delay=15, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Of a stage whose database or Stripe did not answer; the resource forbids it for every other failure."""
FRESHNESS = dg.FreshnessPolicy.time_window(warn_window=timedelta(minutes=90), fail_window=timedelta(hours=3))
"""A flush is due every hour; a run that was skipped for another one counts, because that one did the work."""
FLUSH_TAG = "billing/flush_id"
"""The number of the flush that a run was: the fence of its lease, which no other flush has."""

usage_asset = partial(
    dg.asset,
    group_name=GROUP,
    owners=["team:billing"],
    tags={"billing/flow": GROUP},
    retry_policy=RETRIES,
    freshness_policy=FRESHNESS,
)

Report = TypeVar("Report")


def run_stage(
    context: dg.AssetExecutionContext,
    billing: BillingResource,
    stage: Callable[[UsageFlow], Report],
    describe: Callable[[Report], dict[str, Any]],
) -> dg.MaterializeResult[Any]:
    """Run one stage as this run's part of a flush, and describe its report."""
    try:
        with billing.usage_flow(context.run.run_id, context.instance) as flow:
            report = stage(flow)
            flush_id = flow.flush_id
    except LeaseHeld as exc:
        return dg.MaterializeResult(metadata={"skipped": True, "reason": str(exc)})
    told = {"skipped": False} | describe(report)
    if flush_id is not None:
        context.instance.add_run_tags(context.run.run_id, {FLUSH_TAG: str(flush_id)})
        told["flush_id"] = flush_id
    return dg.MaterializeResult(metadata=told)


@usage_asset(kinds={"postgres", "pandera"})
def billable_events(context: dg.AssetExecutionContext, billing: BillingResource) -> dg.MaterializeResult[Any]:
    """What the product did, one row per event, owned by the upstream team.

    Materializing it reads the rows recorded since the last flush against the data contract.
    Bad rows wait in quarantine with a reason; good rows go on.
    A flush leaves this out where STRIPE_BILLING_VALIDATE_CONTRACT_BEFORE_FLUSH is off.
    """

    in_flush = context.run.job_name == USAGE_FLUSH

    def stage(flow: UsageFlow) -> tuple[ContractReport | None, list[Fault]]:
        wanted = not in_flush or flow.settings.stripe_billing_validate_contract_before_flush
        return flow.validate_contract() if wanted else None, rows_in_quarantine(flow.connection)

    def describe(found: tuple[ContractReport | None, list[Fault]]) -> dict[str, Any]:
        report, waiting = found
        if report is None:
            return {"validated": False, "reason": "STRIPE_BILLING_VALIDATE_CONTRACT_BEFORE_FLUSH is off"}
        # Not Dagster's row count, which would claim to be the size of the table.
        return {
            "rows_validated": report.rows_read,
            "cutoff_at": dg.MetadataValue.timestamp(report.cutoff_at),
            "faults": fault_table(report.faults),
            "in_quarantine": sum(fault.count for fault in waiting),
            "quarantine": quarantine_table(waiting),
        }

    return run_stage(context, billing, stage, describe)


@usage_asset(kinds={"postgres"}, deps=[billable_events])
def usage_windows(context: dg.AssetExecutionContext, billing: BillingResource) -> dg.MaterializeResult[Any]:
    """What each organization used per meter and UTC clock hour, according to the source now.

    A touched hour is recomputed whole, so late, changed and deleted rows need no treatment of their own.
    An hour in which a billing period begins or ends at Stripe is split there; the periods are read first.
    """

    def stage(flow: UsageFlow) -> tuple[PeriodsReport, AggregationReport, list[MeterVolume]]:
        return flow.sync_periods(), flow.aggregate(), flow.meter_volumes()

    def describe(found: tuple[PeriodsReport, AggregationReport, list[MeterVolume]]) -> dict[str, Any]:
        periods, report, volumes = found
        return {
            "subscription_items_read": periods.items_read,
            "billing_periods_changed": periods.periods_changed,
            "windows_computed": report.windows_computed,
            "windows_changed": report.windows_changed,
            "scope": str(report.scope),
            "cutoff_at": dg.MetadataValue.timestamp(report.cutoff_at),
            **volume_plots(volumes),
        }

    return run_stage(context, billing, stage, describe)


@usage_asset(kinds={"postgres"}, deps=[usage_windows])
def ledger_entries(context: dg.AssetExecutionContext, billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Immutable amounts stated to Stripe: for each closed window, target minus what was stated before."""

    def stage(flow: UsageFlow) -> tuple[CutReport, dict[str, Any]]:
        report, now = flow.cut(), flow.clock()
        return report, stated_plots(stated_by_hour(flow.connection, now=now), now=now)

    def describe(found: tuple[CutReport, dict[str, Any]]) -> dict[str, Any]:
        report, plots = found
        reasons = ", ".join(f"{reason} {windows:,}" for reason, windows in report.held.items())
        return asdict(report) | {"held": reasons or "nothing", "windows_held": report.windows_held} | plots

    return run_stage(context, billing, stage, describe)


@usage_asset(kinds={"stripe"}, deps=[ledger_entries], pool=STRIPE_POOL)
def meter_events(context: dg.AssetExecutionContext, billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Ledger entries as Stripe received them; each attempt is committed before its request leaves.

    What Stripe does not answer is sent again within the run, up to three times, under the same identifier.
    """

    def stage(flow: UsageFlow) -> tuple[SubmitReport, dict[str, Any]]:
        report, now = submit_until_answered(flow.submit), flow.clock()
        owed = owed_by_age(flow.connection, closed_before=flow.closed_before(), now=now)
        return report, waiting_plots(owed, unsettled_by_age(flow.connection, now=now)["ambiguous"])

    def describe(found: tuple[SubmitReport, dict[str, Any]]) -> dict[str, Any]:
        report, plots = found
        return asdict(report) | plots

    return run_stage(context, billing, stage, describe)


@usage_asset(kinds={"stripe"}, deps=[meter_events])
def meter_event_confirmations(context: dg.AssetExecutionContext, billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Entries settled by Stripe's own summaries: shown with exactly their value, or provably not counted."""

    def describe(found: tuple[ConfirmReport, MoneyAtRisk, dict[str, Any]]) -> dict[str, Any]:
        report, money, plots = found
        return asdict(report) | money_metadata(money) | plots

    def stage(flow: UsageFlow) -> tuple[ConfirmReport, MoneyAtRisk, dict[str, Any]]:
        flow.apply_error_reports()
        report, now = flow.confirm(), flow.clock()
        accepted = unsettled_by_age(flow.connection, now=now)["accepted"]
        plots = proof_plots(accepted, proof_lag_by_hour(flow.connection, now=now), now=now)
        return report, tell_money(flow.connection, now=now), plots

    return run_stage(context, billing, stage, describe)


@usage_asset(kinds={"postgres"}, deps=[meter_event_confirmations])
def usage_reconciliation(context: dg.AssetExecutionContext, billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Source, ledger and Stripe side by side for every organization and meter, with each difference named.

    Beside them, where every row of the source is: counted, in quarantine, left out by the catalogue, not judged yet.
    """

    def stage(flow: UsageFlow) -> tuple[ReconciliationReport, RowAccount]:
        return (
            reconcile(flow.connection, settings=flow.settings, now=flow.clock()),
            account_for_rows(flow.connection, settings=flow.settings, now=flow.clock()),
        )

    def describe(found: tuple[ReconciliationReport, RowAccount]) -> dict[str, Any]:
        report, account = found
        return {
            "compared": len(report.sides),
            "unexplained": len(report.faults),
            "sides": sides_table(report),
            "rows_misplaced": sum(finding.rows for finding in account.faults),
            "rows": rows_table(account),
        }

    return run_stage(context, billing, stage, describe)


USAGE_ASSETS = [
    billable_events,
    usage_windows,
    ledger_entries,
    meter_events,
    meter_event_confirmations,
    usage_reconciliation,
]
