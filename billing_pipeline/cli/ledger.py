"""`billing-pipeline ledger …`: look at the ledger's state, stop it, and bring it back after a restore.

Recovery takes two persons: one adopts what Stripe shows, another releases.  Every step is in the operator log.
"""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.hints import amount, as_typed
from billing_pipeline.cli.live import Live, require_live_account
from billing_pipeline.cli.times import instant
from billing_pipeline.cli.usage import open_ledger, open_local_flow
from billing_pipeline.cli.windows import (
    HELD_SHOWN,
    By,
    Reason,
    print_held,
    print_in_doubt,
    print_owed_after_seal,
    seal,
)

if TYPE_CHECKING:
    from billing_pipeline.usage.adopt import AdoptionReport
    from billing_pipeline.usage.gate import Identity

app = typer.Typer(help="Look at the ledger, stop it, bring it back.", no_args_is_help=True)
app.command()(seal)

EXPIRING_SHOWN = 10

LABELS = {
    "units_unmapped": "units of organizations without a Stripe customer",
    "windows_held": "usage windows on hold for a person",
    "entries_held": "entries on hold for a person",
    "units_rejected": "units refused by Stripe, on hold",
    "units_pending": "units cut and not sent yet",
    "entries_ambiguous": "entries sent with unknown outcome",
    "oldest_ambiguous": "age of the oldest of them",
    "units_unconfirmed": "units accepted and not shown by Stripe yet",
    "oldest_unconfirmed": "age of the oldest of them",
    "events_quarantined": "billable events in quarantine",
    "time_to_confirmed": "from sending to proof, the median of the latest",
}


@app.command()
def status() -> None:
    """Show whether the ledger is open, and what is owed.

    Asks the database only, so it works while Stripe does not answer.
    """
    from billing_pipeline.database import queries
    from billing_pipeline.reconciliation.expiry import usage_about_to_expire
    from billing_pipeline.usage.adjust import adjustments_in_doubt
    from billing_pipeline.usage.gate import Identity
    from billing_pipeline.usage.hold import held_windows
    from billing_pipeline.usage.money import money_at_risk
    from billing_pipeline.usage.seal import owed_after_seal

    with open_ledger(only_reads=True) as flow:
        identities = queries.fetch(flow.connection, "read_identity", Identity)
        owed = asdict(money_at_risk(flow.connection, now=flow.clock()))
        times = flow.settings.protocol_times
        expiring = usage_about_to_expire(flow.connection, times, now=flow.clock())
        canaries = queries.fetch_dicts(flow.connection, "canary_lag")
        mark = flow.mark.read()
        held = held_windows(flow.connection, limit=HELD_SHOWN)
        after_seal = owed_after_seal(flow.connection)
        in_doubt = adjustments_in_doubt(flow.connection, limit=HELD_SHOWN)
    _print_identity(identities[0] if identities else None)
    # The address may hold a key, so only its kind is shown.
    kind = flow.settings.mark_url.partition("://")[0]
    typer.echo(f"High-water mark  {f'attempt {mark.attempt_id:,}' if mark else 'none yet'} (kept in: {kind})")
    typer.echo(f"Billing          {flow.settings.level}")
    typer.echo("\nNot proved yet:")
    for name, value in owed.items():
        shown = "-" if value is None else amount(Decimal(value)) if isinstance(value, (int, Decimal)) else str(value)
        typer.echo(f"{shown:>16} {LABELS.get(name, name.replace('_', ' '))}")
    print_held(held)
    print_owed_after_seal(after_seal, flow.catalogue)
    print_in_doubt(in_doubt)
    units = sum((found.units for found in expiring), Decimal(0))
    refused_from = f"refused from day {times.past_max.days} on"
    typer.echo(f"{amount(units):>16} units older than {times.past_alarm.days} days and not sent, {refused_from}")
    for found in expiring[:EXPIRING_SHOWN]:
        typer.echo(f"{'':>16} {found.organization_id}, {found.meter}: {amount(found.units)} since {found.oldest_at:%F}")
    typer.echo("\nCanaries:" if canaries else "\nCanaries: none sent yet")
    for row in canaries:
        seen = (
            f"shown by Stripe after {row['lag'].total_seconds():,.0f} s"
            if row["lag"] is not None
            else "not shown by Stripe yet"
        )
        missing = f", missing since {row['missing_since']:%Y-%m-%d %H:%M} UTC" if row["missing_since"] else ""
        typer.echo(f"  {row['event_name']}: {seen}{missing}")


@app.command()
def freeze(by: By, reason: Reason) -> None:
    """Stop all sending now.

    A running flush stops before its next batch.  Asks the database only.
    """
    from billing_pipeline.usage import gate

    with open_ledger() as flow:
        before = gate.read_identity(flow.connection)
        gate.freeze(flow.connection, f"{reason} (by {by})", now=flow.clock(), actor=by)
    if before.frozen_at is not None:
        typer.echo(f"Already frozen since {before.frozen_at:%Y-%m-%d %H:%M} UTC: {before.frozen_reason}")
        return
    typer.echo(
        as_typed(
            "The ledger is frozen: nothing is sent until one person runs `billing-pipeline ledger adopt` and another "
            "`billing-pipeline ledger release`."
        )
    )


@app.command()
def adopt(
    by: By,
    reason: Reason,
    since: Annotated[
        str | None, typer.Option(help="From when on to compare, e.g. 2026-11-20T00:00:00Z. Default: 34 days back.")
    ] = None,
    live: Live = None,
) -> None:
    """Bring the frozen ledger to what Stripe shows.

    For after a restore; prints every difference.  It sends canaries first and does not wait for them: it says when to
    run it again.
    """
    from billing_pipeline.usage.adopt import DEFAULT_SPAN, adopt, require_settled

    with open_local_flow() as flow:
        require_live_account(flow.settings, live)
        flow.send_canaries_while_frozen()
        require_settled(flow.connection, flow.settings.protocol_times, now=flow.clock())
        report = adopt(
            flow.connection,
            flow.summaries,
            catalogue=flow.catalogue,
            mark=flow.mark,
            since=instant("--since", since) if since else flow.clock() - DEFAULT_SPAN,
            actor=by,
            reason=reason,
            clock=flow.clock,
        )
    _print_report(report)


@app.command()
def release(by: By, reason: Reason) -> None:
    """Let the ledger send again, after another has adopted."""
    from billing_pipeline.usage.adopt import release

    with open_ledger() as flow:
        release(flow.connection, actor=by, reason=reason, now=flow.clock())
    typer.echo("The ledger is open. The next flush states what the source owes beyond what Stripe shows.")


def _print_identity(identity: Identity | None) -> None:
    if identity is None:
        typer.echo("Account          none yet; the first flush that is not off binds the ledger to one")
        return
    mode = "live" if identity.livemode else "test"
    typer.echo(f"Account          {identity.stripe_account}, {mode} mode, epoch {identity.epoch}")
    state = "open"
    if identity.frozen_at is not None:
        state = f"FROZEN since {identity.frozen_at:%Y-%m-%d %H:%M} UTC: {identity.frozen_reason}"
    typer.echo(f"Ledger           {state}")


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
    if report.adoptions:
        Console(highlight=False).print(table)
    typer.echo(
        f"Compared since {report.since:%Y-%m-%d %H:%M} UTC: {len(report.adoptions)} minutes differed, "
        f"{len(report.conflicts)} need a person. The epoch is now {report.epoch}; the ledger is still frozen."
    )
    typer.echo(as_typed("A second person releases it: `billing-pipeline ledger release --by NAME --reason TEXT`"))
