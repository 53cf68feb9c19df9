-- The schema as of this migration, frozen; tables.py moves on.

CREATE TYPE billing_pipeline.entry_state AS ENUM ('pending', 'ambiguous', 'accepted', 'confirmed', 'adopted', 'rejected', 'replaced');

-- Types the tables need before they can be created.

-- A range over text: `text_range(x, x, '[]') && text_range(y, y, '[]')` is `x = y`, but GiST can index it
-- with what PostgreSQL ships; managed servers do not always offer the btree_gist extension.
CREATE TYPE billing_pipeline.text_range AS RANGE (subtype = text, collation = "C");

CREATE TABLE billing_pipeline.source_shapes (
    relation TEXT NOT NULL,
    kind TEXT NOT NULL,
    columns JSONB NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT source_shapes_pkey PRIMARY KEY (relation)
);
COMMENT ON COLUMN billing_pipeline.source_shapes.relation IS 'as BILLING_SOURCE_RELATION names it';
COMMENT ON COLUMN billing_pipeline.source_shapes.kind IS 'table, view, ...';
COMMENT ON COLUMN billing_pipeline.source_shapes.columns IS 'those we read: our name, theirs, type, enum labels';
COMMENT ON COLUMN billing_pipeline.source_shapes.changed_at IS 'the validation that first saw it so';

CREATE TABLE billing_pipeline.customer_mappings (
    mapping_id BIGINT GENERATED ALWAYS AS IDENTITY,
    organization_id TEXT NOT NULL,
    stripe_customer_id TEXT NOT NULL,
    valid_during TSTZRANGE DEFAULT '(,)' NOT NULL,
    created_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT customer_mappings_pkey PRIMARY KEY (mapping_id),
    CONSTRAINT customer_mappings_valid_during_check CHECK (NOT isempty(valid_during)),
    CONSTRAINT customer_mappings_one_customer EXCLUDE USING gist (billing_pipeline.text_range(organization_id, organization_id, '[]') WITH &&, valid_during WITH &&),
    CONSTRAINT customer_mappings_one_organization EXCLUDE USING gist (billing_pipeline.text_range(stripe_customer_id, stripe_customer_id, '[]') WITH &&, valid_during WITH &&)
);
COMMENT ON COLUMN billing_pipeline.customer_mappings.valid_during IS 'half-open, UTC';

CREATE TABLE billing_pipeline.contract_runs (
    contract_run_id BIGINT GENERATED ALWAYS AS IDENTITY,
    contract_version TEXT NOT NULL,
    catalogue_version TEXT NOT NULL,
    cutoff_at TIMESTAMPTZ NOT NULL,
    rows_read BIGINT NOT NULL,
    faults JSONB NOT NULL,
    passed BOOLEAN NOT NULL,
    known_event_types TEXT[],
    finished_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT contract_runs_pkey PRIMARY KEY (contract_run_id)
);
COMMENT ON COLUMN billing_pipeline.contract_runs.cutoff_at IS 'rows recorded before this were read';
COMMENT ON COLUMN billing_pipeline.contract_runs.faults IS 'per rule: reason, severity, count, sample ids';
COMMENT ON COLUMN billing_pipeline.contract_runs.passed IS 'no table fault; row faults are quarantined instead';
COMMENT ON COLUMN billing_pipeline.contract_runs.known_event_types IS 'that rows were judged by; null: the source was not read';

CREATE TABLE billing_pipeline.quarantined_events (
    event_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    contract_version TEXT NOT NULL,
    organization_id TEXT,
    event_type TEXT,
    quantity TEXT,
    occurred_at TIMESTAMPTZ,
    first_seen_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    last_seen_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    mended_at TIMESTAMPTZ,
    dismissed_at TIMESTAMPTZ,
    dismissed_by TEXT,
    dismissed_reason TEXT,
    CONSTRAINT quarantined_events_pkey PRIMARY KEY (event_id),
    CONSTRAINT quarantined_events_dismissal_check CHECK (num_nonnulls(dismissed_at, dismissed_by, dismissed_reason) IN (0, 3))
);
CREATE INDEX quarantined_events_mended_at_idx ON billing_pipeline.quarantined_events (mended_at) WHERE mended_at IS NOT NULL;
CREATE INDEX quarantined_events_not_mended_idx ON billing_pipeline.quarantined_events (first_seen_at, event_id) WHERE mended_at IS NULL;
CREATE INDEX quarantined_events_waiting_idx ON billing_pipeline.quarantined_events (reason, first_seen_at, event_id) WHERE mended_at IS NULL AND dismissed_at IS NULL;
COMMENT ON COLUMN billing_pipeline.quarantined_events.quantity IS 'as found; may be no number';
COMMENT ON COLUMN billing_pipeline.quarantined_events.occurred_at IS 'null: absent, or a time that Python cannot hold';
COMMENT ON COLUMN billing_pipeline.quarantined_events.mended_at IS 'the row was put right, or taken away, upstream';
COMMENT ON COLUMN billing_pipeline.quarantined_events.dismissed_at IS 'a person decided that the row as found is nobody''s usage';

CREATE TABLE billing_pipeline.aggregations (
    aggregation_id BIGINT GENERATED ALWAYS AS IDENTITY,
    scope TEXT NOT NULL,
    cutoff_at TIMESTAMPTZ NOT NULL,
    windows_computed BIGINT NOT NULL,
    windows_changed BIGINT NOT NULL,
    finished_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT aggregations_pkey PRIMARY KEY (aggregation_id),
    CONSTRAINT aggregations_scope_check CHECK (scope IN ('touched', 'full'))
);
COMMENT ON COLUMN billing_pipeline.aggregations.scope IS 'touched: windows with new rows; full: the whole lookback';
COMMENT ON COLUMN billing_pipeline.aggregations.cutoff_at IS 'clock of the snapshot that was read';

CREATE TABLE billing_pipeline.meter_versions (
    meter TEXT NOT NULL,
    version TEXT NOT NULL,
    event_types TEXT[] NOT NULL,
    aggregation TEXT NOT NULL,
    event_name TEXT NOT NULL,
    unit_scale NUMERIC NOT NULL,
    choices JSONB[],
    property TEXT,
    valid_from TIMESTAMPTZ NOT NULL,
    valid_until TIMESTAMPTZ,
    CONSTRAINT meter_versions_pkey PRIMARY KEY (meter, valid_from),
    CONSTRAINT meter_versions_span_check CHECK (valid_from < valid_until),
    CONSTRAINT meter_versions_one_at_a_time EXCLUDE USING gist (billing_pipeline.text_range(meter, meter, '[]') WITH &&, tstzrange(valid_from, valid_until) WITH &&)
);
COMMENT ON COLUMN billing_pipeline.meter_versions.version IS 'hash of the definition in this row';
COMMENT ON COLUMN billing_pipeline.meter_versions.event_name IS 'Stripe''s meter event name';
COMMENT ON COLUMN billing_pipeline.meter_versions.unit_scale IS 'Stripe units per unit of quantity';
COMMENT ON COLUMN billing_pipeline.meter_versions.choices IS 'an event''s properties must contain one of these; null: all do';
COMMENT ON COLUMN billing_pipeline.meter_versions.property IS 'of unique: whose different values are counted';
COMMENT ON COLUMN billing_pipeline.meter_versions.valid_from IS 'a full UTC hour';
COMMENT ON COLUMN billing_pipeline.meter_versions.valid_until IS 'a full UTC hour; null: the catalogue still says so';

