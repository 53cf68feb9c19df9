"""How an exact amount is written for a person: all its digits, and none that says nothing."""

from __future__ import annotations

from decimal import Decimal


def amount(units: Decimal | int) -> str:
    """Units with thousands separators, exactly, and without zeros that say nothing."""
    text = f"{Decimal(units):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def units_of(units: Decimal | int) -> str:
    """The same with the word: `1 unit`, `4,217 units`."""
    return f"{amount(units)} unit" + ("" if units == 1 else "s")
