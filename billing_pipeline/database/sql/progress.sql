-- Where usage is on its way to the proof, over time, for a person who looks at the pages of Dagster.  All of it reads
-- what is open, or the last two days, or a set number of the latest proofs, so it costs the same however long the history is.

-- name: stated_by_hour
-- By the hour of the entries' Stripe timestamps, one range of the index on slot_at.  Replaced entries were never counted,
-- and what was refused is owed.
SELECT event_name,
       date_trunc('hour', slot_at, 'UTC') AS hour_at,
       count(*) AS entries,
       count(*) FILTER (WHERE state NOT IN ('pending', 'rejected')) AS sent,
       count(*) FILTER (WHERE state IN ('confirmed', 'adopted')) AS confirmed,
       coalesce(sum(value) FILTER (WHERE state <> 'rejected'), 0) AS units,
       coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted')), 0) AS units_confirmed
  FROM ledger_entries
 WHERE slot_at >= %(since)s AND NOT replaced
 GROUP BY 1, 2
 ORDER BY 1, 2;

-- name: owed_by_age
-- Closed windows whose target is not stated, by the age of their hour; bounds are ages, in order.  A window without a
-- customer has no entries to look for, and there may be many.
SELECT width_bucket(%(now)s - w.starts_at, %(bounds)s::interval[]) AS bucket,
       sum(abs(w.target - e.stated)) AS units
  FROM usage_windows w
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')), 0) AS stated
         FROM ledger_entries
        WHERE w.stripe_customer_id IS NOT NULL AND window_id = w.window_id) e
 WHERE (w.cut_due OR w.hold_reason IS NOT NULL)
   AND w.ends_at <= %(closed_before)s AND w.target <> e.stated
 GROUP BY 1
 ORDER BY 1;

-- name: unsettled_by_age
-- Entries that were sent and are not proved, by the age of their first send; bounds are ages, in order.
SELECT state::text AS state,
       width_bucket(%(now)s - first_attempt_at, %(bounds)s::interval[]) AS bucket,
       sum(abs(value)) AS units
  FROM ledger_entries
 WHERE NOT settled AND state IN ('ambiguous', 'accepted') AND first_attempt_at IS NOT NULL
 GROUP BY 1, 2
 ORDER BY 1, 2;

-- name: proof_lag_by_hour
-- From the last send, which Stripe accepted, to the summary that shows it: the longest of each hour in which proofs
-- came.  The latest proofs are found by their number, because only that has an index.
SELECT date_trunc('hour', v.observed_at, 'UTC') AS hour_at,
       max(v.observed_at - e.last_attempt_at) AS longest
  FROM (SELECT entry_id, observed_at
          FROM evidence
         WHERE kind = 'summary_present'
         ORDER BY evidence_id DESC
         LIMIT %(limit)s) v
  JOIN ledger_entries e USING (entry_id)
 WHERE v.observed_at >= %(since)s AND e.last_attempt_at IS NOT NULL
 GROUP BY 1
 ORDER BY 1;