CREATE TABLE billing_pipeline.usage_windows (
    window_id BIGINT GENERATED ALWAYS AS IDENTITY,
    organization_id TEXT NOT NULL,
    stripe_customer_id TEXT,
    meter TEXT NOT NULL,
    meter_version TEXT NOT NULL,
    event_name TEXT NOT NULL,
    starts_at TIMESTAMPTZ NOT NULL,
    ends_at TIMESTAMPTZ NOT NULL,
    target NUMERIC NOT NULL,
    carried NUMERIC DEFAULT 0 NOT NULL,
    units NUMERIC DEFAULT 0 NOT NULL,
    quantity NUMERIC NOT NULL,
    period_level NUMERIC,
    event_count BIGINT NOT NULL,
    last_recorded_at TIMESTAMPTZ,
    contract_version TEXT NOT NULL,
    cutoff_at TIMESTAMPTZ NOT NULL,
    cut_due BOOLEAN DEFAULT true NOT NULL,
    cut_after TIMESTAMPTZ,
    hold_reason TEXT,
    hold_detail TEXT,
    held_at TIMESTAMPTZ,
    held_target NUMERIC,
    last_slots_released_at TIMESTAMPTZ,
    released_target NUMERIC,
    released_floor NUMERIC,
    sealed_at TIMESTAMPTZ,
    CONSTRAINT usage_windows_pkey PRIMARY KEY (window_id),
    CONSTRAINT usage_windows_span_check CHECK (starts_at < ends_at),
    CONSTRAINT usage_windows_target_check CHECK (target >= 0 AND target = trunc(target)),
    CONSTRAINT usage_windows_one_hour_check CHECK (date_trunc('hour', starts_at AT TIME ZONE 'UTC') = date_trunc('hour', (ends_at - interval '1 microsecond') AT TIME ZONE 'UTC')),
    CONSTRAINT usage_windows_natural_key UNIQUE NULLS NOT DISTINCT (organization_id, meter, starts_at, ends_at, stripe_customer_id)
);
CREATE INDEX usage_windows_cut_due_idx ON billing_pipeline.usage_windows (ends_at, window_id) WHERE cut_due AND hold_reason IS NULL AND stripe_customer_id IS NOT NULL AND sealed_at IS NULL;
CREATE INDEX usage_windows_fractions_idx ON billing_pipeline.usage_windows (starts_at) WHERE units <> trunc(units) OR carried <> 0;
CREATE INDEX usage_windows_held_idx ON billing_pipeline.usage_windows (organization_id, meter, window_id) WHERE hold_reason IS NOT NULL;
CREATE INDEX usage_windows_not_settled_idx ON billing_pipeline.usage_windows (starts_at) WHERE cut_due OR hold_reason IS NOT NULL;
CREATE INDEX usage_windows_period_levels_idx ON billing_pipeline.usage_windows (organization_id, starts_at) WHERE period_level IS NOT NULL;
CREATE INDEX usage_windows_starts_at_idx ON billing_pipeline.usage_windows (starts_at);
CREATE INDEX usage_windows_unmapped_idx ON billing_pipeline.usage_windows (organization_id) WHERE stripe_customer_id IS NULL AND target > 0;
COMMENT ON COLUMN billing_pipeline.usage_windows.stripe_customer_id IS 'null: unmapped; owed, never sent';
COMMENT ON COLUMN billing_pipeline.usage_windows.meter_version IS 'the definition that counted it; empty: adopted, not counted';
COMMENT ON COLUMN billing_pipeline.usage_windows.event_name IS 'Stripe''s meter event name in this window''s hour';
COMMENT ON COLUMN billing_pipeline.usage_windows.target IS 'what the source says now, in whole Stripe units';
COMMENT ON COLUMN billing_pipeline.usage_windows.carried IS 'the part of target that makes up for fractions of its customer, meter, month and period';
COMMENT ON COLUMN billing_pipeline.usage_windows.units IS 'quantity times unit scale, exact';
COMMENT ON COLUMN billing_pipeline.usage_windows.quantity IS 'before the unit scale, exact';
COMMENT ON COLUMN billing_pipeline.usage_windows.period_level IS 'of max, last and unique: Stripe units of the billing period up to here; null: a sum or count';
COMMENT ON COLUMN billing_pipeline.usage_windows.last_recorded_at IS 'with count and quantity: the digest of the rows';
COMMENT ON COLUMN billing_pipeline.usage_windows.cutoff_at IS 'clock of the snapshot the target was read in';
COMMENT ON COLUMN billing_pipeline.usage_windows.cut_due IS 'target may differ from stated';
COMMENT ON COLUMN billing_pipeline.usage_windows.cut_after IS 'so many corrections that the next waits until then, and takes all since';
COMMENT ON COLUMN billing_pipeline.usage_windows.hold_reason IS 'not null: owed, but cannot be cut; waits for a person';
COMMENT ON COLUMN billing_pipeline.usage_windows.hold_detail IS 'the limit that was exceeded, for a person';
COMMENT ON COLUMN billing_pipeline.usage_windows.held_at IS 'when the cutter first held it; kept while it is only looked at anew';
COMMENT ON COLUMN billing_pipeline.usage_windows.held_target IS 'the target that is held; another one is looked at anew';
COMMENT ON COLUMN billing_pipeline.usage_windows.last_slots_released_at IS 'a person let the cutter use the reserved last minutes';
COMMENT ON COLUMN billing_pipeline.usage_windows.released_target IS 'a person let it be stated up to here, whatever the brakes say';
COMMENT ON COLUMN billing_pipeline.usage_windows.released_floor IS 'a person let it be taken back down to here, until something is added';
COMMENT ON COLUMN billing_pipeline.usage_windows.sealed_at IS 'the invoice is final; only an adjustment may follow';

CREATE TABLE billing_pipeline.usual_hours (
    organization_id TEXT NOT NULL,
    meter TEXT NOT NULL,
    meter_version TEXT NOT NULL,
    hours BIGINT NOT NULL,
    median NUMERIC NOT NULL,
    CONSTRAINT usual_hours_pkey PRIMARY KEY (organization_id, meter)
);
COMMENT ON TABLE billing_pipeline.usual_hours IS 'what an organization uses of a meter in an hour, for the brakes; made anew by each full aggregation';
COMMENT ON COLUMN billing_pipeline.usual_hours.meter_version IS 'to another definition, these hours are no measure';
COMMENT ON COLUMN billing_pipeline.usual_hours.hours IS 'with usage, of the last 28 days';
COMMENT ON COLUMN billing_pipeline.usual_hours.median IS 'Stripe units of such an hour, exact';

CREATE TABLE billing_pipeline.invoice_adjustments (
    adjustment_id BIGINT GENERATED ALWAYS AS IDENTITY,
    identifier TEXT NOT NULL,
    stripe_invoice_id TEXT NOT NULL,
    stripe_customer_id TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    meter TEXT NOT NULL,
    event_name TEXT NOT NULL,
    units NUMERIC NOT NULL,
    currency TEXT,
    unit_amount NUMERIC,
    starts_at TIMESTAMPTZ NOT NULL,
    ends_at TIMESTAMPTZ NOT NULL,
    state TEXT NOT NULL,
    stripe_invoice_item_id TEXT,
    attempts INTEGER DEFAULT 0 NOT NULL,
    first_attempt_at TIMESTAMPTZ,
    last_attempt_at TIMESTAMPTZ,
    retry_at TIMESTAMPTZ,
    settled_at TIMESTAMPTZ,
    last_error TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT invoice_adjustments_pkey PRIMARY KEY (adjustment_id),
    CONSTRAINT invoice_adjustments_state_check CHECK (state IN ('pending', 'ambiguous', 'applied', 'refused', 'written_off')),
    CONSTRAINT invoice_adjustments_applied_check CHECK ((state = 'applied') = (stripe_invoice_item_id IS NOT NULL)),
    CONSTRAINT invoice_adjustments_price_check CHECK ((state = 'written_off') = (unit_amount IS NULL)),
    CONSTRAINT invoice_adjustments_currency_check CHECK ((unit_amount IS NULL) = (currency IS NULL)),
    CONSTRAINT invoice_adjustments_units_check CHECK (units <> 0 AND units = trunc(units)),
    CONSTRAINT invoice_adjustments_stripe_invoice_id_organization_id_m_11ce UNIQUE (stripe_invoice_id, organization_id, meter, event_name),
    CONSTRAINT invoice_adjustments_identifier_key UNIQUE (identifier)
);
CREATE INDEX invoice_adjustments_open_idx ON billing_pipeline.invoice_adjustments (adjustment_id) WHERE state IN ('pending', 'ambiguous');
COMMENT ON TABLE billing_pipeline.invoice_adjustments IS 'usage billed, or not, after its period''s invoice was final';
COMMENT ON COLUMN billing_pipeline.invoice_adjustments.identifier IS 'the item''s name at Stripe';
COMMENT ON COLUMN billing_pipeline.invoice_adjustments.units IS 'whole Stripe units; below zero they are given back';
COMMENT ON COLUMN billing_pipeline.invoice_adjustments.unit_amount IS 'minor units of the currency; null: written off';
COMMENT ON COLUMN billing_pipeline.invoice_adjustments.starts_at IS 'of the first usage window';
COMMENT ON COLUMN billing_pipeline.invoice_adjustments.ends_at IS 'of the last';
COMMENT ON COLUMN billing_pipeline.invoice_adjustments.retry_at IS 'not asked about before';
COMMENT ON COLUMN billing_pipeline.invoice_adjustments.last_error IS 'Stripe''s words';

CREATE TABLE billing_pipeline.closed_invoices (
    stripe_invoice_id TEXT NOT NULL,
    closed_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT closed_invoices_pkey PRIMARY KEY (stripe_invoice_id)
);
COMMENT ON COLUMN billing_pipeline.closed_invoices.closed_at IS 'its customer''s usage was flushed, its adjustments written';

