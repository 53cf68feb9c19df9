-- Settled days are read again: somebody else may have written to a meter after its entries were proved.

-- name: note_lane
-- Its days were just read; its turn as a whole comes within a day.
INSERT INTO lanes AS l (stripe_customer_id, event_name, latest_slot_at, read_at)
VALUES (%(stripe_customer_id)s, %(event_name)s, %(slot_at)s, %(now)s)
    ON CONFLICT (stripe_customer_id, event_name) DO UPDATE SET latest_slot_at = excluded.latest_slot_at
 WHERE l.latest_slot_at < excluded.latest_slot_at;

-- name: lanes_to_read_again
-- The lane read longest ago comes first, so that a short read budget still reaches every lane.
SELECT stripe_customer_id, event_name
  FROM lanes
 WHERE read_at <= %(read_before)s AND latest_slot_at >= %(start)s
 ORDER BY read_at, stripe_customer_id, event_name
 LIMIT %(limit)s;

-- name: stated_days
-- What Stripe may show per day: each entry that is not settled may show or not.
SELECT date_trunc('day', slot_at, 'UTC') AS day_at,
       coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted')), 0)::bigint AS settled,
       coalesce(sum(value) FILTER (WHERE value < 0), 0)::bigint AS low,
       coalesce(sum(value) FILTER (WHERE value > 0), 0)::bigint AS high,
       bool_or(state IN ('ambiguous', 'accepted')) AS unsettled
  FROM ledger_entries
 WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s
   AND slot_at >= %(start)s AND slot_at < %(end)s
   AND state NOT IN ('pending', 'rejected', 'replaced')
 GROUP BY day_at;

-- name: stated_values
SELECT slot_at, value
  FROM ledger_entries
 WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s
   AND slot_at >= %(start)s AND slot_at < %(end)s
   AND state NOT IN ('pending', 'rejected', 'replaced');

-- name: shown_before
SELECT hour_at, observed
  FROM meter_summaries
 WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s
   AND hour_at >= %(start)s AND hour_at < %(end)s;

-- name: lane_was_read
UPDATE lanes SET read_at = %(now)s
 WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s;
