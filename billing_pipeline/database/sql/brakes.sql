-- What the brakes ask of all windows at once, before the first of them is cut; domain/brakes.py decides.

-- name: forget_usual_hours
DELETE FROM usual_hours;

-- name: keep_usual_hours
-- Of what a full aggregation has just counted, by the definition that is valid now: to a changed meter, its own past is
-- no measure.  The middle of a sorted list is exact; percentile_disc asks for its share as a double.  Each list is sorted
-- by itself: sorted as they are collected, all hours would be, by texts.
INSERT INTO usual_hours (organization_id, meter, meter_version, hours, median)
SELECT known.organization_id, known.meter, v.version, known.hours, middle.quantity * v.unit_scale
  FROM (SELECT organization_id, meter, meter_version, count(*) AS hours, array_agg(quantity) AS quantities
          FROM counted_windows
         WHERE quantity > 0 AND starts_at >= %(since)s AND starts_at < %(until)s
         GROUP BY organization_id, meter, meter_version) known
  JOIN meter_versions v ON v.meter = known.meter AND v.version = known.meter_version AND v.valid_until IS NULL
 CROSS JOIN LATERAL (
       SELECT quantity
         FROM unnest(known.quantities) AS quantity
        ORDER BY quantity
       OFFSET (known.hours - 1) / 2 LIMIT 1) middle;

-- part: stated_of_window
-- Of a window w.
(SELECT coalesce(sum(value), 0) AS stated
   FROM ledger_entries
  WHERE window_id = w.window_id AND state NOT IN ('rejected', 'replaced'))

-- part: rows_moved
-- Of a window w: what was its usage counts for another customer now, or in another part of the hour, so that taking it
-- back loses nothing.  The pairs are a span of the windows' key; asked for times alone, the planner would rather read
-- everybody's hour by the index on starts_at (200,000 windows on hold: 110 s instead of 4).
(w.event_count = 0 AND EXISTS (
    SELECT
      FROM usage_windows other
     WHERE other.organization_id = w.organization_id
       AND (other.meter, other.starts_at) >= (w.meter, date_trunc('hour', w.starts_at, 'UTC'))
       AND (other.meter, other.starts_at) < (w.meter, w.ends_at)
       AND other.ends_at > w.starts_at AND other.event_count > 0 AND other.stripe_customer_id IS NOT NULL))

-- part: is_falling
-- Of a window w that has stated e.stated: it is to be taken back from, further than a person has let it.
(e.stated > w.target AND (w.released_floor IS NULL OR w.target < w.released_floor) AND NOT {rows_moved})

-- name: taken_back_by_meter
-- What would be taken back of each meter, were nothing held for it, beside all that has been stated and can be.
-- Two things are no sign of a broken source: the levels of max, last and unique move from hour to hour with late rows,
-- and `last` may fall by itself, so only their windows without any event count; and a fraction that is carried by
-- another window takes its unit along.
-- Most flushes end with the first list.  The whole reach is read only for a meter of which ten windows fall.
WITH falling AS MATERIALIZED (
    SELECT w.meter, e.stated - w.target AS units
      FROM (SELECT * FROM usage_windows
             WHERE cut_due AND hold_reason IS NULL AND stripe_customer_id IS NOT NULL AND sealed_at IS NULL
             UNION ALL
            SELECT * FROM usage_windows WHERE hold_reason = 'too_much_taken_back_at_once') w
     CROSS JOIN LATERAL {stated_of_window} e
     WHERE w.ends_at <= %(closed_before)s AND w.starts_at >= %(reach_start)s
       AND (w.period_level IS NULL OR w.event_count = 0)
       AND NOT (w.units <> trunc(w.units) AND e.stated - w.target <= 1)
       AND {is_falling}
), meter AS (
    SELECT meter, count(*) AS windows, sum(units) AS units FROM falling GROUP BY meter HAVING count(*) >= %(windows_min)s
)
SELECT meter.meter, meter.windows, meter.units, reach.windows AS windows_stated, reach.units AS units_stated
  FROM meter
 CROSS JOIN LATERAL (
       SELECT count(*) AS windows, coalesce(sum(stated), 0) AS units
         FROM (SELECT sum(e.value) AS stated
                 FROM usage_windows w
                 JOIN ledger_entries e ON e.window_id = w.window_id AND e.state NOT IN ('rejected', 'replaced')
                WHERE w.meter = meter.meter AND w.starts_at >= %(reach_start)s AND w.sealed_at IS NULL
                GROUP BY w.window_id
               HAVING sum(e.value) > 0) stated) reach
 ORDER BY meter.meter;

