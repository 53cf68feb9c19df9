"""What one Stripe unit of a meter costs, exactly, in the currency's minor unit (cents, or yen where there are none)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """A price that is the same for every unit."""

    currency: str
    minor_units: Decimal
