"""The gate: what must hold before anything is sent, asked again by every flush however it was started.

The ledger is bound to one Stripe account and mode, for ever; a frozen ledger sends nothing until a person has
looked.  The submitter and the confirmer freeze it through here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.errors import IdentityMismatch, LedgerFrozen


@dataclass(frozen=True, slots=True)
class Identity:
    """Which Stripe account and mode this ledger states usage to."""

    ledger_id: UUID
    stripe_account: str
    livemode: bool
    epoch: int
    frozen_reason: str | None
    frozen_at: datetime | None


def bind(connection: Connection[Any], *, stripe_account: str, livemode: bool, now: datetime) -> Identity:
    """The ledger's identity, bound to this account at first use.  Raises `IdentityMismatch` for any other account."""
    params = {"stripe_account": stripe_account, "livemode": livemode, "now": now}
    queries.execute(connection, "bind_identity", params)
    identity = queries.fetch(connection, "read_identity", Identity)[0]
    if (identity.stripe_account, identity.livemode) != (stripe_account, livemode):
        raise IdentityMismatch(
            f"This ledger is bound to {_account(identity.stripe_account, identity.livemode)}, but the key belongs to "
            f"{_account(stripe_account, livemode)}. Use that account's key, or another database."
        )
    return identity


def require_open(identity: Identity) -> None:
    """Raises `LedgerFrozen` with the reason when the ledger is frozen."""
    if identity.frozen_reason is not None:
        since = f"{identity.frozen_at:%Y-%m-%d %H:%M} UTC"
        raise LedgerFrozen(f"The ledger is frozen since {since}: {identity.frozen_reason}. Nothing was sent.")


def freeze(connection: Connection[Any], reason: str, *, now: datetime) -> None:
    """Stop all sending until a person releases the ledger; an earlier reason is kept."""
    queries.execute(connection, "freeze_ledger", {"reason": reason, "now": now})


def _account(stripe_account: str, livemode: bool) -> str:
    return f"{stripe_account} ({'live' if livemode else 'test'} mode)"
