"""`billing-pipeline events replay`: handle chosen webhook events again, after a look at what that would change.

Directly, with the dispatcher of this process, or over HTTP, through an intake that runs elsewhere.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.hints import as_typed, own_name
from billing_pipeline.cli.inbox import Inbox, open_inbox
from billing_pipeline.domain.outcomes import HandlerName, Outcome
from billing_pipeline.errors import UserError

if TYPE_CHECKING:
    from billing_pipeline.webhooks.dispatch import Dispatcher
    from billing_pipeline.webhooks.replay import ChosenEvent, Replayed
    from billing_pipeline.webhooks.replay_dry_run import DryRun
    from billing_pipeline.webhooks.replay_http import Delivered

PAYLOAD_SHOWN_MAX = 300
VALUE_SHOWN_MAX = 120


class Via(StrEnum):
    """How events are handled again."""

    DIRECT = "direct"
    HTTP = "http"


def replay_command(
    event_id: Annotated[list[str] | None, typer.Option(help="An event; may be given again.")] = None,
    status: Annotated[list[Outcome] | None, typer.Option(help="All of this outcome; may be given again.")] = None,
    handler: Annotated[HandlerName | None, typer.Option(help="With --status: only what this handler takes.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="With --status: at most so many, the oldest first.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    via: Annotated[Via, typer.Option(help="direct: here and now; http: deliver the stored body again.")] = Via.DIRECT,
    webhook_url: Annotated[
        str | None,
        typer.Option(help="With --via http. Default: http://127.0.0.1:BILLING_INTAKE_PORT/webhooks/stripe."),
    ] = None,
    wait: Annotated[int, typer.Option(min=0, help="With --via http: seconds to wait for events to be handled.")] = 30,
    by: Annotated[str | None, typer.Option("--by", help="Who does it, for the event's notes. Default: login.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Handle events again, by id or by outcome.

    A replayed event begins anew: its attempts and its failure are forgotten.
    Exits 0 only if every chosen event ended well, 1 if any did not.

    Example: billing-pipeline events replay --status failed --limit 20 --dry-run
    """
    from billing_pipeline.webhooks.replay import require_payloads

    _require_one_choice(event_id, status, handler)
    _require_transport(via, webhook_url)
    if not (dry_run or yes or sys.stdin.isatty()):
        raise UserError("Nobody can be asked here, so say --yes, or --dry-run to look. Nothing was replayed.")
    with open_inbox(only_reads=False) as inbox:
        chosen = _chosen(inbox, event_id, status, handler, limit)
        if not chosen:
            _say_nothing_chosen(as_json)
            return
        require_payloads(chosen)
        target = webhook_url or f"http://127.0.0.1:{inbox.settings.billing_intake_port}/webhooks/stripe"
        if dry_run:
            _show(inbox, chosen, target if via is Via.HTTP else None, as_json=as_json)
            return
        if not yes and not _is_wanted(chosen, target if via is Via.HTTP else None):
            typer.echo("Nothing was replayed.")
            raise typer.Exit(1)
        actor = by or own_name()
        if via is Via.HTTP:
            ended, delivered = _over_http(inbox, chosen, target, wait, actor)
        else:
            ended, delivered = _directly(inbox, chosen, actor), []
        not_sent = [one for one in delivered if not one.is_taken]
        _tell(ended, delivered, as_json=as_json)
    if not_sent or not all(one.ended_well for one in ended):
        raise typer.Exit(1)


def _require_one_choice(event_id: list[str] | None, status: list[Outcome] | None, handler: HandlerName | None) -> None:
    if bool(event_id) == bool(status):
        raise UserError(
            "Say which: --event-id EVENT_ID, or --status failed and the like, not both. Nothing was replayed."
        )
    if event_id and handler:
        raise UserError("--handler narrows --status; with --event-id leave it out. Nothing was replayed.")


def _require_transport(via: Via, webhook_url: str | None) -> None:
    from billing_pipeline.webhooks.replay_http import require_address

    if webhook_url is None:
        return
    if via is not Via.HTTP:
        raise UserError("--webhook-url is for --via http. Nothing was replayed.")
    require_address(webhook_url)


def _chosen(
    inbox: Inbox,
    event_id: list[str] | None,
    status: list[Outcome] | None,
    handler: HandlerName | None,
    limit: int,
) -> list[ChosenEvent]:
    from billing_pipeline.webhooks.events_list import Choice
    from billing_pipeline.webhooks.replay import choose_events, named_events

    if event_id:
        return named_events(inbox.connection, event_id)
    return choose_events(inbox.connection, Choice(tuple(status or ()), handler=handler), limit=limit)


def _is_wanted(chosen: Sequence[ChosenEvent], url: str | None) -> bool:
    for event in chosen:
        typer.echo(f"  {event.stripe_event_id}  {event.event_type}, {event.processing_outcome}", err=True)
    where = f"Deliver {_events(len(chosen))} to {url}" if url else f"Handle {_events(len(chosen))} again"
    return typer.confirm(f"{where}?", default=False, err=True)


def _dispatcher(inbox: Inbox) -> Dispatcher:
    from billing_pipeline.orchestration.webhook_parts import make_dispatcher
    from billing_pipeline.stripe_api.client import make_client

    return make_dispatcher(inbox.connection, make_client(inbox.settings), inbox.settings, inbox.clock)


def _directly(inbox: Inbox, chosen: Sequence[ChosenEvent], actor: str) -> list[Replayed]:
    from billing_pipeline.webhooks.replay import replay

    _note(inbox, chosen, actor, "Replayed")
    ended = []
    for one in replay(_dispatcher(inbox), chosen):
        ended.append(one)
        typer.echo(f"{len(ended)} of {len(chosen)}: {one.stripe_event_id} {one.processing_outcome}", err=True)
    return ended


