-- What a flush would send that was never sent before, and the plans that people have seen.

-- part: never_sent
  FROM open_entries o
  JOIN ledger_entries e USING (entry_id)
  JOIN usage_windows w ON w.window_id = e.window_id
 WHERE e.state = 'pending' AND e.first_attempt_at IS NULL AND e.hold_reason IS NULL
   AND e.slot_at > %(now)s - %(past_max)s

-- name: planned_entries
-- Every entry, in an order that every server has.
SELECT e.identifier, e.value, e.slot_at
{never_sent}
 ORDER BY e.identifier COLLATE "C";

-- name: planned_meters
SELECT e.event_name, count(*) AS entries,
       coalesce(sum(e.value) FILTER (WHERE e.value > 0), 0)::bigint AS units_added,
       coalesce(-sum(e.value) FILTER (WHERE e.value < 0), 0)::bigint AS units_taken_back
{never_sent}
 GROUP BY e.event_name
 ORDER BY e.event_name;

-- name: planned_lines
-- The largest first: what is wrong is most often large.
SELECT w.organization_id, w.meter, e.event_name, count(*) AS entries,
       coalesce(sum(e.value) FILTER (WHERE e.value > 0), 0)::bigint AS units_added,
       coalesce(-sum(e.value) FILTER (WHERE e.value < 0), 0)::bigint AS units_taken_back,
       min(w.starts_at) AS first_hour_at, max(w.starts_at) AS last_hour_at
{never_sent}
 GROUP BY w.organization_id, w.meter, e.event_name
 ORDER BY sum(abs(e.value)) DESC, w.organization_id, w.meter
 LIMIT %(limit)s;

-- name: planned_organizations
SELECT count(DISTINCT w.organization_id) AS organizations
{never_sent};

-- name: sent_again
-- Entries whose last attempt brought no certainty, and that may still be sent.
SELECT count(*) AS entries
  FROM open_entries o
  JOIN ledger_entries e USING (entry_id)
 WHERE e.first_attempt_at > %(now)s - %(safe_send)s AND e.hold_reason IS NULL AND e.slot_at > %(now)s - %(past_max)s;

-- name: store_plan
-- The same plan made again cuts up to the later time.
INSERT INTO flush_plans (plan_hash, made_at, made_by, closed_before, meters)
VALUES (%(plan_hash)s, %(now)s, %(actor)s, %(closed_before)s, %(meters)s)
ON CONFLICT (plan_hash) DO UPDATE
   SET made_at = excluded.made_at, made_by = excluded.made_by, closed_before = excluded.closed_before;

-- name: drop_old_plans
DELETE FROM flush_plans WHERE made_at < %(made_before)s;

-- name: read_plan
SELECT plan_hash, made_at, made_by, closed_before, meters FROM flush_plans WHERE plan_hash = %(plan_hash)s;