CREATE TABLE billing_pipeline.stripe_events (
    stripe_event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    payload_style TEXT NOT NULL,
    api_version TEXT,
    livemode BOOLEAN NOT NULL,
    stripe_account TEXT,
    object_id TEXT,
    object_key TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    tenant_hint TEXT,
    raw_body BYTEA,
    body_digest BYTEA,
    payload JSONB,
    origin TEXT NOT NULL,
    matched_secret TEXT,
    received_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    attempted_at TIMESTAMPTZ,
    processed_at TIMESTAMPTZ,
    failed_at TIMESTAMPTZ,
    processing_outcome TEXT DEFAULT 'received' NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    error_class TEXT,
    processing_error TEXT,
    CONSTRAINT stripe_events_pkey PRIMARY KEY (stripe_event_id),
    CONSTRAINT stripe_events_stripe_event_id_check CHECK (stripe_event_id ~ '^evt_'),
    CONSTRAINT stripe_events_payload_style_check CHECK (payload_style IN ('snapshot', 'thin')),
    CONSTRAINT stripe_events_origin_check CHECK (origin IN ('webhook', 'sweep')),
    CONSTRAINT stripe_events_processing_outcome_check CHECK (processing_outcome IN ('received', 'processed', 'ignored', 'failed', 'parked')),
    CONSTRAINT stripe_events_processed_at_check CHECK ((processing_outcome IN ('processed', 'ignored')) = (processed_at IS NOT NULL)),
    CONSTRAINT stripe_events_failed_whole_check CHECK (processing_outcome NOT IN ('failed', 'parked') OR num_nonnulls(failed_at, error_class, processing_error) = 3)
);
CREATE INDEX stripe_events_bodies_idx ON billing_pipeline.stripe_events (received_at) WHERE processed_at IS NOT NULL AND payload IS NOT NULL;
CREATE INDEX stripe_events_failed_idx ON billing_pipeline.stripe_events (received_at) WHERE processing_outcome IN ('failed', 'parked');
CREATE INDEX stripe_events_received_at_idx ON billing_pipeline.stripe_events (received_at);
COMMENT ON COLUMN billing_pipeline.stripe_events.payload_style IS 'snapshot: with the object; thin: only what it is about';
COMMENT ON COLUMN billing_pipeline.stripe_events.api_version IS 'the shape of the object in the payload; null: thin, or older than versions';
COMMENT ON COLUMN billing_pipeline.stripe_events.stripe_account IS 'a connected account; null: our own';
COMMENT ON COLUMN billing_pipeline.stripe_events.object_id IS 'what the event is about; null: nothing with an id';
COMMENT ON COLUMN billing_pipeline.stripe_events.object_key IS 'events with the same key are handled one at a time, in order';
COMMENT ON COLUMN billing_pipeline.stripe_events.created_at IS 'Stripe''s; whole seconds, milliseconds where thin';
COMMENT ON COLUMN billing_pipeline.stripe_events.tenant_hint IS 'the organization that the object''s metadata names; only a hint';
COMMENT ON COLUMN billing_pipeline.stripe_events.raw_body IS 'the bytes that were signed; null: swept, or their retention is over';
COMMENT ON COLUMN billing_pipeline.stripe_events.body_digest IS 'SHA-256 of the raw body';
COMMENT ON COLUMN billing_pipeline.stripe_events.payload IS 'the same, parsed; null: its retention is over';
COMMENT ON COLUMN billing_pipeline.stripe_events.origin IS 'webhook: delivered; sweep: found in Stripe''s list';
COMMENT ON COLUMN billing_pipeline.stripe_events.matched_secret IS 'prefix and last four of the secret that signed it; null: swept';
COMMENT ON COLUMN billing_pipeline.stripe_events.attempted_at IS 'when it was last handled, well or not';
COMMENT ON COLUMN billing_pipeline.stripe_events.processed_at IS 'when it came to its end: processed or ignored';
COMMENT ON COLUMN billing_pipeline.stripe_events.failed_at IS 'when it last failed';
COMMENT ON COLUMN billing_pipeline.stripe_events.error_class IS 'what kind of failure, for triage';
COMMENT ON COLUMN billing_pipeline.stripe_events.processing_error IS 'what failed and what to do next, without secrets or personal data';

CREATE TABLE billing_pipeline.object_refetches (
    object_id TEXT NOT NULL,
    object_kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    not_before TIMESTAMPTZ NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    error TEXT,
    CONSTRAINT object_refetches_pkey PRIMARY KEY (object_id, object_kind)
);
CREATE INDEX object_refetches_due_idx ON billing_pipeline.object_refetches (due_at);
COMMENT ON TABLE billing_pipeline.object_refetches IS 'objects that only Stripe can tell the state of; asked after the transaction that found out';
COMMENT ON COLUMN billing_pipeline.object_refetches.object_id IS 'of a customer''s entitlements: the customer';
COMMENT ON COLUMN billing_pipeline.object_refetches.reason IS 'tie: two versions of one second; incomplete: a list cut short';
COMMENT ON COLUMN billing_pipeline.object_refetches.not_before IS 'Stripe''s clock must be past this for an answer to decide';

CREATE TABLE billing_pipeline.object_snapshots (
    snapshot_id BIGINT GENERATED ALWAYS AS IDENTITY,
    object_id TEXT NOT NULL,
    object_kind TEXT NOT NULL,
    read_at TIMESTAMPTZ NOT NULL,
    reason TEXT NOT NULL,
    payload JSONB,
    stored_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT object_snapshots_pkey PRIMARY KEY (snapshot_id)
);
CREATE INDEX object_snapshots_object_idx ON billing_pipeline.object_snapshots (object_kind, object_id);
CREATE INDEX object_snapshots_payloads_idx ON billing_pipeline.object_snapshots (stored_at) WHERE payload IS NOT NULL;
COMMENT ON TABLE billing_pipeline.object_snapshots IS 'objects as Stripe showed them when asked; with the events, what every projection can be made anew from';
COMMENT ON COLUMN billing_pipeline.object_snapshots.read_at IS 'Stripe''s clock, whole seconds';
COMMENT ON COLUMN billing_pipeline.object_snapshots.payload IS 'the object, deleted: true where it is gone; null: its retention is over';

CREATE TABLE billing_pipeline.event_sweeps (
    sweep_id BIGINT GENERATED ALWAYS AS IDENTITY,
    complete_from TIMESTAMPTZ NOT NULL,
    complete_through TIMESTAMPTZ NOT NULL,
    events_listed BIGINT NOT NULL,
    events_missing BIGINT NOT NULL,
    events_unreadable BIGINT NOT NULL,
    gap_from TIMESTAMPTZ,
    gap_closed_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT event_sweeps_pkey PRIMARY KEY (sweep_id),
    CONSTRAINT event_sweeps_span_check CHECK (complete_from <= complete_through),
    CONSTRAINT event_sweeps_gap_check CHECK (gap_from < complete_from),
    CONSTRAINT event_sweeps_gap_closed_check CHECK (gap_closed_at IS NULL OR gap_from IS NOT NULL)
);
COMMENT ON COLUMN billing_pipeline.event_sweeps.complete_through IS 'every event of Stripe''s until then is in the inbox';
COMMENT ON COLUMN billing_pipeline.event_sweeps.events_missing IS 'never delivered; inserted by this sweep';
COMMENT ON COLUMN billing_pipeline.event_sweeps.events_unreadable IS 'listed, and could not be stored';
COMMENT ON COLUMN billing_pipeline.event_sweeps.gap_from IS 'from here to complete_from nobody swept and Stripe lists no more';
COMMENT ON COLUMN billing_pipeline.event_sweeps.gap_closed_at IS 'when all objects had been read anew, which makes up for the gap';

CREATE TABLE billing_pipeline.signature_failures (
    minute_at TIMESTAMPTZ NOT NULL,
    reason TEXT NOT NULL,
    deliveries BIGINT NOT NULL,
    CONSTRAINT signature_failures_pkey PRIMARY KEY (minute_at, reason)
);
COMMENT ON TABLE billing_pipeline.signature_failures IS 'deliveries refused for their signature, counted by minute: the requests themselves are not kept';

CREATE TABLE billing_pipeline.delivery_counts (
    hour_at TIMESTAMPTZ NOT NULL,
    event_type TEXT NOT NULL,
    result TEXT NOT NULL,
    deliveries BIGINT NOT NULL,
    CONSTRAINT delivery_counts_pkey PRIMARY KEY (hour_at, event_type, result)
);
COMMENT ON TABLE billing_pipeline.delivery_counts IS 'signed deliveries by hour; repetitions leave no other trace';
COMMENT ON COLUMN billing_pipeline.delivery_counts.result IS 'accepted, duplicate or requeued';

CREATE TABLE billing_pipeline.lanes (
    stripe_customer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    latest_slot_at TIMESTAMPTZ NOT NULL,
    read_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT lanes_pkey PRIMARY KEY (stripe_customer_id, event_name)
);
CREATE INDEX lanes_read_at_idx ON billing_pipeline.lanes (read_at);
COMMENT ON COLUMN billing_pipeline.lanes.latest_slot_at IS 'an idle lane leaves the reach, and is read no more';
COMMENT ON COLUMN billing_pipeline.lanes.read_at IS 'when all its days in reach were last compared with Stripe';

CREATE TABLE billing_pipeline.ledger_identity (
    singleton BOOLEAN DEFAULT true NOT NULL,
    ledger_id UUID NOT NULL,
    stripe_account TEXT NOT NULL,
    livemode BOOLEAN NOT NULL,
    epoch INTEGER DEFAULT 0 NOT NULL,
    database_system_id TEXT,
    database_timeline TEXT,
    frozen_reason TEXT,
    frozen_at TIMESTAMPTZ,
    bound_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT ledger_identity_pkey PRIMARY KEY (singleton),
    CONSTRAINT ledger_identity_singleton_check CHECK (singleton),
    CONSTRAINT ledger_identity_frozen_whole_check CHECK ((frozen_reason IS NULL) = (frozen_at IS NULL))
);
COMMENT ON COLUMN billing_pipeline.ledger_identity.stripe_account IS 'the account this ledger states usage to';
COMMENT ON COLUMN billing_pipeline.ledger_identity.epoch IS 'raised by recovery only';
COMMENT ON COLUMN billing_pipeline.ledger_identity.database_system_id IS 'pg_control_system(); null where the server hides it';
COMMENT ON COLUMN billing_pipeline.ledger_identity.database_timeline IS 'changes when a backup is restored or a standby promoted';
COMMENT ON COLUMN billing_pipeline.ledger_identity.frozen_reason IS 'not null: nothing is sent until a person releases it';

CREATE TABLE billing_pipeline.attempts (
    attempt_id BIGINT GENERATED ALWAYS AS IDENTITY,
    entry_id BIGINT NOT NULL,
    fence BIGINT NOT NULL,
    channel TEXT NOT NULL,
    started_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    finished_at TIMESTAMPTZ,
    outcome TEXT,
    http_status SMALLINT,
    error_code TEXT,
    error_message TEXT,
    request_id TEXT,
    CONSTRAINT attempts_pkey PRIMARY KEY (attempt_id),
    CONSTRAINT attempts_entry_id_fence_key UNIQUE (entry_id, fence),
    CONSTRAINT attempts_channel_check CHECK (channel IN ('v1', 'v2_stream')),
    CONSTRAINT attempts_outcome_check CHECK (outcome IN ('ok', 'duplicate', 'not_executed', 'rejected', 'unknown'))
)
 WITH (fillfactor = 40);
COMMENT ON COLUMN billing_pipeline.attempts.outcome IS 'null: not known; the entry stays ambiguous';
COMMENT ON COLUMN billing_pipeline.attempts.error_message IS 'Stripe''s words, without secrets';
COMMENT ON COLUMN billing_pipeline.attempts.request_id IS 'Stripe''s request id';

