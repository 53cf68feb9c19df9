"""The questions that an explanation asks of the database, each bounded; `explain.py` puts the answers together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.sql import Composable

from billing_pipeline.database import queries
from billing_pipeline.database.properties import property_parts
from billing_pipeline.database.source import Source
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.errors import UserError
from billing_pipeline.usage.explained import (
    Attempt,
    CountedRows,
    EntryRow,
    Evidence,
    ExplainedEntry,
    LevelBefore,
    RowsNotCounted,
    ShownHour,
    WindowRow,
)
from billing_pipeline.usage.source_contract import source_faults

ATTEMPTS_MAX = 10
"""Of one entry, the latest; twenty hours of trying again make more than anybody reads."""
GROUPS_MAX = 50
"""Of rows that are not counted."""
NAMES_COMPARED_MAX = 2_000
NAMES_SUGGESTED_MAX = 3


@dataclass(frozen=True, slots=True)
class SourceSide:
    """What the source says of the hour now, or why it cannot be read."""

    counted: Mapping[tuple[str, int | None], CountedRows]
    """By meter and usage window; None: in no window yet."""
    not_counted: tuple[RowsNotCounted, ...]
    problem: str | None


def source_side(
    connection: Connection[Any],
    hour: Mapping[str, Any],
    windows: Iterable[WindowRow],
    source: Source,
    catalogue: Catalogue,
    *,
    events_max: int,
    counted_before: datetime,
    touched_since: datetime,
) -> SourceSide:
    """The hour's rows, judged and summed anew; `hour` has `organization_id`, `hour_at` and `meter`."""
    if faults := [fault for fault in source_faults(connection, source, catalogue) if fault.blocks]:
        named = "; ".join(f"{fault.reason}: {', '.join(fault.details)}" for fault in faults)
        return SourceSide({}, (), f"The source {source.relation} cannot be counted ({named}).")
    # Those that rows fall into; a window that a new edge has emptied lies beside its parts.
    live = [window for window in windows if window.event_count > 0]
    judged = queries.fetch_dicts(connection, "latest_judgement")
    parts: dict[str, Composable] = source.parts | property_parts(connection)
    parts["judged_rows"] = queries.part("judged_rows").format(**parts)
    params = dict(hour) | {
        "counted_before": counted_before,
        "touched_since": touched_since,
        "limit": events_max,
        "groups_limit": GROUPS_MAX,
        "known_event_types": judged[0]["known_event_types"] if judged else None,
        "window_ids": [window.window_id for window in live],
        "meters": [window.meter for window in live],
        "starts": [window.starts_at for window in live],
        "ends": [window.ends_at for window in live],
    }
    try:
        # A savepoint: what a view of theirs raises must not end the transaction.
        with connection.transaction():
            counted = queries.fetch(connection, "rows_counted_in_hour", CountedRows, params, parts=parts)
            not_counted = queries.fetch(connection, "rows_not_counted_in_hour", RowsNotCounted, params, parts=parts)
    except (psycopg.DataError, psycopg.ProgrammingError) as exc:
        return SourceSide({}, (), f"The source {source.relation} cannot be read: {str(exc).splitlines()[0]}.")
    return SourceSide({(found.meter, found.window_id): found for found in counted}, tuple(not_counted), None)


def entries_of(connection: Connection[Any], window_ids: list[int]) -> dict[int, tuple[ExplainedEntry, ...]]:
    """Each window's entries in order, with their latest attempts and their evidence."""
    rows = queries.fetch(connection, "entries_of_windows", EntryRow, {"window_ids": window_ids})
    ids = {"entry_ids": [row.entry_id for row in rows], "limit": ATTEMPTS_MAX}
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in queries.fetch(connection, "attempts_of_entries", Attempt, ids):
        attempts[attempt.entry_id].append(attempt)
    evidence: dict[int, list[Evidence]] = defaultdict(list)
    for found in queries.fetch(connection, "evidence_of_entries", Evidence, ids):
        evidence[found.entry_id].append(found)
    entries: dict[int, tuple[ExplainedEntry, ...]] = defaultdict(tuple)
    for row in rows:
        explained = ExplainedEntry(row, tuple(attempts[row.entry_id]), tuple(evidence[row.entry_id]))
        entries[row.window_id] += (explained,)
    return entries


