"""Tables from the ledger entry to its proof: what was stated to Stripe, each attempt to say it, and what Stripe showed.

States, immutability and append-only rules are triggers in `schema/guards.sql`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ENUM, JSONB, TSTZRANGE, ExcludeConstraint

from billing_pipeline.database.base import DATABASE_NOW, SCHEMA, Instant, metadata
from billing_pipeline.database.usage_tables import usage_windows
from billing_pipeline.domain.windows import SLOTS_PER_HOUR

entry_state = ENUM(
    "pending",  # committed; nothing sent, or every attempt provably not executed
    "ambiguous",  # an attempt is committed, its outcome unknown; entered before the request
    "accepted",  # Stripe said yes, or said duplicate to an attempt of ours
    "confirmed",  # Stripe's summary shows exactly this value
    "adopted",  # created from what Stripe shows, after a restore
    "rejected",  # provably refused; the amount is owed and on hold
    "replaced",  # provably not counted; a later entry carries the value
    name="entry_state",
    schema=SCHEMA,
    metadata=metadata,
)

ledger_identity = Table(
    "ledger_identity",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("ledger_id", Uuid, nullable=False),
    Column("stripe_account", Text, nullable=False, comment="the account this ledger states usage to"),
    Column("livemode", Boolean, nullable=False),
    Column("epoch", Integer, nullable=False, server_default=text("0"), comment="raised by recovery only"),
    Column("database_system_id", Text, comment="pg_control_system(); null where the server hides it"),
    Column("database_timeline", Text, comment="changes when a backup is restored or a standby promoted"),
    Column("frozen_reason", Text, comment="not null: nothing is sent until a person releases it"),
    Column("frozen_at", Instant),
    Column("bound_at", Instant, nullable=False, server_default=DATABASE_NOW),
    CheckConstraint("singleton", name="singleton"),
    CheckConstraint("(frozen_reason IS NULL) = (frozen_at IS NULL)", name="frozen_whole"),
)


ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("entry_id", BigInteger, Identity(always=True), primary_key=True),
    Column("window_id", BigInteger, ForeignKey(usage_windows.c.window_id), nullable=False),
    Column("sequence", SmallInteger, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("stripe_customer_id", Text, nullable=False),
    Column("event_name", Text, nullable=False, comment="Stripe's meter event name, frozen at the cut"),
    Column("value", BigInteger, nullable=False, comment="a delta in Stripe units; negative corrects"),
    Column("slot_at", Instant, nullable=False, comment="the entry's own minute: its Stripe timestamp"),
    Column("identifier", Text, nullable=False),
    Column("state", entry_state, nullable=False, server_default=text("'pending'")),
    Column("first_attempt_at", Instant),
    Column("last_attempt_at", Instant),
    Column("fence", BigInteger, nullable=False, server_default=text("0"), comment="who may record an outcome"),
    Column("lease_until", Instant),
    Column("hold_reason", Text, comment="not null: a person must release it before it is sent"),
    Column("created_at", Instant, nullable=False, server_default=DATABASE_NOW),
    # What the indexes ask of a state.  Sending changes neither, so it touches no index (see decision 0014).
    Column(
        "settled",
        Boolean,
        Computed("state IN ('confirmed', 'adopted', 'rejected', 'replaced')", persisted=True),
        nullable=False,
    ),
    Column("replaced", Boolean, Computed("state = 'replaced'", persisted=True), nullable=False),
    UniqueConstraint("window_id", "sequence"),
    UniqueConstraint("identifier"),
    # Recovery may adopt usage at the minute of an entry that it replaces; entries that are sent have a minute each.
    CheckConstraint(
        f"sequence >= 0 AND (sequence < {SLOTS_PER_HOUR} OR state = 'adopted' AND sequence < {2 * SLOTS_PER_HOUR})",
        name="sequence",
    ),
    CheckConstraint("value <> 0 AND abs(value) < 1000000000000000", name="value"),
    CheckConstraint("length(identifier) <= 100", name="identifier"),
    CheckConstraint("date_trunc('minute', slot_at) = slot_at", name="slot_at"),
    CheckConstraint(
        "state IN ('pending', 'adopted', 'replaced') OR first_attempt_at IS NOT NULL OR hold_reason IS NOT NULL",
        name="attempted_before_outcome",
    ),
    # Not per window: Stripe sums a customer's minute, whichever of our windows an entry came from.
    # Recovery puts what Stripe shows where a replaced entry was.
    Index(
        "ledger_entries_slot_key",
        "stripe_customer_id",
        "event_name",
        "slot_at",
        unique=True,
        postgresql_where=text("NOT replaced"),
    ),
    # The other, small part: the cutter asks for both, since a replaced entry keeps its minute.
    Index(
        "ledger_entries_replaced_slot_idx",
        "stripe_customer_id",
        "event_name",
        "slot_at",
        postgresql_where=text("replaced"),
    ),
    Index(
        "ledger_entries_unsettled_idx",
        "stripe_customer_id",
        "event_name",
        "slot_at",
        postgresql_where=text("NOT settled"),
    ),
    # Reconciliation reads the hours of its span, and whatever is not settled before them.
    Index("ledger_entries_slot_at_idx", "slot_at"),
    Index(
        "ledger_entries_not_settled_idx",
        "window_id",
        postgresql_where=text("NOT settled OR hold_reason IS NOT NULL"),
    ),
    # Few: what Stripe refused, or takes no more, until a person has looked.
    Index("ledger_entries_held_idx", "window_id", postgresql_where=text("hold_reason IS NOT NULL")),
    # Room on each page for the versions that a claim and its record leave.
    postgresql_with={"fillfactor": "50"},
)

open_entries = Table(
    "open_entries",
    metadata,
    Column("entry_id", BigInteger, ForeignKey(ledger_entries.c.entry_id), primary_key=True),
    Column("window_id", BigInteger, nullable=False),
    Column("send_by", Instant, nullable=False, comment="after this Stripe may count it twice, or not at all"),
    Column("retry_at", Instant, comment="not before; null: at once; infinity: on hold"),
    # One delta at a time: the next is computed only when the outcome of the last is known.
    UniqueConstraint("window_id", name="open_entries_one_per_window"),
    Index("open_entries_due_idx", "send_by", "entry_id", postgresql_where=text("retry_at IS NULL")),
    Index("open_entries_waiting_idx", "retry_at", postgresql_where=text("retry_at IS NOT NULL")),
    comment="the submitter's work: entries pending or ambiguous, kept by triggers of ledger_entries",
)

attempts = Table(
    "attempts",
    metadata,
    Column("attempt_id", BigInteger, Identity(always=True), primary_key=True),
    # Refers to ledger_entries; a trigger looks for a whole batch at once, a foreign key would row by row.
    Column("entry_id", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("channel", Text, nullable=False),
    Column("started_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Column("finished_at", Instant),
    Column("outcome", Text, comment="null: not known; the entry stays ambiguous"),
    Column("http_status", SmallInteger),
    Column("error_code", Text),
    Column("error_message", Text, comment="Stripe's words, without secrets"),
    Column("request_id", Text, comment="Stripe's request id"),
    UniqueConstraint("entry_id", "fence"),
    CheckConstraint("channel IN ('v1', 'v2_stream')", name="channel"),
    CheckConstraint(
        "outcome IN ('ok', 'duplicate', 'not_executed', 'rejected', 'unknown')",
        name="outcome",
    ),
    # Room on each page for the outcomes.
    postgresql_with={"fillfactor": "40"},
)

evidence = Table(
    "evidence",
    metadata,
    Column("evidence_id", BigInteger, Identity(always=True), primary_key=True),
    Column("entry_id", BigInteger, ForeignKey(ledger_entries.c.entry_id), nullable=False),
    Column("kind", Text, nullable=False),
    Column("observed", BigInteger, comment="units that Stripe shows for the entry"),
    Column(
        "granularity",
        Text,
        nullable=False,
        comment="hour: the whole hour agreed; minute: its own slot; report: Stripe named it",
    ),
    Column("canary_sent_at", Instant, comment="absence: the visible canary that Stripe got later than this entry"),
    Column("observed_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Index("evidence_entry_id_idx", "entry_id"),
    CheckConstraint(
        "kind IN ('summary_present', 'summary_absent', 'error_report', 'adoption')",
        name="kind",
    ),
    CheckConstraint("granularity IN ('hour', 'minute', 'report')", name="granularity"),
)

meter_summaries = Table(
    "meter_summaries",
    metadata,
    Column("stripe_customer_id", Text, primary_key=True),
    Column("event_name", Text, primary_key=True),
    Column("hour_at", Instant, primary_key=True, comment="start of the UTC hour"),
    Column("observed", BigInteger, nullable=False, comment="what Stripe last showed for the hour"),
    Column("observed_at", Instant, nullable=False),
)

canaries = Table(
    "canaries",
    metadata,
    Column("canary_id", BigInteger, Identity(always=True), primary_key=True),
    Column("event_name", Text, nullable=False),
    Column("stripe_customer_id", Text, nullable=False, comment="has no subscription, so it is never priced"),
    Column("slot_at", Instant, nullable=False),
    Column("identifier", Text, nullable=False),
    Column("started_at", Instant, nullable=False, comment="committed before the request leaves, like an attempt"),
    Column("outcome", Text, comment="null: not known"),
    Column("seen_at", Instant, comment="when a summary first showed it: everything sent before it is settled"),
    UniqueConstraint("identifier"),
    UniqueConstraint("event_name", "slot_at"),
    CheckConstraint("outcome IN ('ok', 'duplicate', 'not_executed', 'rejected', 'unknown')", name="outcome"),
    Index("canaries_unseen_idx", "event_name", "started_at", postgresql_where=text("seen_at IS NULL")),
)

flush_leases = Table(
    "flush_leases",
    metadata,
    Column("lock_key", Text, primary_key=True),
    Column("holder", Text, nullable=False, comment="a Dagster run id, or the command's own"),
    Column("fence", BigInteger, nullable=False, comment="rises with every new holder"),
    Column("expires_at", Instant, nullable=False),
)

billing_periods = Table(
    "billing_periods",
    metadata,
    Column("period_id", BigInteger, Identity(always=True), primary_key=True),
    Column("stripe_customer_id", Text, nullable=False),
    Column("event_name", Text, nullable=False),
    Column("during", TSTZRANGE, nullable=False, comment="half-open, UTC; as Stripe's subscription item has it"),
    Column("subscription_item_id", Text, nullable=False),
    Column("synced_at", Instant, nullable=False, comment="when it became known, or was changed"),
    CheckConstraint("NOT isempty(during)", name="during"),
    # Of one item: a customer with two subscriptions on one meter has two periods at a time, each with its own edges.
    ExcludeConstraint(
        (text("billing_pipeline.text_range(subscription_item_id, subscription_item_id, '[]')"), "&&"),
        (text("billing_pipeline.text_range(event_name, event_name, '[]')"), "&&"),
        ("during", "&&"),
        using="gist",
        name="billing_periods_one_at_a_time",
    ),
    Index("billing_periods_item_idx", "subscription_item_id", "event_name"),
    Index("billing_periods_lane_idx", "stripe_customer_id", "event_name"),
    # Counting asks for the edges of a span of hours, whoever's they are.
    Index("billing_periods_start_idx", text("lower(during)")),
    Index("billing_periods_end_idx", text("upper(during)")),
)

period_syncs = Table(
    "period_syncs",
    metadata,
    Column("sync_id", BigInteger, Identity(always=True), primary_key=True),
    Column("read_at", Instant, nullable=False, comment="when Stripe was asked; an older answer changes nothing"),
    Column("items_read", BigInteger, nullable=False),
    Column("periods_changed", BigInteger, nullable=False),
    Column("finished_at", Instant, nullable=False),
    Index("period_syncs_read_at_idx", "read_at"),
)

error_reports = Table(
    "error_reports",
    metadata,
    Column("stripe_event_id", Text, primary_key=True),
    Column("created_at", Instant, nullable=False, comment="Stripe's"),
    Column("rejected", Integer, nullable=False, comment="errors Stripe counted; its samples may name fewer"),
    Column("named", Integer, nullable=False, comment="entries of ours it named"),
    Column("codes", JSONB, nullable=False),
    Column("applied_at", Instant, nullable=False),
)

flush_plans = Table(
    "flush_plans",
    metadata,
    Column("plan_hash", Text, primary_key=True, comment="of every entry that the flush would send for the first time"),
    Column("made_at", Instant, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("closed_before", Instant, nullable=False, comment="the plan cut the windows that ended by then"),
    Column("meters", JSONB, nullable=False, comment="per event name: entries, units added and taken back"),
    comment="what a person has seen of a flush before it; kept for a week",
)

ledger_operations = Table(
    "ledger_operations",
    metadata,
    Column("operation_id", BigInteger, Identity(always=True), primary_key=True),
    Column("action", Text, nullable=False),
    Column("actor", Text, nullable=False, comment="who did it; the pipeline itself for a freeze"),
    Column("reason", Text, nullable=False),
    Column("details", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("done_at", Instant, nullable=False),
    CheckConstraint(
        "action IN ('freeze', 'adopt', 'release', 'release_hold', 'seal', 'dismiss', 'undo_dismissal', 'rebill')",
        name="action",
    ),
)

seals = Table(
    "seals",
    metadata,
    Column("seal_id", BigInteger, Identity(always=True), primary_key=True),
    Column("stripe_customer_id", Text, nullable=False),
    Column("event_name", Text, comment="null: every meter of the customer"),
    Column("during", TSTZRANGE, nullable=False, comment="half-open, UTC; the period whose invoice is final"),
    Column(
        "operation_id",
        BigInteger,
        ForeignKey(ledger_operations.c.operation_id),
        nullable=False,
        comment="who sealed it, and why",
    ),
    Column("sealed_at", Instant, nullable=False),
    CheckConstraint("NOT (isempty(during) OR lower_inf(during) OR upper_inf(during))", name="during"),
    Index(None, "stripe_customer_id"),
)
