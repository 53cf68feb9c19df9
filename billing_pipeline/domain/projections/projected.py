"""One Stripe object in our columns, and how two of them compare.

Of all that was ever seen of an object the greatest version stays, so order and repetition change nothing:
a terminal state before any other, then Stripe's second, then how far along the state is, then the content's digest.
Two different contents of one second are a tie, which only Stripe can settle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

READ = "read"
"""The source of a row that Stripe showed when asked."""

DIGEST_LENGTH = 32
_written = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class ObjectKind(StrEnum):
    """Stripe's names of the objects that are projected."""

    CUSTOMER = "customer"
    SUBSCRIPTION = "subscription"
    INVOICE = "invoice"
    CHECKOUT_SESSION = "checkout.session"
    FEATURE_SUMMARY = "entitlements.active_entitlement_summary"


@dataclass(frozen=True, slots=True)
class Projected:
    """An object as its table has it, without its version.

    `columns` are JSON values by column, times as ISO 8601 text; `rank` says how far along the state is;
    `complete` is false where Stripe showed only the first part of a list.
    """

    kind: ObjectKind
    object_id: str
    customer_id: str | None
    columns: Mapping[str, Any]
    terminal: bool
    rank: int
    complete: bool = True

    @property
    def digest(self) -> str:
        """The same for the same content, whenever and wherever it was seen."""
        return hashlib.sha256(_written(self.columns).encode()).hexdigest()[:DIGEST_LENGTH]

    def row(self, *, at: datetime, source: str) -> dict[str, Any]:
        """The whole row, as seen at Stripe's second `at` in the event (or `READ`) `source`."""
        return {
            **self.columns,
            "terminal": self.terminal,
            "version_at": at.isoformat(),
            "version_rank": self.rank,
            "version_digest": self.digest,
            "source": source,
        }
