"""`billing-pipeline ledger …`: look at the ledger's state, stop it, and bring it back after a restore.

Recovery takes two persons: one adopts what Stripe shows, another releases.  Every step is in the operator log.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.usage import open_local_flow
from billing_pipeline.errors import UserError

if TYPE_CHECKING:
    from billing_pipeline.usage.adopt import AdoptionReport

app = typer.Typer(help="Look at the ledger, stop it, and bring it back after a restore.", no_args_is_help=True)

By = Annotated[str, typer.Option("--by", help="Who does this, for the operator log.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the operator log.")]


@app.command()
def status() -> None:
    """Whose ledger this is, whether it is frozen, and what is owed, ambiguous, held or in quarantine."""
    from billing_pipeline.database import queries
    from billing_pipeline.usage.gate import read_identity

    with open_local_flow() as flow:
        identity = read_identity(flow.connection)
        owed = queries.fetch_dicts(flow.connection, "money_at_risk", {"now": flow.clock()})[0]
        canaries = queries.fetch_dicts(flow.connection, "canary_lag")
        mark = flow.mark.read()
    frozen = (
        f"FROZEN since {identity.frozen_at:%Y-%m-%d %H:%M} UTC: {identity.frozen_reason}"
        if identity.frozen_at
        else "open"
    )
    typer.echo(
        f"Account:    {identity.stripe_account} ({'live' if identity.livemode else 'test'}), epoch {identity.epoch}"
    )
    typer.echo(f"Ledger:     {frozen}")
    typer.echo(
        f"Mark:       attempt {mark.attempt_id if mark else 'none'} at {flow.settings.mark_url.partition('://')[0]}"
    )
    for name, value in owed.items():
        typer.echo(f"{name.replace('_', ' ').capitalize() + ':':<24}{value if value is not None else '-'}")
    for row in canaries:
        lag = f"visible after {row['lag']}" if row["lag"] is not None else "never seen yet"
        typer.echo(f"Canary {row['event_name']}: {lag}")


@app.command()
def freeze(by: By, reason: Reason) -> None:
    """Stop all sending now; a running flush stops before its next batch."""
    from billing_pipeline.usage import gate

    with open_local_flow() as flow:
        gate.freeze(flow.connection, f"{reason} (by {by})", now=flow.clock())
    typer.echo("The ledger is frozen. Nothing is sent until somebody adopts and somebody else releases.")


@app.command()
def adopt(
    by: By,
    reason: Reason,
    since: Annotated[
        str | None, typer.Option(help="From when on to compare, e.g. 2026-11-20T00:00:00Z. Default: 34 days back.")
    ] = None,
) -> None:
    """After a restore: bring the frozen ledger to what Stripe shows, and print the differences.

    Sends canaries first and waits for nothing: it says when to run it again.
    """
    from billing_pipeline.usage.adopt import DEFAULT_SPAN, adopt, require_settled

    with open_local_flow() as flow:
        flow.send_canaries_while_frozen()
        require_settled(flow.connection, flow.settings.protocol_times, now=flow.clock())
        report = adopt(
            flow.connection,
            flow.summaries,
            catalogue=flow.catalogue,
            mark=flow.mark,
            since=_instant(since) if since else flow.clock() - DEFAULT_SPAN,
            actor=by,
            reason=reason,
            clock=flow.clock,
        )
    _print_report(report)


@app.command()
def release(by: By, reason: Reason) -> None:
    """Let the ledger send again; only after somebody else has adopted."""
    from billing_pipeline.usage.adopt import release

    with open_local_flow() as flow:
        release(flow.connection, actor=by, reason=reason, now=flow.clock())
    typer.echo("The ledger is open. The next flush states what the source owes beyond what Stripe shows.")


def _print_report(report: AdoptionReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("customer", "meter", "minute (UTC)", "step", box=None, pad_edge=False)
    table.add_column("ledger", justify="right")
    table.add_column("Stripe", justify="right")
    for found in report.adoptions:
        minute = f"{found.slot_at:%Y-%m-%d %H:%M}"
        units = (f"{found.ledger_units:,}", f"{found.stripe_units:,}")
        table.add_row(found.stripe_customer_id, found.event_name, minute, str(found.step), *units)
    Console(highlight=False).print(table)
    typer.echo(
        f"Compared since {report.since:%Y-%m-%d %H:%M} UTC: {len(report.adoptions)} minutes differed, "
        f"{len(report.conflicts)} need a person. The epoch is now {report.epoch}; the ledger is still frozen."
    )
    typer.echo("A second person releases it: billing-pipeline ledger release --by NAME --reason TEXT")


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise UserError(f"{text} is not a time with an offset; write it like 2026-11-20T00:00:00Z.")
    return instant