CREATE TABLE billing_pipeline.meter_summaries (
    stripe_customer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    hour_at TIMESTAMPTZ NOT NULL,
    observed BIGINT NOT NULL,
    observed_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT meter_summaries_pkey PRIMARY KEY (stripe_customer_id, event_name, hour_at)
);
COMMENT ON COLUMN billing_pipeline.meter_summaries.hour_at IS 'start of the UTC hour';
COMMENT ON COLUMN billing_pipeline.meter_summaries.observed IS 'what Stripe last showed for the hour';

CREATE TABLE billing_pipeline.canaries (
    canary_id BIGINT GENERATED ALWAYS AS IDENTITY,
    event_name TEXT NOT NULL,
    stripe_customer_id TEXT NOT NULL,
    slot_at TIMESTAMPTZ NOT NULL,
    identifier TEXT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    outcome TEXT,
    seen_at TIMESTAMPTZ,
    CONSTRAINT canaries_pkey PRIMARY KEY (canary_id),
    CONSTRAINT canaries_identifier_key UNIQUE (identifier),
    CONSTRAINT canaries_event_name_slot_at_key UNIQUE (event_name, slot_at),
    CONSTRAINT canaries_outcome_check CHECK (outcome IN ('ok', 'duplicate', 'not_executed', 'rejected', 'unknown'))
);
CREATE INDEX canaries_unseen_idx ON billing_pipeline.canaries (event_name, started_at) WHERE seen_at IS NULL;
COMMENT ON COLUMN billing_pipeline.canaries.stripe_customer_id IS 'has no subscription, so it is never priced';
COMMENT ON COLUMN billing_pipeline.canaries.started_at IS 'committed before the request leaves, like an attempt';
COMMENT ON COLUMN billing_pipeline.canaries.outcome IS 'null: not known';
COMMENT ON COLUMN billing_pipeline.canaries.seen_at IS 'when a summary first showed it: everything sent before it is settled';

CREATE TABLE billing_pipeline.flush_leases (
    lock_key TEXT NOT NULL,
    holder TEXT NOT NULL,
    fence BIGINT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT flush_leases_pkey PRIMARY KEY (lock_key)
);
COMMENT ON COLUMN billing_pipeline.flush_leases.holder IS 'a Dagster run id, or the command''s own';
COMMENT ON COLUMN billing_pipeline.flush_leases.fence IS 'rises with every new holder';

CREATE TABLE billing_pipeline.billing_periods (
    period_id BIGINT GENERATED ALWAYS AS IDENTITY,
    stripe_customer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    during TSTZRANGE NOT NULL,
    subscription_item_id TEXT NOT NULL,
    synced_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT billing_periods_pkey PRIMARY KEY (period_id),
    CONSTRAINT billing_periods_during_check CHECK (NOT isempty(during)),
    CONSTRAINT billing_periods_one_at_a_time EXCLUDE USING gist (billing_pipeline.text_range(subscription_item_id, subscription_item_id, '[]') WITH &&, billing_pipeline.text_range(event_name, event_name, '[]') WITH &&, during WITH &&)
);
CREATE INDEX billing_periods_end_idx ON billing_pipeline.billing_periods (upper(during));
CREATE INDEX billing_periods_item_idx ON billing_pipeline.billing_periods (subscription_item_id, event_name);
CREATE INDEX billing_periods_lane_idx ON billing_pipeline.billing_periods (stripe_customer_id, event_name);
CREATE INDEX billing_periods_start_idx ON billing_pipeline.billing_periods (lower(during));
COMMENT ON COLUMN billing_pipeline.billing_periods.during IS 'half-open, UTC; as Stripe''s subscription item has it';
COMMENT ON COLUMN billing_pipeline.billing_periods.synced_at IS 'when it became known, or was changed';

CREATE TABLE billing_pipeline.period_syncs (
    sync_id BIGINT GENERATED ALWAYS AS IDENTITY,
    read_at TIMESTAMPTZ NOT NULL,
    items_read BIGINT NOT NULL,
    periods_changed BIGINT NOT NULL,
    finished_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT period_syncs_pkey PRIMARY KEY (sync_id)
);
CREATE INDEX period_syncs_read_at_idx ON billing_pipeline.period_syncs (read_at);
COMMENT ON COLUMN billing_pipeline.period_syncs.read_at IS 'when Stripe was asked; an older answer changes nothing';

CREATE TABLE billing_pipeline.error_reports (
    stripe_event_id TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    rejected INTEGER NOT NULL,
    named INTEGER NOT NULL,
    codes JSONB NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT error_reports_pkey PRIMARY KEY (stripe_event_id)
);
COMMENT ON COLUMN billing_pipeline.error_reports.created_at IS 'Stripe''s';
COMMENT ON COLUMN billing_pipeline.error_reports.rejected IS 'errors Stripe counted; its samples may name fewer';
COMMENT ON COLUMN billing_pipeline.error_reports.named IS 'entries of ours it named';

CREATE TABLE billing_pipeline.flush_plans (
    plan_hash TEXT NOT NULL,
    made_at TIMESTAMPTZ NOT NULL,
    made_by TEXT NOT NULL,
    closed_before TIMESTAMPTZ NOT NULL,
    meters JSONB NOT NULL,
    CONSTRAINT flush_plans_pkey PRIMARY KEY (plan_hash)
);
COMMENT ON TABLE billing_pipeline.flush_plans IS 'what a person has seen of a flush before it; kept for a week';
COMMENT ON COLUMN billing_pipeline.flush_plans.plan_hash IS 'of every entry that the flush would send for the first time';
COMMENT ON COLUMN billing_pipeline.flush_plans.closed_before IS 'the plan cut the windows that ended by then';
COMMENT ON COLUMN billing_pipeline.flush_plans.meters IS 'per event name: entries, units added and taken back';

CREATE TABLE billing_pipeline.ledger_operations (
    operation_id BIGINT GENERATED ALWAYS AS IDENTITY,
    action TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    details JSONB DEFAULT '{}'::jsonb NOT NULL,
    done_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT ledger_operations_pkey PRIMARY KEY (operation_id),
    CONSTRAINT ledger_operations_action_check CHECK (action IN ('freeze', 'adopt', 'release', 'release_hold', 'seal', 'dismiss', 'undo_dismissal', 'rebill'))
);
COMMENT ON COLUMN billing_pipeline.ledger_operations.actor IS 'who did it; the pipeline itself for a freeze';

CREATE TABLE billing_pipeline.stripe_customers (
    stripe_customer_id TEXT NOT NULL,
    organization_hint TEXT,
    currency TEXT,
    delinquent BOOLEAN,
    deleted BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ,
    terminal BOOLEAN NOT NULL,
    version_at TIMESTAMPTZ NOT NULL,
    version_rank SMALLINT NOT NULL,
    version_digest TEXT NOT NULL,
    source TEXT NOT NULL,
    CONSTRAINT stripe_customers_pkey PRIMARY KEY (stripe_customer_id)
);
COMMENT ON COLUMN billing_pipeline.stripe_customers.organization_hint IS 'from its metadata';
COMMENT ON COLUMN billing_pipeline.stripe_customers.terminal IS 'Stripe never takes this state back';
COMMENT ON COLUMN billing_pipeline.stripe_customers.version_at IS 'Stripe''s second: of the event, or of the answer';
COMMENT ON COLUMN billing_pipeline.stripe_customers.version_rank IS 'within a second, how far along the state is';
COMMENT ON COLUMN billing_pipeline.stripe_customers.version_digest IS 'of the row''s content; decides the rest';
COMMENT ON COLUMN billing_pipeline.stripe_customers.source IS 'the event''s id, or read: Stripe was asked';

CREATE TABLE billing_pipeline.subscriptions (
    stripe_subscription_id TEXT NOT NULL,
    stripe_customer_id TEXT NOT NULL,
    organization_hint TEXT,
    status TEXT NOT NULL,
    is_active BOOLEAN NOT NULL,
    plan TEXT,
    billing_period TEXT,
    currency TEXT,
    current_period_start TIMESTAMPTZ,
    current_period_end TIMESTAMPTZ,
    trial_ends_at TIMESTAMPTZ,
    cancel_at_period_end BOOLEAN NOT NULL,
    cancel_at TIMESTAMPTZ,
    canceled_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ,
    collection_paused TEXT,
    latest_invoice_id TEXT,
    created_at TIMESTAMPTZ,
    items JSONB NOT NULL,
    items_complete BOOLEAN NOT NULL,
    terminal BOOLEAN NOT NULL,
    version_at TIMESTAMPTZ NOT NULL,
    version_rank SMALLINT NOT NULL,
    version_digest TEXT NOT NULL,
    source TEXT NOT NULL,
    CONSTRAINT subscriptions_pkey PRIMARY KEY (stripe_subscription_id)
);
CREATE INDEX subscriptions_stripe_customer_id_idx ON billing_pipeline.subscriptions (stripe_customer_id);
COMMENT ON COLUMN billing_pipeline.subscriptions.organization_hint IS 'from its metadata';
COMMENT ON COLUMN billing_pipeline.subscriptions.status IS 'Stripe''s word';
COMMENT ON COLUMN billing_pipeline.subscriptions.is_active IS 'it gives access: trialing, active or past_due';
COMMENT ON COLUMN billing_pipeline.subscriptions.plan IS 'lookup key of its first licensed price, else that price''s id';
COMMENT ON COLUMN billing_pipeline.subscriptions.billing_period IS 'monthly, quarterly, semiannual, annual, or Stripe''s interval';
COMMENT ON COLUMN billing_pipeline.subscriptions.current_period_start IS 'the earliest of its items'' periods; they may differ';
COMMENT ON COLUMN billing_pipeline.subscriptions.collection_paused IS 'what happens to invoices meanwhile; null: collected as usual';
COMMENT ON COLUMN billing_pipeline.subscriptions.items IS 'shown by the view subscription_items';
COMMENT ON COLUMN billing_pipeline.subscriptions.items_complete IS 'false: Stripe showed only the first of them';
COMMENT ON COLUMN billing_pipeline.subscriptions.terminal IS 'Stripe never takes this state back';
COMMENT ON COLUMN billing_pipeline.subscriptions.version_at IS 'Stripe''s second: of the event, or of the answer';
COMMENT ON COLUMN billing_pipeline.subscriptions.version_rank IS 'within a second, how far along the state is';
COMMENT ON COLUMN billing_pipeline.subscriptions.version_digest IS 'of the row''s content; decides the rest';
COMMENT ON COLUMN billing_pipeline.subscriptions.source IS 'the event''s id, or read: Stripe was asked';

