"""What becomes of usage that turned up after its invoice was final: an invoice item on the next draft, or a write-off.

`usage/adjust.py` asks here.  One adjustment bills one organization's meter on one invoice, so a second look at the same
draft adds nothing; its name is made from those alone, so that a restored database finds what it has forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from itertools import groupby

from billing_pipeline.domain.catalogue import LateUsage
from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.domain.protocol import ProtocolTimes

RENEWAL = "subscription_cycle"
"""Stripe's `billing_reason` of the invoice that a period ends with."""


class AdjustmentState(StrEnum):
    """Where an adjustment stands; all but `refused` count for their usage windows."""

    PENDING = "pending"  # committed; nothing was sent
    AMBIGUOUS = "ambiguous"  # a request may have reached Stripe; entered before it
    APPLIED = "applied"  # the item is on the invoice
    REFUSED = "refused"  # provably not on it: its windows are owed again
    WRITTEN_OFF = "written_off"  # the catalogue says that it is not billed


class Leave(StrEnum):
    """Why usage that is owed after its seal is not put on a draft."""

    NOT_A_RENEWAL = "waits for the invoice of a period's end"
    NO_PRICE = "the draft has no single price per unit for the meter"
    NOT_IN_CATALOGUE = "the catalogue no longer has the meter"


class Next(StrEnum):
    """What to do about an adjustment that is not settled, once Stripe was asked whether the item is there."""

    SEND = "send"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class LateWindow:
    """A sealed usage window and what it is owed, in Stripe units; below zero it was billed too much."""

    window_id: int
    organization_id: str
    meter: str
    event_name: str
    starts_at: datetime
    ends_at: datetime
    owed: Decimal


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What one invoice is to bill of one organization's meter; `price` is None where it is written off."""

    organization_id: str
    meter: str
    event_name: str
    units: Decimal
    price: UnitPrice | None
    starts_at: datetime
    ends_at: datetime
    windows: tuple[LateWindow, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """What stays owed, and why."""

    organization_id: str
    meter: str
    units: Decimal
    why: Leave


def decide_adjustments(
    windows: Sequence[LateWindow],
    policies: Mapping[str, LateUsage],
    prices: Mapping[str, UnitPrice | None],
    *,
    billing_reason: str,
) -> tuple[list[Adjustment], list[Left]]:
    """What a draft is to bill of these windows, which belong to its customer, and what is left.

    `policies` are by meter of ours, `prices` by event name: what the draft's own line of the meter charges per unit.
    What was billed too much is given back whatever the policy says.
    """
    adjustments, left = [], []
    ordered = sorted(windows, key=lambda window: (window.organization_id, window.meter, window.event_name))
    for (organization_id, meter, event_name), found in groupby(
        ordered, key=lambda window: (window.organization_id, window.meter, window.event_name)
    ):
        members = tuple(found)
        units = sum((window.owed for window in members), Decimal(0))
        if not units:
            continue
        policy, price = policies.get(meter), prices.get(event_name)
        is_written_off = policy is LateUsage.WRITE_OFF and units > 0
        if why := _why_not(policy, price, billing_reason, is_written_off=is_written_off):
            left.append(Left(organization_id, meter, units, why))
            continue
        adjustments.append(
            Adjustment(
                organization_id,
                meter,
                event_name,
                units,
                None if is_written_off else price,
                min(window.starts_at for window in members),
                max(window.ends_at for window in members),
                members,
            )
        )
    return adjustments, left


def _why_not(
    policy: LateUsage | None, price: UnitPrice | None, billing_reason: str, *, is_written_off: bool
) -> Leave | None:
    if policy is None:
        return Leave.NOT_IN_CATALOGUE
    if is_written_off:
        return None
    if policy is LateUsage.NEXT_PERIOD and billing_reason != RENEWAL:
        return Leave.NOT_A_RENEWAL
    return Leave.NO_PRICE if price is None else None


def decide_next(
    *, first_attempt_at: datetime | None, last_attempt_at: datetime | None, now: datetime, times: ProtocolTimes
) -> Next:
    """Whether an item that Stripe does not show may be asked for (again).

    Stripe answers a repeated idempotency key for at least 24 hours with what it did the first time; later a request
    must not be under way any more, for then its absence is final.
    """
    if first_attempt_at is None or last_attempt_at is None or now < first_attempt_at + times.safe_send:
        return Next.SEND
    return Next.SEND if nothing_under_way(last_attempt_at, now, times) else Next.WAIT


def nothing_under_way(last_attempt_at: datetime | None, now: datetime, times: ProtocolTimes) -> bool:
    """Whether every request of before has reached Stripe, or never will."""
    return last_attempt_at is None or now >= last_attempt_at + times.lateness
