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
from billing_pipeline.usage.contract import ContractReport, as_fault, latest_report, rows_in_quarantine
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.source_contract import source_faults
from billing_pipeline.usage.volume import volume_faults

NOT_VALIDATED = "Not asked, because no validation has ended yet; materialize billable_events."
NOT_READ = "Not asked, because the source cannot be read, or could not when it was last validated."


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


@dg.multi_asset_check(specs=_specs(billable_events, Part.SOURCE, Part.DRIFT, Part.TABLE, Part.ROW), can_subset=True)
def data_contract(context: dg.AssetCheckExecutionContext, billing: BillingResource) -> Iterator[dg.AssetCheckResult]:
    """What the source is and what waits in quarantine, both now; of the rows as a whole, what was last validated."""
    with billing.usage_flow() as flow:
        report = latest_report(flow.connection)
        now = [*_source_faults(flow), *rows_in_quarantine(flow.connection)]
        stops = flow.contract_stops
    why_not = _why_not_asked(report, now)
    faults = {found.reason: found for found in [*_told(report), *now]}
    for rule in _asked(context):
        if why_not and rule.part is not Part.SOURCE and rule.reason not in faults:
            yield _not_asked(rule, why_not, stops=stops)
        else:
            at = {"validated_at": dg.MetadataValue.timestamp(report.cutoff_at)} if report else {}
            yield _result(rule, faults.get(rule.reason), stops=stops, metadata=at)


@dg.multi_asset_check(specs=_specs(usage_windows, Part.VOLUME), can_subset=True)
def usage_volume(context: dg.AssetCheckExecutionContext, billing: BillingResource) -> Iterator[dg.AssetCheckResult]:
    """Each meter's units and volume against its last four weeks, as of the last aggregation."""
    with billing.usage_flow() as flow:
        volumes = flow.meter_volumes()
        stops, factors = flow.contract_stops, flow.settings.volume_factors
    faults = {found.reason: found for found in volume_faults(volumes, factors)}
    page = volume_page(volumes)
    for rule in _asked(context):
        yield _result(rule, faults.get(rule.reason), stops=stops, metadata=page)


def _asked(context: dg.AssetCheckExecutionContext) -> list[Rule]:
    reasons = {key.name for key in context.selected_asset_check_keys}
    return [rule for rule in RULES.values() if rule.reason in reasons]


def _source_faults(flow: UsageFlow) -> list[Fault]:
    # Asked anew: where a flush does not validate, an old verdict would stop it for ever.
    found = source_faults(flow.connection, flow.read_source(), flow.catalogue)
    return [as_fault(one) for one in found if one.blocks]


def _told(report: ContractReport | None) -> list[Fault]:
    """What only a validation knows: a change of the source that forbids nothing, the rows as a whole, and rows without
    an id, which quarantine cannot tell apart."""
    if report is None:
        return []
    reasons = {rule.reason for rule in rules_of(Part.DRIFT, Part.TABLE)} | {"event_id_missing"}
    sources = {rule.reason for rule in rules_of(Part.SOURCE)}
    return [
        found
        for found in report.faults
        if found.reason in reasons or (found.reason in sources and found.severity is Severity.NOTICE)
    ]


def _why_not_asked(report: ContractReport | None, now: list[Fault]) -> str | None:
    if report is None:
        return NOT_VALIDATED
    sources = {rule.reason for rule in rules_of(Part.SOURCE)}
    found = {one.reason for one in [*report.faults, *now] if one.severity is Severity.TABLE}
    return NOT_READ if sources & found else None


def _result(
    rule: Rule, found: Fault | None, *, stops: bool, metadata: Mapping[str, dg.MetadataValue[Any]]
) -> dg.AssetCheckResult:
    told: dict[str, Any] = {"count": found.count if found else 0}
    if found is not None:
        told |= {"faults": fault_table([found]), "do_next": rule.remedy}
    return dg.AssetCheckResult(
        check_name=rule.reason,
        passed=found is None,
        severity=_severity(rule, found.severity if found else rule.severity, stops=stops),
        description=_sentence(rule, found) if found else None,
        metadata=told | dict(metadata),
    )


def _not_asked(rule: Rule, why: str, *, stops: bool) -> dg.AssetCheckResult:
    # No pass: what was not asked proves nothing.
    return dg.AssetCheckResult(
        check_name=rule.reason, passed=False, severity=_severity(rule, rule.severity, stops=stops), description=why
    )


def _severity(rule: Rule, severity: Severity, *, stops: bool) -> dg.AssetCheckSeverity:
    # A source that is something else cannot be counted, whatever the settings say.
    is_error = severity is Severity.TABLE and (rule.part is Part.SOURCE or stops)
    return dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN


def _sentence(rule: Rule, found: Fault) -> str:
    samples = f" ({', '.join(found.samples)})" if found.samples else ""
    return f"{found.count:,}{samples}: {rule.meaning}"
