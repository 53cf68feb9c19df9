"""The data contract as asset checks: one per rule, made from the one list of rules.

What the source must be is checked on `billable_events`, before anything is counted; what volume must be, on
`usage_windows`, because it is asked of what was just aggregated: before, a source that was mended could never pass.
A blocking check stops what follows only inside its own run, so the flow repeats the verdict at the gate.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from billing_pipeline.domain.contract_rules import RULES, Fault, Part, Rule, Severity, rules_of
from billing_pipeline.orchestration.metadata import fault_table
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import billable_events, usage_windows
from billing_pipeline.orchestration.volume_plot import volume_page
from billing_pipeline.usage.contract import ContractReport, latest_report, rows_in_quarantine
from billing_pipeline.usage.volume import volume_faults

NOT_VALIDATED = "Not asked, because no validation has ended yet; materialize billable_events."
NOT_READ = "Not asked, because the source cannot be read; another check of this asset says why."


def _specs(asset: dg.AssetsDefinition, *parts: Part) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            rule.reason,
            asset=asset,
            blocking=rule.severity is Severity.TABLE,
            description=f"Fails when this is so: {rule.meaning}\n\nThen: {rule.remedy}",
        )
        for rule in rules_of(*parts)
    ]


@dg.multi_asset_check(specs=_specs(billable_events, Part.SOURCE, Part.TABLE, Part.ROW), can_subset=True)
def data_contract(context: dg.AssetCheckExecutionContext, billing: BillingResource) -> Iterator[dg.AssetCheckResult]:
    """The source and its rows: the last validation's verdict, and of single rows what waits in quarantine now."""
    with billing.usage_flow() as flow:
        report = latest_report(flow.connection)
        faults = _faults_now(report, rows_in_quarantine(flow.connection))
        stops = flow.contract_stops
    unreadable = any(rule.reason in faults for rule in rules_of(Part.SOURCE))
    for rule in _asked(context):
        fault = faults.get(rule.reason)
        if report is None:
            yield _not_asked(rule, NOT_VALIDATED, stops=stops)
        elif unreadable and rule.part is Part.TABLE:
            yield _not_asked(rule, NOT_READ, stops=stops)
        else:
            validated_at = dg.MetadataValue.timestamp(report.cutoff_at)
            yield _result(rule, fault, stops=stops, metadata={"validated_at": validated_at})


@dg.multi_asset_check(specs=_specs(usage_windows, Part.VOLUME), can_subset=True)
def usage_volume(context: dg.AssetCheckExecutionContext, billing: BillingResource) -> Iterator[dg.AssetCheckResult]:
    """Each meter's units and volume against its last four weeks, as of the last aggregation."""
    with billing.usage_flow() as flow:
        volumes = flow.meter_volumes()
        stops, factors = flow.contract_stops, flow.settings.volume_factors
    faults = {fault.reason: fault for fault in volume_faults(volumes, factors)}
    page = volume_page(volumes)
    for rule in _asked(context):
        yield _result(rule, faults.get(rule.reason), stops=stops, metadata=page)


def _asked(context: dg.AssetCheckExecutionContext) -> list[Rule]:
    reasons = {key.name for key in context.selected_asset_check_keys}
    return [rule for rule in RULES.values() if rule.reason in reasons]


def _faults_now(report: ContractReport | None, waiting: list[Fault]) -> dict[str, Fault]:
    # A row without an id cannot be told from another in quarantine; the last validation is what knows of it.
    told = [
        fault
        for fault in (report.faults if report else ())
        if fault.severity is not Severity.ROW or fault.reason == "event_id_missing"
    ]
    return {fault.reason: fault for fault in [*told, *waiting]}


def _result(
    rule: Rule, fault: Fault | None, *, stops: bool, metadata: Mapping[str, dg.MetadataValue[Any]]
) -> dg.AssetCheckResult:
    told: dict[str, Any] = {"count": fault.count if fault else 0}
    if fault is not None:
        told |= {"faults": fault_table([fault]), "do_next": rule.remedy}
    return dg.AssetCheckResult(
        check_name=rule.reason,
        passed=fault is None,
        severity=_severity(rule, stops=stops),
        description=_sentence(rule, fault) if fault else None,
        metadata=told | dict(metadata),
    )


def _not_asked(rule: Rule, why: str, *, stops: bool) -> dg.AssetCheckResult:
    # No pass: what was not asked proves nothing.
    return dg.AssetCheckResult(
        check_name=rule.reason, passed=False, severity=_severity(rule, stops=stops), description=why
    )


def _severity(rule: Rule, *, stops: bool) -> dg.AssetCheckSeverity:
    # A source that is something else cannot be counted, whatever the settings say.
    is_error = rule.part is Part.SOURCE or (rule.severity is Severity.TABLE and stops)
    return dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN


def _sentence(rule: Rule, fault: Fault) -> str:
    samples = f" ({', '.join(fault.samples)})" if fault.samples else ""
    return f"{fault.count:,}{samples}: {rule.meaning}"
