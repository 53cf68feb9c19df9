"""`billing-pipeline smoke-org`: one organization billed end to end in test mode, step by step.

The dress rehearsal before charging is enabled; a live key is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.hints import as_typed
from billing_pipeline.cli.usage import open_local_flow

if TYPE_CHECKING:
    from billing_pipeline.domain.probes import Finding

NAME_WIDTH = 12


def smoke_command(
    organization: Annotated[str, typer.Option("--org-id", help="The organization, as the source names it.")],
    require_enabled: Annotated[
        bool, typer.Option("--require-enabled", help="A level below live is a failure.")
    ] = False,
    validate: Annotated[bool, typer.Option("--validate-contract", help="Validate the contract first.")] = False,
    skip: Annotated[bool, typer.Option("--skip-contract", help="Do not, while something else is looked for.")] = False,
    fail_closed: Annotated[
        bool, typer.Option("--fail-closed/--no-fail-closed", help="Exit 1 when a step fails, or only report.")
    ] = True,
    refresh_period: Annotated[
        bool, typer.Option("--refresh-period", help="Also tell the billing periods that Stripe shows now.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bill one organization end to end, in test mode.

    Its usage is validated, counted, cut, sent and proved, and nobody else's is sent.
    Validates as STRIPE_BILLING_VALIDATE_CONTRACT_BEFORE_FLUSH says, unless told.
    Example: billing-pipeline smoke-org --org-id 123 --require-enabled --validate-contract --fail-closed
    """
    from billing_pipeline.errors import BillingError
    from billing_pipeline.usage.lease import LeaseHeld
    from billing_pipeline.usage.smoke import Smoke, run_smoke

    if validate and skip:
        raise typer.BadParameter("--validate-contract and --skip-contract exclude each other.")
    findings: list[tuple[str, Finding]] = []

    def tell(name: str, finding: Finding) -> None:
        findings.append((name, finding))
        if not as_json:
            _print_step(name, finding)

    with open_local_flow() as flow:
        wanted = validate or (flow.settings.stripe_billing_validate_contract_before_flush and not skip)
        smoke = Smoke(organization, require_enabled, validate_contract=wanted, refresh_period=refresh_period)
        try:
            passed = run_smoke(flow, smoke, tell)
        except LeaseHeld as exc:
            # A smoke that did nothing has not passed.
            raise BillingError(f"{exc} Try again after that.") from None
    if as_json:
        typer.echo(json.dumps(_as_json(organization, findings, passed=passed, fail_closed=fail_closed), indent=2))
    else:
        verdict = "Nothing failed" if passed else "Something failed"
        typer.echo(f"\n{verdict}. {'Fails closed' if fail_closed else 'Only reports (--no-fail-closed)'}.")
    if not passed and fail_closed:
        raise typer.Exit(1)


def _print_step(name: str, finding: Finding) -> None:
    typer.echo(f"{finding.result}  {name:<{NAME_WIDTH}}  {finding.found}")
    if finding.remedy:
        typer.echo(as_typed(f"      {finding.remedy}"))


def _as_json(
    organization: str, findings: list[tuple[str, Finding]], *, passed: bool, fail_closed: bool
) -> dict[str, object]:
    steps = [
        {"step": name, "result": str(finding.result), "found": finding.found, "do_next": finding.remedy}
        for name, finding in findings
    ]
    return {"organization_id": organization, "passed": passed, "fail_closed": fail_closed, "steps": steps}
