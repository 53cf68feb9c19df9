-- Windows that wait for a person, by themselves or for an entry that Stripe refused.

-- part: on_hold
-- each with what it owes.
(SELECT w.window_id, w.organization_id, w.meter, w.event_name, w.starts_at, w.target - e.stated AS units,
        coalesce(w.hold_reason, e.hold_reason) AS reason, w.hold_detail AS detail,
        coalesce(w.held_at, e.refused_at) AS held_at
   FROM usage_windows w
  CROSS JOIN LATERAL (
        SELECT coalesce(sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')), 0) AS stated,
               min(hold_reason) FILTER (WHERE state = 'rejected') AS hold_reason,
               min(last_attempt_at) FILTER (WHERE state = 'rejected' AND hold_reason IS NOT NULL) AS refused_at
          FROM ledger_entries WHERE window_id = w.window_id) e
  WHERE w.window_id IN (
        SELECT window_id FROM usage_windows WHERE hold_reason IS NOT NULL
        UNION
        SELECT window_id FROM ledger_entries WHERE state = 'rejected' AND hold_reason IS NOT NULL))

-- name: held_windows
-- The oldest first: what waits longest is next to pass the 35 days.
SELECT window_id, organization_id, meter, event_name, starts_at, units, reason, detail, held_at
  FROM {on_hold} held
 ORDER BY starts_at, window_id
 LIMIT %(limit)s;

-- name: held_windows_by_reason
-- The oldest of each reason.
SELECT window_id, organization_id, meter, event_name, starts_at, units, reason, detail, held_at
  FROM (SELECT held.*, row_number() OVER (PARTITION BY reason ORDER BY starts_at, window_id) AS place
          FROM {on_hold} held
         WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
           AND (%(organization)s::text IS NULL OR organization_id = %(organization)s)
           AND (%(meter)s::text IS NULL OR meter = %(meter)s)) held
 WHERE place <= %(limit)s
 ORDER BY reason, starts_at, window_id;

-- name: held_units
-- All that waits, per reason and meter.
SELECT reason, meter, event_name, count(*) AS windows, count(DISTINCT organization_id) AS organizations,
       coalesce(sum(units) FILTER (WHERE units > 0), 0) AS added,
       coalesce(-sum(units) FILTER (WHERE units < 0), 0) AS taken_back
  FROM {on_hold} held
 WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
   AND (%(organization)s::text IS NULL OR organization_id = %(organization)s)
   AND (%(meter)s::text IS NULL OR meter = %(meter)s)
 GROUP BY reason, meter, event_name
 ORDER BY reason, meter, event_name;

-- name: waiting_behind_holds
-- What is not added because taking back from the same organization is held: its units may have moved to another hour.
SELECT w.meter, count(*) AS windows, coalesce(sum(w.target - e.stated), 0) AS units
  FROM (SELECT DISTINCT organization_id, meter
          FROM usage_windows
         WHERE hold_reason = 'too_much_taken_back_at_once'
           AND (%(organization)s::text IS NULL OR organization_id = %(organization)s)
           AND (%(meter)s::text IS NULL OR meter = %(meter)s)) held
  JOIN usage_windows w ON w.organization_id = held.organization_id AND w.meter = held.meter
   AND w.cut_due AND w.hold_reason IS NULL AND w.stripe_customer_id IS NOT NULL AND w.sealed_at IS NULL
 CROSS JOIN LATERAL {stated_of_window} e
 WHERE w.ends_at <= %(closed_before)s AND w.target > e.stated
 GROUP BY w.meter
 ORDER BY w.meter;

-- name: release_windows
-- The cutter looks at them again, and no brake holds them where they are now.  Whoever releases the last minutes of a
-- window releases all of them.  What is added may be stated up to the target of now; what is taken back, down to it.
-- What the windows owe is told as the next flush will find it.
WITH chosen AS (
    SELECT window_id, meter, organization_id, units
      FROM {on_hold} held
     WHERE (%(window_ids)s::bigint[] IS NULL OR window_id = ANY (%(window_ids)s::bigint[]))
       AND (%(reason)s::text IS NULL OR reason = %(reason)s)
       AND (%(organization)s::text IS NULL OR organization_id = %(organization)s)
       AND (%(meter)s::text IS NULL OR meter = %(meter)s)
), locked AS (
    SELECT window_id, hold_reason
      FROM usage_windows
     WHERE window_id IN (SELECT window_id FROM chosen)
     ORDER BY window_id
       FOR NO KEY UPDATE
), entry AS (
    UPDATE ledger_entries SET hold_reason = NULL
     WHERE window_id IN (SELECT window_id FROM chosen) AND state = 'rejected' AND hold_reason IS NOT NULL
), released AS (
    UPDATE usage_windows w
       SET hold_reason = NULL, hold_detail = NULL, held_at = NULL, held_target = NULL, cut_due = true,
           last_slots_released_at = CASE WHEN locked.hold_reason = %(last_slots)s THEN %(now)s
                                         ELSE w.last_slots_released_at END,
           released_target = greatest(w.released_target, w.target), released_floor = w.target
      FROM locked
     WHERE w.window_id = locked.window_id
    RETURNING w.window_id
)
SELECT meter, count(*) AS windows, count(DISTINCT organization_id) AS organizations,
       coalesce(sum(units) FILTER (WHERE units > 0), 0) AS added,
       coalesce(-sum(units) FILTER (WHERE units < 0), 0) AS taken_back
  FROM chosen
  JOIN released USING (window_id)
 GROUP BY meter
 ORDER BY meter;

-- name: windows_on_hold
SELECT window_id FROM {on_hold} held WHERE window_id = ANY (%(window_ids)s::bigint[]);
