"""The schema as a whole: one table per noun of the glossary, with the invariants the database itself can hold.

The tables are in `usage_tables.py`, `ledger_tables.py`, `lane_tables.py`, `adjustment_tables.py`, `inbox_tables.py`,
`projection_tables.py` and `feed_tables.py`; what SQLAlchemy cannot say (types, views, guards, the row contract) is in
`schema/*.sql` and
created with them.
"""

from __future__ import annotations

from importlib import resources

from sqlalchemy import DDL, event

from billing_pipeline.database.adjustment_tables import invoice_adjustments
from billing_pipeline.database.base import SCHEMA, metadata, source_metadata
from billing_pipeline.database.feed_tables import billing_event_feed
from billing_pipeline.database.inbox_tables import stripe_events
from billing_pipeline.database.lane_tables import lanes
from billing_pipeline.database.ledger_tables import entry_state
from billing_pipeline.database.projection_tables import PROJECTIONS
from billing_pipeline.database.usage_tables import billable_events

__all__ = [
    "PROJECTIONS",
    "SCHEMA",
    "billable_events",
    "billing_event_feed",
    "entry_state",
    "invoice_adjustments",
    "lanes",
    "metadata",
    "source_metadata",
    "stripe_events",
]


def _schema_sql(name: str) -> str:
    return (resources.files("billing_pipeline.database") / "schema" / name).read_text(encoding="utf-8")


def _attach(when: str, name: str) -> None:
    # DDL() formats its text with %, which plpgsql uses for its own placeholders.
    event.listen(metadata, when, DDL(_schema_sql(name).replace("%", "%%")))  # type: ignore[no-untyped-call]


_attach("before_create", "types.sql")
_attach("after_create", "contract.sql")
_attach("after_create", "guards.sql")
_attach("after_create", "periods.sql")
_attach("after_create", "webhooks.sql")
_attach("after_create", "adjustments.sql")
