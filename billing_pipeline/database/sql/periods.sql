-- These run in one transaction behind lock_aggregations: no aggregation reads periods that are half changed, and of two
-- syncs the one that asked Stripe later stays.  Each takes what Stripe showed as arrays, one place per item; items of
-- customers that nobody is mapped to are left out.

-- name: newer_period_sync
SELECT max(read_at) AS read_at FROM period_syncs WHERE read_at > %(read_at)s;

-- name: shorten_periods
-- Stripe says when the current period began; a period that we believed to go on beyond has ended there.
UPDATE billing_periods p
   SET during = tstzrange(lower(p.during), s.starts_at), synced_at = %(now)s
  FROM unnest(%(items)s::text[], %(event_names)s::text[], %(customers)s::text[], %(starts)s::timestamptz[],
              %(ends)s::timestamptz[]) AS s (item, event_name, customer, starts_at, ends_at)
 WHERE p.subscription_item_id = s.item AND p.event_name = s.event_name
   AND lower(p.during) < s.starts_at AND upper(p.during) > s.starts_at;

-- name: drop_contradicted_periods
-- A period that begins inside the one Stripe shows now has never been.  Hours split at its edge are billed right as
-- they are: a split more harms nobody.
DELETE FROM billing_periods p
 USING unnest(%(items)s::text[], %(event_names)s::text[], %(customers)s::text[], %(starts)s::timestamptz[],
              %(ends)s::timestamptz[]) AS s (item, event_name, customer, starts_at, ends_at)
 WHERE p.subscription_item_id = s.item AND p.event_name = s.event_name
   AND lower(p.during) > s.starts_at AND lower(p.during) < s.ends_at;

-- name: merge_periods
MERGE INTO billing_periods p
USING (SELECT s.*
         FROM unnest(%(items)s::text[], %(event_names)s::text[], %(customers)s::text[], %(starts)s::timestamptz[],
                     %(ends)s::timestamptz[]) AS s (item, event_name, customer, starts_at, ends_at)
        WHERE s.starts_at < s.ends_at
          AND EXISTS (SELECT FROM customer_mappings m WHERE m.stripe_customer_id = s.customer)) s
   ON p.subscription_item_id = s.item AND p.event_name = s.event_name AND lower(p.during) = s.starts_at
 WHEN MATCHED AND upper(p.during) <> s.ends_at THEN
      UPDATE SET during = tstzrange(s.starts_at, s.ends_at), synced_at = %(now)s
 WHEN NOT MATCHED THEN
      INSERT (stripe_customer_id, event_name, during, subscription_item_id, synced_at)
      VALUES (s.customer, s.event_name, tstzrange(s.starts_at, s.ends_at), s.item, %(now)s);

-- name: owe_across_new_edges
-- An entry whose window had no minute left may stand beside it, with the new edge between the two: the cutter must take
-- it back there.  Windows that the edge cuts are found by aggregation.
UPDATE usage_windows w
   SET cut_due = true
  FROM period_edges edge
  JOIN ledger_entries e ON e.stripe_customer_id = edge.stripe_customer_id AND e.event_name = edge.event_name
   AND e.slot_at >= date_trunc('hour', edge.edge_at, 'UTC') - interval '1 hour'
   AND e.slot_at < date_trunc('hour', edge.edge_at, 'UTC') + interval '2 hours'
   AND e.state NOT IN ('rejected', 'replaced')
 WHERE edge.synced_at >= %(now)s
   AND w.window_id = e.window_id AND (w.starts_at < edge.edge_at) <> (e.slot_at < edge.edge_at) AND NOT w.cut_due;

-- name: record_period_sync
INSERT INTO period_syncs (read_at, items_read, periods_changed, finished_at)
VALUES (%(read_at)s, %(items_read)s, %(periods_changed)s, %(now)s);
