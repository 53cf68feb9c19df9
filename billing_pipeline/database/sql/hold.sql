-- Windows that wait for a person.

-- name: held_windows
-- The oldest first: what waits longest is next to pass the 35 days.
SELECT w.window_id, w.organization_id, w.meter, w.starts_at,
       w.target - coalesce(e.stated, 0) AS units,
       coalesce(w.hold_reason, e.hold_reason) AS reason
  FROM usage_windows w
  LEFT JOIN LATERAL (
       SELECT sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')) AS stated,
              min(hold_reason) FILTER (WHERE state = 'rejected') AS hold_reason
         FROM ledger_entries WHERE window_id = w.window_id) e ON true
 WHERE w.window_id IN (
       SELECT window_id FROM usage_windows WHERE hold_reason IS NOT NULL
       UNION
       SELECT window_id FROM ledger_entries WHERE state = 'rejected' AND hold_reason IS NOT NULL)
 ORDER BY w.starts_at, w.window_id
 LIMIT %(limit)s;

-- name: release_windows
-- The cutter looks at them again.  Whoever releases the last minutes of a window releases all of them; whoever releases
-- an hour that is over its meter's hour_max lets it come to what it comes to now, and no further.
WITH released AS (
    SELECT window_id, hold_reason
      FROM usage_windows
     WHERE window_id = ANY (%(window_ids)s::bigint[])
     ORDER BY window_id
       FOR NO KEY UPDATE
), entry AS (
    UPDATE ledger_entries SET hold_reason = NULL
     WHERE window_id = ANY (%(window_ids)s::bigint[]) AND state = 'rejected' AND hold_reason IS NOT NULL
    RETURNING window_id
), looked_at AS (
    UPDATE usage_windows w
       SET hold_reason = NULL, cut_due = true,
           last_slots_released_at = CASE WHEN released.hold_reason = %(last_slots)s THEN %(now)s
                                         ELSE w.last_slots_released_at END,
           released_target = CASE WHEN released.hold_reason = %(over_brake)s THEN w.target
                                  ELSE w.released_target END
      FROM released
     WHERE w.window_id = released.window_id
       AND (released.hold_reason IS NOT NULL OR w.window_id IN (SELECT window_id FROM entry))
    RETURNING w.window_id
)
SELECT window_id FROM looked_at ORDER BY window_id;
