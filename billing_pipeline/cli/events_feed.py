"""`billing-pipeline events feed`: what an organization was told of its webhook events, from a shell.

Reads the table and not the stream, so it needs neither Redis, nor the token, nor a running `serve`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.hints import as_typed
from billing_pipeline.cli.inbox import open_inbox

if TYPE_CHECKING:
    from psycopg import Connection

    from billing_pipeline.feed.read import FeedRow

FOLLOW_SECONDS = 2
WIDTHS = (10, 19, 42, 12, 0)
TITLES = ("id", "at Stripe (UTC)", "type", "status", "about")


def feed_command(
    organization: Annotated[str, typer.Option(help="Whose feed; the organization's id.")],
    after: Annotated[int | None, typer.Option(min=0, help="What follows this id; default: the newest.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many events.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
) -> None:
    """Show what an organization was told of its webhook events.

    It is what `/api/v1/billing/stream` tells, the oldest first.

    Example: billing-pipeline events feed --organization acme --follow
    """
    from billing_pipeline.feed.read import newest_rows, rows_after

    with open_inbox(only_reads=True) as inbox:
        if after is None:
            rows = newest_rows(inbox.connection, organization_id=organization, limit=limit)
        else:
            rows = rows_after(inbox.connection, organization_id=organization, after=after, limit=limit)
        if not as_json and (rows or follow):
            typer.echo(_columns(TITLES))
        for row in rows:
            typer.echo(_line(row, as_json=as_json))
        if follow:
            last = rows[-1].feed_id if rows else after or 0
            for row in _following(inbox.connection, organization, last):
                typer.echo(_line(row, as_json=as_json))
        elif not rows and not as_json:
            is_on = inbox.settings.enable_billing_stream
            typer.echo(f"Nothing was told to {organization}{'' if after is None else f' after {after}'}.")
            typer.echo(
                as_typed(
                    "`billing-pipeline events list --organization` shows its events, told or not."
                    if is_on
                    else "The feed is off: ENABLE_BILLING_STREAM is false."
                )
            )


def _following(connection: Connection[Any], organization: str, after: int) -> Iterator[FeedRow]:
    from billing_pipeline.feed.read import rows_after

    while True:
        rows = rows_after(connection, organization_id=organization, after=after)
        yield from rows
        if rows:
            after = rows[-1].feed_id
        else:
            time.sleep(FOLLOW_SECONDS)


def _line(row: FeedRow, *, as_json: bool) -> str:
    payload = json.loads(row.payload)
    if as_json:
        return json.dumps({"feed_id": row.feed_id, "payload": payload})
    at = payload["occurred_at"][:19].replace("T", " ")
    return _columns((str(row.feed_id), at, payload["event_type"], payload["status"] or "-", payload["object_id"]))


def _columns(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()
