-- The ledger's invariants: each statement returns zero rows, or names the offenders.
-- They run after every step of the fault tests and hourly as asset checks; the numbers are those of docs/architecture.md.
-- Every statement answers (offender, detail), so that one reader serves all; v13's is in completeness.sql.

-- name: v01_conservation
-- A closed, quiet, unsealed window that nobody holds states exactly what the source says.
SELECT 'window ' || w.window_id AS offender, format('target %%s, stated %%s', w.target, e.stated) AS detail
  FROM usage_windows w
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')), 0) AS stated,
              coalesce(bool_or(state IN ('pending', 'ambiguous')), false) AS open,
              coalesce(bool_or(state = 'rejected' AND hold_reason IS NOT NULL), false) AS rejected
         FROM ledger_entries WHERE window_id = w.window_id) e
 WHERE w.ends_at < %(now)s - interval '2 hours' AND w.sealed_at IS NULL AND w.hold_reason IS NULL
   AND w.stripe_customer_id IS NOT NULL
   AND e.stated <> w.target AND NOT e.open AND NOT e.rejected AND NOT w.cut_due
 LIMIT 100;

-- name: v02_write_ahead
-- Nothing leaves `pending` without a durable attempt.
SELECT 'entry ' || e.entry_id AS offender, e.state::text AS detail
  FROM ledger_entries e
 WHERE e.state IN ('ambiguous', 'accepted', 'confirmed', 'rejected')
   AND NOT EXISTS (SELECT FROM attempts a WHERE a.entry_id = e.entry_id)
 LIMIT 100;

-- name: v03_never_sent_late
-- No attempt starts after the safe time since the first attempt that may have been executed.
SELECT 'attempt ' || a.attempt_id AS offender, format('%%s after the first', a.started_at - e.first_attempt_at) AS detail
  FROM attempts a
  JOIN ledger_entries e USING (entry_id)
 WHERE a.started_at > e.first_attempt_at + %(safe_send)s
 LIMIT 100;

-- name: v04_accepted_has_a_reason
SELECT 'entry ' || e.entry_id AS offender, 'no attempt of it was ok or duplicate' AS detail
  FROM ledger_entries e
 WHERE e.state = 'accepted'
   AND NOT EXISTS (SELECT FROM attempts a WHERE a.entry_id = e.entry_id AND a.outcome IN ('ok', 'duplicate'))
 LIMIT 100;

-- name: v05_replaced_on_evidence
-- Absence counts only late enough after the last attempt and behind a later canary; or a recovery settled it.
SELECT 'entry ' || e.entry_id AS offender, 'replaced without evidence behind the watermark' AS detail
  FROM ledger_entries e
 WHERE e.state = 'replaced'
   AND NOT EXISTS (
       SELECT FROM evidence v
        WHERE v.entry_id = e.entry_id
          AND (v.kind = 'adoption'
               OR (v.kind = 'summary_absent' AND v.observed_at >= e.last_attempt_at + %(absence_after)s
                   AND v.canary_sent_at > e.last_attempt_at)))
 LIMIT 100;

-- name: v06_confirmed_is_shown
SELECT 'entry ' || e.entry_id AS offender, format('value %%s without evidence of it', e.value) AS detail
  FROM ledger_entries e
 WHERE e.state IN ('confirmed', 'adopted')
   AND NOT EXISTS (
       SELECT FROM evidence v
        WHERE v.entry_id = e.entry_id AND v.kind IN ('summary_present', 'adoption') AND v.observed = e.value)
 LIMIT 100;

-- name: v07_stripe_knows_no_more_than_we_sent
-- Above what was possible: a restore, a foreign writer, or a double.
SELECT format('%%s %%s %%s', s.stripe_customer_id, s.event_name, s.hour_at) AS offender,
       format('Stripe shows %%s, possible were %%s to %%s', s.observed, p.low, p.high) AS detail
  FROM meter_summaries s
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(value) FILTER (WHERE value > 0), 0) AS high,
              coalesce(sum(value) FILTER (WHERE value < 0), 0) AS low
         FROM ledger_entries e
        WHERE e.stripe_customer_id = s.stripe_customer_id AND e.event_name = s.event_name
          AND e.slot_at >= s.hour_at AND e.slot_at < s.hour_at + interval '1 hour'
          AND e.state NOT IN ('pending', 'rejected', 'replaced')) p
 WHERE s.observed > p.high OR s.observed < p.low
 LIMIT 100;

