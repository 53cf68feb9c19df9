-- Recovery: bring a restored ledger to what Stripe shows.

-- name: lanes_to_adopt
-- Every customer and meter that this ledger, or the timeline it lost, can have sent to.
SELECT m.stripe_customer_id, e.event_name
  FROM (SELECT DISTINCT stripe_customer_id FROM customer_mappings) m
 CROSS JOIN unnest(%(event_names)s::text[]) AS e (event_name)
UNION
SELECT DISTINCT stripe_customer_id, event_name FROM ledger_entries
 ORDER BY 1, 2;

-- name: settled_hours
SELECT date_trunc('hour', slot_at, 'UTC') AS hour_at,
       coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted')), 0)::bigint AS settled,
       bool_or(state IN ('pending', 'ambiguous', 'accepted')) AS unsettled
  FROM ledger_entries
 WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s
   AND slot_at >= %(start)s AND slot_at < %(end)s
 GROUP BY hour_at;

-- name: entries_by_minute
-- Where a replaced entry shares its minute with the one that took its place, the latter counts.
SELECT DISTINCT ON (slot_at) entry_id, window_id, state::text AS state, value, slot_at
  FROM ledger_entries
 WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s
   AND slot_at >= %(start)s AND slot_at < %(end)s
 ORDER BY slot_at, state = 'replaced', entry_id DESC;

-- name: settle_by_adoption
-- A settled entry says what it rests on; a window whose entry was replaced owes its value again.
WITH settled AS (
    UPDATE ledger_entries
       SET state = %(state)s::entry_state, lease_until = NULL, hold_reason = NULL, fence = fence + 1
     WHERE entry_id = ANY (%(entry_ids)s::bigint[])
    RETURNING entry_id, window_id, value
), proof AS (
    INSERT INTO evidence (entry_id, kind, observed, granularity, observed_at)
    SELECT entry_id, 'adoption', CASE WHEN %(state)s = 'confirmed' THEN value ELSE 0 END, 'minute', %(now)s
      FROM settled
)
UPDATE usage_windows SET cut_due = true WHERE window_id IN (SELECT window_id FROM settled);

-- name: ensure_window_for_adoption
-- A window that the restore took back is made again, worth nothing until aggregation has counted it; it lies in one
-- billing period, as aggregation would cut it.  Where the minute is another customer's by now, the window belongs to the
-- organization this customer was last known for, and the cutter takes back what it holds: left out, it would be billed
-- to both.
WITH owner AS (
    SELECT organization_id, valid_during AS during, valid_during @> %(slot_at)s AS is_valid
      FROM customer_mappings
     WHERE stripe_customer_id = %(customer)s
     UNION ALL
    SELECT organization_id, tstzrange(starts_at, ends_at), false
      FROM usage_windows
     WHERE stripe_customer_id = %(customer)s
), nearest AS (
    SELECT organization_id, CASE WHEN is_valid THEN lower(during) END AS from_at,
           CASE WHEN is_valid THEN upper(during) END AS until_at
      FROM owner
     ORDER BY is_valid DESC, least(abs(extract(epoch FROM %(slot_at)s - lower(during))),
                                   abs(extract(epoch FROM %(slot_at)s - upper(during))))
     LIMIT 1
)
INSERT INTO usage_windows
       (organization_id, stripe_customer_id, meter, starts_at, ends_at, target, quantity, event_count,
        contract_version, meter_version, event_name, cutoff_at)
SELECT nearest.organization_id, %(customer)s, %(meter)s,
       greatest(%(hour_at)s, nearest.from_at, edge.before_at),
       least(%(hour_at)s + interval '1 hour', nearest.until_at, edge.after_at), 0, 0, 0, '', '', %(event_name)s, 'epoch'
  FROM nearest
 CROSS JOIN LATERAL (
       SELECT max(e.edge_at) FILTER (WHERE e.edge_at <= %(slot_at)s) AS before_at,
              min(e.edge_at) FILTER (WHERE e.edge_at > %(slot_at)s) AS after_at
         FROM period_edges e
        WHERE e.stripe_customer_id = %(customer)s AND e.event_name = %(event_name)s) edge
 WHERE NOT EXISTS (
       SELECT FROM usage_windows w
        WHERE w.stripe_customer_id = %(customer)s AND w.meter = %(meter)s
          AND w.starts_at <= %(slot_at)s AND w.ends_at > %(slot_at)s);

-- name: insert_adopted_entry
-- Only once per minute; the evidence is what Stripe showed.  Of windows that overlap, the narrowest is the latest cut.
WITH place AS (
    SELECT window_id,
           (SELECT coalesce(max(sequence) + 1, 0) FROM ledger_entries e WHERE e.window_id = w.window_id) AS sequence
      FROM usage_windows w
     WHERE w.stripe_customer_id = %(customer)s AND w.meter = %(meter)s
       AND w.starts_at <= %(slot_at)s AND w.ends_at > %(slot_at)s
     ORDER BY w.ends_at - w.starts_at, window_id
     LIMIT 1
), adopted AS (
    INSERT INTO ledger_entries
           (window_id, sequence, epoch, stripe_customer_id, event_name, value, slot_at, identifier, state,
            created_at)
    SELECT window_id, sequence, %(epoch)s, %(customer)s, %(event_name)s, %(value)s, %(slot_at)s, %(identifier)s,
           'adopted', %(now)s
      FROM place
    RETURNING entry_id, window_id
), proof AS (
    INSERT INTO evidence (entry_id, kind, observed, granularity, observed_at)
    SELECT entry_id, 'adoption', %(value)s, 'minute', %(now)s FROM adopted
)
UPDATE usage_windows SET cut_due = true WHERE window_id IN (SELECT window_id FROM adopted);

-- name: canary_lanes
SELECT DISTINCT stripe_customer_id, event_name FROM canaries ORDER BY event_name;

-- name: canary_slots
SELECT slot_at FROM canaries WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s;

-- name: adopt_canaries
INSERT INTO canaries (event_name, stripe_customer_id, slot_at, identifier, started_at, outcome, seen_at)
SELECT %(event_name)s, %(stripe_customer_id)s, slot_at, identifier, slot_at, 'ok', %(now)s
  FROM unnest(%(slots)s::timestamptz[], %(identifiers)s::text[]) AS shown (slot_at, identifier)
    ON CONFLICT DO NOTHING;

-- name: raise_epoch
-- Beyond the mark's too: a backup of before an earlier recovery must not reuse that recovery's names.
UPDATE ledger_identity SET epoch = greatest(epoch, %(passed)s) + 1 RETURNING epoch;

-- name: pass_attempt_numbers
-- The lost timeline's attempt numbers are not used again.
SELECT setval(pg_get_serial_sequence('attempts', 'attempt_id'),
              greatest(%(attempt_id)s::bigint, (SELECT coalesce(max(attempt_id), 0) FROM attempts), 1)) AS attempt_id;

-- name: rebind_database
UPDATE ledger_identity SET database_system_id = %(system_id)s, database_timeline = %(timeline)s;

-- name: latest_adoption
SELECT actor, done_at FROM ledger_operations
 WHERE action = 'adopt' AND done_at >= %(since)s
 ORDER BY operation_id DESC
 LIMIT 1;

-- name: release_ledger
UPDATE ledger_identity SET frozen_reason = NULL, frozen_at = NULL;
