-- name: lock_windows_due_for_cut
-- The window's row is the one place where cutting is serialized.  What the window has stated is read by the next
-- statement, after the lock: joined in here it would come from the snapshot of before the wait.
SELECT window_id, ends_at
  FROM usage_windows
 WHERE cut_due AND hold_reason IS NULL AND stripe_customer_id IS NOT NULL
   AND sealed_at IS NULL
   AND ends_at <= %(closed_before)s
   AND (ends_at, window_id) > (%(after_ends_at)s, %(after_window_id)s)
 ORDER BY ends_at, window_id
 LIMIT %(limit)s
   FOR NO KEY UPDATE SKIP LOCKED;

-- name: facts_for_cut
SELECT w.window_id, w.organization_id, w.stripe_customer_id, w.event_name, w.starts_at, w.ends_at, w.target,
       coalesce(e.stated, 0) AS stated,
       coalesce(e.next_sequence, 0) AS next_sequence,
       coalesce(e.open_or_held, false) AS open_or_held,
       slot.last_slot_at
  FROM usage_windows w
  LEFT JOIN LATERAL (
       SELECT sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')) AS stated,
              max(sequence) + 1 AS next_sequence,
              bool_or(state IN ('pending', 'ambiguous') OR (state = 'rejected' AND hold_reason IS NOT NULL))
                  AS open_or_held
         FROM ledger_entries WHERE window_id = w.window_id) e ON true
  LEFT JOIN LATERAL (
       SELECT max(slot_at) AS last_slot_at
         FROM ledger_entries
        WHERE stripe_customer_id = w.stripe_customer_id AND event_name = w.event_name
          AND slot_at >= w.starts_at AND slot_at < w.ends_at) slot ON true
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
UPDATE usage_windows SET cut_due = false WHERE window_id = ANY (%(window_ids)s::bigint[]);

-- name: hold_windows
UPDATE usage_windows w
   SET hold_reason = held.reason
  FROM unnest(%(window_ids)s::bigint[], %(reasons)s::text[]) AS held (window_id, reason)
 WHERE w.window_id = held.window_id;
