"""Compares what the source holds, what the ledger stated and what Stripe shows, and names each difference.

Reconciliation reads the sides and asks here what they mean.  A difference with a name is a state of affairs;
one without is a fault that somebody must look into.  What Stripe shows is judged hour by hour, so that too much in one
hour never passes for something on its way in another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum


class DifferenceKind(StrEnum):
    """Why two sides differ, in the order usage passes them."""

    NOT_AGGREGATED = "not_aggregated"  # source vs windows: recorded or changed since the last aggregation
    FRACTION = "fraction"  # less than one Stripe unit per customer and month, after the unit scale
    MISCARRIED = "miscarried"  # a whole unit or more that the windows' fractions do not account for
    UNMAPPED = "unmapped"  # no Stripe customer takes it: owed
    AFTER_SEAL = "owed_after_seal"  # the invoice was final: never sent, needs an adjustment
    ADJUSTED = "adjusted"  # billed, or written off, by an adjustment of a later invoice
    STILL_OPEN = "still_open"  # the window has not closed yet
    HELD = "held"  # a person must release it: owed
    REJECTED = "rejected"  # Stripe refused it: owed
    WAITING = "waiting"  # an entry of the window must settle before the next is cut, or a hold be released first
    COALESCED = "coalesced"  # the window had so many corrections that the next waits a day: owed
    NOT_CUT = "not_cut"  # closed; the next flush cuts it
    IN_FLIGHT = "in_flight"  # stated, not known to be accepted
    UNCONFIRMED = "unconfirmed"  # accepted, not yet shown by Stripe's summaries
    UNEXPLAINED = "unexplained"  # Stripe shows something else than the ledger confirmed


FAULTS = frozenset({DifferenceKind.MISCARRIED, DifferenceKind.UNEXPLAINED})

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class HourShown:
    """An hour of one customer and Stripe meter in which the summary differs from what is confirmed."""

    organization_id: str
    meter: str
    observed: Decimal
    """Units of the hour when Stripe's summary was last read."""
    confirmed: Decimal
    open_added: Decimal
    """Sum of the positive entries whose fate is not settled: each may be shown or not."""
    open_taken: Decimal
    """The same of the negative entries; at most 0."""
    later_added: Decimal
    """Sum of the positive entries confirmed after the summary was read: it may not show them yet."""
    later_taken: Decimal
    """The same of the negative entries; at most 0."""

    @property
    def is_possible(self) -> bool:
        """Some choice of shown and not yet shown entries could explain the summary."""
        certain = self.confirmed - self.later_added - self.later_taken
        low = certain + self.later_taken + self.open_taken
        high = certain + self.later_added + self.open_added
        return low <= self.observed <= high

    @property
    def shown_early(self) -> Decimal:
        """Units of open entries that the summary shows already."""
        if not self.is_possible:
            return _NOTHING
        return min(max(self.observed - self.confirmed, self.open_taken), self.open_added)

    @property
    def unexplained(self) -> Decimal:
        """Units beyond (positive) or short of (negative) what is confirmed, for which there is no reason."""
        return _NOTHING if self.is_possible else self.observed - self.confirmed


@dataclass(frozen=True, slots=True)
class Sides:
    """Stripe units of one organization and meter, as each side has them."""

    organization_id: str
    meter: str
    source_events: int = 0
    source_units: Decimal = _NOTHING
    counted_units: Decimal = _NOTHING
    """Exact: before fractions are rounded and carried."""
    lost: Decimal = _NOTHING
    """Whole units that fractions make and no window carries."""
    gained: Decimal = _NOTHING
    """Whole units that windows carry and no fractions make; at most 0."""
    target: Decimal = _NOTHING
    stated: Decimal = _NOTHING
    confirmed: Decimal = _NOTHING
    observed: Decimal = _NOTHING
    """What Stripe shows; an hour it was not asked about since its last confirmation counts as confirmed."""
    in_flight: Decimal = _NOTHING
    unconfirmed: Decimal = _NOTHING
    rejected: Decimal = _NOTHING
    unmapped: Decimal = _NOTHING
    after_seal: Decimal = _NOTHING
    """Target minus stated and adjusted, of windows whose invoice is final."""
    adjusted: Decimal = _NOTHING
    fractions_after_seal: Decimal = _NOTHING
    """Whole units that fractions make where every window that could carry them is sealed; negative: no longer make."""
    held: Decimal = _NOTHING
    still_open: Decimal = _NOTHING
    waiting: Decimal = _NOTHING
    coalesced: Decimal = _NOTHING
    shown_early: Decimal = _NOTHING
    excess: Decimal = _NOTHING
    """What Stripe shows too much, over the hours with too much."""
    shortfall: Decimal = _NOTHING
    """The same of the hours with too little; at most 0."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Units by which a later side falls short of (positive) or exceeds (negative) an earlier one."""

    organization_id: str
    meter: str
    kind: DifferenceKind
    units: Decimal

    @property
    def is_fault(self) -> bool:
        """No state of affairs explains it."""
        return self.kind in FAULTS


def with_hours(sides: Sides, hours: Iterable[HourShown]) -> Sides:
    """The sides with what Stripe shows: everything confirmed, and what differs in `hours` of the same meter."""
    shown_early, excess, shortfall = _NOTHING, _NOTHING, _NOTHING
    for hour in hours:
        shown_early += hour.shown_early
        # Apart, so that one hour's fault does not hide another's.
        excess += max(hour.unexplained, _NOTHING)
        shortfall += min(hour.unexplained, _NOTHING)
    observed = sides.confirmed + shown_early + excess + shortfall
    return replace(sides, observed=observed, shown_early=shown_early, excess=excess, shortfall=shortfall)


def differences(sides: Sides) -> list[Difference]:
    """Every difference between the source and Stripe; their units add up to source minus observed."""
    named = sides.unmapped + sides.after_seal + sides.still_open + sides.held + sides.rejected
    named += sides.waiting + sides.coalesced + sides.adjusted
    miscarried = sides.lost + sides.gained + sides.fractions_after_seal
    parts = [
        (DifferenceKind.NOT_AGGREGATED, sides.source_units - sides.counted_units),
        (DifferenceKind.FRACTION, sides.counted_units - sides.target - miscarried),
        # Apart, as are excess and shortfall: one customer's loss must not hide another's gain.
        (DifferenceKind.MISCARRIED, sides.lost),
        (DifferenceKind.MISCARRIED, sides.gained),
        (DifferenceKind.UNMAPPED, sides.unmapped),
        (DifferenceKind.AFTER_SEAL, sides.after_seal + sides.fractions_after_seal),
        (DifferenceKind.ADJUSTED, sides.adjusted),
        (DifferenceKind.STILL_OPEN, sides.still_open),
        (DifferenceKind.HELD, sides.held),
        (DifferenceKind.REJECTED, sides.rejected),
        (DifferenceKind.WAITING, sides.waiting),
        (DifferenceKind.COALESCED, sides.coalesced),
        (DifferenceKind.NOT_CUT, sides.target - sides.stated - named),
        (DifferenceKind.IN_FLIGHT, sides.in_flight),
        (DifferenceKind.UNCONFIRMED, sides.unconfirmed - sides.shown_early),
        (DifferenceKind.UNEXPLAINED, -sides.excess),
        (DifferenceKind.UNEXPLAINED, -sides.shortfall),
    ]
    return [Difference(sides.organization_id, sides.meter, kind, units) for kind, units in parts if units != 0]
