"""One flush: every stage of the usage flow once, in order, and what came of it.

The command and the tests run it; Dagster's job runs the same stages as assets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from billing_pipeline.domain.contract_rules import Fault
from billing_pipeline.usage.aggregate import AggregationReport, Scope
from billing_pipeline.usage.confirm import ConfirmReport
from billing_pipeline.usage.contract import ContractReport
from billing_pipeline.usage.cut import CutReport
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.money import MoneyAtRisk, tell_money
from billing_pipeline.usage.periods import PeriodsReport
from billing_pipeline.usage.resubmit import submit_until_answered
from billing_pipeline.usage.submit import SubmitReport


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What one flush did, stage by stage."""

    contract: ContractReport | None
    periods: PeriodsReport
    aggregation: AggregationReport
    volume: list[Fault]
    cut: CutReport
    submit: SubmitReport
    confirm: ConfirmReport
    money: MoneyAtRisk


def flush(
    flow: UsageFlow,
    *,
    scope: Scope | None = None,
    attempts: int = 1,
    cut: Callable[[], CutReport] | None = None,
    on_progress: Callable[[int], None] = lambda sent: None,
    sleep: Callable[[int], None] = time.sleep,
) -> FlushReport:
    """Run every stage once, in order, but submit up to `attempts` times while Stripe leaves anything unanswered.

    `cut` stands in for stage 3, for whoever keeps to a plan.

    Raises `LeaseHeld` when another flush is under way.
    """
    try:
        validates = flow.settings.stripe_billing_validate_contract_before_flush
        contract = flow.validate_contract(scope) if validates else None
        periods = flow.sync_periods()
        aggregation = flow.aggregate(scope)
        volume = flow.volume_faults() if validates else []
        cut_report = cut() if cut else flow.cut()
        submit_report = submit_until_answered(lambda: flow.submit(on_progress), attempts=attempts, sleep=sleep)
        flow.apply_error_reports()
        confirmed = flow.confirm()
        money = tell_money(flow.connection, now=flow.clock())
        return FlushReport(contract, periods, aggregation, volume, cut_report, submit_report, confirmed, money)
    finally:
        flow.give_lease_back()
