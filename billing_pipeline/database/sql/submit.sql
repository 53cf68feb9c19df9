-- name: hold_entries_too_old
-- Stripe takes no timestamp older than 35 days: what was never sent by then is owed, and a person decides how.
UPDATE ledger_entries e
   SET hold_reason = 'older_than_stripe_accepts'
  FROM open_entries o
 WHERE o.entry_id = e.entry_id AND o.send_by <= %(now)s - %(past_max)s + interval '35 days'
   AND e.state = 'pending' AND e.hold_reason IS NULL AND e.slot_at <= %(now)s - %(past_max)s;

-- name: wake_entries
-- Entries whose wait is over are due again; the claim reads only what is due, however much waits.
UPDATE open_entries SET retry_at = NULL
 WHERE entry_id IN (SELECT entry_id FROM open_entries WHERE retry_at <= %(now)s FOR NO KEY UPDATE SKIP LOCKED);

-- name: claim_due_entries
-- Write-ahead: the entry is ambiguous and its attempt is committed before any byte leaves.  A claim is a lease with
-- a fence; a worker whose lease ran out finds its fence passed and can record nothing.  Whatever must be sent first
-- comes first.
WITH due AS (
    SELECT e.entry_id, o.send_by
      FROM open_entries o
      JOIN ledger_entries e USING (entry_id)
     WHERE o.retry_at IS NULL AND o.send_by > %(now)s
       AND NOT EXISTS (SELECT FROM ledger_identity WHERE frozen_reason IS NOT NULL)
       -- A flush that was paused past its lease claims nothing more.
       AND EXISTS (SELECT FROM flush_leases
                    WHERE lock_key = %(lock_key)s AND fence = %(lease_fence)s AND expires_at > %(now)s)
       AND e.hold_reason IS NULL
       AND (e.lease_until IS NULL OR e.lease_until <= %(now)s)
       -- Stripe forgets identifiers after at least 24 hours: past the safe time only evidence may decide.
       AND (e.first_attempt_at IS NULL OR e.first_attempt_at > %(now)s - %(safe_send)s)
       AND e.slot_at > %(now)s - %(past_max)s
       AND (%(organization_id)s::text IS NULL
            OR EXISTS (SELECT FROM usage_windows w
                        WHERE w.window_id = e.window_id AND w.organization_id = %(organization_id)s))
     ORDER BY o.send_by, o.entry_id
     LIMIT %(limit)s
       FOR NO KEY UPDATE OF e SKIP LOCKED
), claimed AS (
    UPDATE ledger_entries e
       SET state = 'ambiguous', fence = e.fence + 1, lease_until = %(now)s + %(entry_lease)s,
           first_attempt_at = coalesce(e.first_attempt_at, %(now)s), last_attempt_at = %(now)s
      FROM due
     -- By key: for two thousand look-ups the planner would rather read the whole table.
     WHERE e.entry_id = ANY (ARRAY(SELECT entry_id FROM due)) AND e.entry_id = due.entry_id
    RETURNING e.entry_id, e.fence, due.send_by
), attempted AS (
    INSERT INTO attempts (entry_id, fence, channel, started_at)
    SELECT entry_id, fence, %(channel)s, %(now)s FROM claimed ORDER BY send_by, entry_id
    RETURNING attempt_id, entry_id, fence
)
-- What an entry states never changes, so it may be read as it was before the claim; a join of the two lists above
-- would be a loop in a loop.
SELECT a.attempt_id, a.entry_id,
       (SELECT organization_id FROM usage_windows w WHERE w.window_id = e.window_id) AS organization_id,
       a.fence, e.stripe_customer_id, e.event_name, e.value, e.slot_at AS timestamp, e.identifier,
       -- LIMIT keeps this a look-up per entry; without it the planner reads all attempts ever made.
       a.fence > 1 AND (SELECT true FROM attempts earlier
                         WHERE earlier.entry_id = a.entry_id AND earlier.outcome IS DISTINCT FROM 'not_executed'
                         LIMIT 1) IS NOT NULL AS earlier_unknown
  FROM attempted a
  JOIN ledger_entries e USING (entry_id)
 ORDER BY a.attempt_id;

-- name: record_outcome
-- What several entries came to.  Only where the fence is still ours, and only before the claim ran out (the caller
-- looks).  Proof that nothing was executed sets the first attempt back, because the identifier is then unspent; a
-- rejected amount is owed, so its window is due again once a person releases it.
WITH recorded AS (
    UPDATE ledger_entries e
       SET state = %(state)s::entry_state,
           lease_until = NULL,
           first_attempt_at = CASE WHEN %(state)s = 'pending' THEN NULL ELSE e.first_attempt_at END,
           hold_reason = CASE WHEN %(state)s = 'rejected' THEN 'rejected_by_stripe' ELSE e.hold_reason END
      FROM unnest(%(attempt_ids)s::bigint[], %(entry_ids)s::bigint[], %(fences)s::bigint[], %(request_ids)s::text[])
           AS answer (attempt_id, entry_id, fence, request_id)
     -- The fence alone says whether the entry is still this claim's: whoever settles an entry raises it.  A condition
     -- on the state would make the planner read the backlog instead of the keys.
     WHERE e.entry_id = ANY (ARRAY(SELECT unnest(%(entry_ids)s::bigint[])))
       AND e.entry_id = answer.entry_id AND e.fence = answer.fence
    RETURNING e.window_id, answer.attempt_id, answer.request_id
), finished AS (
    -- Joined by its own key alone: a join of two lists of thousands would be a loop in a loop.
    UPDATE attempts a
       SET finished_at = %(now)s, outcome = %(outcome)s, http_status = %(http_status)s::smallint,
           error_code = %(error_code)s, error_message = %(error_message)s, request_id = r.request_id
      FROM recorded r
     WHERE a.attempt_id = r.attempt_id AND a.outcome IS NULL
)
UPDATE usage_windows SET cut_due = true
 WHERE %(state)s = 'rejected' AND window_id IN (SELECT window_id FROM recorded);

-- name: put_back_entries
-- What is still open after its attempt waits; a first attempt whose outcome is unknown sets the time it must be sent by.
UPDATE open_entries o
   SET retry_at = back.retry_at,
       send_by = least(e.slot_at + interval '35 days', e.first_attempt_at + %(safe_send)s)
  FROM unnest(%(entry_ids)s::bigint[], %(fences)s::bigint[], %(retry_ats)s::timestamptz[])
       AS back (entry_id, fence, retry_at)
  JOIN ledger_entries e ON e.entry_id = back.entry_id AND e.fence = back.fence
 WHERE o.entry_id = back.entry_id;
