-- name: read_identity
SELECT ledger_id, stripe_account, livemode, epoch, frozen_reason, frozen_at
  FROM ledger_identity;

-- name: bind_identity
-- The first flush binds the ledger to its account; every later one must match.
INSERT INTO ledger_identity (ledger_id, stripe_account, livemode, bound_at)
VALUES (gen_random_uuid(), %(stripe_account)s, %(livemode)s, %(now)s)
    ON CONFLICT (singleton) DO NOTHING;

-- name: freeze_ledger
-- The first reason stays: it is the one to look into.
UPDATE ledger_identity
   SET frozen_reason = %(reason)s, frozen_at = %(now)s
 WHERE frozen_reason IS NULL;

-- name: database_clock
SELECT clock_timestamp() AS now;
