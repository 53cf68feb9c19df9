"""Commands around the usage flow: set Stripe up, map customers, confirm, look at the sides."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from billing_pipeline.cli.hints import amount, as_typed
from billing_pipeline.cli.live import Live, require_live_account

if TYPE_CHECKING:
    from billing_pipeline.reconciliation.completeness import RowAccount
    from billing_pipeline.usage.flow import UsageFlow

app = typer.Typer()

FINDINGS_SHOWN = 10


@app.command("stripe-setup")
def stripe_setup(live: Live = None) -> None:
    """Make the catalogue's meters at Stripe.

    Those that exist are left as they are.
    """
    from billing_pipeline.stripe_api.catalogue import set_up_catalogue

    with open_local_flow() as flow:
        require_live_account(flow.settings, live)
        report = set_up_catalogue(flow.stripe, flow.settings, flow.catalogue)
    typer.echo(
        f"Meters made: {', '.join(report.created) or 'none'}; already there: {', '.join(report.existing) or 'none'}."
    )


@app.command("create-customers")
def create_customers_command() -> None:
    """Make and map a Stripe customer for each organization.

    For every organization in the source that has none; test mode only.
    """
    from billing_pipeline.database import queries
    from billing_pipeline.stripe_api.customers import create_customers

    with open_local_flow() as flow:
        rows = queries.fetch_dicts(flow.connection, "organizations_without_customer", parts=flow.read_source().parts)
        customers = create_customers(flow.stripe, flow.settings, [row["organization_id"] for row in rows])
        params = {"organization_ids": list(customers), "customers": list(customers.values())}
        queries.execute(flow.connection, "map_customers", params)
    typer.echo(f"Customers made and mapped: {len(customers)}.")


@app.command()
def confirm() -> None:
    """Confirm the entries that Stripe's summaries show."""
    with open_local_flow() as flow:
        report = flow.confirm()
    typer.echo(
        f"{report.confirmed:,} confirmed by Stripe's summaries, {report.replaced:,} provably not counted, "
        f"{report.waiting:,} waiting ({report.reads:,} reads)."
    )


@app.command()
def reconcile() -> None:
    """Show source, ledger and Stripe side by side.

    Then where every row of the source is.
    Exits 1 when a difference has no explanation, or a row is in no place or in two.
    """
    from rich.console import Console
    from rich.table import Table

    from billing_pipeline.reconciliation.completeness import account_for_rows
    from billing_pipeline.reconciliation.reconcile import reconcile as compare

    with open_ledger(only_reads=True) as flow:
        report = compare(flow.connection, settings=flow.settings, now=flow.clock())
        account = account_for_rows(flow.connection, settings=flow.settings, now=flow.clock())
    if not report.sides and not account.rows:
        typer.echo("There is nothing to compare yet: no usage in the source, none in the ledger.")
        return
    reasons: dict[tuple[str, str], list[str]] = {}
    for difference in report.differences:
        key = (difference.organization_id, difference.meter)
        reasons.setdefault(key, []).append(f"{difference.kind} {amount(difference.units)}")
    table = Table("organization", "meter", box=None, pad_edge=False)
    for title in ("source", "stated", "Stripe"):
        table.add_column(title, justify="right")
    table.add_column("difference")
    for side in report.sides:
        units = (amount(units) for units in (side.source_units, side.stated, side.observed))
        table.add_row(
            side.organization_id, side.meter, *units, ", ".join(reasons.get((side.organization_id, side.meter), []))
        )
    Console(highlight=False).print(table)
    _print_rows(account)
    if report.faults or account.faults:
        raise typer.Exit(1)


def _print_rows(account: RowAccount) -> None:
    places = ", ".join(f"{rows:,} {place.replace('_', ' ')}" for place, rows in account.rows.items())
    typer.echo(f"\nRows of the source within reach: {account.total:,}; {places or 'none'}.")
    for found in account.findings[:FINDINGS_SHOWN]:
        typer.echo(f"  {found.place.replace('_', ' ')}: {found.offender}, {found.detail}")
    if account.faults:
        typer.echo(as_typed("  `billing-pipeline flush-now --full` judges and counts every row again."))


def own_name() -> str:
    """Who flushes, as the lease shows it to others."""
    return f"billing-pipeline on {socket.gethostname()}, process {os.getpid()}"


@contextmanager
def open_local_flow() -> Iterator[UsageFlow]:
    """The usage flow over this machine's database and Stripe, started where nothing is configured."""
    from billing_pipeline.cli.local_stack import local_stack
    from billing_pipeline.settings import load_settings
    from billing_pipeline.usage.flow import open_flow

    with (
        local_stack(load_settings()) as stack,
        open_flow(stack.settings, stack.database_url, holder=own_name()) as flow,
    ):
        yield flow


@contextmanager
def open_ledger(*, only_reads: bool = False) -> Iterator[UsageFlow]:
    """The same for what asks the database only: it works while Stripe does not answer, and to read on a standby."""
    from billing_pipeline.cli.local_stack import ready_database
    from billing_pipeline.settings import load_settings
    from billing_pipeline.usage.flow import open_flow

    settings = load_settings()
    with open_flow(settings, ready_database(settings), holder=own_name(), only_reads=only_reads) as flow:
        yield flow