CREATE TABLE billing_pipeline.invoices (
    stripe_invoice_id TEXT NOT NULL,
    stripe_customer_id TEXT,
    stripe_subscription_id TEXT,
    number TEXT,
    status TEXT NOT NULL,
    billing_reason TEXT,
    currency TEXT,
    subtotal BIGINT,
    total BIGINT,
    amount_due BIGINT,
    amount_paid BIGINT,
    amount_remaining BIGINT,
    attempt_count INTEGER,
    next_payment_attempt_at TIMESTAMPTZ,
    finalizes_at TIMESTAMPTZ,
    finalized_at TIMESTAMPTZ,
    paid_at TIMESTAMPTZ,
    voided_at TIMESTAMPTZ,
    uncollectible_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ,
    lines JSONB NOT NULL,
    lines_complete BOOLEAN NOT NULL,
    terminal BOOLEAN NOT NULL,
    version_at TIMESTAMPTZ NOT NULL,
    version_rank SMALLINT NOT NULL,
    version_digest TEXT NOT NULL,
    source TEXT NOT NULL,
    CONSTRAINT invoices_pkey PRIMARY KEY (stripe_invoice_id),
    CONSTRAINT invoices_status_check CHECK (status IN ('draft', 'open', 'paid', 'void', 'uncollectible', 'deleted'))
);
CREATE INDEX invoices_drafts_idx ON billing_pipeline.invoices (created_at) WHERE status = 'draft';
CREATE INDEX invoices_stripe_customer_id_idx ON billing_pipeline.invoices (stripe_customer_id, created_at);
CREATE INDEX invoices_stripe_subscription_id_idx ON billing_pipeline.invoices (stripe_subscription_id);
COMMENT ON COLUMN billing_pipeline.invoices.status IS 'draft, open, paid, void, uncollectible; deleted: a draft that was';
COMMENT ON COLUMN billing_pipeline.invoices.subtotal IS 'this and all amounts: minor units of the currency';
COMMENT ON COLUMN billing_pipeline.invoices.finalizes_at IS 'when Stripe makes the draft final by itself';
COMMENT ON COLUMN billing_pipeline.invoices.lines IS 'shown by the view invoice_lines';
COMMENT ON COLUMN billing_pipeline.invoices.lines_complete IS 'false: Stripe showed only the first of them';
COMMENT ON COLUMN billing_pipeline.invoices.terminal IS 'Stripe never takes this state back';
COMMENT ON COLUMN billing_pipeline.invoices.version_at IS 'Stripe''s second: of the event, or of the answer';
COMMENT ON COLUMN billing_pipeline.invoices.version_rank IS 'within a second, how far along the state is';
COMMENT ON COLUMN billing_pipeline.invoices.version_digest IS 'of the row''s content; decides the rest';
COMMENT ON COLUMN billing_pipeline.invoices.source IS 'the event''s id, or read: Stripe was asked';

CREATE TABLE billing_pipeline.checkout_sessions (
    stripe_session_id TEXT NOT NULL,
    stripe_customer_id TEXT,
    stripe_subscription_id TEXT,
    organization_hint TEXT,
    mode TEXT NOT NULL,
    status TEXT,
    payment_status TEXT,
    created_at TIMESTAMPTZ,
    terminal BOOLEAN NOT NULL,
    version_at TIMESTAMPTZ NOT NULL,
    version_rank SMALLINT NOT NULL,
    version_digest TEXT NOT NULL,
    source TEXT NOT NULL,
    CONSTRAINT checkout_sessions_pkey PRIMARY KEY (stripe_session_id)
);
CREATE INDEX checkout_sessions_stripe_customer_id_idx ON billing_pipeline.checkout_sessions (stripe_customer_id);
CREATE INDEX checkout_sessions_stripe_subscription_id_idx ON billing_pipeline.checkout_sessions (stripe_subscription_id);
COMMENT ON COLUMN billing_pipeline.checkout_sessions.organization_hint IS 'its client_reference_id, else its metadata';
COMMENT ON COLUMN billing_pipeline.checkout_sessions.terminal IS 'Stripe never takes this state back';
COMMENT ON COLUMN billing_pipeline.checkout_sessions.version_at IS 'Stripe''s second: of the event, or of the answer';
COMMENT ON COLUMN billing_pipeline.checkout_sessions.version_rank IS 'within a second, how far along the state is';
COMMENT ON COLUMN billing_pipeline.checkout_sessions.version_digest IS 'of the row''s content; decides the rest';
COMMENT ON COLUMN billing_pipeline.checkout_sessions.source IS 'the event''s id, or read: Stripe was asked';

CREATE TABLE billing_pipeline.feature_summaries (
    stripe_customer_id TEXT NOT NULL,
    features TEXT[] NOT NULL,
    features_complete BOOLEAN NOT NULL,
    terminal BOOLEAN NOT NULL,
    version_at TIMESTAMPTZ NOT NULL,
    version_rank SMALLINT NOT NULL,
    version_digest TEXT NOT NULL,
    source TEXT NOT NULL,
    CONSTRAINT feature_summaries_pkey PRIMARY KEY (stripe_customer_id)
);
COMMENT ON COLUMN billing_pipeline.feature_summaries.features IS 'lookup keys of Stripe''s active entitlements, sorted';
COMMENT ON COLUMN billing_pipeline.feature_summaries.features_complete IS 'false: Stripe showed only the first of them';
COMMENT ON COLUMN billing_pipeline.feature_summaries.terminal IS 'Stripe never takes this state back';
COMMENT ON COLUMN billing_pipeline.feature_summaries.version_at IS 'Stripe''s second: of the event, or of the answer';
COMMENT ON COLUMN billing_pipeline.feature_summaries.version_rank IS 'within a second, how far along the state is';
COMMENT ON COLUMN billing_pipeline.feature_summaries.version_digest IS 'of the row''s content; decides the rest';
COMMENT ON COLUMN billing_pipeline.feature_summaries.source IS 'the event''s id, or read: Stripe was asked';

CREATE TABLE billing_pipeline.customer_organizations (
    stripe_customer_id TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    CONSTRAINT customer_organizations_pkey PRIMARY KEY (stripe_customer_id)
);
CREATE INDEX customer_organizations_organization_id_idx ON billing_pipeline.customer_organizations (organization_id);
COMMENT ON TABLE billing_pipeline.customer_organizations IS 'whose each customer is: the view known_customer_organizations, kept so that both ways are quick';

CREATE TABLE billing_pipeline.entitlements (
    organization_id TEXT NOT NULL,
    feature TEXT NOT NULL,
    active BOOLEAN NOT NULL,
    reason TEXT NOT NULL,
    stripe_object_id TEXT,
    changed_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT entitlements_pkey PRIMARY KEY (organization_id, feature),
    CONSTRAINT entitlements_reason_check CHECK (reason IN ('subscription', 'checkout', 'stripe_features', 'none'))
);
CREATE INDEX entitlements_active_idx ON billing_pipeline.entitlements (feature, organization_id) WHERE active;
COMMENT ON COLUMN billing_pipeline.entitlements.feature IS 'saas: the workspace gate; others are Stripe''s features';
COMMENT ON COLUMN billing_pipeline.entitlements.reason IS 'what it follows from: a subscription, a checkout, Stripe''s features';
COMMENT ON COLUMN billing_pipeline.entitlements.stripe_object_id IS 'the subscription, session or customer that decides it';
COMMENT ON COLUMN billing_pipeline.entitlements.changed_at IS 'when `active` last changed here';

CREATE TABLE billing_pipeline.unique_values (
    window_id BIGINT NOT NULL,
    value BYTEA NOT NULL,
    organization_id TEXT NOT NULL,
    meter TEXT NOT NULL,
    starts_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT unique_values_pkey PRIMARY KEY (window_id, value),
    CONSTRAINT unique_values_window_id_fkey FOREIGN KEY(window_id) REFERENCES billing_pipeline.usage_windows (window_id)
);
CREATE INDEX unique_values_seen_idx ON billing_pipeline.unique_values (organization_id, meter, value, starts_at);
COMMENT ON TABLE billing_pipeline.unique_values IS 'which values of a property each window of a unique meter has seen';
COMMENT ON COLUMN billing_pipeline.unique_values.value IS 'SHA-256 of the property''s value';
COMMENT ON COLUMN billing_pipeline.unique_values.starts_at IS 'the window''s';

