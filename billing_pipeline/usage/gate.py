"""The gate: what must hold before anything is sent, asked again by every flush however it was started.

A ledger that lost attempts, because its database was restored, cloned or promoted, would send them a second time.
Each detector here notices that in its own way, and any one of them freezes sending until a person has looked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, UndefinedFunction
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.domain.protocol import CLOCK_ERROR
from billing_pipeline.errors import GateClosed, IdentityMismatch, LedgerFrozen
from billing_pipeline.usage.mark import HighWaterMark, Mark

PIPELINE = "billing-pipeline"
"""The actor of what no person did."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which Stripe account and mode this ledger states usage to, and which database it was last seen in."""

    ledger_id: UUID
    stripe_account: str
    livemode: bool
    epoch: int
    database_system_id: str | None
    database_timeline: str | None
    frozen_reason: str | None
    frozen_at: datetime | None


def bind(connection: Connection[Any], *, stripe_account: str, livemode: bool, now: datetime) -> Identity:
    """The ledger's identity, bound to this account at first use.  Raises `IdentityMismatch` for any other account."""
    system_id, timeline = _this_database(connection)
    params = {
        "stripe_account": stripe_account,
        "livemode": livemode,
        "now": now,
        "system_id": system_id,
        "timeline": timeline,
    }
    queries.execute(connection, "bind_identity", params)
    identity = read_identity(connection)
    require_account(identity, stripe_account=stripe_account, livemode=livemode)
    return identity


def require_account(identity: Identity, *, stripe_account: str, livemode: bool) -> None:
    """Raises `IdentityMismatch` for any account or mode but the ledger's own."""
    if (identity.stripe_account, identity.livemode) != (stripe_account, livemode):
        raise IdentityMismatch(
            f"This ledger is bound to {account_name(identity.stripe_account, identity.livemode)}, but the key belongs "
            f"to {account_name(stripe_account, livemode)}. Use that account's key, or another database."
        )


def read_identity(connection: Connection[Any]) -> Identity:
    """The ledger's identity as stored.  Raises `IdentityMismatch` for a ledger that was never bound."""
    if (found := find_identity(connection)) is None:
        raise IdentityMismatch("This ledger is not bound to a Stripe account yet; the first flush binds it.")
    return found


def find_identity(connection: Connection[Any]) -> Identity | None:
    """The same, or None for a ledger that was never bound."""
    return next(iter(queries.fetch(connection, "read_identity", Identity)), None)


def require_open(connection: Connection[Any], identity: Identity, mark: HighWaterMark, *, now: datetime) -> None:
    """Raises `LedgerFrozen` when the ledger is frozen, or when a detector freezes it now; begins the mark at 0."""
    reason = reason_to_stop(connection, identity, mark)
    if reason is not None:
        if identity.frozen_reason is None:
            freeze(connection, reason, now=now)
        raise frozen(identity, reason, now=now)
    # There before the first claim: a crash between that and its mark must not look like a mark that was lost.
    mark.raise_to(Mark(str(identity.ledger_id), 0, identity.epoch))


def reason_to_stop(connection: Connection[Any], identity: Identity, mark: HighWaterMark) -> str | None:
    """Why the ledger is frozen, or would be by the next flush; None when it may send.  Only reads."""
    return identity.frozen_reason or lost_attempts(connection, identity, mark)


def frozen(identity: Identity, reason: str, *, now: datetime) -> LedgerFrozen:
    """What whoever wants to send is told."""
    since = f"{identity.frozen_at or now:%Y-%m-%d %H:%M} UTC"
    return LedgerFrozen(
        f"The ledger is frozen since {since}: {reason}. Nothing was sent. "
        "Find out why, then run `billing-pipeline ledger adopt` and have a second person release it."
    )


def require_clock(now: datetime, stripe_time: datetime | None) -> None:
    """Raises `GateClosed` when the database's clock is too far from Stripe's for the time rules to hold."""
    if stripe_time is not None and abs(now - stripe_time) > CLOCK_ERROR:
        raise GateClosed(
            f"The database's clock says {now:%Y-%m-%d %H:%M:%S} UTC, Stripe's {stripe_time:%Y-%m-%d %H:%M:%S}. "
            "Nothing is sent while they are more than a minute apart; mend the database server's time."
        )


