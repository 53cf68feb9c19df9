"""Everything about one webhook event: what came, what became of it, what it changed, and what people noted.

Payloads leave here redacted of personal data; only the dispatcher and a replay see them whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.event_redaction import redacted
from billing_pipeline.domain.triage import TRIAGE
from billing_pipeline.errors import UserError
from billing_pipeline.webhooks.events_list import require_known

NOTE_LENGTH_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Note:
    """What a person wrote about an event."""

    note: str
    actor: str
    noted_at: datetime


@dataclass(frozen=True, slots=True)
class KeptRow:
    """What is kept of the event's object; `source` is the event that it is from, or `read`."""

    table_name: str
    row_id: str
    source: str
    version_at: datetime


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """An event with what belongs to it.  `facts` are the columns of `stripe_events`, the payload redacted or None."""

    facts: Mapping[str, Any]
    notes: tuple[Note, ...]
    rows: tuple[KeptRow, ...]
    questions: tuple[Mapping[str, Any], ...]

    @property
    def to_do(self) -> str | None:
        """What a person does about its failure; None where it has not failed."""
        triage = TRIAGE.get(self.facts["error_class"] or "")
        return triage.remedy if triage else None


def show_event(connection: Connection[Any], stripe_event_id: str) -> ShownEvent:
    """The event of that id.  Raises `UserError` for one that is not in the inbox."""
    require_known(connection, [stripe_event_id])
    named = {"stripe_event_id": stripe_event_id}
    facts = queries.fetch_dicts(connection, "show_event", named)[0]
    about = {"object_key": facts["object_key"]}
    return ShownEvent(
        facts | {"payload": redacted(facts["payload"])},
        tuple(queries.fetch(connection, "notes_of_event", Note, named)),
        tuple(queries.fetch(connection, "rows_about_object", KeptRow, about)),
        tuple(queries.fetch_dicts(connection, "questions_about_object", about)),
    )


def annotate_event(connection: Connection[Any], stripe_event_id: str, note: str, *, actor: str, now: datetime) -> None:
    """Add a note; none is ever changed.  Raises `UserError` for an unknown event, or a note that is none."""
    text = note.strip()
    if not text or not text.isprintable() or len(text) > NOTE_LENGTH_MAX:
        raise UserError(f"A note is one line of 1 to {NOTE_LENGTH_MAX:,} printable characters. Nothing was noted.")
    if not actor.strip() or not actor.isprintable():
        raise UserError("A note needs the name of who writes it: --by NAME. Nothing was noted.")
    require_known(connection, [stripe_event_id])
    params = {"stripe_event_id": stripe_event_id, "note": text, "actor": actor.strip(), "now": now}
    queries.execute(connection, "annotate_event", params)
