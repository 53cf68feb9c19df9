"""Whether a meter's volume is still what it was: the rules about units and volume, as arithmetic on exact numbers.

`usage/volume.py` reads the numbers from the usage windows.  A day is judged by the days before it: by their median,
and by the tenth that was lowest or highest, so that quiet weekends and restless meters are no news.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import TypeVar

HISTORY_DAYS = 28
HISTORY_DAYS_MIN = 7
"""A younger meter is not judged."""
SMALLEST_PLACES = 12
"""Decimals of the smallest quantity that the contract takes."""


@dataclass(frozen=True, slots=True)
class Span:
    """How a day or an hour is judged by days."""

    name: str
    per_day: int
    events_min: int
    """Of fewer events one large one would pass for a change of units."""
    steady: int
    """Units are judged only while the number of events is within this factor of the median: else that has changed."""


DAY_SPAN = Span("day", per_day=1, events_min=10, steady=3)
HOUR_SPAN = Span("hour", per_day=24, events_min=100, steady=10)  # nights and peaks are no news

Number = TypeVar("Number", int, Decimal, Fraction)


@dataclass(frozen=True, slots=True)
class VolumeFactors:
    """How many times the median is too much, or too little."""

    volume: int = 5
    units: int = 10


@dataclass(frozen=True, slots=True)
class Volume:
    """What a meter counted in a UTC day or hour."""

    starts_at: datetime
    quantity: Decimal = Decimal(0)
    events: int = 0

    @property
    def mean(self) -> Fraction:
        """Quantity per event, exactly; asked only of a volume with events."""
        numerator, denominator = self.quantity.as_integer_ratio()
        return Fraction(numerator, denominator * self.events)


@dataclass(frozen=True, slots=True)
class MeterVolume:
    """A meter's complete days without a gap, oldest first, and its last complete hour."""

    meter: str
    days: tuple[Volume, ...]
    hour: Volume


@dataclass(frozen=True, slots=True)
class VolumeChange:
    """A broken rule: what was usual, what is, and how many times more or less that is; 0 when it is nothing."""

    reason: str
    meter: str
    starts_at: datetime
    span: str
    usual: Fraction
    found: Fraction

    def __str__(self) -> str:
        at = f"{self.starts_at:%Y-%m-%d}" if self.span == DAY_SPAN.name else f"{self.starts_at:%Y-%m-%d %H:%M}"
        what = " per event" if self.reason == "units_jumped" else ""
        return (
            f"{self.meter}, {self.span} {at} UTC: {_told(self.found)}{what}, usually {_told(self.usual)}{self._times}"
        )

    @property
    def _times(self) -> str:
        if self.found == 0:
            return ""
        if self.found > self.usual:
            return f" (×{_told(self.found / self.usual, 1)})"
        return f" (÷{_told(self.usual / self.found, 1)})"


def volume_changes(meter: MeterVolume, factors: VolumeFactors) -> list[VolumeChange]:
    """What has changed about the meter's last complete day, and about the units of its last complete hour."""
    if len(meter.days) <= HISTORY_DAYS_MIN:
        return []
    *history, day = meter.days
    changes = [_volume_change(meter.meter, history, day, factors.volume)]
    changes.append(
        _unit_change(meter.meter, history, meter.hour, factors.units, HOUR_SPAN)
        or _unit_change(meter.meter, history, day, factors.units, DAY_SPAN)
    )
    return [change for change in changes if change is not None]


def percentile(values: list[Number], per_cent: int) -> Number:
    """The value that as many per cent of them do not exceed, as PostgreSQL's `percentile_disc`: always one of them."""
    return sorted(values)[max(-(-len(values) * per_cent // 100), 1) - 1]


def _volume_change(meter: str, history: list[Volume], day: Volume, factor: int) -> VolumeChange | None:
    quantities = [before.quantity for before in history]
    usual = percentile(quantities, 50)
    if usual == 0:
        return None
    if day.quantity == 0:
        reason = "volume_stopped" if percentile(quantities, 10) > 0 else None
    else:
        reason = {-1: "volume_dropped", 0: None, 1: "volume_jumped"}[_side(quantities, day.quantity, factor)]
    if reason is None:
        return None
    return VolumeChange(reason, meter, day.starts_at, DAY_SPAN.name, Fraction(usual), Fraction(day.quantity))


def _unit_change(meter: str, history: list[Volume], now: Volume, factor: int, span: Span) -> VolumeChange | None:
    means = [day.mean for day in history if day.events >= DAY_SPAN.events_min]
    if len(means) < HISTORY_DAYS_MIN or now.events < span.events_min:
        return None
    events, usual_events = now.events * span.per_day, percentile([day.events for day in history], 50)
    is_steady = events <= usual_events * span.steady and usual_events <= events * span.steady
    usual = percentile(means, 50)
    if not is_steady or usual == 0 or _side(means, now.mean, factor) == 0:
        return None
    return VolumeChange("units_jumped", meter, now.starts_at, span.name, usual, now.mean)


def _side(history: list[Number], found: Number, factor: int) -> int:
    """-1 or 1 when `found` is below or above the median by the factor, and far from the outermost tenth; else 0."""
    usual = percentile(history, 50)
    if found > usual * factor and found > percentile(history, 90) * 2:
        return 1
    if found * factor < usual and found * 2 < percentile(history, 10):
        return -1
    return 0


def _told(number: Fraction, places: int = 2) -> str:
    # Rounded down by whole numbers: a person reads this.  Below one, what counts may stand far behind the point.
    places = places if number >= 1 else SMALLEST_PLACES
    whole, rest = divmod(number.numerator * 10**places // number.denominator, 10**places)
    return f"{whole:,}.{rest:0{places}d}".rstrip("0").rstrip(".")