def durability_faults(connection: Connection[Any]) -> list[str]:
    """The settings with which this database may forget what it committed; empty when it keeps everything.

    `full_page_writes` is named too, although a storage that writes whole pages, such as ZFS, does without it.
    """
    settings = {row["name"]: row["setting"] for row in queries.fetch_dicts(connection, "durability_settings")}
    return [f"{name} is off" for name, setting in settings.items() if setting == "off"]


def require_durable(connection: Connection[Any]) -> None:
    """Raises `GateClosed` when a crash of the database server would take committed attempts with it."""
    if faults := [fault for fault in durability_faults(connection) if not fault.startswith("full_page_writes")]:
        raise GateClosed(
            f"The database may forget what it commits: {' and '.join(faults)}. Nothing is sent in live mode from such "
            "a database; turn it on in its configuration."
        )


def freeze(connection: Connection[Any], reason: str, *, now: datetime, actor: str = PIPELINE) -> None:
    """Stop all sending until a person releases the ledger; an earlier reason is kept."""
    with connection.transaction():
        if queries.execute(connection, "freeze_ledger", {"reason": reason, "now": now}):
            record_operation(connection, "freeze", actor=actor, reason=reason, now=now)


def rebind_database(connection: Connection[Any]) -> None:
    """Take the present database server and timeline as the ledger's own: part of recovery."""
    system_id, timeline = _this_database(connection)
    queries.execute(connection, "rebind_database", {"system_id": system_id, "timeline": timeline})


def record_operation(
    connection: Connection[Any],
    action: str,
    *,
    actor: str,
    reason: str,
    now: datetime,
    details: dict[str, Any] | None = None,
) -> None:
    """Write the operator log: who did what to the ledger, and why.  It is append-only."""
    params = {"action": action, "actor": actor, "reason": reason, "details": Jsonb(details or {}), "now": now}
    queries.execute(connection, "record_operation", params)


def lost_attempts(connection: Connection[Any], identity: Identity, mark: HighWaterMark) -> str | None:
    """Why mark, server or timeline say that this ledger has lost attempts, or None; changes nothing.

    Raises `Unavailable` when the mark cannot be read.
    """
    stored = mark.read()
    attempt_id = queries.fetch_dicts(connection, "latest_attempt")[0]["attempt_id"]
    if stored is not None and stored.ledger_id != str(identity.ledger_id):
        return f"the high-water mark belongs to ledger {stored.ledger_id}: this database was replaced"
    if stored is None and attempt_id > 0:
        return f"the high-water mark is missing, but the ledger has made {attempt_id} attempts"
    if stored is not None and stored.attempt_id > attempt_id:
        return (
            f"attempt {stored.attempt_id} was made, but the ledger knows only {attempt_id}: "
            "the database was restored from a backup"
        )
    if stored is not None and stored.epoch > identity.epoch:
        return (
            f"recovery {stored.epoch} was made, but the ledger knows only {identity.epoch}: "
            "the database was restored from a backup of before"
        )
    system_id, timeline = _this_database(connection)
    if identity.database_system_id not in (None, system_id):
        return "this is another database server than the one the ledger was written on"
    if identity.database_timeline not in (None, timeline):
        return f"the database's timeline changed from {identity.database_timeline} to {timeline}: restored or promoted"
    return None


def _this_database(connection: Connection[Any]) -> tuple[str | None, str | None]:
    """System identifier and timeline, or None for a server that hides them; the other detectors stand."""
    try:
        with connection.transaction():
            row = queries.fetch_dicts(connection, "database_identity")[0]
    except (FeatureNotSupported, InsufficientPrivilege, UndefinedFunction):
        return None, None
    return row["system_id"], row["timeline"]


def account_name(stripe_account: str, livemode: bool) -> str:
    """An account and its mode, for people."""
    return f"{stripe_account} ({'live' if livemode else 'test'} mode)"
