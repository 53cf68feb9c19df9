"""Asset checks of the usage flow behind the contract: the ledger's invariants, and the reconciliation at the end."""

from datetime import timedelta

import dagster as dg

from billing_pipeline.orchestration.contract_checks import data_contract, usage_volume
from billing_pipeline.orchestration.metadata import (
    ROWS_MAX,
    difference_text,
    expiring_table,
    expiring_text,
    failing_table,
    fault_text,
    held_table,
    held_text,
    money_metadata,
    violation_table,
)
from billing_pipeline.orchestration.preflight_checks import preflight_checks
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import (
    ledger_entries,
    meter_event_confirmations,
    meter_events,
    usage_reconciliation,
)
from billing_pipeline.reconciliation.expiry import usage_about_to_expire
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.usage.gate import durability_faults
from billing_pipeline.usage.hold import held_units, held_windows
from billing_pipeline.usage.money import failing_entries, money_at_risk

DOUBT_SLACK = timedelta(hours=6)
"""Beyond what the protocol needs: an outage, and hours in which nobody flushed."""


@dg.asset_check(asset=usage_reconciliation)
def source_ledger_and_stripe_agree(billing: BillingResource) -> dg.AssetCheckResult:
    """Every difference between source, ledger and Stripe has a reason that the ledger knows."""
    with billing.usage_flow() as flow:
        report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    return dg.AssetCheckResult(
        passed=not report.faults,
        severity=dg.AssetCheckSeverity.ERROR,
        description=fault_text(report),
        metadata={
            "unexplained": len(report.faults),
            "differences": difference_text(report),
            "do_next": "`billing-pipeline reconcile` shows all sides; `billing-pipeline explain --org ORGANIZATION "
            "--at HOUR` tells an hour's rows, attempts and what Stripe showed.",
        },
    )


@dg.asset_check(asset=ledger_entries)
def nothing_is_on_hold(billing: BillingResource) -> dg.AssetCheckResult:
    """No usage waits for a person before it is stated; `billing-pipeline holds list` shows all that does."""
    with billing.usage_flow() as flow:
        sums = held_units(flow.connection)
        oldest = held_windows(flow.connection, limit=ROWS_MAX)
    windows = sum(one.windows for one in sums)
    return dg.AssetCheckResult(
        passed=not sums,
        severity=dg.AssetCheckSeverity.WARN,
        description=", ".join(sorted({one.reason for one in sums})) or None,
        metadata={"windows": windows, "oldest": held_table(oldest), "do_next": held_text(sums)},
    )


@dg.asset_check(asset=meter_events)
def database_keeps_what_it_commits(billing: BillingResource) -> dg.AssetCheckResult:
    """The database server is set to survive a crash with every attempt; in live mode the gate insists on it."""
    with billing.usage_flow() as flow:
        faults = durability_faults(flow.connection)
    return dg.AssetCheckResult(
        passed=not faults, severity=dg.AssetCheckSeverity.WARN, description="; ".join(faults) or None
    )


@dg.asset_check(asset=meter_event_confirmations)
def ledger_invariants_hold(billing: BillingResource) -> dg.AssetCheckResult:
    """Every invariant of the ledger returns no row; an offender means that money may be lost or doubled."""
    with billing.usage_flow() as flow:
        mark = flow.mark.read()
        found = violations(
            flow.connection,
            settings=flow.settings,
            mark=mark.attempt_id if mark else 0,
            now=flow.clock(),
        )
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(sorted({violation.invariant for violation in found})) or None,
        metadata={
            "violations": len(found),
            "offenders": violation_table(found),
            "do_next": "Where there is an offender, `billing-pipeline ledger freeze` stops all sending. "
            "`ledger status` tells where the ledger stands, and `explain` what became of an hour.",
        },
    )


@dg.asset_check(asset=usage_reconciliation)
def usage_is_sent_in_time(billing: BillingResource) -> dg.AssetCheckResult:
    """No usage waits so long that Stripe soon refuses it; an offender is money that is lost in a few days."""
    with billing.usage_flow() as flow:
        found = usage_about_to_expire(flow.connection, flow.settings.protocol_times, now=flow.clock())
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.ERROR,
        description=expiring_text(found),
        metadata={
            "units": str(sum(one.units for one in found)),
            "waiting": expiring_table(found),
            "do_next": "`billing-pipeline explain --org ORGANIZATION --at HOUR` ends with why an hour waits: map its "
            "organization to a Stripe customer, release its hold, or mend what Stripe refuses.",
        },
    )


@dg.asset_check(asset=meter_events)
def meter_events_get_through(billing: BillingResource) -> dg.AssetCheckResult:
    """No entry was sent three times without certainty; the log has each send under the same identifier."""
    with billing.usage_flow() as flow:
        found = failing_entries(flow.connection)
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{found[0].organization_id}: {found[0].last_error}" if found else None,
        metadata={
            "entries": len(found),
            "failing": failing_table(found),
            "do_next": "Nothing is billed twice. The log has `Stripe meter event submit failed` with the identifier; "
            "`billing-pipeline explain --identifier IDENTIFIER` tells every attempt.",
        },
    )


@dg.asset_check(asset=meter_event_confirmations)
def doubt_is_settled_in_time(billing: BillingResource) -> dg.AssetCheckResult:
    """Nothing is in doubt, or accepted and unproved, for longer than the protocol takes."""
    with billing.usage_flow() as flow:
        found = money_at_risk(flow.connection, now=flow.clock())
        settled_after = flow.settings.protocol_times.safe_send + flow.settings.protocol_times.absence_after
    oldest = max(found.oldest_ambiguous or timedelta(0), found.oldest_unconfirmed or timedelta(0))
    late = oldest > settled_after + DOUBT_SLACK
    return dg.AssetCheckResult(
        passed=not late,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"the oldest is {oldest} old, and {settled_after} decide" if late else None,
        metadata=money_metadata(found)
        | {
            "do_next": "`billing-pipeline ledger status` shows canaries and holds; `billing-pipeline confirm` asks now."
        },
    )


USAGE_CHECKS = [
    data_contract,
    usage_volume,
    nothing_is_on_hold,
    database_keeps_what_it_commits,
    ledger_invariants_hold,
    source_ledger_and_stripe_agree,
    usage_is_sent_in_time,
    meter_events_get_through,
    doubt_is_settled_in_time,
    preflight_checks,
]
