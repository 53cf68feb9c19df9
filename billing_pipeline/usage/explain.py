"""Beside the flow: why an organization was billed what it was in an hour, from the rows of the source to Stripe.

Everything is read in one snapshot and nothing is written, so it works on a standby and while the ledger is frozen.
`explained.py` holds what is found, `domain/standing.py` says what it comes to.  The source is summed anew, so that late
rows show; where it cannot be read, the ledger's side is told all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from psycopg import Connection, IsolationLevel

from billing_pipeline.database import queries
from billing_pipeline.database.source import Source
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.domain.standing import Ledger, verdict
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.errors import UserError
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.prices import prices_or_why_not
from billing_pipeline.usage import explain_reads as reads
from billing_pipeline.usage.explain_standing import standing_of, verdict_in_all, waiting_verdict
from billing_pipeline.usage.explained import (
    CountedRows,
    Definition,
    ExplainedWindow,
    Explanation,
    Operation,
    Period,
    Seal,
    WindowRow,
)
from billing_pipeline.usage.gate import Identity
from billing_pipeline.usage.reading import Reader

Prices = Callable[[Iterable[str]], tuple[Mapping[str, UnitPrice | None], str]]
"""By event name what a unit costs, and, where Stripe did not say, why not."""
NO_ONE_PRICE = "Stripe has no one price per unit for it (none, several, tiers or packages)."


@dataclass(frozen=True, slots=True)
class Question:
    """One organization's clock hour, of one meter or of all; `events_max` is how many ids to name."""

    organization_id: str
    hour_at: datetime
    meter: str | None = None
    events_max: int = 20


def explain(
    connection: Connection[Any],
    question: Question,
    *,
    source: Source,
    catalogue: Catalogue,
    settings: Settings,
    prices: Prices,
    now: datetime,
) -> Explanation:
    """The facts behind the hour, window by window.

    Raises `UserError` for an organization or a meter that nothing is known of, and for an hour before all data.
    """
    with only_reading(connection):
        found = in_transaction(
            connection,
            lambda: _read(connection, question, source, catalogue, settings, now),
            name="The explanation",
            isolation=IsolationLevel.REPEATABLE_READ,
        )
    # Stripe is asked behind the transaction; a price changes no verdict.
    return _with_prices(found, prices)


def explain_hour(reader: Reader, question: Question) -> Explanation:
    """The same over the reader's connection, with its settings, and with prices where Stripe tells them."""
    return explain(
        reader.connection,
        question,
        source=reader.read_source(),
        catalogue=reader.catalogue,
        settings=reader.settings,
        prices=lambda names: prices_or_why_not(reader.settings, names),
        now=reader.clock(),
    )


def place_of_entry(
    connection: Connection[Any], *, entry_id: int | None = None, identifier: str | None = None
) -> Question:
    """The hour and the meter that an entry was cut for.  Raises `UserError` for one that the ledger does not have."""
    params = {"entry_id": entry_id, "identifier": identifier}
    if found := queries.fetch_dicts(connection, "place_of_entry", params):
        return Question(found[0]["organization_id"], hour_of(found[0]["starts_at"]), found[0]["meter"])
    if identifier is None:
        raise UserError(f"The ledger has no entry {entry_id}.")
    if canary := queries.fetch_dicts(connection, "canary_of_name", params):
        raise UserError(
            f"{identifier} is a canary: one unit of {canary[0]['event_name']}, sent for nobody "
            f"{canary[0]['started_at']:%Y-%m-%d %H:%M} UTC to prove what was sent before it. Nobody is billed for it."
        )
    raise UserError(f"The ledger has no entry of the identifier {identifier}; somebody else may have sent it.")


@contextmanager
def only_reading(connection: Connection[Any]) -> Iterator[None]:
    """Every transaction in the block is read-only."""
    before = connection.read_only
    connection.read_only = True
    try:
        yield
    finally:
        if not connection.closed:
            connection.read_only = before


def ledger_state(connection: Connection[Any], settings: Settings, now: datetime) -> Ledger:
    """What holds for every window of the ledger."""
    identity = next(iter(queries.fetch(connection, "read_identity", Identity)), None)
    return Ledger(
        now=now,
        closed_before=now - timedelta(seconds=settings.billing_window_grace_seconds),
        times=settings.protocol_times,
        level=str(settings.level),
        frozen_at=identity.frozen_at if identity else None,
        frozen_reason=identity.frozen_reason if identity else None,
    )


