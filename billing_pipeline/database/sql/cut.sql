-- name: lock_windows_due_for_cut
-- The window's row is the one place where cutting is serialized.  What the window has stated is read by the next
-- statement, after the lock: joined in here it would come from the snapshot of before the wait.
SELECT window_id, ends_at
  FROM usage_windows
 WHERE cut_due AND hold_reason IS NULL AND stripe_customer_id IS NOT NULL
   AND sealed_at IS NULL
   AND (cut_after IS NULL OR cut_after <= %(now)s)
   AND ends_at <= %(closed_before)s
   AND (ends_at, window_id) > (%(after_ends_at)s, %(after_window_id)s)
 ORDER BY ends_at, window_id
 LIMIT %(limit)s
   FOR NO KEY UPDATE SKIP LOCKED;

-- name: facts_for_cut
-- The minutes are those of the customer and event name, not of the window: Stripe sums them whosever they are.  Those of
-- replaced entries stay used, so that no minute ever stands for two.  They are asked for apart, because each state has
-- its own index by customer: without one, every window would read the whole hour of all customers (10,000 customers:
-- 13 s for a batch of 2,000 windows).
SELECT w.window_id, w.organization_id, w.stripe_customer_id, w.event_name, w.starts_at, w.ends_at, w.target,
       w.last_slots_released_at IS NOT NULL AS last_slots_released,
       coalesce(e.stated, 0) AS stated,
       coalesce(e.assured, 0) AS assured,
       coalesce(e.next_sequence, 0) AS next_sequence,
       coalesce(e.open_or_held, false) AS open_or_held,
       e.last_cut_at,
       coalesce(slot.used_slots, '{}') AS used_slots
  FROM usage_windows w
  LEFT JOIN LATERAL (
       SELECT sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')) AS stated,
              sum(value) FILTER (WHERE state IN ('confirmed', 'adopted') OR state = 'accepted' AND value < 0)
                  AS assured,
              max(sequence) + 1 AS next_sequence,
              bool_or(state IN ('pending', 'ambiguous') OR (state = 'rejected' AND hold_reason IS NOT NULL))
                  AS open_or_held,
              max(created_at) AS last_cut_at
         FROM ledger_entries WHERE window_id = w.window_id) e ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(slot_at) AS used_slots
         FROM (SELECT slot_at
                 FROM ledger_entries
                WHERE stripe_customer_id = w.stripe_customer_id AND event_name = w.event_name AND NOT replaced
                  AND slot_at >= w.starts_at AND slot_at <= w.ends_at - interval '1 minute'
                UNION
               SELECT slot_at
                 FROM ledger_entries
                WHERE stripe_customer_id = w.stripe_customer_id AND event_name = w.event_name AND replaced
                  AND slot_at >= w.starts_at AND slot_at <= w.ends_at - interval '1 minute') used) slot ON true
 WHERE w.window_id = ANY (%(window_ids)s::bigint[])
 ORDER BY w.ends_at, w.window_id;

-- name: insert_entries
INSERT INTO ledger_entries
       (window_id, sequence, epoch, stripe_customer_id, event_name, value, slot_at, identifier,
        created_at)
SELECT window_id, sequence, %(epoch)s, stripe_customer_id, event_name, value, slot_at, identifier, %(now)s
  FROM unnest(%(window_ids)s::bigint[], %(sequences)s::smallint[], %(customers)s::text[], %(event_names)s::text[],
              %(values)s::bigint[], %(slots)s::timestamptz[], %(identifiers)s::text[])
       AS cut (window_id, sequence, stripe_customer_id, event_name, value, slot_at, identifier);

-- name: settle_windows
-- Cut, or found to owe nothing: not due again before the target or an entry's state changes.
UPDATE usage_windows SET cut_due = false, cut_after = NULL WHERE window_id = ANY (%(window_ids)s::bigint[]);

-- name: defer_windows
-- Still due, and owed; only not before then.
UPDATE usage_windows w
   SET cut_after = deferred.until
  FROM unnest(%(window_ids)s::bigint[], %(untils)s::timestamptz[]) AS deferred (window_id, until)
 WHERE w.window_id = deferred.window_id;

-- name: hold_windows
UPDATE usage_windows w
   SET hold_reason = held.reason
  FROM unnest(%(window_ids)s::bigint[], %(reasons)s::text[]) AS held (window_id, reason)
 WHERE w.window_id = held.window_id;
