-- name: read_identity
SELECT ledger_id, stripe_account, livemode, epoch, database_system_id, database_timeline, frozen_reason, frozen_at
  FROM ledger_identity;

-- name: bind_identity
-- The first flush binds the ledger to its account; every later one must match.
INSERT INTO ledger_identity (ledger_id, stripe_account, livemode, database_system_id, database_timeline, bound_at)
VALUES (gen_random_uuid(), %(stripe_account)s, %(livemode)s, %(system_id)s, %(timeline)s, %(now)s)
    ON CONFLICT (singleton) DO NOTHING;

-- name: database_identity
-- Superusers and pg_monitor may ask; a managed server may refuse.  The timeline is the one written to: pg_control has
-- the last checkpoint's, and after a promotion that is the old one for as long as the next checkpoint takes.
SELECT system_identifier::text AS system_id,
       CASE WHEN pg_is_in_recovery() THEN timeline_id
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer END::text AS timeline
  FROM pg_control_system(), pg_control_checkpoint();

-- name: what_keeps_from_writing
SELECT pg_is_in_recovery() AS in_recovery, current_setting('default_transaction_read_only')::boolean AS read_only;

-- name: durability_settings
SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') ORDER BY name;

-- name: latest_attempt
SELECT coalesce(max(attempt_id), 0) AS attempt_id FROM attempts;

-- name: freeze_ledger
-- The first reason stays: it is the one to look into.
UPDATE ledger_identity
   SET frozen_reason = %(reason)s, frozen_at = %(now)s
 WHERE frozen_reason IS NULL;

-- name: record_operation
INSERT INTO ledger_operations (action, actor, reason, details, done_at)
VALUES (%(action)s, %(actor)s, %(reason)s, %(details)s, %(now)s);

-- name: database_clock
SELECT clock_timestamp() AS now;

-- name: schema_version
-- Alembic's own table.
SELECT version_num FROM billing_pipeline.alembic_version;
