-- name: ledger_account
-- The whole ledger in one row, for people: what was read, what became of it.
SELECT (SELECT count(*) FROM {source} s) AS source_rows,
       (SELECT count(*) FROM quarantined_events WHERE mended_at IS NULL) AS quarantined,
       (SELECT count(*) FROM usage_windows WHERE event_count > 0) AS windows,
       count(*) AS entries,
       coalesce(sum(value) FILTER (WHERE value > 0), 0) AS units_added,
       coalesce(-sum(value) FILTER (WHERE value < 0), 0) AS units_taken_back,
       count(*) FILTER (WHERE state IN ('accepted', 'confirmed', 'adopted')) AS accepted,
       count(*) FILTER (WHERE state IN ('confirmed', 'adopted')) AS confirmed,
       (SELECT count(*) FROM attempts) AS attempts
  FROM ledger_entries;

-- name: money_at_risk
-- What is not proved, in units: the first numbers to look at.
SELECT (SELECT coalesce(sum(target), 0) FROM usage_windows WHERE stripe_customer_id IS NULL) AS units_unmapped,
       (SELECT count(*) FROM usage_windows WHERE hold_reason IS NOT NULL) AS windows_held,
       count(*) FILTER (WHERE hold_reason IS NOT NULL AND state <> 'rejected') AS entries_held,
       coalesce(sum(value) FILTER (WHERE state = 'rejected' AND hold_reason IS NOT NULL), 0) AS units_rejected,
       coalesce(sum(value) FILTER (WHERE state = 'pending'), 0) AS units_pending,
       count(*) FILTER (WHERE state = 'ambiguous') AS entries_ambiguous,
       date_trunc('second', %(now)s - min(first_attempt_at) FILTER (WHERE state = 'ambiguous')) AS oldest_ambiguous,
       coalesce(sum(value) FILTER (WHERE state = 'accepted'), 0) AS units_unconfirmed,
       date_trunc('second', %(now)s - min(first_attempt_at) FILTER (WHERE state = 'accepted')) AS oldest_unconfirmed,
       (SELECT count(*) FROM quarantined_events
         WHERE mended_at IS NULL AND dismissed_at IS NULL) AS events_quarantined
  FROM ledger_entries
 WHERE NOT settled OR hold_reason IS NOT NULL;

-- name: time_to_confirmed
-- From the first send to the proof, of the latest proofs: by their number, because only that has an index.
SELECT date_trunc('second', percentile_disc(0.5) WITHIN GROUP (ORDER BY v.observed_at - e.first_attempt_at))
       AS time_to_confirmed
  FROM (SELECT entry_id, observed_at
          FROM evidence
         WHERE kind = 'summary_present'
         ORDER BY evidence_id DESC
         LIMIT %(limit)s) v
  JOIN ledger_entries e USING (entry_id)
 WHERE e.first_attempt_at IS NOT NULL;

-- name: failing_entries
-- The fence counts the claims of an entry, each of which is one attempt.
SELECT w.organization_id, e.identifier, e.fence::bigint AS sends, e.first_attempt_at,
       coalesce(a.error_code, a.outcome, 'no answer') AS last_error
  FROM open_entries o
  JOIN ledger_entries e USING (entry_id)
  JOIN usage_windows w ON w.window_id = e.window_id
 CROSS JOIN LATERAL (
       SELECT error_code, outcome FROM attempts WHERE entry_id = e.entry_id ORDER BY fence DESC LIMIT 1) a
 WHERE e.fence >= %(sends)s AND e.first_attempt_at IS NOT NULL AND e.hold_reason IS NULL
 ORDER BY e.first_attempt_at, e.entry_id
 LIMIT %(limit)s;

-- name: usage_about_to_expire
-- Usage so old that Stripe soon refuses it, and not known to be sent: owed by its window, or in an open entry of it.
WITH owed AS (
    SELECT w.organization_id, w.meter, w.starts_at,
           w.target - (SELECT coalesce(sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')), 0)
                         FROM ledger_entries WHERE window_id = w.window_id) AS units
      FROM usage_windows w
     WHERE (w.cut_due OR w.hold_reason IS NOT NULL) AND w.starts_at <= %(alarm_before)s AND w.starts_at > %(past)s
     UNION ALL
    SELECT w.organization_id, w.meter, w.starts_at, e.value
      FROM ledger_entries e
      JOIN usage_windows w USING (window_id)
     WHERE NOT e.settled AND e.state IN ('pending', 'ambiguous') AND e.slot_at <= %(alarm_before)s AND e.slot_at > %(past)s
)
SELECT organization_id, meter, sum(abs(units)) AS units, min(starts_at) AS oldest_at
  FROM owed
 WHERE units <> 0
 GROUP BY organization_id, meter
 ORDER BY oldest_at, organization_id, meter;