CREATE TABLE billing_pipeline.adjusted_windows (
    adjustment_id BIGINT NOT NULL,
    window_id BIGINT NOT NULL,
    units NUMERIC NOT NULL,
    CONSTRAINT adjusted_windows_pkey PRIMARY KEY (adjustment_id, window_id),
    CONSTRAINT adjusted_windows_adjustment_id_fkey FOREIGN KEY(adjustment_id) REFERENCES billing_pipeline.invoice_adjustments (adjustment_id),
    CONSTRAINT adjusted_windows_window_id_fkey FOREIGN KEY(window_id) REFERENCES billing_pipeline.usage_windows (window_id)
);
CREATE INDEX adjusted_windows_window_id_idx ON billing_pipeline.adjusted_windows (window_id);

CREATE TABLE billing_pipeline.event_dispatches (
    stripe_event_id TEXT NOT NULL,
    object_key TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    fence BIGINT DEFAULT 0 NOT NULL,
    claimed_at TIMESTAMPTZ,
    CONSTRAINT event_dispatches_pkey PRIMARY KEY (stripe_event_id),
    CONSTRAINT event_dispatches_stripe_event_id_fkey FOREIGN KEY(stripe_event_id) REFERENCES billing_pipeline.stripe_events (stripe_event_id)
)
 WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX event_dispatches_claimed_idx ON billing_pipeline.event_dispatches (claimed_at) WHERE claimed_at IS NOT NULL;
CREATE INDEX event_dispatches_due_idx ON billing_pipeline.event_dispatches (due_at, stripe_event_id);
CREATE INDEX event_dispatches_object_idx ON billing_pipeline.event_dispatches (object_key, created_at, stripe_event_id);
COMMENT ON TABLE billing_pipeline.event_dispatches IS 'the dispatcher''s work: events that are stored and neither handled nor parked';
COMMENT ON COLUMN billing_pipeline.event_dispatches.created_at IS 'Stripe''s; the order within an object';
COMMENT ON COLUMN billing_pipeline.event_dispatches.due_at IS 'not before; later after each failure';
COMMENT ON COLUMN billing_pipeline.event_dispatches.attempts IS 'claims; a killed one counts';
COMMENT ON COLUMN billing_pipeline.event_dispatches.fence IS 'rises with every claim';
COMMENT ON COLUMN billing_pipeline.event_dispatches.claimed_at IS 'null: nobody handles it now';

CREATE TABLE billing_pipeline.event_notes (
    note_id BIGINT GENERATED ALWAYS AS IDENTITY,
    stripe_event_id TEXT NOT NULL,
    note TEXT NOT NULL,
    actor TEXT NOT NULL,
    noted_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT event_notes_pkey PRIMARY KEY (note_id),
    CONSTRAINT event_notes_stripe_event_id_fkey FOREIGN KEY(stripe_event_id) REFERENCES billing_pipeline.stripe_events (stripe_event_id)
);
CREATE INDEX event_notes_stripe_event_id_idx ON billing_pipeline.event_notes (stripe_event_id);
COMMENT ON TABLE billing_pipeline.event_notes IS 'what a person wrote about an event, for whoever reads it after an incident; only added to';

CREATE TABLE billing_pipeline.billing_event_feed (
    feed_id BIGINT GENERATED ALWAYS AS IDENTITY,
    organization_id TEXT NOT NULL,
    stripe_event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    payload JSONB NOT NULL,
    fed_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT billing_event_feed_pkey PRIMARY KEY (feed_id),
    CONSTRAINT billing_event_feed_stripe_event_id_key UNIQUE (stripe_event_id),
    CONSTRAINT billing_event_feed_stripe_event_id_fkey FOREIGN KEY(stripe_event_id) REFERENCES billing_pipeline.stripe_events (stripe_event_id)
);
CREATE INDEX billing_event_feed_organization_idx ON billing_pipeline.billing_event_feed (organization_id, feed_id);
COMMENT ON TABLE billing_pipeline.billing_event_feed IS 'what organizations are told of their webhook events, each once; the truth of the stream';
COMMENT ON COLUMN billing_pipeline.billing_event_feed.feed_id IS 'rises in the order of the commits';
COMMENT ON COLUMN billing_pipeline.billing_event_feed.organization_id IS 'whom it is told';
COMMENT ON COLUMN billing_pipeline.billing_event_feed.payload IS 'a BillingEventPayload; its schema is in the package feed';

CREATE TABLE billing_pipeline.feed_candidates (
    stripe_event_id TEXT NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    CONSTRAINT feed_candidates_pkey PRIMARY KEY (stripe_event_id),
    CONSTRAINT feed_candidates_stripe_event_id_fkey FOREIGN KEY(stripe_event_id) REFERENCES billing_pipeline.stripe_events (stripe_event_id)
)
 WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX feed_candidates_due_idx ON billing_pipeline.feed_candidates (due_at, stripe_event_id);
COMMENT ON TABLE billing_pipeline.feed_candidates IS 'processed events of which the feed has not decided yet';
COMMENT ON COLUMN billing_pipeline.feed_candidates.due_at IS 'not before; later while its customer is nobody''s';

CREATE TABLE billing_pipeline.ledger_entries (
    entry_id BIGINT GENERATED ALWAYS AS IDENTITY,
    window_id BIGINT NOT NULL,
    sequence SMALLINT NOT NULL,
    epoch INTEGER NOT NULL,
    stripe_customer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    value BIGINT NOT NULL,
    slot_at TIMESTAMPTZ NOT NULL,
    identifier TEXT NOT NULL,
    state billing_pipeline.entry_state DEFAULT 'pending' NOT NULL,
    first_attempt_at TIMESTAMPTZ,
    last_attempt_at TIMESTAMPTZ,
    fence BIGINT DEFAULT 0 NOT NULL,
    lease_until TIMESTAMPTZ,
    hold_reason TEXT,
    created_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    settled BOOLEAN GENERATED ALWAYS AS (state IN ('confirmed', 'adopted', 'rejected', 'replaced')) STORED NOT NULL,
    replaced BOOLEAN GENERATED ALWAYS AS (state = 'replaced') STORED NOT NULL,
    CONSTRAINT ledger_entries_pkey PRIMARY KEY (entry_id),
    CONSTRAINT ledger_entries_window_id_sequence_key UNIQUE (window_id, sequence),
    CONSTRAINT ledger_entries_identifier_key UNIQUE (identifier),
    CONSTRAINT ledger_entries_sequence_check CHECK (sequence >= 0 AND (sequence < 60 OR state = 'adopted' AND sequence < 120)),
    CONSTRAINT ledger_entries_value_check CHECK (value <> 0 AND abs(value) < 1000000000000000),
    CONSTRAINT ledger_entries_identifier_check CHECK (length(identifier) <= 100),
    CONSTRAINT ledger_entries_slot_at_check CHECK (date_trunc('minute', slot_at) = slot_at),
    CONSTRAINT ledger_entries_attempted_before_outcome_check CHECK (state IN ('pending', 'adopted', 'replaced') OR first_attempt_at IS NOT NULL OR hold_reason IS NOT NULL),
    CONSTRAINT ledger_entries_window_id_fkey FOREIGN KEY(window_id) REFERENCES billing_pipeline.usage_windows (window_id)
)
 WITH (fillfactor = 50);
CREATE INDEX ledger_entries_held_idx ON billing_pipeline.ledger_entries (window_id) WHERE hold_reason IS NOT NULL;
CREATE INDEX ledger_entries_not_settled_idx ON billing_pipeline.ledger_entries (window_id) WHERE NOT settled OR hold_reason IS NOT NULL;
CREATE INDEX ledger_entries_replaced_slot_idx ON billing_pipeline.ledger_entries (stripe_customer_id, event_name, slot_at) WHERE replaced;
CREATE INDEX ledger_entries_slot_at_idx ON billing_pipeline.ledger_entries (slot_at);
CREATE INDEX ledger_entries_unsettled_idx ON billing_pipeline.ledger_entries (stripe_customer_id, event_name, slot_at) WHERE NOT settled;
CREATE UNIQUE INDEX ledger_entries_slot_key ON billing_pipeline.ledger_entries (stripe_customer_id, event_name, slot_at) WHERE NOT replaced;
COMMENT ON COLUMN billing_pipeline.ledger_entries.event_name IS 'Stripe''s meter event name, frozen at the cut';
COMMENT ON COLUMN billing_pipeline.ledger_entries.value IS 'a delta in Stripe units; negative corrects';
COMMENT ON COLUMN billing_pipeline.ledger_entries.slot_at IS 'the entry''s own minute: its Stripe timestamp';
COMMENT ON COLUMN billing_pipeline.ledger_entries.fence IS 'who may record an outcome';
COMMENT ON COLUMN billing_pipeline.ledger_entries.hold_reason IS 'not null: a person must release it before it is sent';

CREATE TABLE billing_pipeline.seals (
    seal_id BIGINT GENERATED ALWAYS AS IDENTITY,
    stripe_customer_id TEXT NOT NULL,
    event_name TEXT,
    during TSTZRANGE NOT NULL,
    operation_id BIGINT NOT NULL,
    sealed_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT seals_pkey PRIMARY KEY (seal_id),
    CONSTRAINT seals_during_check CHECK (NOT (isempty(during) OR lower_inf(during) OR upper_inf(during))),
    CONSTRAINT seals_operation_id_fkey FOREIGN KEY(operation_id) REFERENCES billing_pipeline.ledger_operations (operation_id)
);
CREATE INDEX seals_stripe_customer_id_idx ON billing_pipeline.seals (stripe_customer_id);
COMMENT ON COLUMN billing_pipeline.seals.event_name IS 'null: every meter of the customer';
COMMENT ON COLUMN billing_pipeline.seals.during IS 'half-open, UTC; the period whose invoice is final';
COMMENT ON COLUMN billing_pipeline.seals.operation_id IS 'who sealed it, and why';

