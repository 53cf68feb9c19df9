-- name: days_to_confirm
-- One read shows a day of a customer and meter by hours.  The day looked at longest ago comes first, so that a short
-- read budget still reaches every day.  Entries under way are left alone: their worker will record them.
SELECT e.stripe_customer_id, e.event_name,
       array_agg(DISTINCT date_trunc('hour', e.slot_at, 'UTC')) AS hours
  FROM ledger_entries e
  LEFT JOIN meter_summaries s ON s.stripe_customer_id = e.stripe_customer_id AND s.event_name = e.event_name
   AND s.hour_at = date_trunc('hour', e.slot_at, 'UTC')
 WHERE NOT e.settled AND e.state IN ('ambiguous', 'accepted') AND (e.lease_until IS NULL OR e.lease_until <= %(now)s)
 GROUP BY e.stripe_customer_id, e.event_name, date_trunc('day', e.slot_at, 'UTC')
 ORDER BY min(coalesce(s.observed_at, '-infinity')), min(e.slot_at), e.stripe_customer_id, e.event_name
 LIMIT %(limit)s;

-- name: stated_entries
SELECT entry_id, state::text AS state, value, slot_at, first_attempt_at, last_attempt_at
  FROM ledger_entries
 WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s
   AND slot_at >= %(start)s AND slot_at < %(end)s
   AND state IN ('ambiguous', 'accepted', 'confirmed', 'adopted')
 ORDER BY slot_at;

-- name: count_unsettled
SELECT count(*) AS entries FROM ledger_entries WHERE NOT settled AND state IN ('ambiguous', 'accepted');

-- name: store_summaries
INSERT INTO meter_summaries (stripe_customer_id, event_name, hour_at, observed, observed_at)
SELECT customer, event_name, hour_at, observed, %(now)s
  FROM unnest(%(customers)s::text[], %(event_names)s::text[], %(hours)s::timestamptz[], %(observed)s::bigint[])
       AS seen (customer, event_name, hour_at, observed)
    ON CONFLICT (stripe_customer_id, event_name, hour_at) DO UPDATE
   SET observed = excluded.observed, observed_at = excluded.observed_at;

-- name: confirm_entries
-- Evidence and state in one statement: neither can be there without the other.
WITH seen AS (
    SELECT * FROM unnest(%(entry_ids)s::bigint[], %(granularities)s::text[]) AS seen (entry_id, granularity)
), confirmed AS (
    UPDATE ledger_entries e
       SET state = 'confirmed', lease_until = NULL, fence = e.fence + 1
      FROM seen
     WHERE e.entry_id = seen.entry_id AND e.state IN ('ambiguous', 'accepted')
    RETURNING e.entry_id, e.value, seen.granularity
), proof AS (
    INSERT INTO evidence (entry_id, kind, observed, granularity, observed_at)
    SELECT entry_id, 'summary_present', value, granularity, %(now)s FROM confirmed
)
SELECT entry_id FROM confirmed;

-- name: replace_entries
-- Only if nobody has attempted the entry since it was judged.  Its window owes the value again.
WITH absent AS (
    SELECT *
      FROM unnest(%(entry_ids)s::bigint[], %(last_attempt_ats)s::timestamptz[], %(canary_sent_ats)s::timestamptz[])
           AS absent (entry_id, last_attempt_at, canary_sent_at)
), replaced AS (
    UPDATE ledger_entries e
       SET state = 'replaced', lease_until = NULL, fence = e.fence + 1
      FROM absent
     WHERE e.entry_id = absent.entry_id AND e.state IN ('ambiguous', 'accepted')
       AND e.last_attempt_at = absent.last_attempt_at
    RETURNING e.entry_id, e.window_id, absent.canary_sent_at
), proof AS (
    INSERT INTO evidence (entry_id, kind, observed, granularity, canary_sent_at, observed_at)
    SELECT entry_id, 'summary_absent', 0, 'minute', canary_sent_at, %(now)s FROM replaced
), owed AS (
    UPDATE usage_windows SET cut_due = true WHERE window_id IN (SELECT window_id FROM replaced)
)
SELECT entry_id FROM replaced;

-- name: reject_reported_entries
-- Stripe named these identifiers in an error report: they were accepted and then refused.
WITH reported AS (
    SELECT DISTINCT identifier FROM unnest(%(identifiers)s::text[]) AS reported (identifier)
), rejected AS (
    UPDATE ledger_entries e
       SET state = 'rejected', hold_reason = 'rejected_by_stripe', lease_until = NULL, fence = e.fence + 1
      FROM reported
     WHERE e.identifier = reported.identifier AND e.state IN ('ambiguous', 'accepted')
    RETURNING e.entry_id, e.window_id
), proof AS (
    INSERT INTO evidence (entry_id, kind, observed, granularity, observed_at)
    SELECT entry_id, 'error_report', 0, 'report', %(now)s FROM rejected
), owed AS (
    UPDATE usage_windows SET cut_due = true WHERE window_id IN (SELECT window_id FROM rejected)
)
SELECT entry_id FROM rejected;

-- name: record_error_report
INSERT INTO error_reports (stripe_event_id, created_at, rejected, named, codes, applied_at)
VALUES (%(stripe_event_id)s, %(created_at)s, %(rejected)s, %(named)s, %(codes)s, %(now)s)
    ON CONFLICT (stripe_event_id) DO NOTHING;

-- name: latest_error_report
SELECT max(created_at) AS created_at FROM error_reports;