-- name: v08_rejected_only_when_certain
SELECT 'entry ' || e.entry_id AS offender, 'rejected while an attempt is unknown' AS detail
  FROM ledger_entries e
 WHERE e.state = 'rejected'
   AND EXISTS (SELECT FROM attempts a
                WHERE a.entry_id = e.entry_id AND (a.outcome IS NULL OR a.outcome = 'unknown'))
   AND NOT EXISTS (SELECT FROM evidence v
                    WHERE v.entry_id = e.entry_id AND v.kind IN ('error_report', 'summary_absent'))
 LIMIT 100;

-- name: v09_mark_not_ahead
-- :mark is read from outside the database.
SELECT 'high-water mark' AS offender,
       format('attempt %%s was made, the ledger knows %%s', %(mark)s::bigint, (SELECT max(attempt_id) FROM attempts)) AS detail
 WHERE %(mark)s::bigint > (SELECT coalesce(max(attempt_id), 0) FROM attempts);

-- name: v10_nothing_open_under_a_seal
-- Nor is a window of a sealed period left out: what it states, Stripe bills to nobody.
SELECT 'entry ' || e.entry_id AS offender, e.state::text AS detail
  FROM ledger_entries e
  JOIN usage_windows w USING (window_id)
 WHERE w.sealed_at IS NOT NULL AND e.state NOT IN ('confirmed', 'adopted', 'rejected', 'replaced')
UNION ALL
SELECT 'window ' || w.window_id, format('is not sealed, but its period was at %%s', s.sealed_at)
  FROM seals s
  JOIN usage_windows w ON w.stripe_customer_id = s.stripe_customer_id
   AND (s.event_name IS NULL OR s.event_name = w.event_name)
   AND s.during @> tstzrange(w.starts_at, w.ends_at)
 WHERE w.sealed_at IS NULL
 LIMIT 100;

-- name: v11_slot_near_its_window
-- In its window, or, where the window has no minute left, in the hour before or after it.
SELECT 'entry ' || e.entry_id AS offender, format('slot %%s outside %%s to %%s', e.slot_at, w.starts_at, w.ends_at) AS detail
  FROM ledger_entries e
  JOIN usage_windows w USING (window_id)
 WHERE e.slot_at < date_trunc('hour', w.starts_at, 'UTC') - interval '1 hour'
    OR e.slot_at + interval '1 minute' > date_trunc('hour', w.starts_at, 'UTC') + interval '2 hours'
 LIMIT 100;

-- name: v12_ambiguity_ends
SELECT 'entry ' || entry_id AS offender, format('ambiguous since %%s', first_attempt_at) AS detail
  FROM ledger_entries
 WHERE state = 'ambiguous' AND first_attempt_at < %(now)s - interval '36 hours'
 LIMIT 100;

-- name: v16_customers_share_an_organization
-- The windows of an organization's customers add up to the organization: a mapping moves usage, it never makes any.
SELECT format('%%s %%s %%s', organization_id, meter, hour_at) AS offender,
       format('%%s windows overlap', count(*)) AS detail
  FROM (SELECT a.organization_id, a.meter, date_trunc('hour', a.starts_at, 'UTC') AS hour_at
          FROM usage_windows a
          JOIN usage_windows b ON b.organization_id = a.organization_id AND b.meter = a.meter
           AND b.window_id > a.window_id
           AND tstzrange(a.starts_at, a.ends_at) && tstzrange(b.starts_at, b.ends_at)
         WHERE a.event_count > 0 AND b.event_count > 0
           AND a.stripe_customer_id IS NOT NULL AND b.stripe_customer_id IS NOT NULL) pair
 GROUP BY organization_id, meter, hour_at
 LIMIT 100;

-- name: v17_no_window_below_zero
-- Whatever becomes of what Stripe has accepted, no window comes to less than nothing: on the invoice that would eat
-- usage of other hours, or show as 0.  What recovery found at Stripe is as it is.
SELECT 'window ' || window_id AS offender, format('may come to %%s', least_sum) AS detail
  FROM (SELECT window_id, bool_or(state = 'adopted') AS adopted,
               sum(value) FILTER (WHERE state IN ('confirmed', 'adopted') OR value < 0) AS least_sum
          FROM ledger_entries
         WHERE state NOT IN ('rejected', 'replaced')
           AND window_id IN (SELECT window_id FROM ledger_entries WHERE value < 0)
         GROUP BY window_id) stated
 WHERE least_sum < 0 AND NOT adopted
 LIMIT 100;

