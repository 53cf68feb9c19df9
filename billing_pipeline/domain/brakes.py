"""Brakes before money: which amounts a person looks at before they are stated to Stripe.

The cutter asks here before it makes an entry; what is braked is on hold until a person releases it, or the source is
mended.  Three brakes look at what is added (`brake_adding`), one at what is taken back (`is_too_much_taken_back`).
A brake stops no exact rule: what is held stays owed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.entries import HoldReason

USUAL_DAYS = 28
"""The usual hour of an organization is the median of its hours with usage of so many days."""
USUAL_HOURS_MIN = 24
"""Of fewer hours there is no judgement: the median of a first day says nothing."""
TAKEN_BACK_WINDOWS_MIN = 10
"""A handful of corrections is no broken source, whatever share of a small ledger it is."""


@dataclass(frozen=True, slots=True)
class MeterBrakes:
    """What brakes one meter; None, or a factor of 0, is no brake."""

    hour_max: int | None = None
    """Stripe units that one organization's hour may come to."""
    hour_factor: int = 0
    """How many times its usual hour one organization's hour may come to."""
    flush_max: int | None = None
    """Stripe units that one flush may add."""


@dataclass(frozen=True, slots=True)
class Brakes:
    """The brakes of every meter of the catalogue, by its name, and the one of all."""

    meters: Mapping[str, MeterBrakes] = field(default_factory=dict)
    taken_back_percent: int = 100
    """What share of a meter's windows, or of its units, one cut may take back; of 100 there is never more."""


@dataclass(frozen=True, slots=True)
class UsualHour:
    """What an organization uses of a meter in an hour, as of the last full aggregation."""

    hours: int
    """Hours with usage that are known; an hour without any is none of them."""
    median: Decimal
    """Stripe units, exact; of an even number of hours the lower of the two in the middle."""


@dataclass(frozen=True, slots=True)
class Braked:
    """Why an amount is held, and the numbers that say so, for a person."""

    reason: HoldReason
    detail: str


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What one cut would take back of a meter, beside all that is stated and could be taken back."""

    meter: str
    windows: int
    units: Decimal
    windows_stated: int
    units_stated: Decimal


def brakes_of(catalogue: Catalogue, *, hour_factor: int, taken_back_percent: int) -> Brakes:
    """The catalogue's brakes; `hour_factor` is that of the meters that have none of their own."""
    meters = {
        meter.name: MeterBrakes(
            meter.hour_max, hour_factor if meter.hour_factor is None else meter.hour_factor, meter.flush_max
        )
        for meter in catalogue.meters
    }
    return Brakes(meters, taken_back_percent)


def brake_adding(
    *,
    target: int,
    stated: int,
    units: Decimal,
    usual: UsualHour | None,
    released_target: int | None,
    brakes: MeterBrakes,
    flush_adds: Decimal | None = None,
) -> Braked | None:
    """Why what a window adds must wait for a person; None when nothing is added, or nothing is in the way.

    An hour is judged by all it has come to and not by the difference: of a correction from 5,000 to 5,001 the question
    is whether 5,001 can be right.  What is taken back makes an hour smaller and passes.

    `target` and `stated` are the window's, in whole Stripe units; `flush_adds` is what the whole flush would add to
    the meter.
    `units` is what the hour itself used, exact: with its fraction, without what it carries for other hours.  Of `max`,
    `last` and `unique` it is what the hour shows by itself, and not what it adds to the level of its period: the first
    hour of a period adds all of it, every month.
    A part of an hour is judged like an hour, which lets at most that much more through.
    `released_target` is how far a person has let this window go: up to there no brake holds it again.
    """
    if target <= stated or (released_target is not None and target <= released_target):
        return None
    if brakes.hour_max is not None and target > brakes.hour_max:
        detail = f"the hour comes to {target:,} units, hour_max is {brakes.hour_max:,}"
        return Braked(HoldReason.OVER_HOUR_MAX, detail)
    if usual is not None and is_unusual(units, usual, brakes.hour_factor):
        return Braked(
            HoldReason.OVER_USUAL,
            f"the hour has {_told(units)} units, more than {brakes.hour_factor:,} times {_told(usual.median)}, "
            f"the median of {usual.hours:,} hours",
        )
    if flush_adds is not None and brakes.flush_max is not None and flush_adds > brakes.flush_max:
        detail = f"one flush would add {_told(flush_adds)} units, flush_max is {brakes.flush_max:,}"
        return Braked(HoldReason.OVER_FLUSH_MAX, detail)
    return None


def is_unusual(units: Decimal, usual: UsualHour, factor: int) -> bool:
    """Whether an hour is more than `factor` times the usual one; never with a factor of 0, or too few hours."""
    if factor == 0 or usual.hours < USUAL_HOURS_MIN:
        return False
    # As fractions: a product of decimals is rounded to 28 digits.
    return Fraction(units) > factor * Fraction(usual.median)


def is_too_much_taken_back(taken: TakenBack, percent: int) -> bool:
    """Whether so much would be taken back at once that the source is rather broken than corrected.

    That is more than `percent` of the windows that have stated usage, or of their units, and at least ten windows.
    """
    if taken.windows < TAKEN_BACK_WINDOWS_MIN:
        return False
    return taken.windows * 100 > percent * taken.windows_stated or taken.units * 100 > percent * taken.units_stated


def brake_taking_back(taken: TakenBack, percent: int) -> Braked | None:
    """Why what is taken back of a meter must wait for a person; None when it may go."""
    if not is_too_much_taken_back(taken, percent):
        return None
    return Braked(
        HoldReason.TAKEN_BACK,
        f"one flush would take back {_told(taken.units)} of {_told(taken.units_stated)} units, "
        f"from {taken.windows:,} of {taken.windows_stated:,} windows; at most {percent} percent may be",
    )


def _told(units: Decimal) -> str:
    text = f"{units:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