def shown_hours(
    connection: Connection[Any], windows: Iterable[WindowRow], entries: Mapping[int, tuple[ExplainedEntry, ...]]
) -> dict[int, tuple[ShownHour, ...]]:
    """By window, the clock hours that it or a minute of its entries lies in, as Stripe last showed them."""
    asked: dict[int, set[tuple[str, str, datetime]]] = {}
    for window in windows:
        if window.stripe_customer_id is not None:
            instants = [window.starts_at, *(entry.row.slot_at for entry in entries.get(window.window_id, ()))]
            lane = (window.stripe_customer_id, window.event_name)
            asked[window.window_id] = {(*lane, hour_of(at)) for at in instants}
    hours = sorted(set().union(*asked.values()))
    params = {
        "customers": [customer for customer, _, _ in hours],
        "event_names": [event_name for _, event_name, _ in hours],
        "hours": [hour_at for _, _, hour_at in hours],
    }
    found = queries.fetch(connection, "shown_hours_of_lanes", ShownHour, params)
    return {
        window_id: tuple(h for h in found if (h.stripe_customer_id, h.event_name, h.hour_at) in wanted)
        for window_id, wanted in asked.items()
    }


def levels_before(connection: Connection[Any], window_ids: list[int]) -> dict[int, LevelBefore]:
    """By window, where a period level goes on from."""
    parts = {"period_level_since": queries.part("period_level_since")}
    params = {"window_ids": window_ids}
    found = queries.fetch(connection, "levels_before_windows", LevelBefore, params, parts=parts)
    return {level.window_id: level for level in found}


def require_known_meter(connection: Connection[Any], meter: str, catalogue: Catalogue) -> None:
    """Raises `UserError` for a meter that neither the catalogue has nor any hour was counted by."""
    known = {row["meter"] for row in queries.fetch_dicts(connection, "known_meters")}
    known |= {found.name for found in catalogue.meters}
    if meter not in known:
        raise UserError(f"There is no meter {meter}; there are {', '.join(sorted(known))}.")


def require_known_organization(connection: Connection[Any], organization_id: str) -> None:
    """Raises `UserError`, with names that read alike, for one without customer mapping and usage windows."""
    params = {"organization_id": organization_id, "limit": NAMES_COMPARED_MAX}
    if queries.fetch_dicts(connection, "is_known_organization", params)[0]["known"]:
        return
    rows = queries.fetch_dicts(connection, "mapped_organizations_like", params)
    rows += queries.fetch_dicts(connection, "some_unmapped_organizations")
    names = {row["organization_id"].lower(): row["organization_id"] for row in rows}
    near = get_close_matches(organization_id.lower(), names, n=NAMES_SUGGESTED_MAX)
    hint = f" Did you mean {' or '.join(names[name] for name in near)}?" if near else ""
    raise UserError(
        f"Nothing is known of an organization {organization_id}: it has no customer, no usage window, and no row in "
        f"that hour.{hint}"
    )


def require_data_then(connection: Connection[Any], hour_at: datetime) -> None:
    """Raises `UserError` for an hour before the first one that is billed, and before anything was counted."""
    first_hour_at = queries.fetch_dicts(connection, "first_billed_hour")[0]["first_hour_at"]
    if first_hour_at is None:
        raise UserError("Nothing has been counted yet. The first flush does; `billing-pipeline flush-now` runs one.")
    if hour_at < first_hour_at:
        raise UserError(
            f"{hour_at:%Y-%m-%d %H:%M} UTC lies before all data: nothing is counted of before "
            f"{first_hour_at:%Y-%m-%d %H:%M} UTC."
        )
