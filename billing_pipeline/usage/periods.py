"""Stage 2a: keep the billing periods that Stripe's invoices are made of, so that no window lies across an edge.

Runs before aggregation, which splits hours at the edges known here.  Stripe's own period is the truth: the current one
of each metered item is taken over, and those that were current before are kept, because old hours are counted again.
Reads Stripe, writes `billing_periods` and `period_syncs`, and marks windows that an edge leaves something to take back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.stripe_api.subscriptions import ItemPeriod

BATCH_SIZE = 5_000


class PeriodReader(Protocol):
    """What the sync needs of Stripe."""

    def __call__(self) -> Sequence[ItemPeriod]:
        """The current period of every metered item, and the last one of items that ended within reach."""
        ...


@dataclass(frozen=True, slots=True)
class PeriodsReport:
    """What one sync read, and how many periods were new or had changed."""

    items_read: int = 0
    periods_changed: int = 0


def sync_periods(connection: Connection[Any], read: PeriodReader, *, clock: Callable[[], datetime]) -> PeriodsReport:
    """Bring `billing_periods` to what Stripe shows.  Running it again changes nothing.

    Raises what `read` raises, before anything is changed.
    """
    read_at = clock()
    # Two answers of one item and start cannot be: they would be one row twice.
    shown = list({(found.subscription_item_id, found.event_name): found for found in read()}.values())

    def write() -> PeriodsReport:
        queries.execute(connection, "lock_aggregations")
        # Behind the lock, so that the next aggregation's cutoff is later and finds the edges' hours touched.
        now = clock()
        if queries.fetch_dicts(connection, "newer_period_sync", {"read_at": read_at})[0]["read_at"] is not None:
            return PeriodsReport(len(shown))
        changed = sum(
            _apply(connection, shown[first : first + BATCH_SIZE], now) for first in range(0, len(shown), BATCH_SIZE)
        )
        queries.execute(connection, "owe_across_new_edges", {"now": now})
        queries.execute(
            connection,
            "record_period_sync",
            {"read_at": read_at, "items_read": len(shown), "periods_changed": changed, "now": now},
        )
        return PeriodsReport(len(shown), changed)

    return in_transaction(connection, write, name="The sync of billing periods")


def _apply(connection: Connection[Any], shown: Sequence[ItemPeriod], now: datetime) -> int:
    periods: Mapping[str, Any] = {
        "items": [found.subscription_item_id for found in shown],
        "event_names": [found.event_name for found in shown],
        "customers": [found.stripe_customer_id for found in shown],
        "starts": [found.starts_at for found in shown],
        "ends": [found.ends_at for found in shown],
        "now": now,
    }
    # What would overlap goes first: the exclusion constraint is checked row by row.
    names = ("shorten_periods", "drop_contradicted_periods", "merge_periods")
    return sum(queries.execute(connection, name, periods) for name in names)
