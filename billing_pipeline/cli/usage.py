"""Commands of the usage flow: set Stripe up, map customers, flush once, look at the sides."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from billing_pipeline.usage.flush import UsageFlow

app = typer.Typer()


@app.command("stripe-setup")
def stripe_setup() -> None:
    """Make the catalogue's meters at Stripe; those that exist are left as they are."""
    from billing_pipeline.stripe_api.catalogue import set_up_catalogue

    with _flow() as flow:
        report = set_up_catalogue(flow.stripe, flow.settings, flow.catalogue)
    typer.echo(
        f"Meters made: {', '.join(report.created) or 'none'}; already there: {', '.join(report.existing) or 'none'}."
    )


@app.command("create-customers")
def create_customers_command() -> None:
    """Make a Stripe customer for every organization in the source that has none, and map it; test mode only."""
    from billing_pipeline.database import queries
    from billing_pipeline.stripe_api.customers import create_customers

    with _flow() as flow:
        source = {"source": queries.relation(flow.settings.billing_source_relation)}
        rows = queries.fetch_dicts(flow.connection, "organizations_without_customer", parts=source)
        customers = create_customers(flow.stripe, flow.settings, [row["organization_id"] for row in rows])
        params = {"organization_ids": list(customers), "customers": list(customers.values())}
        queries.execute(flow.connection, "map_customers", params)
    typer.echo(f"Customers made and mapped: {len(customers)}.")


@app.command("flush-now")
def flush_now(
    full: Annotated[
        bool, typer.Option("--full", help="Recompute the whole lookback, not only what was touched.")
    ] = False,
) -> None:
    """Run the usage flow once, here and now: validate, aggregate, cut, submit, confirm.

    The gate is the same as for the schedule.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from billing_pipeline.usage.aggregate import Scope
    from billing_pipeline.usage.flush import flush
    from billing_pipeline.usage.lease import LeaseHeld

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} entries sent"), TimeElapsedColumn())
    with _flow() as flow, Progress(*columns, transient=True) as progress:
        task = progress.add_task("flush", total=None)
        try:
            report = flush(
                flow, scope=Scope.FULL if full else None, on_progress=lambda sent: progress.advance(task, sent)
            )
        except LeaseHeld as exc:
            typer.echo(f"skipped=true: {exc}")
            return
    if report.contract is not None:
        faults = ", ".join(f"{fault.reason} {fault.count}" for fault in report.contract.faults) or "none"
        typer.echo(f"Contract:  {report.contract.rows_read:,} rows read, faults: {faults}")
    typer.echo(
        f"Windows:   {report.aggregation.windows_computed:,} computed ({report.aggregation.scope}), "
        f"{report.aggregation.windows_changed:,} changed"
    )
    typer.echo(
        f"Entries:   {report.cut.entries:,} cut (+{report.cut.units_added:,} -{report.cut.units_taken_back:,} units), "
        f"{report.cut.windows_held:,} windows held"
    )
    typer.echo(
        f"Stripe:    {report.submit.attempts:,} sent, {report.submit.accepted:,} accepted, "
        f"{report.submit.duplicates:,} duplicate, {report.submit.rejected:,} rejected, "
        f"{report.submit.unknown:,} unknown, {report.submit.not_executed:,} not executed"
    )
    typer.echo(
        f"Proof:     {report.confirm.confirmed:,} confirmed by Stripe's summaries, {report.confirm.waiting:,} waiting"
    )


@app.command()
def confirm() -> None:
    """Read Stripe's summaries and confirm the entries they show."""
    with _flow() as flow:
        report = flow.confirm()
    typer.echo(
        f"{report.confirmed:,} confirmed by Stripe's summaries, {report.replaced:,} provably not counted, "
        f"{report.waiting:,} waiting ({report.reads:,} reads)."
    )


@app.command()
def reconcile() -> None:
    """Source, ledger and Stripe side by side; exits 1 when a difference has no explanation."""
    from rich.console import Console
    from rich.table import Table

    from billing_pipeline.reconciliation.reconcile import reconcile as compare

    with _flow() as flow:
        report = compare(flow.connection, settings=flow.settings, catalogue=flow.catalogue, now=flow.clock())
    reasons: dict[tuple[str, str], list[str]] = {}
    for difference in report.differences:
        key = (difference.organization_id, difference.meter)
        reasons.setdefault(key, []).append(f"{difference.kind} {difference.units:,}")
    table = Table("organization", "meter", box=None, pad_edge=False)
    for title in ("source", "stated", "Stripe"):
        table.add_column(title, justify="right")
    table.add_column("difference")
    for side in report.sides:
        units = (f"{int(units):,}" for units in (side.source_units, side.stated, side.observed))
        table.add_row(
            side.organization_id, side.meter, *units, ", ".join(reasons.get((side.organization_id, side.meter), []))
        )
    Console(highlight=False).print(table)
    if report.faults:
        raise typer.Exit(1)


def own_name() -> str:
    """Who flushes, as the lease shows it to others."""
    return f"billing-pipeline on {socket.gethostname()}, process {os.getpid()}"


@contextmanager
def _flow() -> Iterator[UsageFlow]:
    from billing_pipeline.cli.local_stack import local_stack
    from billing_pipeline.settings import load_settings
    from billing_pipeline.usage.flush import open_flow

    with (
        local_stack(load_settings()) as stack,
        open_flow(stack.settings, stack.database_url, holder=own_name()) as flow,
    ):
        yield flow