CREATE TABLE billing_pipeline.open_entries (
    entry_id BIGINT NOT NULL,
    window_id BIGINT NOT NULL,
    send_by TIMESTAMPTZ NOT NULL,
    retry_at TIMESTAMPTZ,
    CONSTRAINT open_entries_pkey PRIMARY KEY (entry_id),
    CONSTRAINT open_entries_one_per_window UNIQUE (window_id),
    CONSTRAINT open_entries_entry_id_fkey FOREIGN KEY(entry_id) REFERENCES billing_pipeline.ledger_entries (entry_id)
);
CREATE INDEX open_entries_due_idx ON billing_pipeline.open_entries (send_by, entry_id) WHERE retry_at IS NULL;
CREATE INDEX open_entries_waiting_idx ON billing_pipeline.open_entries (retry_at) WHERE retry_at IS NOT NULL;
COMMENT ON TABLE billing_pipeline.open_entries IS 'the submitter''s work: entries pending or ambiguous, kept by triggers of ledger_entries';
COMMENT ON COLUMN billing_pipeline.open_entries.send_by IS 'after this Stripe may count it twice, or not at all';
COMMENT ON COLUMN billing_pipeline.open_entries.retry_at IS 'not before; null: at once; infinity: on hold';

CREATE TABLE billing_pipeline.evidence (
    evidence_id BIGINT GENERATED ALWAYS AS IDENTITY,
    entry_id BIGINT NOT NULL,
    kind TEXT NOT NULL,
    observed BIGINT,
    granularity TEXT NOT NULL,
    canary_sent_at TIMESTAMPTZ,
    observed_at TIMESTAMPTZ DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT evidence_pkey PRIMARY KEY (evidence_id),
    CONSTRAINT evidence_kind_check CHECK (kind IN ('summary_present', 'summary_absent', 'error_report', 'adoption')),
    CONSTRAINT evidence_granularity_check CHECK (granularity IN ('hour', 'minute', 'report')),
    CONSTRAINT evidence_entry_id_fkey FOREIGN KEY(entry_id) REFERENCES billing_pipeline.ledger_entries (entry_id)
);
CREATE INDEX evidence_entry_id_idx ON billing_pipeline.evidence (entry_id);
COMMENT ON COLUMN billing_pipeline.evidence.observed IS 'units that Stripe shows for the entry';
COMMENT ON COLUMN billing_pipeline.evidence.granularity IS 'hour: the whole hour agreed; minute: its own slot; report: Stripe named it';
COMMENT ON COLUMN billing_pipeline.evidence.canary_sent_at IS 'absence: the visible canary that Stripe got later than this entry';

-- The row contract as the database knows it; `usage/row_contract.py` states the same rules for the report.
-- A property test holds the two equal row by row.  Aggregation uses this one, inside the snapshot it counts,
-- so that a row which arrives after validation cannot slip past it.
-- Ages are measured against recorded_at, not against now: a row's verdict must not change as it grows old.
-- A quantity is needed for an event type that some meter sums; a count does without, but a wrong one is a fault for all.
-- PostgreSQL knows times that neither Python nor Arrow can hold; they are refused before anything is computed of them,
-- with the last day of the year 9999, whose windows would end outside it.
-- Every expression is immutable (a time plus an interval is not), so that the planner can inline the function: as a
-- call it costs a million rows several seconds.
CREATE FUNCTION billing_pipeline.contract_fault(
    event_id text, organization_id text, event_type text, quantity numeric,
    occurred_at timestamptz, recorded_at timestamptz, quantity_needed boolean DEFAULT true,
    property_missing boolean DEFAULT false
) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN event_id IS NULL OR event_id = '' THEN 'event_id_missing'
    WHEN organization_id IS NULL OR organization_id = '' THEN 'organization_id_missing'
    WHEN event_type IS NULL OR event_type = '' THEN 'event_type_missing'
    WHEN quantity IS NULL AND quantity_needed THEN 'quantity_missing'
    WHEN quantity IN ('NaN', 'Infinity', '-Infinity') THEN 'quantity_not_finite'
    WHEN quantity < 0 THEN 'quantity_negative'
    WHEN quantity >= 1000000000000000 OR scale(trim_scale(quantity)) > 12 THEN 'quantity_too_many_digits'
    WHEN property_missing THEN 'property_missing'
    WHEN occurred_at IS NULL THEN 'occurred_at_missing'
    WHEN recorded_at IS NULL THEN 'recorded_at_missing'
    WHEN least(occurred_at, recorded_at) < '0001-01-01 00:00:00+00'
        OR greatest(occurred_at, recorded_at) >= '9999-12-31 00:00:00+00' THEN 'time_out_of_range'
    WHEN occurred_at - recorded_at > interval '5 minutes' THEN 'occurred_at_in_future'
    WHEN recorded_at - occurred_at > interval '840 hours' THEN 'occurred_at_too_old'
END;

-- What no code may do, whoever writes it: the ledger is append-only and its states move only forward.

CREATE FUNCTION billing_pipeline.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: it is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- The guards of a change are conditions of their triggers, because a function called for each row of a batch costs more
-- than the change itself; the function only says what was refused.
CREATE FUNCTION billing_pipeline.refuse_entry_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = CASE TG_ARGV[0]
        WHEN 'statement' THEN format('ledger entry %s is immutable', OLD.entry_id)
        WHEN 'fence' THEN format('stale fence %s on ledger entry %s', NEW.fence, OLD.entry_id)
        WHEN 'first_attempt' THEN format('the first attempt of ledger entry %s cannot be moved', OLD.entry_id)
        ELSE format('ledger entry %s may not go from %s to %s', OLD.entry_id, OLD.state, NEW.state)
    END;
END $$;

CREATE FUNCTION billing_pipeline.refuse_attempt_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'attempt % is append-only', OLD.attempt_id
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- An entry begins as a statement to be sent, or as what Stripe was found to show; never half-way.
CREATE FUNCTION billing_pipeline.guard_new_ledger_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state NOT IN ('pending', 'adopted') OR NEW.first_attempt_at IS NOT NULL OR NEW.fence <> 0 THEN
        RAISE EXCEPTION 'a ledger entry may not begin as %', NEW.state
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- An attempt is made of an entry that is there; entries are never deleted, so one look is enough.
CREATE FUNCTION billing_pipeline.guard_new_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT count(*) FROM billing_pipeline.ledger_entries WHERE entry_id = ANY (ARRAY(SELECT entry_id FROM added)))
       <> (SELECT count(DISTINCT entry_id) FROM added)
    THEN
        RAISE EXCEPTION 'an attempt names an entry that is not in the ledger'
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER guard_new BEFORE INSERT ON billing_pipeline.ledger_entries
    FOR EACH ROW EXECUTE FUNCTION billing_pipeline.guard_new_ledger_entry();
-- Only states, times, fence and hold may change, and states only along the protocol's arrows.
CREATE TRIGGER guard_statement BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (
        ROW(NEW.entry_id, NEW.window_id, NEW.sequence, NEW.epoch, NEW.stripe_customer_id, NEW.event_name,
            NEW.value, NEW.slot_at, NEW.identifier, NEW.created_at)
        IS DISTINCT FROM
        ROW(OLD.entry_id, OLD.window_id, OLD.sequence, OLD.epoch, OLD.stripe_customer_id, OLD.event_name,
            OLD.value, OLD.slot_at, OLD.identifier, OLD.created_at))
    EXECUTE FUNCTION billing_pipeline.refuse_entry_change('statement');
CREATE TRIGGER guard_fence BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (NEW.fence < OLD.fence)
    EXECUTE FUNCTION billing_pipeline.refuse_entry_change('fence');
-- The 20 hours of safe resending count from here; only proof that no attempt was executed sets it back.
CREATE TRIGGER guard_first_attempt BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (
        OLD.first_attempt_at IS NOT NULL AND NEW.first_attempt_at IS DISTINCT FROM OLD.first_attempt_at
        AND NOT (NEW.first_attempt_at IS NULL AND OLD.state = 'ambiguous' AND NEW.state = 'pending'))
    EXECUTE FUNCTION billing_pipeline.refuse_entry_change('first_attempt');
CREATE TRIGGER guard_state BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (
        NEW.state <> OLD.state
        AND NOT (OLD.state = 'pending' AND NEW.state IN ('ambiguous', 'replaced'))
        AND NOT (OLD.state = 'ambiguous' AND NEW.state IN ('pending', 'accepted', 'confirmed', 'rejected', 'replaced'))
        AND NOT (OLD.state = 'accepted' AND NEW.state IN ('confirmed', 'rejected', 'replaced')))
    EXECUTE FUNCTION billing_pipeline.refuse_entry_change('state');
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER guard_new AFTER INSERT ON billing_pipeline.attempts
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.guard_new_attempts();
-- An attempt's outcome is written once.
CREATE TRIGGER guard_change BEFORE UPDATE ON billing_pipeline.attempts
    FOR EACH ROW WHEN (
        OLD.outcome IS NOT NULL
        OR ROW(NEW.attempt_id, NEW.entry_id, NEW.fence, NEW.channel, NEW.started_at)
           IS DISTINCT FROM ROW(OLD.attempt_id, OLD.entry_id, OLD.fence, OLD.channel, OLD.started_at))
    EXECUTE FUNCTION billing_pipeline.refuse_attempt_change();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.attempts
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pipeline.evidence
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.usage_windows
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pipeline.ledger_operations
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.canaries
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();

-- The submitter's work list follows the entries, whoever changes them.  An entry that Stripe takes for 35 days is due
-- by then; the submitter sets an earlier time when an attempt's outcome is unknown.
CREATE FUNCTION billing_pipeline.open_new_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO billing_pipeline.open_entries (entry_id, window_id, send_by, retry_at)
    SELECT entry_id, window_id, slot_at + interval '35 days',
           CASE WHEN hold_reason IS NOT NULL THEN 'infinity'::timestamptz END
      FROM added
     WHERE state IN ('pending', 'ambiguous');
    RETURN NULL;
