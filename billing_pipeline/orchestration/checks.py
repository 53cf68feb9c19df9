"""Asset checks of the usage flow: the contract before anything is cut, the reconciliation at the end.

A blocking check stops what follows only inside its own run, so the flow repeats the contract's verdict at the gate.
"""

from collections.abc import Iterable

import dagster as dg

from billing_pipeline.orchestration.metadata import difference_text, expiring_table, violation_table
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import (
    billable_events,
    meter_event_confirmations,
    meter_events,
    usage_reconciliation,
)
from billing_pipeline.reconciliation.expiry import usage_about_to_expire
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.usage.contract import ContractReport, Fault, Severity, latest_report, rows_in_quarantine
from billing_pipeline.usage.gate import durability_faults
from billing_pipeline.usage.source_contract import SOURCE_REASONS


@dg.asset_check(asset=billable_events, blocking=True)
def source_has_the_contract_columns(billing: BillingResource) -> dg.AssetCheckResult:
    """The source exists, has every column of the contract with its type as before, and holds an event_id once.

    Nothing can be counted otherwise, and the flow refuses to, whatever the settings say.
    """
    with billing.usage_flow() as flow:
        report = latest_report(flow.connection)
    found = [fault for fault in _faults(report, SOURCE_REASONS) if fault.severity is Severity.TABLE]
    return _result(found, dg.AssetCheckSeverity.ERROR)


@dg.asset_check(asset=billable_events, blocking=True)
def lookback_has_events(billing: BillingResource) -> dg.AssetCheckResult:
    """There are events in the lookback; an empty table is no proof that nothing is wrong.

    Stops the flush only with STRIPE_BILLING_CONTRACT_FAIL_CLOSED.
    """
    with billing.usage_flow() as flow:
        report = latest_report(flow.connection)
        fail_closed = flow.settings.stripe_billing_contract_fail_closed
    severity = dg.AssetCheckSeverity.ERROR if fail_closed else dg.AssetCheckSeverity.WARN
    return _result(_faults(report, {"lookback_empty"}), severity)


@dg.asset_check(asset=billable_events)
def rows_pass_the_contract(billing: BillingResource) -> dg.AssetCheckResult:
    """No row waits in quarantine, whichever validation put it there; those that wait stop nobody else."""
    with billing.usage_flow() as flow:
        waiting = rows_in_quarantine(flow.connection)
        report = latest_report(flow.connection)
    # A row without an id cannot be told from another in quarantine; the last validation is what knows of it.
    return _result([*waiting, *_faults(report, {"event_id_missing"})], dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset=billable_events)
def organizations_are_mapped(billing: BillingResource) -> dg.AssetCheckResult:
    """Every organization with usage has a Stripe customer; usage of one without is owed and not sent."""
    with billing.usage_flow() as flow:
        report = latest_report(flow.connection)
    return _result(_faults(report, {"organization_unmapped"}), dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset=usage_reconciliation)
def source_ledger_and_stripe_agree(billing: BillingResource) -> dg.AssetCheckResult:
    """Every difference between source, ledger and Stripe has a reason that the ledger knows."""
    with billing.usage_flow() as flow:
        report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    return dg.AssetCheckResult(
        passed=not report.faults,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"unexplained": len(report.faults), "differences": difference_text(report)},
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
        metadata={"violations": len(found), "offenders": violation_table(found)},
    )


@dg.asset_check(asset=usage_reconciliation)
def usage_is_sent_in_time(billing: BillingResource) -> dg.AssetCheckResult:
    """No usage waits so long that Stripe soon refuses it; an offender is money that is lost in a few days."""
    with billing.usage_flow() as flow:
        found = usage_about_to_expire(flow.connection, flow.settings.protocol_times, now=flow.clock())
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"units": str(sum(one.units for one in found)), "waiting": expiring_table(found)},
    )


USAGE_CHECKS = [
    source_has_the_contract_columns,
    lookback_has_events,
    rows_pass_the_contract,
    organizations_are_mapped,
    database_keeps_what_it_commits,
    ledger_invariants_hold,
    source_ledger_and_stripe_agree,
    usage_is_sent_in_time,
]


def _faults(report: ContractReport | None, reasons: set[str]) -> list[Fault]:
    return [fault for fault in report.faults if fault.reason in reasons] if report else []


def _result(found: Iterable[Fault], severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    faults = list(found)
    return dg.AssetCheckResult(
        passed=not faults,
        severity=severity,
        description="; ".join(f"{fault.reason}: {fault.count}" for fault in faults) or None,
        metadata={fault.reason: ", ".join(fault.samples) or str(fault.count) for fault in faults},
    )
