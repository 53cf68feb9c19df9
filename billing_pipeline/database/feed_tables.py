"""Tables of the billing activity feed: what organizations are told of their webhook events, and what is to be told.

`feed_candidates` is filled with an event's completion, in one transaction; `billing_event_feed` is written from it by
one writer at a time, so its ids rise in the order of the commits.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Identity, Index, Integer, Table, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB

from billing_pipeline.database.base import Instant, metadata
from billing_pipeline.database.inbox_tables import stripe_events

billing_event_feed = Table(
    "billing_event_feed",
    metadata,
    Column("feed_id", BigInteger, Identity(always=True), primary_key=True, comment="rises in the order of the commits"),
    Column("organization_id", Text, nullable=False, comment="whom it is told"),
    Column("stripe_event_id", Text, ForeignKey(stripe_events.c.stripe_event_id), nullable=False),
    Column("event_type", Text, nullable=False),
    Column("payload", JSONB, nullable=False, comment="a BillingEventPayload; its schema is in the package feed"),
    Column("fed_at", Instant, nullable=False),
    UniqueConstraint("stripe_event_id"),
    Index("billing_event_feed_organization_idx", "organization_id", "feed_id"),
    comment="what organizations are told of their webhook events, each once; the truth of the stream",
)

feed_candidates = Table(
    "feed_candidates",
    metadata,
    Column("stripe_event_id", Text, ForeignKey(stripe_events.c.stripe_event_id), primary_key=True),
    Column("due_at", Instant, nullable=False, comment="not before; later while its customer is nobody's"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Index("feed_candidates_due_idx", "due_at", "stripe_event_id"),
    # Rows live for a fraction of a second; vacuum must not wait for a fifth of a table that is usually empty.
    postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"},
    comment="processed events of which the feed has not decided yet",
)
