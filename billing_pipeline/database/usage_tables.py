"""Tables from the source to the usage window: what was used, whose it is, and what it is worth.

`billable_events` belongs to the upstream team; the copy here is created only by the embedded default, the demo and
tests (`migrate.create_default_source`).
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
    LargeBinary,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSTZRANGE, ExcludeConstraint

from billing_pipeline.database.base import DATABASE_NOW, SCHEMA, Instant, metadata, source_metadata

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


source_shapes = Table(
    "source_shapes",
    metadata,
    Column("relation", Text, primary_key=True, comment="as BILLING_SOURCE_RELATION names it"),
    Column("kind", Text, nullable=False, comment="table, view, ..."),
    Column("columns", JSONB, nullable=False, comment="those we read: our name, theirs, type, enum labels"),
    Column("changed_at", Instant, nullable=False, comment="the validation that first saw it so"),
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
    Column("known_event_types", ARRAY(Text), comment="that rows were judged by; null: the source was not read"),
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
    Column("occurred_at", Instant, comment="null: absent, or a time that Python cannot hold"),
    Column("first_seen_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Column("last_seen_at", Instant, nullable=False, server_default=DATABASE_NOW),
    Column("mended_at", Instant, comment="the row was put right, or taken away, upstream"),
    Column("dismissed_at", Instant, comment="a person decided that the row as found is nobody's usage"),
    Column("dismissed_by", Text),
    Column("dismissed_reason", Text),
    CheckConstraint("num_nonnulls(dismissed_at, dismissed_by, dismissed_reason) IN (0, 3)", name="dismissal"),
    # Per reason, the oldest first, is how people and the hourly check look at what waits.
    Index(
        "quarantined_events_waiting_idx",
        "reason",
        "first_seen_at",
        "event_id",
        postgresql_where=text("mended_at IS NULL AND dismissed_at IS NULL"),
    ),
    # Each flush looks again at what came last of all that is not mended, dismissed or not.
    Index("quarantined_events_not_mended_idx", "first_seen_at", "event_id", postgresql_where=text("mended_at IS NULL")),
    # Aggregation counts anew the hours of rows that were mended since its last cutoff.
    Index("quarantined_events_mended_at_idx", "mended_at", postgresql_where=text("mended_at IS NOT NULL")),
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
    Column("choices", ARRAY(JSONB), comment="an event's properties must contain one of these; null: all do"),
    Column("property", Text, comment="of unique: whose different values are counted"),
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
        comment="the part of target that makes up for fractions of its customer, meter, month and period",
    ),
    Column("units", Numeric, nullable=False, server_default=text("0"), comment="quantity times unit scale, exact"),
    Column("quantity", Numeric, nullable=False, comment="before the unit scale, exact"),
    Column(
        "period_level",
        Numeric,
        comment="of max, last and unique: Stripe units of the billing period up to here; null: a sum or count",
    ),
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
    Column("cut_after", Instant, comment="so many corrections that the next waits until then, and takes all since"),
    Column("hold_reason", Text, comment="not null: owed, but cannot be cut; waits for a person"),
    Column("hold_detail", Text, comment="the limit that was exceeded, for a person"),
    Column("held_at", Instant, comment="when the cutter first held it; kept while it is only looked at anew"),
    Column("held_target", Numeric, comment="the target that is held; another one is looked at anew"),
    Column("last_slots_released_at", Instant, comment="a person let the cutter use the reserved last minutes"),
    Column("released_target", Numeric, comment="a person let it be stated up to here, whatever the brakes say"),
    Column("released_floor", Numeric, comment="a person let it be taken back down to here, until something is added"),
    Column("sealed_at", Instant, comment="the invoice is final; only an adjustment may follow"),
    CheckConstraint("starts_at < ends_at", name="span"),
    CheckConstraint("target >= 0 AND target = trunc(target)", name="target"),
    CheckConstraint(
        "date_trunc('hour', starts_at AT TIME ZONE 'UTC') = "
        "date_trunc('hour', (ends_at - interval '1 microsecond') AT TIME ZONE 'UTC')",
        name="one_hour",
    ),
    # In this order it also finds an organization's hour whosever it is.
    UniqueConstraint(
        "organization_id",
        "meter",
        "starts_at",
        "ends_at",
        "stripe_customer_id",
        name="usage_windows_natural_key",
        postgresql_nulls_not_distinct=True,
    ),
    # The cutter looks only here, so its cost follows the work to do, not the history.
    Index(
        "usage_windows_cut_due_idx",
        "ends_at",
        "window_id",
        postgresql_where=text(
            "cut_due AND hold_reason IS NULL AND stripe_customer_id IS NOT NULL AND sealed_at IS NULL"
        ),
    ),
    Index("usage_windows_starts_at_idx", "starts_at"),
    # Only these can leave a rest to carry; of integer meters there are none.
    Index(
        "usage_windows_fractions_idx",
        "starts_at",
        postgresql_where=text("units <> trunc(units) OR carried <> 0"),
    ),
    # A level goes on from the window before.
    Index(
        "usage_windows_period_levels_idx",
        "organization_id",
        "starts_at",
        postgresql_where=text("period_level IS NOT NULL"),
    ),
    # What waits for a person: to be listed, to be looked at anew, and whether anything of an organization does.
    Index(
        "usage_windows_held_idx",
        "organization_id",
        "meter",
        "window_id",
        postgresql_where=text("hold_reason IS NOT NULL"),
    ),
    # Usage that no Stripe customer can take, and there may be much of it: of trials, say.
    Index(
        "usage_windows_unmapped_idx",
        "organization_id",
        postgresql_where=text("stripe_customer_id IS NULL AND target > 0"),
    ),
    # What is not settled stays in sight however old it is.
    Index("usage_windows_not_settled_idx", "starts_at", postgresql_where=text("cut_due OR hold_reason IS NOT NULL")),
)

usual_hours = Table(
    "usual_hours",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("meter_version", Text, nullable=False, comment="to another definition, these hours are no measure"),
    Column("hours", BigInteger, nullable=False, comment="with usage, of the last 28 days"),
    Column("median", Numeric, nullable=False, comment="Stripe units of such an hour, exact"),
    comment="what an organization uses of a meter in an hour, for the brakes; made anew by each full aggregation",
)

unique_values = Table(
    "unique_values",
    metadata,
    Column("window_id", BigInteger, ForeignKey(usage_windows.c.window_id), primary_key=True),
    Column("value", LargeBinary, primary_key=True, comment="SHA-256 of the property's value"),
    Column("organization_id", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("starts_at", Instant, nullable=False, comment="the window's"),
    # Is this value new in its billing period?
    Index("unique_values_seen_idx", "organization_id", "meter", "value", "starts_at"),
    comment="which values of a property each window of a unique meter has seen",
)
