"""The schema: one table per noun of the glossary, with the invariants the database itself can hold.

Everything of ours lives in the PostgreSQL schema `billing_pipeline`, so that it never collides with the team's
own `customers` or `invoices`.  `billable_events` belongs to the upstream team; the copy here is created only by
the embedded default (`create_default_source`).
States, immutability and append-only rules are triggers in `schema/guards.sql`.
"""

from __future__ import annotations

from importlib import resources

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, ENUM, JSONB, TSTZRANGE, ExcludeConstraint
from sqlalchemy.schema import CreateSchema

SCHEMA = "billing_pipeline"
SLOTS_PER_WINDOW = 60
"""Each entry owns one whole minute of its window's hour."""

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)
source_metadata = MetaData(schema="public")
event.listen(metadata, "before_create", CreateSchema(SCHEMA, if_not_exists=True))

Instant = DateTime(timezone=True)
DATABASE_NOW = text("clock_timestamp()")

billable_events = Table(
    "billable_events",
    source_metadata,
    Column("event_id", Text, primary_key=True, comment="unique id given by the product"),
    Column("organization_id", Text, comment="who is billed"),
    Column("event_type", Text, comment="what happened; the catalogue says which meters count it"),
    Column("quantity", Numeric, comment="how much, exact"),
    Column("occurred_at", Instant, comment="when it happened; decides the usage window"),
    Column(
        "recorded_at",
        Instant,
        nullable=False,
        server_default=text("now()"),
        comment="when the row was written",
    ),
    Column("properties", JSONB, comment="anything else the product knows"),
    # The flush reads what was recorded since the last cutoff, and whole hours of what it touched.
    Index("billable_events_recorded_at_idx", "recorded_at"),
    Index("billable_events_occurred_at_idx", "occurred_at"),
)

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