def _over_http(
    inbox: Inbox, chosen: Sequence[ChosenEvent], url: str, wait: int, actor: str
) -> tuple[list[Replayed], list[Delivered]]:
    from billing_pipeline.webhooks.replay_http import deliver, outcomes

    if not inbox.settings.webhook_secrets:
        raise UserError(
            "STRIPE_WEBHOOK_SECRET is not set, so nothing can be signed. Set the intake's. Nothing was replayed."
        )
    _note(inbox, chosen, actor, f"Replayed over HTTP to {url}")
    delivered = []
    # Signed by this machine's clock, because the intake judges it by its own and not by the database's.
    parcels = deliver(
        inbox.connection,
        chosen,
        url=url,
        secret=inbox.settings.webhook_secrets[0],
        clock=lambda: datetime.now(UTC),
    )
    for one in parcels:
        delivered.append(one)
        answer = f"{one.http_status} {one.status or ''}".strip()
        typer.echo(f"{len(delivered)} of {len(chosen)}: {one.stripe_event_id} answered {answer}", err=True)
    taken = {one.stripe_event_id for one in delivered if one.is_taken}
    waited_for = [event for event in chosen if event.stripe_event_id in taken]
    patience = timedelta(seconds=wait)
    ended = outcomes(inbox.connection, waited_for, clock=inbox.clock, patience=patience, sleep=time.sleep)
    return ended, delivered


def _note(inbox: Inbox, chosen: Sequence[ChosenEvent], actor: str, what: str) -> None:
    from billing_pipeline.webhooks.events_show import annotate_event

    now = inbox.clock()
    for event in chosen:
        note = f"{what}; it was {event.processing_outcome}."
        annotate_event(inbox.connection, event.stripe_event_id, note, actor=actor, now=now)


def _say_nothing_chosen(as_json: bool) -> None:
    typer.echo(json.dumps({"events": [], "delivered": []}) if as_json else "No webhook event is so; nothing to replay.")


def _tell(ended: Sequence[Replayed], delivered: Sequence[Delivered], *, as_json: bool) -> None:
    if as_json:
        answers = [
            {"stripe_event_id": one.stripe_event_id, "http_status": one.http_status, "status": one.status}
            for one in delivered
        ]
        typer.echo(json.dumps({"events": [_as_json(one) for one in ended], "delivered": answers}, indent=2))
        return
    for one in delivered:
        if not one.is_taken:
            typer.echo(f"{one.stripe_event_id}: not taken, HTTP {one.http_status}. {one.why_not}")
    _print_ends(ended)
    well = sum(one.ended_well for one in ended)
    total = len(delivered) or len(ended)
    typer.echo(f"\nEnded well: {well:,} of {_events(total)}.")
    failed = [one.stripe_event_id for one in ended if not one.ended_well]
    if failed:
        typer.echo(as_typed(f"Next: `billing-pipeline events show {failed[0]}` says what to do."))


def _print_ends(ended: Sequence[Replayed]) -> None:
    for one in ended:
        how = one.processing_outcome
        if how == Outcome.RECEIVED:
            how = "received, not handled yet"
        why = f": {one.error_class}. {one.processing_error}" if one.error_class else ""
        typer.echo(f"{one.stripe_event_id}  {one.event_type}  {how}{why}")


def _show(inbox: Inbox, chosen: Sequence[ChosenEvent], url: str | None, *, as_json: bool) -> None:
    from billing_pipeline.webhooks.replay_dry_run import dry_run

    found = dry_run(_dispatcher(inbox), chosen)
    if as_json:
        typer.echo(json.dumps(_dry_run_as_json(found, url), indent=2))
        return
    typer.echo(f"Would deliver {_events(len(chosen))} to {url}." if url else f"Would handle {_events(len(chosen))}.")
    for one in found.events:
        _print_ends([one])
        payload = json.dumps(found.payloads[one.stripe_event_id], ensure_ascii=False)
        typer.echo(f"  payload  {_shortened(payload, PAYLOAD_SHOWN_MAX)}")
    typer.echo("\nRows that would change:" if found.changes else "\nNo row would change.")
    last = None
    for change in found.changes:
        if (change.table, change.row_id) != last:
            last = (change.table, change.row_id)
            typer.echo(f"  {change.table} {change.row_id}")
        typer.echo(f"    {change.column}: {_value(change.before)} -> {_value(change.after)}")
    typer.echo(
        as_typed(
            "\nNothing was changed. `billing-pipeline events show EVENT_ID --payload` shows a whole payload; "
            "without --dry-run the events are replayed."
        )
    )


def _dry_run_as_json(found: DryRun, url: str | None) -> dict[str, Any]:
    return {
        "dry_run": True,
        "webhook_url": url,
        "events": [_as_json(one) | {"payload": found.payloads[one.stripe_event_id]} for one in found.events],
        "changes": [
            {
                "table": change.table,
                "id": change.row_id,
                "column": change.column,
                "before": change.before,
                "after": change.after,
            }
            for change in found.changes
        ],
    }


def _as_json(one: Replayed) -> dict[str, Any]:
    return {
        "stripe_event_id": one.stripe_event_id,
        "event_type": one.event_type,
        "processing_outcome": one.processing_outcome,
        "error_class": one.error_class,
        "processing_error": one.processing_error,
        "ended_well": one.ended_well,
    }


def _value(value: Any) -> str:
    return _shortened("(none)" if value is None else json.dumps(value, ensure_ascii=False), VALUE_SHOWN_MAX)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _events(count: int) -> str:
    return f"{count:,} event" + ("" if count == 1 else "s")
