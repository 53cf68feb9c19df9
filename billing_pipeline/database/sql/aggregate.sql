-- All of these run in one REPEATABLE READ transaction, so that a window is never counted half before and half
-- after somebody else's commit.

-- name: latest_aggregation
SELECT max(cutoff_at) AS cutoff_at, max(cutoff_at) FILTER (WHERE scope = 'full') AS full_cutoff_at
  FROM aggregations;

-- name: find_touched_hours
-- Hours whose rows may have changed since the last cutoff: new rows, rows that left quarantine, and hours whose
-- organization was given to another customer.  Deleted rows leave no trace here; the daily full scope finds them.
CREATE TEMP TABLE touched_hours ON COMMIT DROP AS
SELECT organization_id, date_trunc('hour', occurred_at, 'UTC') AS hour_at
  FROM {source}
 WHERE recorded_at >= {since} AND occurred_at >= {lookback_start} AND organization_id IS NOT NULL
UNION
SELECT s.organization_id, date_trunc('hour', s.occurred_at, 'UTC')
  FROM quarantined_events q
  JOIN {source} s ON s.event_id = q.event_id
 WHERE q.mended_at >= {since} AND s.occurred_at >= {lookback_start}
   AND s.organization_id IS NOT NULL AND isfinite(s.occurred_at)
UNION
SELECT w.organization_id, date_trunc('hour', w.starts_at, 'UTC')
  FROM customer_mappings m
  JOIN usage_windows w ON w.organization_id = m.organization_id
   AND tstzrange(w.starts_at, w.ends_at) && m.valid_during
 WHERE m.created_at >= {since} AND w.starts_at >= {lookback_start};

-- name: find_all_hours
-- The full scope: every hour of the lookback that has rows or windows.
CREATE TEMP TABLE touched_hours ON COMMIT DROP AS
SELECT organization_id, date_trunc('hour', occurred_at, 'UTC') AS hour_at
  FROM {source}
 WHERE occurred_at >= {lookback_start} AND isfinite(occurred_at) AND organization_id IS NOT NULL
UNION
SELECT organization_id, date_trunc('hour', starts_at, 'UTC')
  FROM usage_windows
 WHERE starts_at >= {lookback_start};

-- name: count_windows
-- Each touched hour is counted whole.  The hours drive the scan, so that its cost is the rows in those hours and
-- not the history; the organization is matched afterwards by a hash.
CREATE TEMP TABLE counted_windows ON COMMIT DROP AS
SELECT s.organization_id,
       m.stripe_customer_id,
       meter.name AS meter,
       greatest(t.hour_at, lower(m.valid_during)) AS starts_at,
       least(t.hour_at + interval '1 hour', upper(m.valid_during)) AS ends_at,
       sum(CASE meter.aggregation WHEN 'count' THEN 1 ELSE s.quantity END) AS quantity,
       floor(sum(CASE meter.aggregation WHEN 'count' THEN 1 ELSE s.quantity END) * meter.unit_scale) AS target,
       count(*) AS event_count,
       max(s.recorded_at) AS last_recorded_at
  FROM (SELECT DISTINCT hour_at FROM touched_hours) h
  JOIN {source} s ON s.occurred_at >= h.hour_at AND s.occurred_at < h.hour_at + interval '1 hour'
  JOIN touched_hours t ON t.hour_at = h.hour_at AND t.organization_id = s.organization_id
  JOIN unnest({meters}::text[], {event_types}::text[], {aggregations}::text[], {unit_scales}::numeric[])
       AS meter (name, event_type, aggregation, unit_scale) ON meter.event_type = s.event_type
  LEFT JOIN customer_mappings m ON m.organization_id = s.organization_id AND m.valid_during @> s.occurred_at
 WHERE contract_fault(s.event_id, s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at) IS NULL
 GROUP BY s.organization_id, m.stripe_customer_id, m.valid_during, meter.name, meter.unit_scale, t.hour_at;

-- name: merge_counted_windows
-- A window whose rows are as they were is not written.  An older snapshot never overwrites a newer one.
INSERT INTO usage_windows AS w
       (organization_id, stripe_customer_id, meter, starts_at, ends_at, target, quantity, event_count,
        last_recorded_at, contract_version, catalogue_version, cutoff_at)
SELECT organization_id, stripe_customer_id, meter, starts_at, ends_at, target, quantity, event_count,
       last_recorded_at, %(contract_version)s, %(catalogue_version)s, %(cutoff_at)s
  FROM counted_windows
    ON CONFLICT ON CONSTRAINT usage_windows_natural_key DO UPDATE
   SET target = excluded.target, quantity = excluded.quantity, event_count = excluded.event_count,
       last_recorded_at = excluded.last_recorded_at, contract_version = excluded.contract_version,
       catalogue_version = excluded.catalogue_version, cutoff_at = excluded.cutoff_at,
       cut_due = w.cut_due OR w.target <> excluded.target
 WHERE w.cutoff_at <= excluded.cutoff_at
   AND (w.target, w.quantity, w.event_count, w.last_recorded_at)
       IS DISTINCT FROM (excluded.target, excluded.quantity, excluded.event_count, excluded.last_recorded_at);

-- name: empty_uncounted_windows
-- A window of a touched hour that no row falls into any more is worth nothing; the cutter will take it back.
UPDATE usage_windows w
   SET target = 0, quantity = 0, event_count = 0, last_recorded_at = NULL, cutoff_at = %(cutoff_at)s,
       cut_due = w.cut_due OR w.target <> 0
  FROM touched_hours t
 WHERE w.organization_id = t.organization_id
   AND w.starts_at >= t.hour_at AND w.starts_at < t.hour_at + interval '1 hour'
   AND w.cutoff_at <= %(cutoff_at)s
   AND w.event_count > 0
   AND NOT EXISTS (
       SELECT FROM counted_windows c
        WHERE c.organization_id = w.organization_id
          AND c.stripe_customer_id IS NOT DISTINCT FROM w.stripe_customer_id
          AND c.meter = w.meter AND c.starts_at = w.starts_at AND c.ends_at = w.ends_at);

-- name: record_aggregation
INSERT INTO aggregations (scope, cutoff_at, windows_computed, windows_changed, finished_at)
VALUES (%(scope)s, %(cutoff_at)s, (SELECT count(*) FROM counted_windows), %(windows_changed)s, %(now)s)
RETURNING windows_computed;
