"""Where usage belongs in time: UTC clock hours, and the minutes inside them that entries own.

Aggregation cuts time into windows in SQL; the cutter asks here for an entry's slot.
All instants are aware; every calculation is done in UTC, so no zone's clock change can move usage.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SLOTS_PER_HOUR = 60
"""Each entry owns one whole minute of its window's hour, so an hour has room for this many."""


def utc(instant: datetime) -> datetime:
    """The same instant in UTC.  Raises `ValueError` for a naive datetime."""
    if instant.tzinfo is None:
        raise ValueError(f"{instant.isoformat()} has no time zone")
    return instant.astimezone(UTC)


def hour_of(instant: datetime) -> datetime:
    """The start of the UTC clock hour that contains `instant`."""
    return utc(instant).replace(minute=0, second=0, microsecond=0)


def day_of(instant: datetime) -> datetime:
    """The start of the UTC day that contains `instant`."""
    return hour_of(instant).replace(hour=0)


def minute_of(instant: datetime) -> datetime:
    """The start of the minute that contains `instant`."""
    return utc(instant).replace(second=0, microsecond=0)


def slots_of(starts_at: datetime, ends_at: datetime, begin: int = 0) -> Iterator[datetime]:
    """Every whole minute inside [starts_at, ends_at), in order; with `begin`, from that one on and around.

    A slot is an entry's Stripe timestamp; because no two entries of a customer and meter share one, Stripe's
    minute summaries can prove each entry alone.
    """
    first, slots = _first_minute(starts_at), slot_count(starts_at, ends_at)
    return (first + (begin + number) % slots * MINUTE for number in range(slots))


def slot_count(starts_at: datetime, ends_at: datetime) -> int:
    """How many whole minutes lie inside [starts_at, ends_at)."""
    return max((utc(ends_at) - _first_minute(starts_at)) // MINUTE, 0)


def _first_minute(starts_at: datetime) -> datetime:
    floor = minute_of(starts_at)
    return floor if floor == utc(starts_at) else floor + MINUTE
