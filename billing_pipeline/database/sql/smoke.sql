-- What a smoke asks about one organization.

-- name: usage_of_organization
SELECT count(*) AS events, max(s.occurred_at) AS latest_at
  FROM {source} s
 WHERE s.organization_id = %(organization_id)s AND s.occurred_at > %(reach_start)s;

-- name: customer_of_organization
SELECT stripe_customer_id
  FROM customer_mappings
 WHERE organization_id = %(organization_id)s AND valid_during @> %(now)s::timestamptz;

-- name: quarantine_of_organization
SELECT count(*) AS rows
  FROM quarantined_events
 WHERE organization_id = %(organization_id)s AND mended_at IS NULL AND dismissed_at IS NULL;

-- name: periods_of_organization
SELECT p.event_name, upper(p.during) AS ends_at
  FROM billing_periods p
  JOIN customer_mappings m ON m.stripe_customer_id = p.stripe_customer_id AND m.valid_during @> %(now)s::timestamptz
 WHERE m.organization_id = %(organization_id)s AND p.during @> %(now)s::timestamptz
 ORDER BY p.event_name, upper(p.during);

-- name: sides_of_organization
-- Of the hours that Stripe still takes: older ones may have lost their rows.
SELECT coalesce(sum(w.target), 0) AS target, coalesce(sum(e.stated), 0) AS stated, coalesce(sum(e.proved), 0) AS proved,
       coalesce(sum(e.waiting), 0)::bigint AS waiting, count(*) FILTER (WHERE w.hold_reason IS NOT NULL OR e.held) AS held
  FROM usage_windows w
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')), 0) AS stated,
              coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted')), 0) AS proved,
              count(*) FILTER (WHERE state IN ('pending', 'ambiguous', 'accepted')) AS waiting,
              coalesce(bool_or(state = 'rejected' AND hold_reason IS NOT NULL), false) AS held
         FROM ledger_entries WHERE window_id = w.window_id) e
 WHERE w.organization_id = %(organization_id)s AND w.stripe_customer_id IS NOT NULL
   AND w.ends_at <= %(closed_before)s AND w.starts_at >= %(reach_start)s;