def _read(
    connection: Connection[Any],
    question: Question,
    source: Source,
    catalogue: Catalogue,
    settings: Settings,
    now: datetime,
) -> Explanation:
    if question.meter is not None:
        reads.require_known_meter(connection, question.meter, catalogue)
    hour = {
        "organization_id": question.organization_id,
        "hour_at": question.hour_at,
        "meter": question.meter,
    }
    windows = queries.fetch(connection, "windows_of_hour", WindowRow, hour)
    counted_at = queries.fetch_dicts(connection, "latest_aggregation")[0]["cutoff_at"]
    side = reads.source_side(
        connection,
        hour,
        windows,
        source,
        catalogue,
        events_max=question.events_max,
        counted_before=counted_at or question.hour_at,
        touched_since=(counted_at or question.hour_at) - timedelta(seconds=settings.billing_cutoff_overlap_seconds),
    )
    if not windows and not side.counted and not side.not_counted:
        reads.require_known_organization(connection, question.organization_id)
        reads.require_data_then(connection, question.hour_at)
    ledger = ledger_state(connection, settings, now)
    explained = _explained(connection, hour, windows, side, ledger)
    touched = {
        "hour_at": question.hour_at,
        "meters": sorted({window.meter for window in explained}),
        "window_ids": [window.window_id for window in windows],
    }
    return Explanation(
        organization_id=question.organization_id,
        hour_at=question.hour_at,
        meter=question.meter,
        asked_at=now,
        counted_at=counted_at,
        frozen_at=ledger.frozen_at,
        frozen_reason=ledger.frozen_reason,
        windows=explained,
        not_counted=side.not_counted,
        no_source_because=side.problem,
        operations=tuple(queries.fetch(connection, "operations_on_hour", Operation, touched)),
        verdict=verdict_in_all(explained, rows_not_counted=sum(group.events for group in side.not_counted)),
    )


def _explained(
    connection: Connection[Any],
    hour: Mapping[str, Any],
    windows: list[WindowRow],
    side: reads.SourceSide,
    ledger: Ledger,
) -> tuple[ExplainedWindow, ...]:
    window_ids = [window.window_id for window in windows]
    definitions = {found.meter: found for found in queries.fetch(connection, "definitions_of_hour", Definition, hour)}
    entries = reads.entries_of(connection, window_ids)
    shown = reads.shown_hours(connection, windows, entries)
    levels = reads.levels_before(connection, window_ids)
    mapped = [window for window in windows if window.stripe_customer_id is not None]
    lanes = {
        "hour_at": hour["hour_at"],
        "customers": [window.stripe_customer_id for window in mapped],
        "event_names": [window.event_name for window in mapped],
        "starts": [window.starts_at for window in mapped],
        "ends": [window.ends_at for window in mapped],
    }
    periods = queries.fetch(connection, "periods_of_lanes", Period, lanes)
    seals = queries.fetch(connection, "seals_of_hour", Seal, lanes)
    found = []
    for window in windows:
        of_window = entries.get(window.window_id, ())
        if window.event_count == 0 and window.target == 0 and not of_window:
            continue  # emptied before anything of it was stated
        definition, counted = definitions.get(window.meter), _counted(window, side)
        hours = shown.get(window.window_id, ())
        standing = standing_of(window, definition, counted, of_window, hours, ledger)
        found.append(
            ExplainedWindow(
                row=window,
                definition=definition,
                counted=counted,
                level=levels.get(window.window_id),
                entries=of_window,
                shown=hours,
                periods=tuple(period for period in periods if _holds_period(window, period)),
                seals=tuple(seal for seal in seals if _holds_seal(window, seal)),
                price=None,
                no_price_because=None,
                verdict=verdict(standing, ledger),
            )
        )
    return (*found, *_in_no_window(definitions, side, ledger))


def _counted(window: WindowRow, side: reads.SourceSide) -> CountedRows | None:
    """What the source says of a window now: nothing, where no row falls into it any more."""
    if side.problem is not None:
        return None
    nothing = CountedRows(window.meter, window.window_id, 0, Decimal(0), 0, 0, False, [])
    return side.counted.get((window.meter, window.window_id), nothing)


def _in_no_window(
    definitions: Mapping[str, Definition], side: reads.SourceSide, ledger: Ledger
) -> Iterator[ExplainedWindow]:
    for (meter, window_id), counted in side.counted.items():
        if window_id is None and counted.events:
            definition = definitions[meter]
            yield ExplainedWindow(
                row=None,
                definition=definition,
                counted=counted,
                level=None,
                entries=(),
                shown=(),
                periods=(),
                seals=(),
                price=None,
                no_price_because=None,
                verdict=waiting_verdict(counted, definition, ledger),
            )


def _holds_period(window: WindowRow, period: Period) -> bool:
    return (
        (period.stripe_customer_id, period.event_name) == (window.stripe_customer_id, window.event_name)
        and period.starts_at < window.ends_at
        and (period.ends_at is None or period.ends_at > window.starts_at)
    )


def _holds_seal(window: WindowRow, seal: Seal) -> bool:
    return (
        seal.stripe_customer_id == window.stripe_customer_id
        and seal.event_name in (None, window.event_name)
        and seal.starts_at < window.ends_at
        and seal.ends_at > window.starts_at
    )


def _with_prices(explanation: Explanation, prices: Prices) -> Explanation:
    names = {window.row.event_name for window in explanation.windows if window.row is not None}
    known, why_not = prices(names)
    return replace(
        explanation,
        windows=tuple(
            replace(
                window,
                price=known.get(window.row.event_name),
                no_price_because=None if known.get(window.row.event_name) else why_not or NO_ONE_PRICE,
            )
            if window.row is not None
            else window
            for window in explanation.windows
        ),
    )
