-- name: meter_volumes
-- What each meter counted per complete UTC day since then, and in one hour after those days: one range of the index on
-- starts_at, of a month at most.  Only windows of the definition that is valid now: to a changed meter, its own past is
-- no measure.
SELECT w.meter,
       CASE WHEN w.starts_at < %(until)s THEN date_trunc('day', w.starts_at, 'UTC') ELSE %(hour_at)s END AS starts_at,
       sum(w.quantity) AS quantity,
       sum(w.event_count)::bigint AS events
  FROM meter_versions v
  JOIN usage_windows w ON w.meter = v.meter AND w.meter_version = v.version AND w.starts_at >= v.valid_from
 WHERE v.valid_until IS NULL
   AND w.starts_at >= %(since)s AND w.starts_at < %(hour_at)s + interval '1 hour'
   AND (w.starts_at < %(until)s OR w.starts_at >= %(hour_at)s)
 GROUP BY 1, 2
HAVING sum(w.event_count) > 0
 ORDER BY 1, 2;
