-- name: lock_windows_due_for_cut
-- The window's row is the one place where cutting is serialized.  What the window has stated is read by the next
-- statement, after the lock: joined in here it would come from the snapshot of before the wait.
SELECT window_id, ends_at
  FROM usage_windows
 WHERE cut_due AND hold_reason IS NULL AND stripe_customer_id IS NOT NULL
   AND sealed_at IS NULL
   AND (cut_after IS NULL OR cut_after <= %(now)s)
   AND ends_at <= %(closed_before)s
   AND (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
   AND (%(meters)s::text[] IS NULL OR meter = ANY (%(meters)s::text[]))
   AND (ends_at, window_id) > (%(after_ends_at)s, %(after_window_id)s)
 ORDER BY ends_at, window_id
 LIMIT %(limit)s
   FOR NO KEY UPDATE SKIP LOCKED;

-- name: facts_for_cut
-- Stripe bills by timestamp, so what is stated must be right in every billing period.  The edges near a window make
-- sides: its target belongs to the side it lies in, and whatever it has stated on another one, before the edge was
-- known, is taken back there.  A window that lies across an edge was counted before that; it is worth nothing on any
-- side once it is counted again.  One side is stated at a time, taking back first.
WITH due AS (
    SELECT window_id, organization_id, stripe_customer_id, meter, event_name, starts_at, ends_at, target,
           period_level, last_slots_released_at IS NOT NULL AS last_slots_released, released_target, held_at,
           meter_version, units, quantity,
           date_trunc('hour', starts_at, 'UTC') AS hour_at
      FROM usage_windows
     WHERE window_id = ANY (%(window_ids)s::bigint[])
), side AS (
    SELECT due.window_id, edge.begins_at,
           lead(edge.begins_at, 1, 'infinity') OVER (PARTITION BY due.window_id ORDER BY edge.begins_at) AS until_at
      FROM due
     CROSS JOIN LATERAL (
           SELECT timestamptz '-infinity' AS begins_at
            UNION
           SELECT e.edge_at
             FROM period_edges e
            WHERE e.stripe_customer_id = due.stripe_customer_id AND e.event_name = due.event_name
              AND e.edge_at > due.hour_at - interval '1 hour' AND e.edge_at < due.hour_at + interval '2 hours') edge
), stated AS (
    SELECT due.*, side.begins_at, side.until_at, e.stated, e.assured,
           -- The part of the window on this side; empty where the window lies on another.
           greatest(due.starts_at, side.begins_at) AS part_starts_at, least(due.ends_at, side.until_at) AS part_ends_at,
           CASE WHEN side.begins_at <= due.starts_at AND side.until_at >= due.ends_at THEN due.target ELSE 0 END
               AS side_target,
           bool_and(side.begins_at > due.starts_at OR side.until_at < due.ends_at) OVER (PARTITION BY due.window_id)
               AS lies_across_an_edge
      FROM due
      JOIN side USING (window_id)
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(value), 0) AS stated,
                  coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted') OR value < 0), 0) AS assured
             FROM ledger_entries
            WHERE window_id = due.window_id AND state NOT IN ('rejected', 'replaced')
              AND slot_at >= side.begins_at AND slot_at < side.until_at) e
), next_side AS (
    SELECT DISTINCT ON (window_id) *,
           count(*) FILTER (WHERE side_target <> stated) OVER (PARTITION BY window_id) AS sides_due
      FROM stated
     ORDER BY window_id, side_target = stated, side_target - stated, begins_at
)
SELECT w.window_id, w.organization_id, w.stripe_customer_id, w.meter, w.event_name, w.starts_at, w.ends_at,
       w.last_slots_released, w.released_target, w.held_at IS NOT NULL AS was_held,
       w.side_target AS target, w.stated, w.assured, w.sides_due,
       -- What the hour shows by itself: of a level, not what it adds to it.
       CASE WHEN w.period_level IS NULL THEN w.units
            ELSE w.quantity * (SELECT v.unit_scale
                                 FROM meter_versions v
                                WHERE v.meter = w.meter AND tstzrange(v.valid_from, v.valid_until) @> w.starts_at)
            END AS units,
       usual.hours AS usual_hours, usual.median AS usual_median,
       w.side_target > w.stated AND EXISTS (
           -- What is to be taken back from the organization waits for a person; its units may have moved here.
           SELECT
             FROM usage_windows other
            WHERE other.organization_id = w.organization_id AND other.meter = w.meter
              AND other.hold_reason = 'too_much_taken_back_at_once') AS waits_for_a_hold,
       coalesce(e.next_sequence, 0) AS next_sequence,
       coalesce(e.open_or_held, false) AS open_or_held,
       e.last_cut_at,
       w.lies_across_an_edge AND w.target <> 0 AS must_be_counted_again,
       w.side_target > w.stated AND (EXISTS (
           -- Another window of the same time has stated more than it is worth: adding now would bill that twice.
           SELECT
             FROM usage_windows other
            WHERE other.organization_id = w.organization_id AND other.stripe_customer_id = w.stripe_customer_id
              AND other.meter = w.meter AND other.window_id <> w.window_id
              AND other.starts_at >= w.hour_at AND other.starts_at < w.ends_at AND other.ends_at > w.starts_at
              AND other.target < (SELECT coalesce(sum(value), 0)
                                    FROM ledger_entries
                                   WHERE window_id = other.window_id AND state NOT IN ('rejected', 'replaced'))
           ) OR w.period_level IS NOT NULL AND EXISTS (
           -- Of a period level any window of the period may have: what one adds, another may have to take back first.
           SELECT
             FROM usage_windows other
            WHERE other.organization_id = w.organization_id AND other.stripe_customer_id = w.stripe_customer_id
              AND other.meter = w.meter AND other.window_id <> w.window_id
              AND other.period_level IS NOT NULL AND other.cut_due
              AND other.target < (SELECT coalesce(sum(value), 0)
                                    FROM ledger_entries
                                   WHERE window_id = other.window_id AND state NOT IN ('rejected', 'replaced'))
              AND NOT EXISTS (
                  SELECT
                    FROM period_edges e
                   WHERE e.stripe_customer_id = w.stripe_customer_id AND e.event_name = w.event_name
                     AND e.edge_at > least(other.starts_at, w.starts_at)
                     AND e.edge_at <= greatest(other.starts_at, w.starts_at))
           ) OR w.period_level IS NOT NULL AND EXISTS (
           -- And Stripe must have said that it was: entries of one customer are not sent in the order they were cut in.
           SELECT
             FROM ledger_entries taking
            WHERE taking.stripe_customer_id = w.stripe_customer_id AND taking.event_name = w.event_name
              AND NOT taking.settled AND taking.value < 0 AND taking.state IN ('pending', 'ambiguous')
              AND NOT EXISTS (
                  SELECT
                    FROM period_edges e
                   WHERE e.stripe_customer_id = w.stripe_customer_id AND e.event_name = w.event_name
                     AND e.edge_at > least(taking.slot_at, w.starts_at)
                     AND e.edge_at <= greatest(taking.slot_at, w.starts_at)))) AS would_be_billed_twice,
       -- Where the entry's minute may be: in the window, or else close before it, further before it, or after it, as
       -- far as its side goes.  Close comes first because an edge found later is then hardly ever in between.
       ARRAY[w.part_starts_at, greatest(beside.close_at, beside.start_at), beside.start_at,
             greatest(w.part_ends_at, beside.start_at)] AS span_starts,
       ARRAY[w.part_ends_at, least(w.part_starts_at, beside.end_at), least(beside.close_at, beside.end_at),
             beside.end_at] AS span_ends,
       coalesce(lane.used_slots, '{}') AS used_slots
  FROM next_side w
  LEFT JOIN usual_hours usual ON usual.organization_id = w.organization_id AND usual.meter = w.meter
   AND usual.meter_version = w.meter_version
  LEFT JOIN LATERAL (
       SELECT max(sequence) + 1 AS next_sequence,
              bool_or(state IN ('pending', 'ambiguous') OR (state = 'rejected' AND hold_reason IS NOT NULL))
                  AS open_or_held,
              max(created_at) AS last_cut_at
         FROM ledger_entries WHERE window_id = w.window_id) e ON true
 CROSS JOIN LATERAL (
       SELECT greatest(w.begins_at, w.hour_at - interval '1 hour') AS start_at,
              least(w.until_at, w.hour_at + interval '2 hours', %(now)s) AS end_at,
              date_trunc('minute', w.part_starts_at) - interval '15 minutes' AS close_at) beside
 CROSS JOIN LATERAL (
       -- The minutes are those of the customer and event name, not of the window: Stripe sums them whosever they are.
       -- Those of replaced entries stay used, so that no minute ever stands for two.  They are asked for apart, because
       -- each has its own index by customer: without one, every window would read the whole hour of all customers
       -- (10,000 customers: 13 s for a batch of 2,000 windows).
       SELECT array_agg(slot_at) AS used_slots
         FROM (SELECT slot_at
                 FROM ledger_entries
                WHERE stripe_customer_id = w.stripe_customer_id AND event_name = w.event_name AND NOT replaced
                  AND slot_at >= beside.start_at AND slot_at < beside.end_at
                UNION
               SELECT slot_at
                 FROM ledger_entries
                WHERE stripe_customer_id = w.stripe_customer_id AND event_name = w.event_name AND replaced
                  AND slot_at >= beside.start_at AND slot_at < beside.end_at) used) lane
 ORDER BY w.ends_at, w.window_id;

