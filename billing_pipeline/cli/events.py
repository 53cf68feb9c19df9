"""`billing-pipeline events …`: look into the inbox of webhook events, note what was found, and let old bodies go.

Asks the database only, so it works while Stripe does not answer; `events_replay.py` handles events again,
`events_feed.py` shows what organizations were told.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.events_feed import feed_command
from billing_pipeline.cli.events_replay import replay_command
from billing_pipeline.cli.hints import as_typed, own_name
from billing_pipeline.cli.inbox import open_inbox
from billing_pipeline.cli.times import age
from billing_pipeline.domain.outcomes import HandlerName, Outcome

if TYPE_CHECKING:
    from billing_pipeline.webhooks.events_list import EventPage, ListedEvent
    from billing_pipeline.webhooks.events_show import ShownEvent

app = typer.Typer(help="See Stripe's webhook events, replay them, annotate them.", no_args_is_help=True)
app.command("replay")(replay_command)
app.command("feed")(feed_command)

EventId = Annotated[str, typer.Argument(help="The event's id, evt_...", metavar="EVENT_ID")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]

TITLES = ("age", "outcome", "event", "type", "about", "organization", "attempts", "error")
SHOWN_OF_INBOX = (
    ("event_type", "type"),
    ("api_version", "API version"),
    ("payload_style", "style"),
    ("stripe_account", "account"),
    ("object_id", "about"),
    ("tenant_hint", "organization (hint)"),
    ("created_at", "at Stripe"),
    ("received_at", "received"),
    ("origin", "came by"),
    ("matched_secret", "signed by"),
    ("body_digest", "SHA-256 of body"),
)


@app.command("list")
def list_command(
    status: Annotated[list[Outcome] | None, typer.Option(help="Only this outcome; may be given again.")] = None,
    event_type: Annotated[
        str | None, typer.Option("--type", help="Only this type, e.g. customer.subscription.updated.")
    ] = None,
    handler: Annotated[HandlerName | None, typer.Option(help="Only what this handler takes.")] = None,
    organization: Annotated[
        str | None, typer.Option(help="Only what names this organization, or is about its customers' objects.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Events on a page.")] = 20,
    page: Annotated[
        str | None, typer.Option(metavar="EVENT_ID", help="Go on behind this event, the last of the page before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show webhook events, the newest first.

    Example: billing-pipeline events list --status failed --status parked
    """
    from billing_pipeline.webhooks.events_list import Choice, list_events

    choice = Choice(tuple(status or ()), event_type, handler, organization)
    with open_inbox(only_reads=True) as inbox:
        found = list_events(inbox.connection, choice, limit=limit, after=page)
        now = inbox.clock()
    filters = [f"--status {outcome}" for outcome in status or ()]
    for option, value in (("--type", event_type), ("--handler", handler), ("--organization", organization)):
        filters += [f"{option} {shlex.quote(value)}"] if value else []
    filters += [f"--limit {limit}"] if limit != 20 else []
    next_page = found.events[-1].stripe_event_id if found.more else None
    if as_json:
        typer.echo(json.dumps(_page_as_json(found, next_page), indent=2))
        return
    _print_page(found, now, " ".join(["billing-pipeline events list", *filters, f"--page {next_page}"]))


