-- name: ledger_account
-- The whole ledger in one row, for people: what was read, what became of it.
SELECT (SELECT count(*) FROM {source}) AS source_rows,
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
       (SELECT count(*) FROM quarantined_events WHERE mended_at IS NULL) AS events_quarantined
  FROM ledger_entries
 WHERE NOT settled OR hold_reason IS NOT NULL;
