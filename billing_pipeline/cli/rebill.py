"""`billing-pipeline rebill`: old hours of a meter by the definition that the catalogue gives it now.

Shows what it would change, and changes it only when told the difference that it showed.
"""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.hints import amount, as_typed, own_name
from billing_pipeline.cli.times import instant
from billing_pipeline.cli.usage import open_ledger
from billing_pipeline.errors import UserError

if TYPE_CHECKING:
    from billing_pipeline.usage.rebill import Decision, RebillReport

ORGANIZATIONS_SHOWN = 20


def rebill_command(
    meter: Annotated[str, typer.Option(help="A meter of the catalogue.")],
    since: Annotated[str, typer.Option(help="The first full UTC hour to count anew, e.g. 2026-11-10T00:00:00Z.")],
    difference: Annotated[
        str | None,
        typer.Option("--apply", metavar="UNITS", help="Do it; the difference that this command showed without it."),
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; needed with --apply.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="Who decides this. Default: your login.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; every organization, amounts as texts.")
    ] = False,
) -> None:
    """Count old hours of a meter as the catalogue says now.

    A changed catalogue never does that by itself: it counts from the next full hour on.
    Shows the difference by organization and changes nothing; --apply does it, and the next flush states it.
    Counts everything anew, as the daily full aggregation does, and takes as long.

    Example: billing-pipeline rebill --meter prompt_tokens --since 2026-11-10T00:00:00Z
    """
    from billing_pipeline.usage.rebill import rebill

    decision = _decision(difference, reason, by)
    first_hour = instant("--since", since)
    with open_ledger() as flow:
        report = rebill(
            flow.connection,
            source=flow.read_source(),
            catalogue=flow.catalogue,
            meter=meter,
            since=first_hour,
            overlap=timedelta(seconds=flow.settings.billing_cutoff_overlap_seconds),
            clock=flow.clock,
            decision=decision,
        )
    if as_json:
        typer.echo(json.dumps(_as_json(report, applied=decision is not None), indent=2))
        return
    _print_report(report)
    if decision is None:
        typer.echo(
            as_typed(
                f"\nNothing was changed. To do it: `billing-pipeline rebill --meter {meter} --since {since} "
                f"--apply {report.difference:f} --reason WHY`"
            )
        )
    else:
        typer.echo(
            as_typed(
                f"\nDone by {decision.actor}. The next flush states the difference, but for what the brakes hold: "
                "it says so, and `billing-pipeline holds list` shows it."
            )
        )


def _decision(difference: str | None, reason: str | None, by: str | None) -> Decision | None:
    from billing_pipeline.usage.rebill import Decision

    if difference is None:
        return None
    if not reason or not reason.strip():
        raise UserError("--apply needs --reason, for whoever asks why old hours were billed anew.")
    try:
        units = Decimal(difference.replace(",", ""))
    except InvalidOperation:
        units = Decimal("NaN")
    if not units.is_finite():
        raise UserError(f"--apply {difference} is not a number of units; take the one that the preview shows.")
    return Decision(by or own_name(), reason, units)


def _print_report(report: RebillReport) -> None:
    typer.echo(f"{report.meter} by today's definition, from {report.since:%Y-%m-%d %H:%M} UTC on:\n")
    if not report.organizations:
        typer.echo("No organization's units change.")
        return
    typer.echo(f"{'organization':<28} {'units now':>16} {'then':>16} {'difference':>16}")
    for row in report.organizations[:ORGANIZATIONS_SHOWN]:
        typer.echo(
            f"{row.organization_id:<28} {amount(row.before):>16} {amount(row.after):>16} {row.difference:>+16,f}"
        )
    if (left := len(report.organizations) - ORGANIZATIONS_SHOWN) > 0:
        typer.echo(f"... and {left:,} organizations more; --json has them all.")
    typer.echo(f"{'all ' + str(len(report.organizations)):<28} {'':>16} {'':>16} {report.difference:>+16,f}")
    if report.sealed:
        typer.echo(f"\nOf the difference {report.sealed:+,f} lies in sealed periods: owed, and never sent.")


def _as_json(report: RebillReport, *, applied: bool) -> dict[str, Any]:
    return {
        "meter": report.meter,
        "since": report.since.isoformat(),
        "applied": applied,
        "difference": f"{report.difference:f}",
        "sealed": f"{report.sealed:f}",
        "organizations": [
            {
                "organization_id": row.organization_id,
                "before": f"{row.before:f}",
                "after": f"{row.after:f}",
                "difference": f"{row.difference:f}",
                "sealed": f"{row.sealed:f}",
            }
            for row in report.organizations
        ],
    }
