"""What Stripe was last asked about a customer's meter as a whole, after every entry of it was proved.

Confirmation notes a lane with its first proof and reads it again about once a day (`usage/read_again.py`).
"""

from __future__ import annotations

from sqlalchemy import Column, Index, Table, Text

from billing_pipeline.database.base import Instant, metadata

lanes = Table(
    "lanes",
    metadata,
    Column("stripe_customer_id", Text, primary_key=True),
    Column("event_name", Text, primary_key=True),
    Column("latest_slot_at", Instant, nullable=False, comment="an idle lane leaves the reach, and is read no more"),
    Column("read_at", Instant, nullable=False, comment="when all its days in reach were last compared with Stripe"),
    Index("lanes_read_at_idx", "read_at"),
)