@app.command()
def show(
    event_id: EventId,
    payload: Annotated[bool, typer.Option("--payload", help="Print its JSON too, without personal data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one event: what came of it, and what it changed.

    Payloads are shown without what belongs to a person: names, addresses, tax ids and the like.

    Example: billing-pipeline events show evt_1Abc --payload
    """
    from billing_pipeline.webhooks.events_show import show_event

    with open_inbox(only_reads=True) as inbox:
        found = show_event(inbox.connection, event_id)
        now = inbox.clock()
    if as_json:
        typer.echo(json.dumps(_event_as_json(found, with_payload=payload), indent=2))
        return
    _print_event(found, now)
    if payload:
        typer.echo("\nPayload, without personal data:")
        kept = found.facts["payload"]
        typer.echo("  no longer kept" if kept is None else json.dumps(kept, indent=2, ensure_ascii=False))


@app.command()
def annotate(
    event_id: EventId,
    note: Annotated[str, typer.Option("--note", help="One line for whoever reads about this event later.")],
    by: Annotated[str | None, typer.Option("--by", help="Who writes it. Default: your login.")] = None,
) -> None:
    """Add a note to an event; notes are never changed.

    Example: billing-pipeline events annotate evt_1Abc --note "customer mapped, INC-42"
    """
    from billing_pipeline.webhooks.events_show import annotate_event

    actor = by or own_name()
    with open_inbox() as inbox:
        annotate_event(inbox.connection, event_id, note, actor=actor, now=inbox.clock())
    typer.echo(as_typed(f"Noted by {actor}. `billing-pipeline events show {event_id}` shows it."))


@app.command()
def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Let the bodies of old handled events go.

    How old is for BILLING_EVENT_BODIES_KEPT_DAYS to say.

    Raw body and payload go; the event, its digest, type and outcome stay for ever.
    So it is with what Stripe showed of its objects when asked.
    What is not handled keeps its body.  The projections can be made anew only from events that still have theirs.

    Example: billing-pipeline events purge --dry-run
    """
    from billing_pipeline.webhooks.retention import old_bodies, purge_bodies

    with open_inbox(only_reads=dry_run) as inbox:
        days = inbox.settings.billing_event_bodies_kept_days
        before = inbox.clock() - timedelta(days=days)
        if dry_run:
            old = old_bodies(inbox.connection, received_before=before)
            typer.echo(
                f"Would let the bodies of {_events(old.events)} ({old.bytes:,} bytes as delivered) and "
                f"{_answers(old.answers)} go, handled and received before {before:%Y-%m-%d %H:%M} UTC. Nothing was "
                "changed."
            )
            return
        purged = purge_bodies(inbox.connection, received_before=before, on_progress=_tell_purged)
    typer.echo(
        f"Bodies gone: {_events(purged.events)} and {_answers(purged.answers)}, handled and received before "
        f"{before:%Y-%m-%d %H:%M} UTC."
    )


def _tell_purged(purged: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"{purged:,} bodies gone so far ...", err=True)


def _print_page(page: EventPage, now: datetime, next_command: str) -> None:
    if not page.events:
        typer.echo("No webhook event is so.")
        return
    rows = [TITLES, *(_line(event, now) for event in page.events)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if any(event.has_notes for event in page.events):
        typer.echo(as_typed("\n* has notes; `billing-pipeline events show EVENT_ID` shows them."))
    if page.more:
        typer.echo(as_typed(f"\n{_more(page.more)} more: `{next_command}`"))
    if failed := [event for event in page.events if event.processing_outcome in (Outcome.FAILED, Outcome.PARKED)]:
        typer.echo(
            as_typed(
                f"\nNext: `billing-pipeline events show {failed[0].stripe_event_id}` says what to do. Once it is "
                "mended, `billing-pipeline events replay --status failed --status parked --dry-run` shows what a "
                "replay would change."
            )
        )


def _line(event: ListedEvent, now: datetime) -> tuple[str, ...]:
    error = event.error_class or ""
    if event.processing_outcome == Outcome.FAILED and event.due_at is not None:
        error += f", next try {_until(event.due_at, now)}"
    return (
        age(now - event.received_at),
        event.processing_outcome,
        event.stripe_event_id + (" *" if event.has_notes else ""),
        event.event_type,
        event.object_id or "-",
        event.tenant_hint or "-",
        str(event.attempts),
        error,
    )


def _print_event(found: ShownEvent, now: datetime) -> None:
    facts = found.facts
    typer.echo(f"{facts['stripe_event_id']}: {facts['processing_outcome']}{_progress(facts, now)}")
    lines = [(label, _text(facts[name])) for name, label in SHOWN_OF_INBOX if facts[name] is not None]
    lines.append(("mode", "live" if facts["livemode"] else "test"))
    size = facts["body_bytes"]
    lines.append(
        ("body", f"{size:,} bytes" if size is not None else "parsed only" if facts["payload"] else "no longer kept")
    )
    lines += [("attempts", str(facts["attempts"]))]
    for name, label in (("attempted_at", "last handled"), ("processed_at", "processed"), ("failed_at", "last failed")):
        if facts[name] is not None:
            lines.append((label, _text(facts[name])))
    _print_lines(lines)
    if facts["error_class"]:
        typer.echo("\nFailure")
        to_do = [("to do", as_typed(found.to_do))] if found.to_do else []
        _print_lines([("class", facts["error_class"]), ("error", facts["processing_error"]), *to_do])
        typer.echo(as_typed(f"  then: `billing-pipeline events replay --event-id {facts['stripe_event_id']}`"))
    typer.echo("\nRows kept of its object")
    for row in found.rows:
        mine = row.source == facts["stripe_event_id"]
        where = "from this event" if mine else f"from {row.source}, of {_text(row.version_at)}"
        typer.echo(f"  {row.table_name} {row.row_id}: {where}")
    if not found.rows:
        typer.echo("  none")
    for question in found.questions:
        typer.echo(f"  Stripe is asked about this {question['object_kind']} ({question['reason']}).")
    for number, note in enumerate(found.notes):
        typer.echo("\nNotes" if number == 0 else "", nl=number == 0)
        typer.echo(f"  {note.noted_at:%Y-%m-%d %H:%M} UTC, {note.actor}: {note.note}")


def _progress(facts: Any, now: datetime) -> str:
    if facts["claimed_at"] is not None:
        return f", taken by a worker {age(now - facts['claimed_at'])} ago"
    if facts["due_at"] is not None:
        return f", next try {_until(facts['due_at'], now)}"
    return ", waits for a person" if facts["processing_outcome"] == Outcome.PARKED else ""


def _print_lines(lines: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        typer.echo(f"  {label:<{width}}  {text}")


def _until(due_at: datetime, now: datetime) -> str:
    return f"in {age(due_at - now)}" if due_at > now else "now"


def _text(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else str(value)


def _more(count: int) -> str:
    from billing_pipeline.webhooks.events_list import COUNTED_MAX

    return f"Over {COUNTED_MAX:,}" if count > COUNTED_MAX else f"{count:,}"


def _events(count: int) -> str:
    return f"{count:,} event" + ("" if count == 1 else "s")


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'} of Stripe's"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}


def _page_as_json(page: EventPage, next_page: str | None) -> dict[str, Any]:
    return {"events": [_plain(asdict(event)) for event in page.events], "more": page.more, "next_page": next_page}


def _event_as_json(found: ShownEvent, *, with_payload: bool) -> dict[str, Any]:
    facts = dict(found.facts)
    if not with_payload:
        del facts["payload"]
    return _plain(facts) | {
        "to_do": found.to_do,
        "rows": [
            _plain(asdict(row)) | {"from_this_event": row.source == facts["stripe_event_id"]} for row in found.rows
        ],
        "questions": [_plain(dict(question)) for question in found.questions],
        "notes": [_plain(asdict(note)) for note in found.notes],
    }
