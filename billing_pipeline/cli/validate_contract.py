"""`billing-pipeline validate-contract`: every rule of the data contract, asked now, one line each.

It looks at the whole lookback and brings the quarantine up to date; it counts nothing and sends nothing, and the gate
goes by a flush's own validation, not by this one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.hints import as_typed
from billing_pipeline.domain.protocol import PAST_LIMIT

if TYPE_CHECKING:
    from billing_pipeline.domain.contract_rules import Fault, Rule
    from billing_pipeline.settings import Settings

LOOKBACK_DAYS_MAX = PAST_LIMIT.days
LOOKBACK_TOO_LONG = (
    f"must be at most {LOOKBACK_DAYS_MAX}: Stripe takes no meter events older than {LOOKBACK_DAYS_MAX} days, so older "
    "usage could not be billed whatever the contract says"
)


def _within_reach(days: int | None) -> int | None:
    if days is not None and not 1 <= days <= LOOKBACK_DAYS_MAX:
        raise typer.BadParameter(LOOKBACK_TOO_LONG if days > LOOKBACK_DAYS_MAX else "must be at least 1")
    return days


def validate_contract_command(
    lookback_days: Annotated[
        int | None,
        typer.Option(callback=_within_reach, help="Days to look at. Default: STRIPE_BILLING_CONTRACT_LOOKBACK_DAYS."),
    ] = None,
    require_zeitgeist: Annotated[
        bool, typer.Option("--require-zeitgeist", help="Also require event type zeitgeist.")
    ] = False,
    fail_closed: Annotated[
        bool | None,
        typer.Option(
            "--fail-closed/--no-fail-closed",
            help="Exit 1 for a fault that would stop a flush. Default: STRIPE_BILLING_CONTRACT_FAIL_CLOSED, else on.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask every rule of the data contract now.

    Prints one line per rule; counts nothing and sends nothing.
    Exits 1 when failing closed and a rule fails.
    """
    from billing_pipeline.cli.local_stack import ready_database
    from billing_pipeline.cli.usage import own_name
    from billing_pipeline.errors import BillingError
    from billing_pipeline.settings import load_settings
    from billing_pipeline.usage.flow import open_flow
    from billing_pipeline.usage.lease import LeaseHeld

    # Only what was given, so that a setting of the environment is not replaced by a default of this command.
    overrides: dict[str, Any] = {}
    if lookback_days is not None:
        overrides["stripe_billing_contract_lookback_days"] = lookback_days
    if require_zeitgeist:
        overrides["stripe_billing_contract_require_zeitgeist"] = True
    settings = load_settings(**overrides)
    closed, decided_by = _fail_closed(fail_closed, settings)
    with open_flow(settings, ready_database(settings), holder=own_name()) as flow:
        try:
            report, volume = flow.examine_contract()
        except LeaseHeld as exc:
            # A preflight that asked nothing has not passed.
            raise BillingError(f"{exc} The contract was not validated; try again after that.") from None
        finally:
            flow.give_lease_back()
    lines = _lines({fault.reason: fault for fault in [*report.faults, *volume]})
    failed = sum(result == "fail" for result, _, _ in lines)
    if as_json:
        typer.echo(_as_json(lines, settings, rows_read=report.rows_read, fail_closed=closed))
    else:
        _print(lines)
        verdict = f"{failed} of {len(lines)} rules fail" if failed else "No rule fails"
        typer.echo(
            f"\n{verdict}; {report.rows_read:,} rows of the last {settings.stripe_billing_contract_lookback_days} days "
            f"of {settings.billing_source_relation} read. {'Fails closed' if closed else 'Only warns'} ({decided_by})."
        )
    if failed and closed:
        raise typer.Exit(1)


def _fail_closed(flag: bool | None, settings: Settings) -> tuple[bool, str]:
    name = "STRIPE_BILLING_CONTRACT_FAIL_CLOSED"
    if flag is not None:
        return flag, "--fail-closed" if flag else "--no-fail-closed"
    if name.lower() in settings.model_fields_set:
        return settings.stripe_billing_contract_fail_closed, name
    return True, "by default"


def _lines(faults: dict[str, Fault]) -> list[tuple[str, Rule, Fault | None]]:
    """Each rule with pass, warn, fail or, where the source cannot be read, skip."""
    from billing_pipeline.domain.contract_rules import RULES, Part, Severity

    unreadable = any(
        RULES[fault.reason].part is Part.SOURCE and fault.severity is Severity.TABLE for fault in faults.values()
    )
    lines = []
    for rule in RULES.values():
        fault = faults.get(rule.reason)
        if fault is not None:
            result = "fail" if fault.severity is Severity.TABLE else "warn"
        else:
            result = "skip" if unreadable and rule.part in (Part.DRIFT, Part.TABLE, Part.ROW) else "pass"
        lines.append((result, rule, fault))
    return lines


def _print(lines: list[tuple[str, Rule, Fault | None]]) -> None:
    width = max(len(rule.reason) for _, rule, _ in lines)
    for result, rule, fault in lines:
        if fault is None:
            typer.echo(f"{result}  {rule.reason}")
            continue
        typer.echo(f"{result}  {rule.reason:<{width}}  {fault.count:>9,}  {', '.join(fault.samples)}".rstrip())
    for _, rule, fault in lines:
        if fault is not None:
            typer.echo(as_typed(f"\n{rule.reason}: {rule.meaning}\n  {rule.remedy}"))


def _as_json(
    lines: list[tuple[str, Rule, Fault | None]], settings: Settings, *, rows_read: int, fail_closed: bool
) -> str:
    rules = [
        {
            "reason": rule.reason,
            "result": result,
            "severity": str(rule.severity),
            "count": fault.count if fault else 0,
            "samples": list(fault.samples) if fault else [],
            "meaning": rule.meaning,
            "remedy": rule.remedy,
        }
        for result, rule, fault in lines
    ]
    return json.dumps(
        {
            "passed": all(result != "fail" for result, _, _ in lines),
            "fail_closed": fail_closed,
            "source": settings.billing_source_relation,
            "lookback_days": settings.stripe_billing_contract_lookback_days,
            "required_event_types": list(settings.required_event_types),
            "rows_read": rows_read,
            "rules": rules,
        },
        indent=2,
    )
