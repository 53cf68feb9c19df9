"""The meter events that were counted, indexed for the questions Stripe answers about them.

Is this identifier taken?  Which event does it name?  What did this customer use on this meter in these minutes?
Fed from the journal by `state`; asked by `judging`, `adjustments` and `summaries`.
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
    event_name: str
    meter: str
    customer: str
    timestamp: int
    value: Decimal
    received_at: datetime
    visible_at: datetime


class CountedMeterEvents:
    """All counted meter events; identifiers are remembered for `identifier_horizon` after receipt.

    `lost` is the number of events that were accepted and never counted.
    """

    def __init__(self, identifier_horizon: timedelta) -> None:
        self._horizon = identifier_horizon
        self._received_at: dict[str, datetime] = {}
        self._by_identifier: dict[str, CountedMeterEvent] = {}
        self._cancelled_from: dict[int, datetime] = {}
        self.lost = 0
        # Minutes because confirmation reads single minutes, of customers with many events.
        self._minutes: dict[tuple[str, str], dict[int, list[CountedMeterEvent]]] = {}

    def add(self, record: Record, received_at: datetime) -> None:
        """Count a meter event."""
        event = CountedMeterEvent(
            line=record["line"],
            event_name=record["event_name"],
            meter=record["meter"],
            customer=record["customer"],
            timestamp=record["timestamp"],
            value=Decimal(record["value"]),
            received_at=received_at,
            visible_at=datetime.fromisoformat(record["visible_at"]),
        )
        self._received_at[record["identifier"]] = received_at
        self._by_identifier[record["identifier"]] = event
        minutes = self._minutes.setdefault((event.meter, event.customer), {})
        minutes.setdefault(event.timestamp // MINUTE, []).append(event)

    def lose(self, record: Record, received_at: datetime) -> None:
        """Take the identifier of an event that was accepted and never counted."""
        self._received_at[record["identifier"]] = received_at
        self.lost += 1

    def cancel(self, record: Record) -> None:
        """Leave an event out of the summaries from `effective_at` on; its identifier stays taken."""
        self._cancelled_from[record["cancelled_line"]] = datetime.fromisoformat(record["effective_at"])

    def is_taken(self, identifier: str, now: datetime) -> bool:
        """Whether an event with this identifier was accepted within the horizon, on any meter."""
        received_at = self._received_at.get(identifier)
        return received_at is not None and now - received_at < self._horizon

    def find(self, identifier: str) -> CountedMeterEvent | None:
        """The event counted last under this identifier, however long ago."""
        return self._by_identifier.get(identifier)

    def is_cancelled(self, event: CountedMeterEvent) -> bool:
        """Whether a cancellation was accepted, in effect or not."""
        return event.line in self._cancelled_from

    def visible(self, meter: str, customer: str, start: int, end: int, now: datetime) -> Iterator[CountedMeterEvent]:
        """Events stamped from `start` to before `end` (whole minutes, epoch seconds) that may be seen by now."""
        minutes = self._minutes.get((meter, customer), {})
        wanted = range(start // MINUTE, end // MINUTE)
        # Whichever is shorter: the minutes asked for or the minutes that hold anything.
        for minute in wanted if len(wanted) < len(minutes) else list(minutes):
            if minute in wanted:
                yield from (event for event in minutes.get(minute, ()) if self._is_visible(event, now))

    def _is_visible(self, event: CountedMeterEvent, now: datetime) -> bool:
        cancelled_from = self._cancelled_from.get(event.line)
        return event.visible_at <= now and (cancelled_from is None or now < cancelled_from)
