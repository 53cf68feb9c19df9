"""What a person does to rows in quarantine: have them judged again now, or dismiss them.

A judgement runs the validation's own code over the rows asked for.  A dismissal speaks of the row as it was found, so
it is refused for a row that the source has otherwise by now, and ends when the row changes (decision 0019).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.source import Source
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.errors import Refused, UserError
from billing_pipeline.usage.contract import judge_rows, mend_rows
from billing_pipeline.usage.gate import record_operation
from billing_pipeline.usage.quarantine import unknown
from billing_pipeline.usage.row_contract import rows_in_quarantine
from billing_pipeline.usage.source_contract import require_countable


@dataclass(frozen=True, slots=True)
class JudgedAgain:
    """What became of the rows: those mended by what is so now, and by reason those that still fail."""

    counted: int
    """Right now, and counted by the next flush."""
    left_out: int
    """Right now, but no meter counts their type in their hour."""
    gone: int
    """No longer in the source."""
    failing: Mapping[str, tuple[int, tuple[str, ...]]]
    """By reason, how many and a few of their ids."""
    undone: int
    """Dismissals that were taken back."""


def judge_again(
    connection: Connection[Any],
    database_url: str,
    *,
    source: Source,
    catalogue: Catalogue,
    event_ids: Collection[str],
    actor: str,
    now: datetime,
) -> JudgedAgain:
    """Judge these rows, or all that wait where none is named; a dismissed row that is named waits again first.

    Raises `UserError` for a row that never was in quarantine, and `ContractBlocked` for a source that cannot be read.
    """
    require_countable(connection, source, catalogue)
    asked = sorted(set(event_ids)) or None
    undone = in_transaction(connection, lambda: _undo(connection, asked, actor, now), name="Retry") if asked else 0
    _, found = judge_rows(connection, database_url, rows_in_quarantine(source, asked), catalogue, now)
    mend_rows(connection, source, catalogue, event_ids=asked, now=now)
    mended = queries.fetch_dicts(connection, "mended_events", {"now": now, "event_ids": asked}, parts=source.parts)[0]
    failing = {reason: (count, tuple(ids)) for reason, (count, ids) in found.items()}
    return JudgedAgain(mended["counted"], mended["left_out"], mended["gone"], failing, undone)


def dismiss(
    connection: Connection[Any], event_ids: Collection[str], *, source: Source, actor: str, reason: str, now: datetime
) -> int:
    """Set rows aside that are nobody's usage, all or none; returns how many were not dismissed before.

    Raises `UserError` without a reason or for an unknown row, and `Refused` for one that is not as it was found.
    """
    if not reason.strip():
        raise UserError("A dismissal needs a reason: say with --reason why these rows are nobody's usage.")
    asked = sorted(set(event_ids))

    def write() -> int:
        rows = _locked(connection, asked, source)
        if right := [row["event_id"] for row in rows if row["mended_at"] is not None]:
            raise Refused(f"Nothing was dismissed: {', '.join(right)} left quarantine already.")
        if changed := [row["event_id"] for row in rows if not row["is_as_found"]]:
            raise Refused(
                f"Nothing was dismissed: the source has {', '.join(changed)} otherwise by now. "
                f"Run `billing-pipeline quarantine retry {' '.join(changed)}` and look again."
            )
        params = {"event_ids": asked, "actor": actor, "reason": reason, "now": now}
        record_operation(connection, "dismiss", actor=actor, reason=reason, now=now, details={"event_ids": asked})
        return queries.execute(connection, "dismiss_quarantined_events", params)

    return in_transaction(connection, write, name="The dismissal")


def _undo(connection: Connection[Any], asked: list[str], actor: str, now: datetime) -> int:
    known = {row["event_id"] for row in queries.fetch_dicts(connection, "known_quarantined", {"event_ids": asked})}
    if others := [event_id for event_id in asked if event_id not in known]:
        raise unknown(others)
    undone = [row["event_id"] for row in queries.fetch_dicts(connection, "undo_dismissals", {"event_ids": asked})]
    if undone:
        record_operation(
            connection, "undo_dismissal", actor=actor, reason="retry", now=now, details={"event_ids": undone}
        )
    return len(undone)


def _locked(connection: Connection[Any], asked: list[str], source: Source) -> list[dict[str, Any]]:
    rows = queries.fetch_dicts(connection, "lock_quarantined_events", {"event_ids": asked}, parts=source.parts)
    known = {row["event_id"] for row in rows}
    if others := [event_id for event_id in asked if event_id not in known]:
        raise unknown(others)
    return rows