-- name: insert_entries
INSERT INTO ledger_entries
       (window_id, sequence, epoch, stripe_customer_id, event_name, value, slot_at, identifier,
        created_at)
SELECT window_id, sequence, %(epoch)s, stripe_customer_id, event_name, value, slot_at, identifier, %(now)s
  FROM unnest(%(window_ids)s::bigint[], %(sequences)s::smallint[], %(customers)s::text[], %(event_names)s::text[],
              %(values)s::bigint[], %(slots)s::timestamptz[], %(identifiers)s::text[])
       AS cut (window_id, sequence, stripe_customer_id, event_name, value, slot_at, identifier);

-- name: settle_windows
-- Cut, or found to owe nothing: not due again before the target or an entry's state changes.  Where something was
-- added, a release of taking back is used up.
UPDATE usage_windows
   SET cut_due = false, cut_after = NULL, held_at = NULL, held_target = NULL, hold_detail = NULL,
       released_floor = CASE WHEN released_floor IS NOT NULL AND window_id <> ALL (%(added_window_ids)s::bigint[])
                             THEN released_floor END
 WHERE window_id = ANY (%(window_ids)s::bigint[]);

-- name: defer_windows
-- Still due, and owed; only not before then.
UPDATE usage_windows w
   SET cut_after = deferred.until
  FROM unnest(%(window_ids)s::bigint[], %(untils)s::timestamptz[]) AS deferred (window_id, until)
 WHERE w.window_id = deferred.window_id;

-- name: hold_windows
UPDATE usage_windows w
   SET hold_reason = held.reason, hold_detail = held.detail, held_at = coalesce(w.held_at, %(now)s), held_target = w.target
  FROM unnest(%(window_ids)s::bigint[], %(reasons)s::text[], %(details)s::text[]) AS held (window_id, reason, detail)
 WHERE w.window_id = held.window_id;
