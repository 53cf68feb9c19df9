-- name: hours_to_confirm
-- Hours of a customer and meter with entries whose fate Stripe's summaries can settle, oldest first.
SELECT stripe_customer_id, event_name, date_trunc('hour', slot_at, 'UTC') AS hour_at
  FROM ledger_entries
 WHERE state = 'accepted'
 GROUP BY stripe_customer_id, event_name, hour_at
 ORDER BY hour_at, stripe_customer_id, event_name
 LIMIT %(limit)s;

-- name: stated_entries
SELECT entry_id, state::text AS state, value, slot_at
  FROM ledger_entries
 WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s
   AND slot_at >= %(start)s AND slot_at < %(end)s
   AND state IN ('ambiguous', 'accepted', 'confirmed', 'adopted')
 ORDER BY slot_at;

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
       SET state = 'confirmed', lease_until = NULL
      FROM seen
     WHERE e.entry_id = seen.entry_id AND e.state IN ('ambiguous', 'accepted')
    RETURNING e.entry_id, e.value, seen.granularity
), proof AS (
    INSERT INTO evidence (entry_id, kind, observed, granularity, observed_at)
    SELECT entry_id, 'summary_present', value, granularity, %(now)s FROM confirmed
)
SELECT entry_id FROM confirmed;
