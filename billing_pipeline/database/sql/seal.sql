-- Sealing a period whose invoice is final, and what it leaves owed.

-- name: can_have_usage
-- A seal of a misspelt customer would seal nothing and say that it has.
SELECT (EXISTS (SELECT FROM customer_mappings WHERE stripe_customer_id = %(stripe_customer_id)s)
        OR EXISTS (SELECT FROM usage_windows WHERE stripe_customer_id = %(stripe_customer_id)s))
       AND (%(event_name)s::text IS NULL OR EXISTS (SELECT FROM meter_versions WHERE event_name = %(event_name)s))
       AS known;

-- name: lock_windows_of_period
-- In the order aggregation writes windows in.  What they have stated is read by the next statement, after the lock.
SELECT window_id
  FROM usage_windows
 WHERE stripe_customer_id = %(stripe_customer_id)s
   AND (%(event_name)s::text IS NULL OR event_name = %(event_name)s)
   AND starts_at >= date_trunc('hour', %(period_start)s, 'UTC') AND starts_at < %(period_end)s
   AND ends_at > %(period_start)s
   AND sealed_at IS NULL
 ORDER BY organization_id, stripe_customer_id, meter, starts_at
   FOR NO KEY UPDATE;

-- name: facts_for_seal
SELECT w.window_id, w.organization_id, w.meter, w.starts_at, w.ends_at,
       w.target - coalesce(e.stated, 0) AS owed,
       w.hold_reason IS NOT NULL OR coalesce(e.held, false) AS held,
       coalesce(e.unsettled, false) AS unsettled
  FROM usage_windows w
  LEFT JOIN LATERAL (
       SELECT sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')) AS stated,
              bool_or(hold_reason IS NOT NULL) AS held,
              bool_or(state IN ('pending', 'ambiguous', 'accepted')) AS unsettled
         FROM ledger_entries WHERE window_id = w.window_id) e ON true
 WHERE w.window_id = ANY (%(window_ids)s::bigint[])
 ORDER BY w.starts_at, w.window_id;

-- name: covering_seal
SELECT sealed_at
  FROM seals
 WHERE stripe_customer_id = %(stripe_customer_id)s
   AND (event_name IS NULL OR event_name = %(event_name)s)
   AND during @> tstzrange(%(period_start)s, %(period_end)s)
 ORDER BY sealed_at
 LIMIT 1;

-- name: insert_seal
-- Who sealed and why cannot be missing: the operation and the seal are one statement.
WITH operation AS (
    INSERT INTO ledger_operations (action, actor, reason, details, done_at)
    VALUES ('seal', %(actor)s, %(reason)s, %(details)s, %(now)s)
    RETURNING operation_id
)
INSERT INTO seals (stripe_customer_id, event_name, during, operation_id, sealed_at)
SELECT %(stripe_customer_id)s, %(event_name)s, tstzrange(%(period_start)s, %(period_end)s), operation_id, %(now)s
  FROM operation;

-- name: seal_windows
-- What is owed stays due, so that it stays in sight; the cutter passes sealed windows by.
UPDATE usage_windows
   SET sealed_at = %(now)s, cut_after = NULL, cut_due = window_id = ANY (%(owed_window_ids)s::bigint[])
 WHERE window_id = ANY (%(window_ids)s::bigint[]);

-- name: seals_of_lane
-- For recovery: what Stripe shows under a seal is for a person, not for an entry.
SELECT lower(during) AS starts_at, upper(during) AS ends_at
  FROM seals
 WHERE stripe_customer_id = %(stripe_customer_id)s
   AND (event_name IS NULL OR event_name = %(event_name)s);

-- name: owed_after_seal
-- Usage that changed after its invoice was final: Stripe bills no meter event for it, so it needs an adjustment.
SELECT w.organization_id, w.stripe_customer_id, w.meter, count(*) AS windows,
       sum(w.target - coalesce(e.stated, 0) - coalesce(a.units, 0)) AS units
  FROM usage_windows w
  LEFT JOIN LATERAL (
       SELECT sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')) AS stated
         FROM ledger_entries WHERE window_id = w.window_id) e ON true
  LEFT JOIN LATERAL (SELECT units FROM adjusted_units WHERE window_id = w.window_id) a ON true
 WHERE w.cut_due AND w.sealed_at IS NOT NULL AND w.target <> coalesce(e.stated, 0) + coalesce(a.units, 0)
 GROUP BY w.organization_id, w.stripe_customer_id, w.meter
 ORDER BY w.organization_id, w.stripe_customer_id, w.meter;