-- name: v18_open_entries_are_listed
-- The submitter's work list names exactly the entries that are pending or ambiguous; one left out would never be sent.
SELECT 'entry ' || coalesce(e.entry_id, o.entry_id) AS offender,
       CASE WHEN o.entry_id IS NULL THEN e.state || ', not listed' ELSE 'listed, not open' END AS detail
  FROM (SELECT entry_id, state::text AS state
          FROM ledger_entries WHERE NOT settled AND state IN ('pending', 'ambiguous')) e
  FULL JOIN open_entries o USING (entry_id)
 WHERE e.entry_id IS NULL OR o.entry_id IS NULL
 LIMIT 100;

-- name: v19_periods_keep_their_usage
-- A quiet window has stated nothing, all in all, in a billing period it does not lie in.  Older edges are not looked
-- at: Stripe no longer takes what would put them right.
SELECT format('window %%s', w.window_id) AS offender,
       format('%%s units stated from %%s to %%s, outside its billing period', sum(e.value), side.begins_at, side.until_at)
           AS detail
  FROM (SELECT DISTINCT w.window_id, w.stripe_customer_id, w.event_name, w.starts_at, w.ends_at
          FROM period_edges edge
          JOIN usage_windows w ON w.stripe_customer_id = edge.stripe_customer_id AND w.event_name = edge.event_name
           AND w.starts_at >= date_trunc('hour', edge.edge_at, 'UTC') - interval '1 hour'
           AND w.starts_at < date_trunc('hour', edge.edge_at, 'UTC') + interval '2 hours'
         WHERE edge.edge_at >= %(now)s - interval '34 days' AND edge.edge_at <= %(now)s
           AND w.ends_at < %(now)s - interval '2 hours' AND NOT w.cut_due AND w.hold_reason IS NULL
           AND w.sealed_at IS NULL) w
  JOIN ledger_entries e ON e.window_id = w.window_id AND e.state NOT IN ('rejected', 'replaced')
 CROSS JOIN LATERAL (
       SELECT max(p.edge_at) FILTER (WHERE p.edge_at <= e.slot_at) AS begins_at,
              min(p.edge_at) FILTER (WHERE p.edge_at > e.slot_at) AS until_at
         FROM period_edges p
        WHERE p.stripe_customer_id = w.stripe_customer_id AND p.event_name = w.event_name) side
 WHERE side.begins_at > w.starts_at OR side.until_at < w.ends_at
 GROUP BY w.window_id, side.begins_at, side.until_at
HAVING sum(e.value) <> 0 AND NOT bool_or(e.state IN ('pending', 'ambiguous'))
 LIMIT 100;

-- name: v20_period_levels_add_up
-- A window of a max, last or unique meter is worth what the level grew by since the window before, never less than 0.
SELECT 'window ' || window_id AS offender,
       format('worth %%s, the level went from %%s to %%s', target, level_before, period_level) AS detail
  FROM (SELECT w.window_id, w.target, w.period_level,
               lag(w.period_level, 1, 0) OVER (
                   PARTITION BY w.organization_id, w.stripe_customer_id, w.meter,
                                coalesce(period.began_at, date_trunc('month', w.starts_at, 'UTC')), anew.since_at
                       ORDER BY w.starts_at) AS level_before
          FROM usage_windows w
          JOIN meter_versions v ON v.meter = w.meter AND tstzrange(v.valid_from, v.valid_until) @> w.starts_at
         CROSS JOIN LATERAL (
               SELECT max(e.edge_at) AS began_at
                 FROM period_edges e
                WHERE e.stripe_customer_id = w.stripe_customer_id AND e.event_name = w.event_name
                  AND e.edge_at <= w.starts_at) period
         CROSS JOIN LATERAL (
               SELECT max(o.valid_until) AS since_at
                 FROM meter_versions o
                WHERE o.meter = v.meter AND o.valid_until <= v.valid_from
                  AND (o.aggregation, o.property) IS DISTINCT FROM (v.aggregation, v.property)) anew
         WHERE w.period_level IS NOT NULL AND w.event_count > 0) level
 WHERE target <> greatest(floor(period_level) - floor(level_before), 0)
 LIMIT 100;
