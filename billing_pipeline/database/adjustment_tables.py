"""Tables of what follows a seal: usage put on a later draft as an invoice item, or written off.

Which windows an adjustment stands for is kept beside it, so that each is owed once; the view `adjusted_units` in
`schema/adjustments.sql` adds them up.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from billing_pipeline.database.base import Instant, metadata
from billing_pipeline.database.usage_tables import usage_windows

invoice_adjustments = Table(
    "invoice_adjustments",
    metadata,
    Column("adjustment_id", BigInteger, Identity(always=True), primary_key=True),
    Column("identifier", Text, nullable=False, unique=True, comment="the item's name at Stripe"),
    Column("stripe_invoice_id", Text, nullable=False),
    Column("stripe_customer_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("event_name", Text, nullable=False),
    Column("units", Numeric, nullable=False, comment="whole Stripe units; below zero they are given back"),
    Column("currency", Text),
    Column("unit_amount", Numeric, comment="minor units of the currency; null: written off"),
    Column("starts_at", Instant, nullable=False, comment="of the first usage window"),
    Column("ends_at", Instant, nullable=False, comment="of the last"),
    Column("state", Text, nullable=False),
    Column("stripe_invoice_item_id", Text),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("first_attempt_at", Instant),
    Column("last_attempt_at", Instant),
    Column("retry_at", Instant, comment="not asked about before"),
    Column("settled_at", Instant),
    Column("last_error", Text, comment="Stripe's words"),
    Column("created_at", Instant, nullable=False),
    CheckConstraint("state IN ('pending', 'ambiguous', 'applied', 'refused', 'written_off')", name="state"),
    CheckConstraint("(state = 'applied') = (stripe_invoice_item_id IS NOT NULL)", name="applied"),
    CheckConstraint("(state = 'written_off') = (unit_amount IS NULL)", name="price"),
    CheckConstraint("(unit_amount IS NULL) = (currency IS NULL)", name="currency"),
    CheckConstraint("units <> 0 AND units = trunc(units)", name="units"),
    # Once per organization, meter and invoice, however often the draft is looked at.
    UniqueConstraint("stripe_invoice_id", "organization_id", "meter", "event_name"),
    Index("invoice_adjustments_open_idx", "adjustment_id", postgresql_where=text("state IN ('pending', 'ambiguous')")),
    comment="usage billed, or not, after its period's invoice was final",
)

adjusted_windows = Table(
    "adjusted_windows",
    metadata,
    Column("adjustment_id", BigInteger, ForeignKey(invoice_adjustments.c.adjustment_id), primary_key=True),
    Column("window_id", BigInteger, ForeignKey(usage_windows.c.window_id), primary_key=True),
    Column("units", Numeric, nullable=False),
    Index("adjusted_windows_window_id_idx", "window_id"),
)

closed_invoices = Table(
    "closed_invoices",
    metadata,
    Column("stripe_invoice_id", Text, primary_key=True),
    Column("closed_at", Instant, nullable=False, comment="its customer's usage was flushed, its adjustments written"),
)
