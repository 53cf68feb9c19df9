"""`close-periods`: the period close by hand or by cron, where Dagster's sensor does not do it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.hints import amount
from billing_pipeline.cli.live import Live, require_live_account
from billing_pipeline.cli.log import log_to_stderr
from billing_pipeline.cli.usage import open_local_flow

if TYPE_CHECKING:
    from billing_pipeline.usage.close_periods import ClosedInvoice, CloseReport


def close_periods_command(
    live: Live = None, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Flush, then bill late usage on the drafts of renewals.

    Takes the drafts that the webhooks have brought and nobody has closed; what sealed periods are owed becomes an
    invoice item, each once.  Without such a draft nothing is flushed.
    Example: billing-pipeline close-periods --live acct_1Abc
    """
    from billing_pipeline.settings import Level
    from billing_pipeline.usage.close_periods import close_periods
    from billing_pipeline.usage.lease import LeaseHeld

    log_to_stderr(milestones=True)
    with open_local_flow() as flow:
        if flow.settings.level is not Level.LIVE:
            why = f"Billing is {'off' if flow.settings.level is Level.OFF else 'in shadow mode'}: nothing was closed."
            typer.echo(json.dumps({"skipped": True, "reason": why}) if as_json else why)
            return
        require_live_account(flow.settings, live)
        try:
            report = close_periods(flow)
        except LeaseHeld as exc:
            typer.echo(json.dumps({"skipped": True, "reason": str(exc)}) if as_json else f"skipped=true: {exc}")
            return
    if as_json:
        typer.echo(json.dumps({"skipped": False} | asdict(report), indent=2, default=str))
    else:
        _print(report)


def _print(report: CloseReport) -> None:
    sent = report.sent
    if not report.closed and sent.applied == sent.refused == sent.in_doubt == 0:
        typer.echo("No draft waits to be closed.")
        return
    typer.echo(
        f"Drafts closed: {len(report.closed):,}. Invoice items: {sent.applied:,} applied, {sent.refused:,} refused, "
        f"{sent.in_doubt:,} in doubt."
    )
    for invoice in report.closed:
        _print_invoice(invoice)
    if sent.in_doubt:
        typer.echo("What is in doubt is looked for at Stripe, and then settled, by the next run.")


def _print_invoice(invoice: ClosedInvoice) -> None:
    late = ", final already" if invoice.is_late else ""
    typer.echo(f"  {invoice.stripe_invoice_id} of {invoice.stripe_customer_id}{late}")
    for one in invoice.adjustments:
        how = f"{one.price.minor_units:f} {one.price.currency} minor units each" if one.price else "written off"
        typer.echo(
            f"{amount(one.units):>16} units of {one.organization_id} {one.meter}, "
            f"{one.starts_at:%Y-%m-%d} to {one.ends_at:%Y-%m-%d}, {how}"
        )
    for left in invoice.left:
        typer.echo(f"{amount(left.units):>16} units of {left.organization_id} {left.meter} left: {left.why}")
