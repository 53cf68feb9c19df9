"""`billing-pipeline holds …`: what waits for a person before it is stated to Stripe, and how it is let go.

The windows are counted and right as far as the source goes; a brake, or Stripe, keeps them from being sent.
Asks the database only, but for the prices, which may be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.hints import amount, as_typed
from billing_pipeline.cli.usage import open_ledger
from billing_pipeline.cli.windows import By, Reason
from billing_pipeline.errors import UserError

if TYPE_CHECKING:
    from billing_pipeline.domain.prices import UnitPrice
    from billing_pipeline.usage.hold import HeldUnits, HeldWindow, Released, WaitingBehind

app = typer.Typer(help="See what is on hold for a person, and release it.", no_args_is_help=True)

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)

Organization = Annotated[str | None, typer.Option("--org", help="Only this organization.")]
Meter = Annotated[str | None, typer.Option("--meter", help="Only this meter.")]


@app.command("list")
def list_command(
    reason: Annotated[str | None, typer.Option(help="Only this reason code.")] = None,
    organization: Organization = None,
    meter: Meter = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many windows to show of each reason.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; amounts are texts, so that none is cut.")
    ] = False,
) -> None:
    """Show what is on hold, why, and what to do.

    By reason, the oldest first.  Works while Stripe does not answer; then the money is unknown.

    Example: billing-pipeline holds list --meter prompt_tokens
    """
    from billing_pipeline.stripe_api.prices import prices_or_why_not
    from billing_pipeline.usage.hold import Chosen, held_units, held_windows_by_reason, waiting_behind_holds

    chosen = Chosen(reason, organization, meter)
    with open_ledger(only_reads=True) as flow:
        now = flow.clock()
        sums = held_units(flow.connection, chosen)
        windows = held_windows_by_reason(flow.connection, chosen, limit=limit)
        closed_before = now - timedelta(seconds=flow.settings.billing_window_grace_seconds)
        behind = waiting_behind_holds(flow.connection, chosen, closed_before=closed_before)
        prices, why_not = prices_or_why_not(flow.settings, [one.event_name for one in sums])
        past_max = flow.settings.protocol_times.past_max
    if as_json:
        told = _as_json(sums, windows, behind, prices, now, past_max) | {"no_prices_because": why_not or None}
        typer.echo(json.dumps(told, indent=2))
        return
    _print_list(sums, windows, behind, prices, now, past_max)
    if why_not:
        typer.echo(f"\nNo prices: {why_not}")


@app.command()
def release(
    by: By,
    reason: Reason,
    window_ids: Annotated[
        list[int] | None, typer.Argument(help="Numbers of windows, as `holds list` shows them.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every window on hold for --reason-code.")] = False,
    reason_code: Annotated[str | None, typer.Option("--reason-code", help="With --all: only this reason.")] = None,
    organization: Organization = None,
    meter: Meter = None,
) -> None:
    """Let the next flush state what is on hold.

    All of the windows that are meant, or none.  No brake holds them again up to what they come to now; beyond that they
    are braked anew.  What Stripe still cannot take is held again, with its reason.

    Example: billing-pipeline holds release 4711 --by Ada --reason "asked the customer"
    """
    from billing_pipeline.usage.hold import Chosen, release_all, release_windows

    _require_one_choice(window_ids, all_, [reason_code, organization, meter])
    chosen = Chosen(reason_code, organization, meter)
    with open_ledger() as flow:
        log: dict[str, Any] = {"actor": by, "reason": reason, "now": flow.clock()}
        if window_ids:
            released = release_windows(flow.connection, window_ids, **log)
        else:
            released = release_all(flow.connection, chosen, **log)
    _print_released(released, by)


def _require_one_choice(window_ids: list[int] | None, all_: bool, filters: list[str | None]) -> None:
    if window_ids and (all_ or any(filters)):
        raise UserError("Name windows, or choose them with --all and --reason-code, not both. Nothing was released.")
    if not window_ids and not all_:
        raise UserError("Say which: numbers of windows, or --all with --reason-code. Nothing was released.")
    if all_ and filters[0] is None:
        raise UserError("--all needs --reason-code, because each reason asks another question. Nothing was released.")


def _print_list(
    sums: list[HeldUnits],
    windows: list[HeldWindow],
    behind: list[WaitingBehind],
    prices: Mapping[str, UnitPrice | None],
    now: datetime,
    past_max: timedelta,
) -> None:
    from billing_pipeline.domain.entries import HoldReason
    from billing_pipeline.domain.holds import HOLDS

    if not sums:
        typer.echo("Nothing is on hold.")
        return
    typer.echo(f"On hold, not stated: {_windows(sum(one.windows for one in sums))}.")
    for reason in dict.fromkeys(one.reason for one in sums):
        mine = [one for one in sums if one.reason == reason]
        shown = [window for window in windows if window.reason == reason]
        count = sum(one.windows for one in mine)
        typer.echo(f"\n{reason}: {_windows(count)}")
        typer.echo(f"  {HOLDS[HoldReason(reason)].meaning}")
        typer.echo(f"  To do: {HOLDS[HoldReason(reason)].remedy}")
        for one in mine:
            typer.echo(f"  {one.meter}: {_sums(one)}; {_money(one, prices)}")
        if reason == HoldReason.TAKEN_BACK:
            for waiting in behind:
                typer.echo(
                    f"  {waiting.meter}: +{amount(waiting.units)} units of {_windows(waiting.windows)} of the same "
                    "organizations wait with it"
                )
        for detail, found in groupby(shown, key=lambda window: window.detail):
            if detail:
                typer.echo(f"  {detail}:")
            for window in found:
                _print_window(window, now, past_max)
        if count > len(shown):
            typer.echo(f"  ... and {count - len(shown):,} more; --limit shows them")
    first = windows[0]
    typer.echo(
        as_typed(
            f"\nNext: `billing-pipeline holds release {first.window_id} --by NAME --reason TEXT`, or all of a reason: "
            f"`billing-pipeline holds release --all --reason-code {first.reason} --by NAME --reason TEXT`"
        )
    )


def _print_window(window: HeldWindow, now: datetime, past_max: timedelta) -> None:
    since = "" if window.held_at is None else f", held for {_span(now - window.held_at)}"
    typer.echo(
        f"    window {window.window_id}: {window.organization_id} {window.meter} "
        f"{window.starts_at:%Y-%m-%d %H:%M} UTC, {_signed(window.units)} units{since}, "
        f"{_time_left(window.starts_at + past_max - now)}"
    )


def _print_released(released: list[Released], by: str) -> None:
    typer.echo(f"Released by {by}: {_windows(sum(one.windows for one in released))}. The next flush may now state:")
    for one in released:
        typer.echo(f"  {one.meter}: {_sums(one)}")
    typer.echo("No brake holds them again up to there; what Stripe cannot take is held again, with its reason.")


def _as_json(
    sums: list[HeldUnits],
    windows: list[HeldWindow],
    behind: list[WaitingBehind],
    prices: Mapping[str, UnitPrice | None],
    now: datetime,
    past_max: timedelta,
) -> dict[str, Any]:
    return {
        "windows": sum(one.windows for one in sums),
        "sums": [
            {
                "reason": one.reason,
                "meter": one.meter,
                "windows": one.windows,
                "organizations": one.organizations,
                "added": f"{one.added:f}",
                "taken_back": f"{one.taken_back:f}",
                "minor_units": None if (cost := _cost(one, prices)) is None else {cost[0]: f"{cost[1]:f}"},
            }
            for one in sums
        ],
        "waiting_behind": [{"meter": one.meter, "windows": one.windows, "units": f"{one.units:f}"} for one in behind],
        "shown": [
            {
                "window_id": window.window_id,
                "reason": window.reason,
                "organization_id": window.organization_id,
                "meter": window.meter,
                "starts_at": window.starts_at.isoformat(),
                "units": f"{window.units:f}",
                "detail": window.detail,
                "held_at": None if window.held_at is None else window.held_at.isoformat(),
                "refused_by_stripe_at": (window.starts_at + past_max).isoformat(),
                "days_left": max((window.starts_at + past_max - now) // DAY, 0),
            }
            for window in windows
        ],
    }


def _sums(one: HeldUnits | Released) -> str:
    sides = [("+", one.added), ("-", one.taken_back)]
    units = " ".join(f"{sign}{amount(units)}" for sign, units in sides if units) or "0"
    organizations = f"{one.organizations:,} organization" + ("" if one.organizations == 1 else "s")
    return f"{units} units in {_windows(one.windows)} of {organizations}"


def _cost(one: HeldUnits, prices: Mapping[str, UnitPrice | None]) -> tuple[str, Decimal] | None:
    price = prices.get(one.event_name)
    return None if price is None else (price.currency, (one.added - one.taken_back) * price.minor_units)


def _money(one: HeldUnits, prices: Mapping[str, UnitPrice | None]) -> str:
    cost = _cost(one, prices)
    return "price unknown" if cost is None else f"{_signed(cost[1])} minor units of {cost[0]}"


def _signed(units: Decimal) -> str:
    return f"+{amount(units)}" if units > 0 else amount(units)


def _span(age: timedelta) -> str:
    if age >= 2 * DAY:
        return f"{age // DAY} days"
    return f"{age // HOUR} hours" if age >= 2 * HOUR else f"{max(age // timedelta(minutes=1), 0)} minutes"


def _time_left(left: timedelta) -> str:
    if left <= timedelta(0):
        return "Stripe refuses it by now"
    return f"Stripe refuses it in {_span(left)}"


def _windows(count: int) -> str:
    return f"{count:,} window" + ("" if count == 1 else "s")
