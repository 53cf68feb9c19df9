"""One organization billed end to end in test mode: the smoke before charging is enabled.

The stages are those of a flush; only what is cut and sent is narrowed to the organization.  Each step is told as a
finding, and the last compares source, ledger and Stripe, so a smoke that passes has proved something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from billing_pipeline.database import queries
from billing_pipeline.domain.amounts import units_of
from billing_pipeline.domain.contract_rules import Severity
from billing_pipeline.domain.probes import Finding, Result, fails, passes, warns
from billing_pipeline.domain.reach import reach_start
from billing_pipeline.errors import Refused
from billing_pipeline.settings import Level
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.contract import ContractReport
from billing_pipeline.usage.flow import UsageFlow


@dataclass(frozen=True, slots=True)
class Smoke:
    """What a smoke is asked to do."""

    organization_id: str
    require_enabled: bool = False
    validate_contract: bool = True
    refresh_period: bool = False


@dataclass(frozen=True, slots=True)
class Sides:
    """Stripe units of the organization's closed windows within reach: owed by the source, stated, shown by Stripe."""

    target: Decimal
    stated: Decimal
    proved: Decimal
    waiting: int
    held: int


Tell = Callable[[str, Finding], None]


def require_test_mode(flow: UsageFlow) -> None:
    """Raises `Refused` for a live key: a smoke bills in earnest, and must never bill a customer."""
    if flow.settings.livemode:
        raise Refused(
            "A smoke bills an organization for real, so it takes no live key. Set a test key; nothing was done."
        )


def run_smoke(flow: UsageFlow, smoke: Smoke, tell: Tell) -> bool:
    """Go through every step, telling each as it is done; whether none failed.

    Stops where the next step could prove nothing.  Raises what the stages raise.
    """
    require_test_mode(flow)
    told: list[Finding] = []

    def step(name: str, finding: Finding) -> Finding:
        told.append(finding)
        tell(name, finding)
        return finding

    _go(flow, smoke, step)
    return all(finding.result is not Result.FAIL for finding in told)


def _go(flow: UsageFlow, smoke: Smoke, step: Callable[[str, Finding], Finding]) -> None:
    if step("level", _level(flow, smoke)).is_in_the_way:
        return
    if step("organization", _organization(flow, smoke.organization_id)).is_in_the_way:
        return
    step("customer", _customer(flow, smoke.organization_id))
    try:
        if smoke.validate_contract:
            step("contract", _contract(flow.validate_contract(Scope.FULL), smoke.organization_id, flow))
        else:
            step("contract", Finding(Result.SKIP, "not asked (--skip-contract)"))
        flow.sync_periods()
        if smoke.refresh_period:
            step("period", _period(flow, smoke.organization_id))
        windows = flow.aggregate(Scope.FULL).windows_computed
        step("count", passes(f"{windows:,} windows of all organizations are up to date"))
        cut = flow.cut(smoke.organization_id)
        step("cut", passes(f"{cut.entries:,} new entries, +{cut.units_added:,} -{cut.units_taken_back:,} units"))
        if flow.settings.level is Level.LIVE:
            step("send", _sent(flow, smoke.organization_id))
            flow.apply_error_reports()
            flow.confirm()
        step("proof", _proof(flow, smoke.organization_id))
    finally:
        flow.give_lease_back()


def _level(flow: UsageFlow, smoke: Smoke) -> Finding:
    level = flow.settings.level
    if level is Level.LIVE:
        return passes("live, with a test key: it sends, and nobody pays")
    remedy = "Set ENABLE_BILLING=true and BILLING_MODE=live, with a test key."
    if smoke.require_enabled:
        return fails(f"{level}: nothing would be sent", remedy)
    return warns(f"{level}: nothing is sent", remedy, blocks=level is Level.OFF)


def _organization(flow: UsageFlow, organization_id: str) -> Finding:
    asked = {"organization_id": organization_id, "reach_start": reach_start(flow.clock())}
    found = queries.fetch_dicts(flow.connection, "usage_of_organization", asked, parts=flow.read_source().parts)[0]
    if not found["events"]:
        return fails(
            f"the source has no usage of {organization_id} that Stripe still takes",
            "Check how the source writes the id, or record an event for it.",
        )
    return passes(f"{found['events']:,} events within reach, the latest of {found['latest_at']:%Y-%m-%d %H:%M} UTC")


def _customer(flow: UsageFlow, organization_id: str) -> Finding:
    asked = {"organization_id": organization_id, "now": flow.clock()}
    found = queries.fetch_dicts(flow.connection, "customer_of_organization", asked)
    if not found:
        return fails(
            "none mapped: its usage is owed and not sent",
            "Insert it into customer_mappings, or run `billing-pipeline create-customers`.",
        )
    return passes(found[0]["stripe_customer_id"])


def _contract(report: ContractReport, organization_id: str, flow: UsageFlow) -> Finding:
    table = [fault.reason for fault in report.faults if fault.severity is Severity.TABLE]
    asked = {"organization_id": organization_id}
    waiting = queries.fetch_dicts(flow.connection, "quarantine_of_organization", asked)[0]["rows"]
    if table:
        return fails(", ".join(table), "`billing-pipeline validate-contract` says what to do about each.")
    if waiting:
        return fails(
            f"{waiting:,} rows of it wait in quarantine",
            f"`billing-pipeline quarantine list --organization {organization_id}` says why.",
        )
    return passes(f"{report.rows_read:,} rows read, none of its own in quarantine")


def _period(flow: UsageFlow, organization_id: str) -> Finding:
    asked = {"organization_id": organization_id, "now": flow.clock()}
    found = queries.fetch_dicts(flow.connection, "periods_of_organization", asked)
    if not found:
        return warns(
            "Stripe shows no subscription to a meter: its usage is counted and never invoiced",
            "Subscribe the customer to a price of each meter.",
        )
    shown = (f"{row['event_name']} until {row['ends_at']:%Y-%m-%d %H:%M} UTC" for row in found)
    return passes(", ".join(shown))


def _sent(flow: UsageFlow, organization_id: str) -> Finding:
    report = flow.submit(organization_id=organization_id)
    told = f"{report.attempts:,} sent, {report.accepted:,} accepted, {report.duplicates:,} already there"
    if report.rejected:
        return fails(f"{told}, {report.rejected:,} refused by Stripe", "`billing-pipeline ledger status` says why.")
    if report.unanswered:
        return fails(f"{told}, {report.unanswered:,} without an answer", "Run it again; nothing is billed twice.")
    return passes(told)


def _proof(flow: UsageFlow, organization_id: str) -> Finding:
    asked = {
        "organization_id": organization_id,
        "closed_before": flow.closed_before(),
        "reach_start": reach_start(flow.clock()),
    }
    sides = queries.fetch(flow.connection, "sides_of_organization", Sides, asked)[0]
    told = f"owed {units_of(sides.target)}, stated {units_of(sides.stated)}, shown by Stripe {units_of(sides.proved)}"
    if flow.settings.level is not Level.LIVE:
        return warns(f"{told}; nothing is sent in shadow", "Set BILLING_MODE=live to prove the rest.")
    if sides.held or sides.target != sides.stated:
        why = f"`billing-pipeline explain --org {organization_id} --at HOUR` says why."
        return fails(f"{told}; {sides.held:,} windows on hold", why)
    if sides.stated != sides.proved:
        return warns(f"{told}; {sides.waiting:,} entries wait for Stripe's summaries", "Run it again in some minutes.")
    return passes(told)
