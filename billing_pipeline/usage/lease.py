"""The flush lease: one flush at a time, to save work.

Safety does not rest on it; rows, fences and constraints keep two flushes from harming each other.  A flush that does
not get it ends well, with `skipped=true` and no effect.  Its fence is checked by every claim, so a worker that was
paused past its lease can claim nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.errors import BillingError


class LeaseHeld(BillingError):
    """Another flush holds the lease; this one ends well, with nothing done."""

    exit_code = 0

    def __init__(self, holder: str, expires_at: datetime) -> None:
        super().__init__(f"Another flush ({holder}) is under way; its lease runs until {expires_at:%H:%M:%S} UTC.")
        self.holder = holder


class LeaseLost(BillingError):
    """The lease ran out and somebody else took over; what this worker has not recorded, the other will."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to flush until `expires_at`, as long as the fence is the latest."""

    lock_key: str
    holder: str
    fence: int
    expires_at: datetime


def acquire(connection: Connection[Any], *, lock_key: str, holder: str, ttl: timedelta, now: datetime) -> Lease:
    """Take the lease, or renew it when `holder` has it already.  Raises `LeaseHeld` when another has it."""
    params = {"lock_key": lock_key, "holder": holder, "now": now, "expires_at": now + ttl}
    taken = queries.fetch(connection, "acquire_lease", Lease, params)
    if taken:
        return taken[0]
    held = queries.fetch(connection, "read_lease", Lease, params)
    raise LeaseHeld(held[0].holder, held[0].expires_at) if held else LeaseHeld("just finished", now)


def renew(connection: Connection[Any], lease: Lease, *, ttl: timedelta, now: datetime) -> Lease:
    """Extend the lease between batches.  Raises `LeaseLost` when somebody else has it."""
    params = {"lock_key": lease.lock_key, "fence": lease.fence, "expires_at": now + ttl, "now": now}
    renewed = queries.fetch(connection, "renew_lease", Lease, params)
    if not renewed:
        raise LeaseLost("This flush was paused past its lease and another took over; it stops here. Nothing is lost.")
    return renewed[0]


def release(connection: Connection[Any], *, lock_key: str, holder: str) -> None:
    """Give the lease back, if `holder` has it."""
    queries.execute(connection, "release_lease", {"lock_key": lock_key, "holder": holder})


def current_holder(connection: Connection[Any], *, lock_key: str, now: datetime) -> str | None:
    """Who holds the lease now, or None."""
    held = current_lease(connection, lock_key=lock_key, now=now)
    return held.holder if held else None


def current_lease(connection: Connection[Any], *, lock_key: str, now: datetime) -> Lease | None:
    """The lease as somebody holds it now, or None."""
    held = queries.fetch(connection, "read_lease", Lease, {"lock_key": lock_key})
    return held[0] if held and held[0].expires_at > now else None