customer_mappings = Table(
    "customer_mappings",
    metadata,
    Column("mapping_id", BigInteger, Identity(always=True), primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("stripe_customer_id", Text, nullable=False),
    Column("valid_during", TSTZRANGE, nullable=False, server_default=text("'(,)'"), comment="half-open, UTC"),
    Column("created_at", Instant, nullable=False, server_default=DATABASE_NOW),
    CheckConstraint("NOT isempty(valid_during)", name="valid_during"),
    # text_range makes equality indexable by GiST without the btree_gist extension.
    ExcludeConstraint(
        (text(f"{SCHEMA}.text_range(organization_id, organization_id, '[]')"), "&&"),
        ("valid_during", "&&"),
        using="gist",
        name="customer_mappings_one_customer",
    ),
    # Two organizations on one customer would share its minutes, and neither could be proved alone.
    ExcludeConstraint(
        (text(f"{SCHEMA}.text_range(stripe_customer_id, stripe_customer_id, '[]')"), "&&"),
        ("valid_during", "&&"),
        using="gist",
        name="customer_mappings_one_organization",
    ),
)

contract_runs = Table(
    "contract_runs",
    metadata,
    Column("contract_run_id", BigInteger, Identity(always=True), primary_key=True),
    Column("contract_version", Text, nullable=False),
    Column("catalogue_version", Text, nullable=False),
    Column("cutoff_at", Instant, nullable=False, comment="rows recorded before this were read"),
    Column("rows_read", BigInteger, nullable=False),
    Column("faults", JSONB, nullable=False, comment="per rule: reason, severity, count, sample ids"),
    Column("passed", Boolean, nullable=False, comment="no table fault; row faults are quarantined instead"),
    Column("finished_at", Instant, nullable=False, server_default=DATABASE_NOW),
)

quarantined_events = Table(
    "quarantined_events",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("contract_version", Text, nullable=False),
    Column("organization_id", Text),
    Column("event_type", Text),
    Column("quantity", Text, comment="as found; may be no number"),
    Column("occurred_at", Instant),
    Column("first_seen_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Column("last_seen_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Column("mended_at", Instant, comment="the row was mended upstream and is counted"),
)

aggregations = Table(
    "aggregations",
    metadata,
    Column("aggregation_id", BigInteger, Identity(always=True), primary_key=True),
    Column("scope", Text, nullable=False, comment="touched: windows with new rows; full: the whole lookback"),
    Column("cutoff_at", Instant, nullable=False, comment="clock of the snapshot that was read"),
    Column("windows_computed", BigInteger, nullable=False),
    Column("windows_changed", BigInteger, nullable=False),
    Column("finished_at", Instant, nullable=False, server_default=DATABASE_NOW),
    CheckConstraint("scope IN ('touched', 'full')", name="scope"),
)

meter_versions = Table(
    "meter_versions",
    metadata,
    Column("meter", Text, primary_key=True),
    Column("version", Text, nullable=False, comment="hash of the definition in this row"),
    Column("event_types", ARRAY(Text), nullable=False),
    Column("aggregation", Text, nullable=False),
    Column("event_name", Text, nullable=False, comment="Stripe's meter event name"),
    Column("unit_scale", Numeric, nullable=False, comment="Stripe units per unit of quantity"),
    Column("valid_from", Instant, primary_key=True, comment="a full UTC hour"),
    Column("valid_until", Instant, comment="a full UTC hour; null: the catalogue still says so"),
    CheckConstraint("valid_from < valid_until", name="span"),
    # Each hour is counted by one definition of a meter, for ever.
    ExcludeConstraint(
        (text(f"{SCHEMA}.text_range(meter, meter, '[]')"), "&&"),
        (text("tstzrange(valid_from, valid_until)"), "&&"),
        using="gist",
        name="meter_versions_one_at_a_time",
    ),
)

usage_windows = Table(
    "usage_windows",
    metadata,
    Column("window_id", BigInteger, Identity(always=True), primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("stripe_customer_id", Text, comment="null: unmapped; owed, never sent"),
    Column("meter", Text, nullable=False),
    Column(
        "meter_version", Text, nullable=False, comment="the definition that counted it; empty: adopted, not counted"
    ),
    Column("event_name", Text, nullable=False, comment="Stripe's meter event name in this window's hour"),
    Column("starts_at", Instant, nullable=False),
    Column("ends_at", Instant, nullable=False),
    Column("target", Numeric, nullable=False, comment="what the source says now, in whole Stripe units"),
    Column(
        "carried",
        Numeric,
        nullable=False,
        server_default=text("0"),
        comment="the part of target that makes up for fractions of its customer, meter and month",
    ),
    Column("units", Numeric, nullable=False, server_default=text("0"), comment="quantity times unit scale, exact"),
    Column("quantity", Numeric, nullable=False, comment="before the unit scale, exact"),
    Column("event_count", BigInteger, nullable=False),
    Column("last_recorded_at", Instant, comment="with count and quantity: the digest of the rows"),
    Column("contract_version", Text, nullable=False),
    Column("cutoff_at", Instant, nullable=False, comment="clock of the snapshot the target was read in"),
    Column(
        "cut_due",
        Boolean,
        nullable=False,
        server_default=text("true"),
        comment="target may differ from stated",
    ),
    Column("hold_reason", Text, comment="not null: owed, but cannot be cut; waits for a person"),
    Column("sealed_at", Instant, comment="the invoice is final; only an adjustment may follow"),
    CheckConstraint("starts_at < ends_at", name="span"),
    CheckConstraint("target >= 0 AND target = trunc(target)", name="target"),
    CheckConstraint(
        "date_trunc('hour', starts_at AT TIME ZONE 'UTC') = "
        "date_trunc('hour', (ends_at - interval '1 microsecond') AT TIME ZONE 'UTC')",
        name="one_hour",
    ),
    UniqueConstraint(
        "organization_id",
        "stripe_customer_id",
        "meter",
        "starts_at",
        "ends_at",
        name="usage_windows_natural_key",
        postgresql_nulls_not_distinct=True,
    ),
    # The cutter looks only here, so its cost follows the work to do, not the history.
    Index(
        "usage_windows_cut_due_idx",
        "ends_at",
        "window_id",
        postgresql_where=text("cut_due AND hold_reason IS NULL AND stripe_customer_id IS NOT NULL"),
    ),
    Index("usage_windows_starts_at_idx", "starts_at"),
    # Only these can leave a rest to carry; of integer meters there are none.
    Index(
        "usage_windows_fractions_idx",
        "starts_at",
        postgresql_where=text("units <> trunc(units) OR carried <> 0"),
    ),
    # What is not settled stays in sight however old it is.
    Index("usage_windows_not_settled_idx", "starts_at", postgresql_where=text("cut_due OR hold_reason IS NOT NULL")),
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
    Column("next_attempt_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Column("fence", BigInteger, nullable=False, server_default=text("0"), comment="who may record an outcome"),
    Column("lease_until", Instant),
    Column("hold_reason", Text, comment="not null: a person must release it before it is sent"),
    Column("created_at", Instant, nullable=False, server_default=DATABASE_NOW),
    UniqueConstraint("window_id", "sequence"),
    UniqueConstraint("identifier"),
    CheckConstraint(f"sequence BETWEEN 0 AND {SLOTS_PER_WINDOW - 1}", name="sequence"),
    CheckConstraint("value <> 0 AND abs(value) < 1000000000000000", name="value"),
    CheckConstraint("length(identifier) <= 100", name="identifier"),
    CheckConstraint("date_trunc('minute', slot_at) = slot_at", name="slot_at"),
    CheckConstraint(
        "state IN ('pending', 'adopted', 'replaced') OR first_attempt_at IS NOT NULL OR hold_reason IS NOT NULL",
        name="attempted_before_outcome",
    ),
    # One delta at a time: the next is computed only when the outcome of the last is known.
    Index(
        "ledger_entries_one_open",
        "window_id",
        unique=True,
        postgresql_where=text("state IN ('pending', 'ambiguous')"),
    ),
    Index(
        "ledger_entries_due_idx",
        "next_attempt_at",
        postgresql_where=text("state IN ('pending', 'ambiguous') AND hold_reason IS NULL"),
    ),
    # Not per window: Stripe sums a customer's minute, whichever of our windows an entry came from.
    # Recovery puts what Stripe shows where a replaced entry was.
    Index(
        "ledger_entries_slot_key",
        "stripe_customer_id",
        "event_name",
        "slot_at",
        unique=True,
        postgresql_where=text("state <> 'replaced'"),
    ),
    Index(
        "ledger_entries_unsettled_idx",
        "stripe_customer_id",
        "event_name",
        "slot_at",
        postgresql_where=text("state IN ('ambiguous', 'accepted')"),
    ),
    # Reconciliation reads the hours of its span, and whatever is not settled before them.
    Index("ledger_entries_slot_at_idx", "slot_at"),
    Index(
        "ledger_entries_not_settled_idx",
        "window_id",
        postgresql_where=text("state IN ('pending', 'ambiguous', 'accepted') OR hold_reason IS NOT NULL"),
    ),
)

attempts = Table(
    "attempts",
    metadata,
    Column("attempt_id", BigInteger, Identity(always=True), primary_key=True),
    Column("entry_id", BigInteger, ForeignKey(ledger_entries.c.entry_id), nullable=False),
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
    Column("synced_at", Instant, nullable=False),
    CheckConstraint("NOT isempty(during)", name="during"),
    ExcludeConstraint(
        (text("billing_pipeline.text_range(stripe_customer_id, stripe_customer_id, '[]')"), "&&"),
        (text("billing_pipeline.text_range(event_name, event_name, '[]')"), "&&"),
        ("during", "&&"),
        using="gist",
        name="billing_periods_one_at_a_time",
    ),
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

ledger_operations = Table(
    "ledger_operations",
    metadata,
    Column("operation_id", BigInteger, Identity(always=True), primary_key=True),
    Column("action", Text, nullable=False),
    Column("actor", Text, nullable=False, comment="who did it; the pipeline itself for a freeze"),
    Column("reason", Text, nullable=False),
    Column("details", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("done_at", Instant, nullable=False),
    CheckConstraint("action IN ('freeze', 'adopt', 'release', 'release_hold')", name="action"),
)


def _schema_sql(name: str) -> str:
    return (resources.files("billing_pipeline.database") / "schema" / name).read_text(encoding="utf-8")


def _attach(when: str, name: str) -> None:
    # DDL() formats its text with %, which plpgsql uses for its own placeholders.
    event.listen(metadata, when, DDL(_schema_sql(name).replace("%", "%%")))  # type: ignore[no-untyped-call]


_attach("before_create", "types.sql")
_attach("after_create", "contract.sql")
_attach("after_create", "guards.sql")
