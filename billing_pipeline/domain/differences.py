"""Compares what the source holds, what the ledger stated and what Stripe shows, and names each difference.

Reconciliation reads the three sides and asks here what they mean.  A difference with a name is a state of affairs;
one without is a fault that somebody must look into.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


class DifferenceKind(StrEnum):
    """Why two sides differ, in the order usage passes them."""

    NOT_AGGREGATED = "not_aggregated"  # source vs windows: recorded or changed since the last aggregation
    FRACTION = "fraction"  # less than one Stripe unit per window, after the unit scale
    UNMAPPED = "unmapped"  # no Stripe customer takes it: owed
    STILL_OPEN = "still_open"  # the window has not closed yet
    HELD = "held"  # a person must release it: owed
    REJECTED = "rejected"  # Stripe refused it: owed
    WAITING = "waiting"  # the window's last entry must settle before the next is cut
    NOT_CUT = "not_cut"  # closed; the next flush cuts it
    IN_FLIGHT = "in_flight"  # stated, not known to be accepted
    UNCONFIRMED = "unconfirmed"  # accepted, not yet shown by Stripe's summaries
    UNEXPLAINED = "unexplained"  # Stripe shows something else than the ledger confirmed


@dataclass(frozen=True, slots=True)
class Sides:
    """Whole Stripe units of one organization and meter, as each side has them."""

    organization_id: str
    meter: str
    source_events: int
    source_units: Decimal
    counted_units: Decimal
    target: Decimal
    stated: Decimal
    confirmed: Decimal
    observed: Decimal
    in_flight: Decimal
    unconfirmed: Decimal
    rejected: Decimal
    unmapped: Decimal
    held: Decimal
    still_open: Decimal
    waiting: Decimal


@dataclass(frozen=True, slots=True)
class Difference:
    """Units by which a later side falls short of (positive) or exceeds (negative) an earlier one."""

    organization_id: str
    meter: str
    kind: DifferenceKind
    units: int

    @property
    def is_fault(self) -> bool:
        """No state of affairs explains it."""
        return self.kind is DifferenceKind.UNEXPLAINED


def differences(sides: Sides) -> list[Difference]:
    """Every difference between the source and Stripe; their units add up to source minus observed."""
    named = sides.unmapped + sides.still_open + sides.held + sides.rejected + sides.waiting
    parts = {
        DifferenceKind.NOT_AGGREGATED: sides.source_units - sides.counted_units,
        DifferenceKind.FRACTION: sides.counted_units - sides.target,
        DifferenceKind.UNMAPPED: sides.unmapped,
        DifferenceKind.STILL_OPEN: sides.still_open,
        DifferenceKind.HELD: sides.held,
        DifferenceKind.REJECTED: sides.rejected,
        DifferenceKind.WAITING: sides.waiting,
        DifferenceKind.NOT_CUT: sides.target - sides.stated - named,
        DifferenceKind.IN_FLIGHT: sides.in_flight,
        DifferenceKind.UNCONFIRMED: sides.unconfirmed,
    }
    # Accepted entries may be visible before they are confirmed, so what Stripe shows lies between the two.
    shown_early = sides.observed - sides.confirmed
    if shown_early and 0 <= shown_early <= sides.unconfirmed + sides.in_flight:
        parts[DifferenceKind.UNCONFIRMED] -= shown_early
    else:
        parts[DifferenceKind.UNEXPLAINED] = -shown_early
    return [
        Difference(sides.organization_id, sides.meter, kind, int(units)) for kind, units in parts.items() if units != 0
    ]