END $$;

CREATE FUNCTION billing_pipeline.close_settled_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM billing_pipeline.open_entries
     WHERE entry_id = ANY (ARRAY(SELECT entry_id FROM changed WHERE state NOT IN ('pending', 'ambiguous')));
    RETURN NULL;
END $$;

CREATE FUNCTION billing_pipeline.hold_open_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE billing_pipeline.open_entries
       SET retry_at = CASE WHEN NEW.hold_reason IS NOT NULL THEN 'infinity'::timestamptz END
     WHERE entry_id = NEW.entry_id;
    RETURN NULL;
END $$;

CREATE TRIGGER open_new AFTER INSERT ON billing_pipeline.ledger_entries
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.open_new_entries();
CREATE TRIGGER close AFTER UPDATE ON billing_pipeline.ledger_entries
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.close_settled_entries();
CREATE TRIGGER hold AFTER UPDATE OF hold_reason ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (NEW.hold_reason IS DISTINCT FROM OLD.hold_reason)
    EXECUTE FUNCTION billing_pipeline.hold_open_entry();

-- Seals: the invoice of a period is final, so nothing more may be stated for it.

-- A window is sealed by a seal, which says who and why; never while anything of it is open or on hold; and for ever.
CREATE FUNCTION billing_pipeline.guard_sealing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.sealed_at IS NOT NULL THEN
        RAISE EXCEPTION 'usage window % is sealed, and a seal is never taken off or moved', OLD.window_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NOT EXISTS (
        SELECT FROM billing_pipeline.seals s
         WHERE s.stripe_customer_id = NEW.stripe_customer_id
           AND (s.event_name IS NULL OR s.event_name = NEW.event_name)
           AND s.during @> tstzrange(NEW.starts_at, NEW.ends_at) AND s.sealed_at = NEW.sealed_at)
    THEN
        RAISE EXCEPTION 'usage window % may not be sealed: no seal covers it', NEW.window_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NEW.hold_reason IS NOT NULL OR EXISTS (
        SELECT FROM billing_pipeline.ledger_entries e
         WHERE e.window_id = NEW.window_id
           AND (e.state IN ('pending', 'ambiguous', 'accepted') OR e.hold_reason IS NOT NULL))
    THEN
        RAISE EXCEPTION 'usage window % may not be sealed: it is on hold or has an entry that is not settled', NEW.window_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- Every window is locked before it is looked at: a seal that is not committed yet is waited for.  A filter and no
-- condition, which the planner would move below the lock; it would then see the window of before the wait, and lock none.
CREATE FUNCTION billing_pipeline.refuse_entries_under_a_seal() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    sealed_window bigint;
BEGIN
    SELECT min(window_id) FILTER (WHERE sealed_at IS NOT NULL) INTO sealed_window
      FROM (SELECT window_id, sealed_at
              FROM billing_pipeline.usage_windows
             WHERE window_id IN (SELECT window_id FROM added)
               FOR SHARE) stated;
    IF sealed_window IS NOT NULL THEN
        RAISE EXCEPTION 'usage window % is sealed: it takes no new entry', sealed_window
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER guard_sealing BEFORE UPDATE ON billing_pipeline.usage_windows
    FOR EACH ROW WHEN (OLD.sealed_at IS DISTINCT FROM NEW.sealed_at)
    EXECUTE FUNCTION billing_pipeline.guard_sealing();
CREATE TRIGGER guard_sealed_new BEFORE INSERT ON billing_pipeline.usage_windows
    FOR EACH ROW WHEN (NEW.sealed_at IS NOT NULL)
    EXECUTE FUNCTION billing_pipeline.guard_sealing();
CREATE TRIGGER refuse_under_a_seal AFTER INSERT ON billing_pipeline.ledger_entries
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_entries_under_a_seal();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pipeline.seals
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();

-- The instants at which Stripe begins to count a customer's usage of a meter into another billing period.
-- The end of a period and the start of the next are one instant in two rows.  An edge too many splits an hour for
-- nothing; an edge too few bills usage in the wrong period.
CREATE VIEW billing_pipeline.period_edges AS
SELECT stripe_customer_id, event_name, lower(during) AS edge_at, synced_at FROM billing_pipeline.billing_periods
UNION ALL
SELECT stripe_customer_id, event_name, upper(during) AS edge_at, synced_at FROM billing_pipeline.billing_periods;

-- What people and other programs read of the webhooks' tables, under the names that they know.

-- Handled events with the object alone, as a first integration usually has them.
CREATE VIEW billing_pipeline.stripe_webhook_events AS
SELECT stripe_event_id AS id, event_type AS type, processed_at, payload -> 'data' -> 'object' AS payload
  FROM billing_pipeline.stripe_events
 WHERE processed_at IS NOT NULL;

CREATE VIEW billing_pipeline.failed_stripe_events AS
SELECT stripe_event_id, event_type, processing_outcome, error_class, processing_error, attempts, tenant_hint,
       received_at, failed_at
  FROM billing_pipeline.stripe_events
 WHERE processing_outcome IN ('failed', 'parked')
 ORDER BY received_at DESC;

CREATE VIEW billing_pipeline.subscription_items AS
SELECT i.subscription_item_id, s.stripe_subscription_id, s.stripe_customer_id, i.price_id, i.product_id, i.meter_id,
       i.usage_type, i.quantity, i.interval, i.interval_count, i.current_period_start, i.current_period_end
  FROM billing_pipeline.subscriptions s,
       jsonb_to_recordset(s.items) AS i(
           subscription_item_id text, price_id text, product_id text, meter_id text, usage_type text, quantity numeric,
           interval text, interval_count integer, current_period_start timestamptz, current_period_end timestamptz);

-- A line names its price but not its meter; older shapes and subscriptions that we know do.
CREATE VIEW billing_pipeline.invoice_lines AS
SELECT l.invoice_line_id, n.stripe_invoice_id, n.stripe_customer_id, l.stripe_subscription_id, l.subscription_item_id,
       l.price_id, coalesce(l.meter_id, i.meter_id) AS meter_id, l.proration, l.quantity, l.amount, n.currency,
       l.unit_amount, l.period_start, l.period_end, l.description, n.status AS invoice_status, n.source
  FROM billing_pipeline.invoices n
 CROSS JOIN jsonb_to_recordset(n.lines) AS l(
           invoice_line_id text, stripe_subscription_id text, subscription_item_id text, price_id text, meter_id text,
           proration boolean, quantity numeric, amount bigint, unit_amount numeric, period_start timestamptz,
           period_end timestamptz, description text)
  LEFT JOIN LATERAL (
           SELECT max(known.meter_id) AS meter_id
             FROM billing_pipeline.subscription_items known
            WHERE known.stripe_subscription_id = coalesce(l.stripe_subscription_id, n.stripe_subscription_id)
              AND known.price_id = l.price_id) i ON true;

-- What each invoice bills of each meter: to be held against what the ledger stated for the same period.
CREATE VIEW billing_pipeline.subscription_usage AS
SELECT stripe_invoice_id, invoice_line_id, stripe_customer_id, stripe_subscription_id, subscription_item_id, price_id,
       meter_id, quantity, amount, currency, period_start, period_end, invoice_status, source
  FROM billing_pipeline.invoice_lines
 WHERE meter_id IS NOT NULL;

-- Whose a customer is now: what a person mapped comes before what Stripe's objects say of themselves.
CREATE VIEW billing_pipeline.known_customer_organizations AS
SELECT c.stripe_customer_id, coalesce(m.organization_id, s.organization_hint, k.organization_hint, h.organization_hint)
           AS organization_id
  FROM (SELECT stripe_customer_id FROM billing_pipeline.subscriptions
        UNION SELECT stripe_customer_id FROM billing_pipeline.checkout_sessions WHERE stripe_customer_id IS NOT NULL
        UNION SELECT stripe_customer_id FROM billing_pipeline.feature_summaries
        UNION SELECT stripe_customer_id FROM billing_pipeline.stripe_customers) c
  LEFT JOIN LATERAL (
        SELECT organization_id FROM billing_pipeline.customer_mappings
         WHERE billing_pipeline.text_range(stripe_customer_id, stripe_customer_id, '[]')
               && billing_pipeline.text_range(c.stripe_customer_id, c.stripe_customer_id, '[]')
           AND valid_during @> now()) m ON true
  LEFT JOIN LATERAL (
        SELECT organization_hint FROM billing_pipeline.subscriptions
         WHERE stripe_customer_id = c.stripe_customer_id AND organization_hint IS NOT NULL
         ORDER BY created_at DESC NULLS LAST, stripe_subscription_id DESC LIMIT 1) s ON true
  LEFT JOIN LATERAL (
        SELECT organization_hint FROM billing_pipeline.checkout_sessions
         WHERE stripe_customer_id = c.stripe_customer_id AND organization_hint IS NOT NULL
         ORDER BY created_at DESC NULLS LAST, stripe_session_id DESC LIMIT 1) k ON true
  LEFT JOIN billing_pipeline.stripe_customers h USING (stripe_customer_id);

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pipeline.event_notes
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.stripe_events
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();

-- What adjustments stand for, by usage window: Stripe units that are billed, or not billed, by them.
CREATE VIEW billing_pipeline.adjusted_units AS
SELECT w.window_id, sum(w.units) AS units
  FROM billing_pipeline.adjusted_windows w
  JOIN billing_pipeline.invoice_adjustments a USING (adjustment_id)
 WHERE a.state <> 'refused'
 GROUP BY w.window_id;
