"""`billing-pipeline ledger seal`: what a person decides about the windows of a period.

`ledger status` prints from here which windows are on hold, and what sealed periods are still owed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.hints import amount, as_typed
from billing_pipeline.cli.times import instant
from billing_pipeline.cli.usage import open_ledger
from billing_pipeline.domain.catalogue import Catalogue, LateUsage

if TYPE_CHECKING:
    from billing_pipeline.usage.adjust import AdjustmentRow
    from billing_pipeline.usage.hold import HeldWindow
    from billing_pipeline.usage.seal import OwedAfterSeal

HELD_SHOWN = 20
WORDS = {
    LateUsage.INVOICE_ITEM: "by an invoice item",
    LateUsage.NEXT_PERIOD: "by an invoice item of the next renewal",
    LateUsage.WRITE_OFF: "written off there",
    None: "not billed by itself: the catalogue no longer has the meter",
}

By = Annotated[str, typer.Option("--by", help="Who does this, for the operator log.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the operator log.")]


def seal(
    customer: Annotated[str, typer.Option(help="The invoice's Stripe customer, cus_...")],
    start: Annotated[str, typer.Option("--from", help="Start of the period, e.g. 2026-10-01T00:00:00Z.")],
    end: Annotated[str, typer.Option("--until", help="End of the period, not included.")],
    by: By,
    reason: Reason,
    event_name: Annotated[str | None, typer.Option(help="Only this Stripe meter. Default: every one.")] = None,
    leave_owed: Annotated[bool, typer.Option("--leave-owed", help="Seal windows that are not fully stated.")] = False,
) -> None:
    """Close a period whose invoice is final, for ever.

    Nothing is stated for it any more; what changes later is owed after the seal and needs an adjustment.
    Asks the database only.
    """
    from billing_pipeline.domain.seals import Period
    from billing_pipeline.usage.seal import seal

    period = Period(customer, event_name, instant("--from", start), instant("--until", end))
    with open_ledger() as flow:
        now = flow.clock()
        report = seal(
            flow.connection,
            period,
            leave_owed=leave_owed,
            closed_before=now - timedelta(seconds=flow.settings.billing_window_grace_seconds),
            actor=by,
            reason=reason,
            now=now,
        )
    typer.echo(
        f"Sealed at {report.sealed_at:%Y-%m-%d %H:%M} UTC: {report.windows:,} usage windows, "
        f"{report.windows_owed:,} of them leave {amount(report.units_owed)} units owed."
    )
    typer.echo(as_typed("`billing-pipeline ledger status` shows what comes to be owed after a seal."))


def print_held(held: list[HeldWindow]) -> None:
    """The windows that wait for a person, if there are any."""
    if not held:
        return
    typer.echo(as_typed("\nOn hold, oldest first; `billing-pipeline holds list` says what to do:"))
    for window in held:
        typer.echo(
            f"  window {window.window_id}: {window.organization_id} {window.meter} "
            f"{window.starts_at:%Y-%m-%d %H:%M} UTC, {amount(window.units)} units, {window.reason.replace('_', ' ')}"
        )


def print_in_doubt(adjustments: list[AdjustmentRow]) -> None:
    """Invoice items that may be on their invoices or not, if there are any."""
    if not adjustments:
        return
    typer.echo(as_typed("\nInvoice items in doubt; `billing-pipeline close-periods` looks for them at Stripe:"))
    for one in adjustments:
        typer.echo(
            f"{amount(one.units):>16} units of {one.organization_id} {one.meter} on {one.stripe_invoice_id}, since "
            f"{one.created_at:%Y-%m-%d %H:%M} UTC{f': {one.last_error}' if one.last_error else ''}"
        )


def print_owed_after_seal(owed: list[OwedAfterSeal], catalogue: Catalogue) -> None:
    """What sealed periods are owed, if anything, and what the catalogue wants done with it."""
    if not owed:
        return
    policies = {meter.name: meter.late_usage for meter in catalogue.meters}
    typer.echo("\nOwed after the seal of its period; never sent as usage, billed on the customer's next draft:")
    for row in owed:
        to_do = WORDS[policies.get(row.meter)] if row.units > 0 else "billed too much: given back"
        typer.echo(
            f"{amount(row.units):>16} units of {row.organization_id} {row.meter} "
            f"({row.stripe_customer_id}, {row.windows:,} windows; {to_do})"
        )