-- name: hold_what_is_taken_back
-- Of windows that are locked: every one to be taken back from, of the meters that are braked.
WITH braked AS (
    SELECT * FROM unnest(%(meters)s::text[], %(details)s::text[]) AS braked (meter, detail)
), falling AS (
    SELECT w.window_id, braked.detail, w.held_at IS NULL AS is_new
      FROM usage_windows w
      JOIN braked USING (meter)
     CROSS JOIN LATERAL {stated_of_window} e
     WHERE w.window_id = ANY (%(window_ids)s::bigint[]) AND {is_falling}
), held AS (
    UPDATE usage_windows w
       SET hold_reason = 'too_much_taken_back_at_once', hold_detail = falling.detail,
           held_at = coalesce(w.held_at, %(now)s), held_target = w.target
      FROM falling
     WHERE w.window_id = falling.window_id
    RETURNING falling.is_new
)
SELECT count(*) FILTER (WHERE is_new) AS windows FROM held;

-- name: added_by_meter
-- What this flush would add to each meter with a flush_max, without what is held by another brake or already released,
-- and without windows whose last entry is still under way.
SELECT w.meter, sum(w.target - e.stated) AS units
  FROM unnest(%(meters)s::text[], %(hour_limits)s::bigint[], %(hour_factors)s::bigint[])
       AS brake (meter, hour_limit, hour_factor)
  JOIN usage_windows w USING (meter)
  LEFT JOIN usual_hours u ON u.organization_id = w.organization_id AND u.meter = w.meter
   AND u.meter_version = w.meter_version AND u.hours >= %(hours_known)s
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(value), 0) AS stated
         FROM ledger_entries
        WHERE window_id = w.window_id AND state NOT IN ('rejected', 'replaced')) e
 WHERE w.cut_due AND w.hold_reason IS NULL AND w.stripe_customer_id IS NOT NULL AND w.sealed_at IS NULL
   AND (w.cut_after IS NULL OR w.cut_after <= %(now)s) AND w.ends_at <= %(closed_before)s
   AND w.target > e.stated AND (w.released_target IS NULL OR w.target > w.released_target)
   AND (brake.hour_limit IS NULL OR w.target <= brake.hour_limit)
   AND (u.median IS NULL OR brake.hour_factor = 0
        OR CASE WHEN w.period_level IS NULL THEN w.units
                ELSE w.quantity * (SELECT v.unit_scale
                                     FROM meter_versions v
                                    WHERE v.meter = w.meter AND tstzrange(v.valid_from, v.valid_until) @> w.starts_at)
                END <= u.median * brake.hour_factor)
   AND NOT EXISTS (SELECT FROM open_entries o WHERE o.window_id = w.window_id)
 GROUP BY w.meter;

-- name: lock_held_windows
SELECT organization_id, meter, window_id
  FROM usage_windows
 WHERE hold_reason IS NOT NULL
   AND (organization_id, meter, window_id) > (%(after_organization)s, %(after_meter)s, %(after_window_id)s)
 ORDER BY organization_id, meter, window_id
 LIMIT %(limit)s
   FOR NO KEY UPDATE SKIP LOCKED;

-- name: lift_holds
-- Of windows that are locked.  A hold is of the target it was put on: with another one, or with nothing owed, the
-- window is looked at anew.  What a brake holds is not let go by more of the same, only by less; and what is taken back
-- waits until nothing is to be taken back, or its rows turn up elsewhere.
UPDATE usage_windows w
   SET hold_reason = NULL, cut_due = true
  FROM (SELECT w.window_id
          FROM usage_windows w
         CROSS JOIN LATERAL {stated_of_window} e
         WHERE w.window_id = ANY (%(window_ids)s::bigint[])
           AND CASE WHEN w.hold_reason = 'too_much_taken_back_at_once' THEN w.target >= e.stated OR {rows_moved}
                    WHEN w.hold_reason = ANY (%(adding_brakes)s::text[]) THEN w.target < w.held_target OR w.target <= e.stated
                    ELSE w.target IS DISTINCT FROM w.held_target OR w.target = e.stated END) mended
 WHERE w.window_id = mended.window_id;

-- name: lift_refusals
-- An amount that Stripe refused and the source no longer owes waits for nobody: nothing is owed any more, or the
-- opposite.
WITH lifted AS (
    UPDATE ledger_entries entry
       SET hold_reason = NULL
      FROM (SELECT refused.entry_id
              FROM ledger_entries refused
              JOIN usage_windows w USING (window_id)
             CROSS JOIN LATERAL (
                   SELECT coalesce(sum(value), 0) AS stated
                     FROM ledger_entries
                    WHERE window_id = w.window_id AND state NOT IN ('rejected', 'replaced')) e
             WHERE refused.hold_reason IS NOT NULL AND refused.state = 'rejected'
               AND sign(w.target - e.stated) <> sign(refused.value)) mended
     WHERE entry.entry_id = mended.entry_id
    RETURNING entry.window_id
)
UPDATE usage_windows SET cut_due = true WHERE window_id IN (SELECT window_id FROM lifted);
