"""The meter events that were counted, indexed for the two questions Stripe answers about them.

Is this identifier taken?  What did this customer use on this meter in these minutes?
Fed from the journal by `state`; asked by `meter_events` and `summaries`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from billing_pipeline.stripe_simulator.journal import Record

MINUTE = 60


@dataclass(frozen=True, slots=True)
class CountedMeterEvent:
    """One counted meter event.  `line` orders by receipt; `timestamp` is Stripe's, in epoch seconds."""

    line: int
    timestamp: int
    value: Decimal
    visible_at: datetime


class CountedMeterEvents:
    """All counted meter events; identifiers are remembered for `identifier_horizon` after receipt."""

    def __init__(self, identifier_horizon: timedelta) -> None:
        self._horizon = identifier_horizon
        self._received_at: dict[str, datetime] = {}
        # Minutes because confirmation reads single minutes, of customers with many events.
        self._minutes: dict[tuple[str, str], dict[int, list[CountedMeterEvent]]] = {}

    def add(self, record: Record, received_at: datetime) -> None:
        event = CountedMeterEvent(
            line=record["line"],
            timestamp=record["timestamp"],
            value=Decimal(record["value"]),
            visible_at=datetime.fromisoformat(record["visible_at"]),
        )
        self._received_at[record["identifier"]] = received_at
        minutes = self._minutes.setdefault((record["meter"], record["customer"]), {})
        minutes.setdefault(event.timestamp // MINUTE, []).append(event)

    def is_taken(self, identifier: str, now: datetime) -> bool:
        """Whether an event with this identifier was counted within the horizon, on any meter."""
        received_at = self._received_at.get(identifier)
        return received_at is not None and now - received_at < self._horizon

    def visible(self, meter: str, customer: str, start: int, end: int, now: datetime) -> Iterator[CountedMeterEvent]:
        """Events stamped from `start` to before `end` (whole minutes, epoch seconds) that may be seen by now."""
        minutes = self._minutes.get((meter, customer), {})
        wanted = range(start // MINUTE, end // MINUTE)
        # Whichever is shorter: the minutes asked for or the minutes that hold anything.
        for minute in wanted if len(wanted) < len(minutes) else list(minutes):
            if minute in wanted:
                yield from (event for event in minutes.get(minute, ()) if event.visible_at <= now)
