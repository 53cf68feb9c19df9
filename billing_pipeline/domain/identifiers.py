"""The name of a ledger entry at Stripe: deterministic, so that a resend meets Stripe's own deduplication.

Made when an entry is cut and never again.  No time of day and no chance is in it: the same entry of a restored
ledger gets the same name, and Stripe refuses the second.  The epoch is in it because recovery must not reuse
a name that the lost timeline has spent.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from billing_pipeline.domain.windows import utc

IDENTIFIER_LENGTH_MAX = 100  # Stripe: "identifier", at most 100 characters


def entry_identifier(
    *,
    stripe_account: str,
    livemode: bool,
    event_name: str,
    organization_id: str,
    stripe_customer_id: str,
    starts_at: datetime,
    ends_at: datetime,
    sequence: int,
    epoch: int,
) -> str:
    """`be1_l_…` in live mode, `be1_t_…` in test mode, then 40 hexadecimal digits."""
    parts = (
        stripe_account,
        "live" if livemode else "test",
        event_name,
        organization_id,
        stripe_customer_id,
        utc(starts_at).isoformat(),
        utc(ends_at).isoformat(),
        str(sequence),
        str(epoch),
    )
    return f"be1_{'l' if livemode else 't'}_{_digest(parts)}"


def adoption_identifier(scope: str, event_name: str, stripe_customer_id: str, slot_at: datetime) -> str:
    """The name of an entry that was never sent by this ledger but found at Stripe; it never goes out."""
    return f"be1_adopted_{_digest((scope, event_name, stripe_customer_id, utc(slot_at).isoformat()))}"


def idempotency_key(identifier: str, fence: int) -> str:
    """Stripe's `Idempotency-Key` for one attempt; a new attempt must not replay the last one's cached answer."""
    return f"{identifier}_a{fence}"


def identifier_of_key(idempotency_key: str) -> str | None:
    """The identifier inside one of our idempotency keys, or None for any other text."""
    identifier, separator, fence = idempotency_key.rpartition("_a")
    return identifier if separator and fence.isdigit() else None


def _digest(parts: tuple[str, ...]) -> str:
    # Lengths in front keep ("ab", "c") apart from ("a", "bc").
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:40]
