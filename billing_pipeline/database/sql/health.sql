-- name: unhandled_events
-- What failed and waits for its next attempt, and what is parked for a person, by kind of failure.
SELECT processing_outcome, error_class, count(*) AS events, min(received_at) AS oldest_at,
       (array_agg(stripe_event_id ORDER BY received_at, stripe_event_id))[:3] AS samples
  FROM stripe_events
 WHERE processing_outcome IN ('failed', 'parked')
 GROUP BY processing_outcome, error_class
 ORDER BY processing_outcome DESC, events DESC;

-- name: stuck_events
-- Work that nobody ended in time: taken and not brought back, or due and not taken.
SELECT d.stripe_event_id, e.event_type, d.attempts, coalesce(d.claimed_at, d.due_at) AS since_at,
       d.claimed_at IS NOT NULL AS is_claimed, count(*) OVER () AS events
  FROM event_dispatches d
  JOIN stripe_events e USING (stripe_event_id)
 WHERE coalesce(d.claimed_at, d.due_at) < %(stuck_before)s
 ORDER BY coalesce(d.claimed_at, d.due_at), d.stripe_event_id
 LIMIT %(limit)s;

-- name: handling_rate
-- Of the events that came since then and had their time: how many ended well.
SELECT count(*) AS events, count(processed_at) AS handled
  FROM stripe_events
 WHERE received_at >= %(since)s AND (processing_outcome <> 'received' OR received_at < %(stuck_before)s);

-- name: delivery_sums
-- Signed deliveries by what they were.
SELECT result, sum(deliveries)::bigint AS deliveries
  FROM delivery_counts
 WHERE hour_at >= %(since)s
 GROUP BY result
 ORDER BY result;

-- name: refused_deliveries
SELECT reason, sum(deliveries)::bigint AS deliveries
  FROM signature_failures
 WHERE minute_at >= %(since)s
 GROUP BY reason
 ORDER BY reason;

-- name: last_sweep
SELECT complete_from, complete_through, events_listed, events_missing, finished_at
  FROM event_sweeps
 ORDER BY complete_through DESC, sweep_id DESC
 LIMIT 1;

-- name: open_gaps
-- What was never swept, that Stripe lists no more, and that no re-read of the objects has made up for.
SELECT sweep_id, gap_from AS gap_start, complete_from AS gap_end
  FROM event_sweeps
 WHERE gap_from IS NOT NULL AND gap_closed_at IS NULL
 ORDER BY gap_from;

-- name: close_gaps
UPDATE event_sweeps SET gap_closed_at = %(now)s WHERE sweep_id = ANY (%(ids)s::bigint[]) AND gap_closed_at IS NULL;

-- name: unreadable_spans
-- Spans with events that could not be stored, as long as Stripe lists them and no later sweeps read them without one.
SELECT min(s.complete_from) AS since_at
  FROM event_sweeps s
 WHERE s.events_unreadable > 0 AND s.complete_through >= %(listed_since)s
   AND NOT tstzrange(s.complete_from, s.complete_through) <@ (
           SELECT coalesce(range_agg(tstzrange(l.complete_from, l.complete_through)), '{}')
             FROM event_sweeps l
            WHERE l.sweep_id > s.sweep_id AND l.events_unreadable = 0);

-- name: invoice_steps
-- From which state to which the events of a day say that invoices went; only those that say both.
SELECT payload -> 'data' -> 'previous_attributes' ->> 'status' AS was, payload -> 'data' -> 'object' ->> 'status' AS became,
       count(*) AS events, min(stripe_event_id) AS sample
  FROM stripe_events
 WHERE received_at >= %(since)s AND event_type LIKE 'invoice.%%'
   AND payload -> 'data' -> 'previous_attributes' ->> 'status' IS NOT NULL
 GROUP BY 1, 2
 ORDER BY 1, 2;

-- name: dispatches_to_launch
-- What the service that takes webhooks should have handled by now and has not: failed and due again, taken and not
-- brought back, never taken.
SELECT stripe_event_id, attempts
  FROM event_dispatches
 WHERE due_at < %(due_before)s AND (claimed_at IS NULL OR claimed_at < %(stuck_before)s)
 ORDER BY due_at, stripe_event_id
 LIMIT %(limit)s;

-- name: inbox_counts
-- Estimated, because the inbox holds years.
SELECT greatest(reltuples, 0)::bigint AS events_estimated,
       (SELECT count(*) FROM event_dispatches) AS waiting,
       (SELECT max(received_at) FROM stripe_events) AS newest_at
  FROM pg_class
 WHERE oid = 'stripe_events'::regclass;

-- name: subscriptions_by_status
SELECT status, count(*) AS rows FROM subscriptions GROUP BY status ORDER BY rows DESC, status;

-- name: invoices_by_status
SELECT status, count(*) AS rows FROM invoices GROUP BY status ORDER BY rows DESC, status;

-- name: entitlements_by_feature
SELECT feature || CASE WHEN active THEN ': active' ELSE ': not active' END AS status, count(*) AS rows
  FROM entitlements
 GROUP BY feature, active
 ORDER BY feature, active DESC;

-- name: record_sweep
INSERT INTO event_sweeps
       (complete_from, complete_through, events_listed, events_missing, events_unreadable, gap_from, finished_at)
VALUES (%(complete_from)s, %(complete_through)s, %(listed)s, %(missing)s, %(unreadable)s, %(gap_start)s, %(now)s);
