"""`billing-pipeline plan`: what a flush would send, per organization and meter, before it does.

The stages themselves run, in a transaction that is undone.  The hash at the end is what `flush-now --plan` keeps to.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.hints import amount, as_typed, own_name
from billing_pipeline.cli.usage import open_local_flow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from billing_pipeline.domain.prices import UnitPrice
    from billing_pipeline.usage.plan import Plan, PlannedLine, PlannedMeter

WIDTH = 200


def plan_command(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many organizations and meters to list.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; units are whole numbers, money is texts.")
    ] = False,
) -> None:
    """Show what a flush would send, and send nothing.

    It recomputes the whole lookback, which takes as long as the daily flush, and leaves nothing behind but the plan.
    Example: billing-pipeline plan, then billing-pipeline flush-now --plan HASH
    """
    from rich.console import Console

    from billing_pipeline.settings import Level
    from billing_pipeline.stripe_api.prices import prices_or_why_not
    from billing_pipeline.usage.plan import make_plan

    with open_local_flow() as flow:
        with Console(stderr=True).status("Running a flush that will be undone ..."):
            plan = make_plan(flow, limit=limit, actor=own_name())
        prices, why_not = prices_or_why_not(flow.settings, [meter.event_name for meter in plan.meters])
        sends = flow.settings.level is Level.LIVE
    if as_json:
        typer.echo(json.dumps(_as_json(plan, prices, why_not), indent=2, default=str))
        return
    _print(plan, prices, why_not)
    if plan.is_empty:
        return
    typer.echo(f"\nPlan {plan.plan_hash}")
    account = f" --live {plan.stripe_account}" if plan.livemode else ""
    if sends:
        typer.echo(as_typed(f"To send exactly this: `billing-pipeline flush-now --plan {plan.plan_hash}{account}`"))
    else:
        typer.echo("Billing is not live here, so a flush would record this and send nothing (BILLING_MODE).")


def _print(plan: Plan, prices: Mapping[str, UnitPrice | None], why_not: str) -> None:
    mode = "live" if plan.livemode else "test"
    until = f"hours that ended by {plan.closed_before:%Y-%m-%d %H:%M} UTC"
    if plan.is_empty:
        typer.echo(f"Nothing new would be sent to {plan.stripe_account} ({mode} mode), of {until}.")
    else:
        typer.echo(f"A flush would send to {plan.stripe_account} ({mode} mode), of {until}:\n")
        _print_lines(plan, prices)
        typer.echo()
        for meter in plan.meters:
            typer.echo(f"{meter.event_name}: {meter.counts}, {_money(meter, prices)}")
    if plan.sent_again:
        typer.echo(f"Sent again under the same identifier, no new usage: {plan.sent_again:,} entries in doubt.")
    if plan.cut.windows_held:
        typer.echo(f"Held back for a person by this flush: {plan.cut.windows_held:,} windows.")
    if plan.cut.windows_waiting:
        typer.echo(f"Waiting for an answer or for their next correction: {plan.cut.windows_waiting:,} windows.")
    if plan.units_unmapped:
        typer.echo(f"Owed by organizations without a Stripe customer: {amount(plan.units_unmapped)} units.")
    if why_not:
        typer.echo(f"No prices: {why_not}")


def _print_lines(plan: Plan, prices: Mapping[str, UnitPrice | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("organization", "meter", "hours (UTC)", box=None, pad_edge=False)
    for title in ("entries", "added", "taken back", "money"):
        table.add_column(title, justify="right")
    for line in plan.lines:
        money = _money(line, prices)
        counts = (f"{line.entries:,}", f"{line.units_added:,}", f"{line.units_taken_back:,}")
        table.add_row(line.organization_id, line.meter, _hours(line), *counts, money)
    # In a file or a pipe a line is as long as it has to be.
    width = None if sys.stdout.isatty() else WIDTH
    Console(highlight=False, markup=False, width=width).print(table)
    if len({line.organization_id for line in plan.lines}) < plan.organizations:
        typer.echo(f"... the largest {len(plan.lines):,} lines, of {plan.organizations:,} organizations; see --limit.")


def _hours(line: PlannedLine) -> str:
    first, last = (f"{at:%Y-%m-%d %H}h" for at in (line.first_hour_at, line.last_hour_at))
    return first if first == last else f"{first} to {last}"


def _money(found: PlannedLine | PlannedMeter, prices: Mapping[str, UnitPrice | None]) -> str:
    """In the currency's minor unit, as Stripe's prices are."""
    price = prices.get(found.event_name)
    return f"{amount(_net(found) * price.minor_units)} minor units of {price.currency}" if price else "price unknown"


def _net(found: PlannedLine | PlannedMeter) -> int:
    return found.units_added - found.units_taken_back


def _as_json(plan: Plan, prices: Mapping[str, UnitPrice | None], why_not: str) -> dict[str, object]:
    def with_money(found: PlannedLine | PlannedMeter) -> dict[str, object]:
        price = prices.get(found.event_name)
        money = None if price is None else {price.currency: f"{_net(found) * price.minor_units:f}"}
        return asdict(found) | {"minor_units": money}

    return asdict(plan) | {
        "plan_hash": None if plan.is_empty else plan.plan_hash,
        "meters": [with_money(meter) for meter in plan.meters],
        "lines": [with_money(line) for line in plan.lines],
        "no_prices_because": why_not or None,
    }
