"""Tables from Stripe's delivery to its handling: what was stored before it was answered, and what is still to be done.

`stripe_events` keeps each webhook event for ever; `event_dispatches` is the short list of those that wait.
What the events say of Stripe's objects is in `projection_tables.py`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing_pipeline.database.base import DATABASE_NOW, Instant, metadata

stripe_events = Table(
    "stripe_events",
    metadata,
    Column("stripe_event_id", Text, primary_key=True),
    Column("event_type", Text, nullable=False),
    Column("payload_style", Text, nullable=False, comment="snapshot: with the object; thin: only what it is about"),
    Column("api_version", Text, comment="the shape of the object in the payload; null: thin, or older than versions"),
    Column("livemode", Boolean, nullable=False),
    Column("stripe_account", Text, comment="a connected account; null: our own"),
    Column("object_id", Text, comment="what the event is about; null: nothing with an id"),
    Column("object_key", Text, nullable=False, comment="events with the same key are handled one at a time, in order"),
    Column("created_at", Instant, nullable=False, comment="Stripe's; whole seconds, milliseconds where thin"),
    Column("tenant_hint", Text, comment="the organization that the object's metadata names; only a hint"),
    Column("raw_body", LargeBinary, comment="the bytes that were signed; null: swept, or their retention is over"),
    Column("body_digest", LargeBinary, comment="SHA-256 of the raw body"),
    Column("payload", JSONB, comment="the same, parsed; null: its retention is over"),
    Column("origin", Text, nullable=False, comment="webhook: delivered; sweep: found in Stripe's list"),
    Column("matched_secret", Text, comment="prefix and last four of the secret that signed it; null: swept"),
    Column("received_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Column("attempted_at", Instant, comment="when it was last handled, well or not"),
    Column("processed_at", Instant, comment="when it came to its end: processed or ignored"),
    Column("failed_at", Instant, comment="when it last failed"),
    Column("processing_outcome", Text, nullable=False, server_default=text("'received'")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("error_class", Text, comment="what kind of failure, for triage"),
    Column("processing_error", Text, comment="what failed and what to do next, without secrets or personal data"),
    CheckConstraint("stripe_event_id ~ '^evt_'", name="stripe_event_id"),
    CheckConstraint("payload_style IN ('snapshot', 'thin')", name="payload_style"),
    CheckConstraint("origin IN ('webhook', 'sweep')", name="origin"),
    CheckConstraint(
        "processing_outcome IN ('received', 'processed', 'ignored', 'failed', 'parked')", name="processing_outcome"
    ),
    CheckConstraint(
        "(processing_outcome IN ('processed', 'ignored')) = (processed_at IS NOT NULL)", name="processed_at"
    ),
    CheckConstraint(
        "processing_outcome NOT IN ('failed', 'parked') OR num_nonnulls(failed_at, error_class, processing_error) = 3",
        name="failed_whole",
    ),
    # The newest first, which is how people look at them.
    Index("stripe_events_received_at_idx", "received_at"),
    # The oldest whose bodies are still there, which is what a purge looks for among years of events without one.
    Index(
        "stripe_events_bodies_idx",
        "received_at",
        postgresql_where=text("processed_at IS NOT NULL AND payload IS NOT NULL"),
    ),
    # Few: what failed, newest first.
    Index(
        "stripe_events_failed_idx",
        "received_at",
        postgresql_where=text("processing_outcome IN ('failed', 'parked')"),
    ),
)

event_dispatches = Table(
    "event_dispatches",
    metadata,
    Column("stripe_event_id", Text, ForeignKey(stripe_events.c.stripe_event_id), primary_key=True),
    Column("object_key", Text, nullable=False),
    Column("created_at", Instant, nullable=False, comment="Stripe's; the order within an object"),
    Column("due_at", Instant, nullable=False, comment="not before; later after each failure"),
    Column("attempts", Integer, nullable=False, server_default=text("0"), comment="claims; a killed one counts"),
    Column("fence", BigInteger, nullable=False, server_default=text("0"), comment="rises with every claim"),
    Column("claimed_at", Instant, comment="null: nobody handles it now"),
    Index("event_dispatches_due_idx", "due_at", "stripe_event_id"),
    Index("event_dispatches_object_idx", "object_key", "created_at", "stripe_event_id"),
    Index("event_dispatches_claimed_idx", "claimed_at", postgresql_where=text("claimed_at IS NOT NULL")),
    # Rows live for seconds; vacuum must not wait for a fifth of a table that is usually empty.
    postgresql_with={"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"},
    comment="the dispatcher's work: events that are stored and neither handled nor parked",
)

event_notes = Table(
    "event_notes",
    metadata,
    Column("note_id", BigInteger, Identity(always=True), primary_key=True),
    Column("stripe_event_id", Text, ForeignKey(stripe_events.c.stripe_event_id), nullable=False),
    Column("note", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("noted_at", Instant, nullable=False),
    Index("event_notes_stripe_event_id_idx", "stripe_event_id"),
    comment="what a person wrote about an event, for whoever reads it after an incident; only added to",
)

object_refetches = Table(
    "object_refetches",
    metadata,
    Column("object_id", Text, primary_key=True, comment="of a customer's entitlements: the customer"),
    Column("object_kind", Text, primary_key=True),
    Column("reason", Text, nullable=False, comment="tie: two versions of one second; incomplete: a list cut short"),
    Column("not_before", Instant, nullable=False, comment="Stripe's clock must be past this for an answer to decide"),
    Column("due_at", Instant, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("error", Text),
    Index("object_refetches_due_idx", "due_at"),
    comment="objects that only Stripe can tell the state of; asked after the transaction that found out",
)

object_snapshots = Table(
    "object_snapshots",
    metadata,
    Column("snapshot_id", BigInteger, Identity(always=True), primary_key=True),
    Column("object_id", Text, nullable=False),
    Column("object_kind", Text, nullable=False),
    Column("read_at", Instant, nullable=False, comment="Stripe's clock, whole seconds"),
    Column("reason", Text, nullable=False),
    Column("payload", JSONB, comment="the object, deleted: true where it is gone; null: its retention is over"),
    Column("stored_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Index("object_snapshots_object_idx", "object_kind", "object_id"),
    # The oldest whose payloads are still there, for the purge.
    Index("object_snapshots_payloads_idx", "stored_at", postgresql_where=text("payload IS NOT NULL")),
    comment="objects as Stripe showed them when asked; with the events, what every projection can be made anew from",
)

event_sweeps = Table(
    "event_sweeps",
    metadata,
    Column("sweep_id", BigInteger, Identity(always=True), primary_key=True),
    Column("complete_from", Instant, nullable=False),
    Column("complete_through", Instant, nullable=False, comment="every event of Stripe's until then is in the inbox"),
    Column("events_listed", BigInteger, nullable=False),
    Column("events_missing", BigInteger, nullable=False, comment="never delivered; inserted by this sweep"),
    Column("events_unreadable", BigInteger, nullable=False, comment="listed, and could not be stored"),
    Column("gap_from", Instant, comment="from here to complete_from nobody swept and Stripe lists no more"),
    Column("gap_closed_at", Instant, comment="when all objects had been read anew, which makes up for the gap"),
    Column("finished_at", Instant, nullable=False),
    CheckConstraint("complete_from <= complete_through", name="span"),
    CheckConstraint("gap_from < complete_from", name="gap"),
    CheckConstraint("gap_closed_at IS NULL OR gap_from IS NOT NULL", name="gap_closed"),
)

signature_failures = Table(
    "signature_failures",
    metadata,
    Column("minute_at", Instant, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("deliveries", BigInteger, nullable=False),
    comment="deliveries refused for their signature, counted by minute: the requests themselves are not kept",
)

delivery_counts = Table(
    "delivery_counts",
    metadata,
    Column("hour_at", Instant, primary_key=True),
    Column("event_type", Text, primary_key=True),
    Column("result", Text, primary_key=True, comment="accepted, duplicate or requeued"),
    Column("deliveries", BigInteger, nullable=False),
    comment="signed deliveries by hour; repetitions leave no other trace",
)
