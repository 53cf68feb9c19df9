"""`billing-pipeline quarantine …`: what waits because it breaks the contract, why, and what a person does about it.

Asks the database only, but for the prices of what waits, which may be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.hints import amount, as_typed, own_name
from billing_pipeline.cli.prices import prices_of
from billing_pipeline.cli.usage import open_ledger

if TYPE_CHECKING:
    from billing_pipeline.domain.prices import UnitPrice
    from billing_pipeline.usage.quarantine import QuarantinedEvent, SourceEvent, WaitingRows, WaitingUnits
    from billing_pipeline.usage.quarantine_decisions import JudgedAgain

app = typer.Typer(help="See what waits in quarantine and why, retry it, dismiss it.", no_args_is_help=True)

EventId = Annotated[str, typer.Argument(help="The row's event_id.")]


@app.command("list")
def list_command(
    reason: Annotated[str | None, typer.Option(help="Only this reason code.")] = None,
    organization: Annotated[str | None, typer.Option(help="Only this organization.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many ids to show of each reason.")] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; amounts are texts, so that none is cut.")
    ] = False,
) -> None:
    """Show what waits, by reason, and what it is worth.

    Works while Stripe does not answer; then the money is unknown.
    """
    from billing_pipeline.usage.quarantine import dismissed_rows, waiting_rows

    with open_ledger() as flow:
        groups = waiting_rows(flow.connection, now=flow.clock(), limit=limit, reason=reason, organization=organization)
        dismissed = dismissed_rows(flow.connection)
        names = {units.event_name for group in groups for units in group.units if units.event_name}
        prices, why_not = prices_of(flow, names)
    if as_json:
        typer.echo(json.dumps(_as_json(groups, dismissed, prices) | {"no_prices_because": why_not or None}, indent=2))
        return
    _print_groups(groups, dismissed, prices, why_not)


@app.command()
def show(event_id: EventId) -> None:
    """Show one row, the rule it breaks and what to do.

    As it was found, and as the source has it now.
    """
    from billing_pipeline.usage.quarantine import quarantined_event, source_event

    with open_ledger() as flow:
        found = quarantined_event(flow.connection, event_id)
        current = source_event(flow.connection, flow.read_source(), event_id)
    _print_event(found, current)


@app.command()
def retry(
    event_ids: Annotated[list[str] | None, typer.Argument(help="Rows to judge again. Default: all that wait.")] = None,
) -> None:
    """Judge rows again now, as the source has them.

    What is right leaves quarantine, and the next flush counts it.  A dismissed row that is named waits again.
    """
    from billing_pipeline.usage.quarantine_decisions import judge_again

    with open_ledger() as flow:
        report = judge_again(
            flow.connection,
            flow.database_url,
            source=flow.read_source(),
            catalogue=flow.catalogue,
            event_ids=event_ids or (),
            actor=own_name(),
            now=flow.clock(),
        )
    _print_judged(report)


@app.command()
def dismiss(
    event_ids: Annotated[list[str], typer.Argument(help="Rows that are nobody's usage.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever asks where the usage went.")],
    by: Annotated[str | None, typer.Option("--by", help="Who decides this. Default: your login.")] = None,
) -> None:
    """Set rows aside that are nobody's usage, as they are now.

    A row that is changed upstream afterwards is judged again by itself.  `quarantine retry EVENT_ID` undoes it.
    """
    from billing_pipeline.usage.quarantine_decisions import dismiss as set_aside

    actor = by or own_name()
    with open_ledger() as flow:
        source = flow.read_source()
        dismissed = set_aside(flow.connection, event_ids, source=source, actor=actor, reason=reason, now=flow.clock())
    before = len(set(event_ids)) - dismissed
    typer.echo(f"Dismissed by {actor}: {_rows(dismissed)}." + (f" {_rows(before)} had been already." if before else ""))
    typer.echo(as_typed("To undo it: `billing-pipeline quarantine retry EVENT_ID`."))


def _as_json(groups: list[WaitingRows], dismissed: int, prices: Mapping[str, UnitPrice | None]) -> dict[str, Any]:
    from billing_pipeline.usage.quarantine import worth

    def group_of(group: WaitingRows) -> dict[str, Any]:
        money = worth(group.units, prices)
        return {
            "reason": group.reason,
            "rows": group.rows,
            "organizations": group.organizations,
            "first_seen_at": group.oldest_at.isoformat(),
            "event_ids": list(group.event_ids),
            "units": [
                {
                    "meter": units.meter,
                    "rows": units.rows,
                    "rows_without_readable_quantity": units.unreadable,
                    "units": f"{units.units:f}",
                }
                for units in group.units
            ],
            "minor_units": None if money is None else {currency: f"{cost:f}" for currency, cost in money.items()},
        }

    return {
        "waiting": sum(group.rows for group in groups),
        "dismissed": dismissed,
        "reasons": [group_of(group) for group in groups],
    }


def _print_groups(
    groups: list[WaitingRows], dismissed: int, prices: Mapping[str, UnitPrice | None], why_not: str
) -> None:
    from billing_pipeline.domain.contract_rules import RULES
    from billing_pipeline.usage.quarantine import worth

    aside = f" Dismissed and not listed: {_rows(dismissed)}." if dismissed else ""
    if not groups:
        typer.echo(f"Nothing waits in quarantine.{aside}")
        return
    waiting = sum(group.rows for group in groups)
    typer.echo(f"Waiting in quarantine, not billed: {_rows(waiting)}.{aside}")
    for group in groups:
        typer.echo(
            f"\n{group.reason}: {_rows(group.rows)} of {_organizations(group.organizations)}, "
            f"the first seen {group.oldest_at:%Y-%m-%d %H:%M} UTC"
        )
        typer.echo(f"  {RULES[group.reason].meaning}")
        typer.echo(f"  ids    {', '.join(group.event_ids)}{', ...' if group.rows > len(group.event_ids) else ''}")
        for units in group.units:
            typer.echo(f"  units  {_units(units)}")
        at_least = any(units.unreadable for units in group.units)
        typer.echo(f"  money  {_money(worth(group.units, prices), at_least=at_least)}")
    if why_not:
        typer.echo(f"\nNo prices: {why_not}")
    typer.echo(
        as_typed(
            f"\nNext: `billing-pipeline quarantine show {groups[0].event_ids[0]}` says what to do about a row. "
            "Rows that are corrected in the source are counted by the next flush; "
            "`billing-pipeline quarantine retry` looks at them now."
        )
    )


def _units(units: WaitingUnits) -> str:
    if units.meter is None:
        return f"unknown for {_rows(units.rows)}: no meter counts such usage in its hour"
    unreadable = f", of which {units.unreadable:,} without a quantity to read" if units.unreadable else ""
    return f"{units.meter} {amount(units.units)}, in {_rows(units.rows)}{unreadable}"


def _money(cost: dict[str, Decimal] | None, *, at_least: bool) -> str:
    if cost is None:
        return "price unknown"
    costs = ", ".join(f"{amount(units)} minor units of {currency}" for currency, units in sorted(cost.items()))
    return f"at least {costs}" if at_least else costs


def _print_event(found: QuarantinedEvent, current: SourceEvent | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from billing_pipeline.domain.contract_rules import RULES
    from billing_pipeline.usage.quarantine import Status

    typer.echo(f"{found.event_id}: {found.status}, {found.reason} (contract version {found.contract_version})")
    typer.echo(f"First seen {found.first_seen_at:%F %H:%M} UTC, last seen so {found.last_seen_at:%F %H:%M} UTC.\n")
    # As PostgreSQL writes the other one.
    occurred_at = None if found.occurred_at is None else str(found.occurred_at).removesuffix(":00")
    table = Table("", "as found", "in the source now", box=None, pad_edge=False)
    for name, before in (
        ("organization_id", found.organization_id),
        ("event_type", found.event_type),
        ("quantity", found.quantity),
        ("occurred_at", occurred_at),
        ("recorded_at", ""),
    ):
        now = "no longer there" if current is None else _cell(getattr(current, name))
        table.add_row(name, before if name == "recorded_at" else _cell(before), now)
    Console(highlight=False, markup=False).print(table)
    typer.echo(f"\nRule:  {RULES[found.reason].meaning}")
    if found.status is Status.MENDED:
        typer.echo(f"Now:   mended {found.mended_at:%F %H:%M} UTC; {_fate(current)}")
        return
    if found.status is Status.DISMISSED:
        typer.echo(
            f"Now:   dismissed {found.dismissed_at:%F %H:%M} UTC by {found.dismissed_by}: {found.dismissed_reason}"
        )
        typer.echo(as_typed(f"To do: nothing. `billing-pipeline quarantine retry {found.event_id}` undoes it."))
        return
    typer.echo(f"To do: {RULES[found.reason].remedy}")
    typer.echo(
        as_typed(
            f"       If it is nobody's usage: `billing-pipeline quarantine dismiss {found.event_id} --reason TEXT`."
        )
    )


def _fate(current: SourceEvent | None) -> str:
    if current is None:
        return "the row was taken out of the source."
    if not current.meters:
        return "no meter counts its event type in the hour of its use."
    return f"counted by {', '.join(current.meters)}, from the next flush on."


def _print_judged(report: JudgedAgain) -> None:
    failing = sum(count for count, _ in report.failing.values())
    mended = report.counted + report.left_out + report.gone
    if report.undone:
        typer.echo(f"No longer dismissed: {_rows(report.undone)}.")
    if not mended and not failing:
        typer.echo("Nothing waits that could be judged again.")
        return
    typer.echo(f"Mended: {_rows(mended)}; still failing: {_rows(failing)}.")
    if report.counted:
        typer.echo(f"  {_rows(report.counted)} right now; the next flush counts what Stripe still takes.")
    if report.left_out:
        typer.echo(f"  {_rows(report.left_out)} right now, but no meter counts their type in the hour of their use.")
    if report.gone:
        typer.echo(f"  {_rows(report.gone)} no longer in the source.")
    for reason, (count, ids) in report.failing.items():
        typer.echo(f"  {reason}: {_rows(count)}, {', '.join(ids)}{', ...' if count > len(ids) else ''}")


def _cell(value: str | None) -> str:
    return "(null)" if value is None else value or "(empty)"


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _organizations(count: int) -> str:
    return f"{count:,} organization" + ("" if count == 1 else "s")
