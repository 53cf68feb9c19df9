-- name: hold_entries_too_old
-- Stripe takes no timestamp older than 35 days: what was never sent by then is owed, and a person decides how.
UPDATE ledger_entries
   SET hold_reason = 'older_than_stripe_accepts'
 WHERE state = 'pending' AND hold_reason IS NULL AND slot_at <= %(now)s - %(past_max)s;

-- name: claim_due_entries
-- Write-ahead: the entry is ambiguous and its attempt is committed before any byte leaves.  A claim is a lease with
-- a fence; a worker whose lease ran out finds its fence passed and can record nothing.
WITH due AS (
    SELECT entry_id
      FROM ledger_entries
     WHERE state IN ('pending', 'ambiguous') AND hold_reason IS NULL
       AND NOT EXISTS (SELECT FROM ledger_identity WHERE frozen_reason IS NOT NULL)
       -- A flush that was paused past its lease claims nothing more.
       AND EXISTS (SELECT FROM flush_leases
                    WHERE lock_key = %(lock_key)s AND fence = %(lease_fence)s AND expires_at > %(now)s)
       AND next_attempt_at <= %(now)s
       AND (lease_until IS NULL OR lease_until <= %(now)s)
       -- Stripe forgets identifiers after at least 24 hours: past the safe time only evidence may decide.
       AND (first_attempt_at IS NULL OR first_attempt_at > %(now)s - %(safe_send)s)
       AND slot_at > %(now)s - %(past_max)s
     ORDER BY next_attempt_at, entry_id
     LIMIT %(limit)s
       FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE ledger_entries e
       SET state = 'ambiguous', fence = e.fence + 1, lease_until = %(now)s + %(entry_lease)s,
           first_attempt_at = coalesce(e.first_attempt_at, %(now)s), last_attempt_at = %(now)s
      FROM due
     WHERE e.entry_id = due.entry_id
    RETURNING e.entry_id, e.window_id, e.fence, e.stripe_customer_id, e.event_name, e.value, e.slot_at, e.identifier,
              -- LIMIT keeps this a look-up per entry; without it the planner reads all attempts ever made.
              e.fence > 1 AND (SELECT true FROM attempts a
                                WHERE a.entry_id = e.entry_id AND a.outcome IS DISTINCT FROM 'not_executed'
                                LIMIT 1) IS NOT NULL AS earlier_unknown
), attempted AS (
    INSERT INTO attempts (entry_id, fence, channel, started_at)
    SELECT entry_id, fence, %(channel)s, %(now)s FROM claimed
    RETURNING attempt_id, entry_id
)
SELECT a.attempt_id, c.entry_id, w.organization_id, c.fence, c.stripe_customer_id, c.event_name, c.value, c.slot_at,
       c.identifier, c.earlier_unknown
  FROM claimed c
  JOIN attempted a USING (entry_id)
  JOIN usage_windows w USING (window_id)
 ORDER BY c.entry_id;

-- name: record_outcomes
-- Only where the fence is still ours, and only before the claim ran out (the caller looks).  Proof that nothing was executed sets the first attempt back, because the
-- identifier is then unspent; a rejected amount is owed, so its window is due again once a person releases it.
WITH recorded AS (
    UPDATE ledger_entries e
       SET state = answer.state::entry_state,
           lease_until = NULL,
           next_attempt_at = answer.next_attempt_at,
           first_attempt_at = CASE WHEN answer.state = 'pending' THEN NULL ELSE e.first_attempt_at END,
           hold_reason = CASE WHEN answer.state = 'rejected' THEN 'rejected_by_stripe' ELSE e.hold_reason END
      FROM unnest(%(attempt_ids)s::bigint[], %(entry_ids)s::bigint[], %(fences)s::bigint[], %(states)s::text[],
                  %(outcomes)s::text[], %(http_statuses)s::smallint[], %(error_codes)s::text[],
                  %(error_messages)s::text[], %(request_ids)s::text[], %(next_attempt_ats)s::timestamptz[])
           AS answer (attempt_id, entry_id, fence, state, outcome, http_status, error_code, error_message, request_id,
                      next_attempt_at)
     -- The fence alone says whether the entry is still this claim's: whoever settles an entry raises it.  A condition
     -- on the state would make the planner read the backlog instead of the keys.
     WHERE e.entry_id = answer.entry_id AND e.fence = answer.fence
    RETURNING e.entry_id, e.window_id, e.state, answer.attempt_id, answer.outcome, answer.http_status,
              answer.error_code, answer.error_message, answer.request_id
), finished AS (
    -- Joined by its own key alone: a join of two lists of thousands would be a loop in a loop.
    UPDATE attempts a
       SET finished_at = %(now)s, outcome = r.outcome, http_status = r.http_status,
           error_code = r.error_code, error_message = r.error_message, request_id = r.request_id
      FROM recorded r
     WHERE a.attempt_id = r.attempt_id AND a.outcome IS NULL
), owed AS (
    UPDATE usage_windows SET cut_due = true
     WHERE window_id IN (SELECT window_id FROM recorded WHERE state = 'rejected')
)
SELECT entry_id FROM recorded;
