-- What the windows of max, last and unique meters are worth: each adds what the level of its billing period grew by in
-- it, so that at every moment the period's windows add up to the level.  Increments reach Stripe like any other delta:
-- in whatever order they arrive, their sum is the same (decision 0023).

-- part: period_level_since
-- Of a version v: another aggregation or property begins a level anew.
(SELECT max(o.valid_until)
   FROM meter_versions o
  WHERE o.meter = v.meter AND o.valid_until <= v.valid_from
    AND (o.aggregation, o.property) IS DISTINCT FROM (v.aggregation, v.property))

-- name: find_seen_values
-- The different values in each touched window of a unique meter.
CREATE TEMP TABLE seen_values ON COMMIT DROP AS
SELECT DISTINCT w.window_id, w.organization_id, w.meter, w.starts_at, sha256(convert_to(metered.value, 'UTF8')) AS value
  FROM ({metered_rows}) metered
  JOIN usage_windows w ON w.organization_id = metered.organization_id AND w.meter = metered.meter
   AND w.stripe_customer_id IS NOT DISTINCT FROM metered.stripe_customer_id AND w.event_count > 0
   AND date_trunc('hour', w.starts_at, 'UTC') = metered.hour_at AND w.starts_at >= {first_hour}
   AND metered.occurred_at >= w.starts_at AND metered.occurred_at < w.ends_at
 WHERE metered.aggregation = 'unique';

-- name: analyze_seen_values
ANALYZE seen_values;

-- name: forget_unique_values
DELETE FROM unique_values u
 USING {windows} w
 WHERE u.window_id = w.window_id AND w.starts_at >= {first_hour}
   AND NOT EXISTS (SELECT FROM seen_values s WHERE s.window_id = u.window_id AND s.value = u.value);

-- name: keep_unique_values
INSERT INTO unique_values (window_id, value, organization_id, meter, starts_at)
SELECT window_id, value, organization_id, meter, starts_at FROM seen_values
    ON CONFLICT DO NOTHING;

-- part: first_hours_of_all
(SELECT DISTINCT organization_id, {first_hour}::timestamptz AS from_at
   FROM usage_windows
  WHERE period_level IS NOT NULL AND starts_at >= {first_hour})

-- part: first_touched_hours
(SELECT organization_id, min(hour_at) AS from_at FROM touched_hours GROUP BY organization_id)

-- name: state_period_levels
-- A touched hour may change what every later window of its billing period adds.  Where Stripe knows no period, a UTC
-- calendar month is one; another aggregation or property begins anew.
-- The level of `max` and `unique` only grows, so they go on from the last window before the touched ones.  `last` may
-- fall: what a window added stays only as far as no later window is lower, hence its level is the least from there on,
-- and the windows before the touched ones are looked at again as far back as that may have changed them.
WITH version AS (
    SELECT v.*, {period_level_since} AS period_level_since
      FROM meter_versions v
     WHERE v.aggregation NOT IN ('sum', 'count')
), touched AS (
    SELECT w.organization_id, w.stripe_customer_id, w.meter, w.starts_at, w.period_level, w.event_count,
           w.quantity * v.unit_scale AS units, v.aggregation, v.period_level_since,
           greatest(coalesce(period.began_at, date_trunc('month', w.starts_at, 'UTC')), v.period_level_since) AS began_at,
           CASE WHEN period.began_at IS NULL
                THEN least(period.until_at, date_trunc('month', w.starts_at, 'UTC') + interval '1 month')
                ELSE coalesce(period.until_at, 'infinity') END AS until_at
      FROM {first_hours} t
      JOIN usage_windows w ON w.organization_id = t.organization_id AND w.starts_at >= t.from_at
       AND w.period_level IS NOT NULL
      JOIN version v ON v.meter = w.meter AND tstzrange(v.valid_from, v.valid_until) @> w.starts_at
     CROSS JOIN LATERAL (
           SELECT max(e.edge_at) FILTER (WHERE e.edge_at <= w.starts_at) AS began_at,
                  min(e.edge_at) FILTER (WHERE e.edge_at > w.starts_at) AS until_at
             FROM period_edges e
            WHERE e.stripe_customer_id = w.stripe_customer_id AND e.event_name = w.event_name) period
), chain AS (
    SELECT organization_id, stripe_customer_id, meter, aggregation, period_level_since, began_at, until_at,
           min(starts_at) AS from_at,
           coalesce(min(period_level) FILTER (WHERE period_level >= 0), 'infinity') AS least_before,
           coalesce(min(units) FILTER (WHERE event_count > 0), 'infinity') AS least_now
      FROM touched
     GROUP BY organization_id, stripe_customer_id, meter, aggregation, period_level_since, began_at, until_at
), begun AS (
    SELECT chain.*, coalesce(before.starts_at, '-infinity') AS after_at, coalesce(before.period_level, 0) AS base
      FROM chain
      LEFT JOIN LATERAL (
           SELECT w.starts_at, w.period_level
             FROM usage_windows w
            WHERE w.organization_id = chain.organization_id AND w.meter = chain.meter
              AND w.stripe_customer_id IS NOT DISTINCT FROM chain.stripe_customer_id
              AND w.starts_at >= chain.began_at AND w.starts_at < chain.from_at
              AND w.period_level >= 0 AND w.event_count > 0
              AND (chain.aggregation <> 'last' OR w.starts_at < {reach_start}
                   OR w.period_level < chain.least_before AND w.period_level <= chain.least_now)
            ORDER BY w.starts_at DESC
            LIMIT 1) before ON true
), member AS (
    SELECT w.window_id, w.starts_at, begun.*,
           CASE begun.aggregation WHEN 'unique' THEN fresh.values * v.unit_scale ELSE w.quantity * v.unit_scale END AS units
      FROM begun
      JOIN usage_windows w ON w.organization_id = begun.organization_id AND w.meter = begun.meter
       AND w.stripe_customer_id IS NOT DISTINCT FROM begun.stripe_customer_id
       AND w.starts_at > begun.after_at AND w.starts_at >= begun.began_at AND w.starts_at < begun.until_at
       AND w.period_level IS NOT NULL AND w.event_count > 0
      JOIN version v ON v.meter = w.meter AND tstzrange(v.valid_from, v.valid_until) @> w.starts_at
       AND v.period_level_since IS NOT DISTINCT FROM begun.period_level_since
      LEFT JOIN LATERAL (
           SELECT count(*) AS values
             FROM unique_values u
            WHERE begun.aggregation = 'unique' AND u.window_id = w.window_id
              AND NOT EXISTS (
                  SELECT
                    FROM unique_values seen
                    JOIN usage_windows earlier USING (window_id)
                   WHERE seen.organization_id = u.organization_id AND seen.meter = u.meter AND seen.value = u.value
                     AND seen.starts_at >= begun.began_at AND seen.starts_at < u.starts_at
                     AND earlier.stripe_customer_id IS NOT DISTINCT FROM w.stripe_customer_id)) fresh ON true
), levelled AS (
    SELECT *, CASE aggregation WHEN 'max' THEN greatest(base, max(units) OVER up)
                               WHEN 'unique' THEN base + sum(units) OVER up
                               ELSE min(units) OVER down END AS period_level
      FROM member
    WINDOW up AS (PARTITION BY organization_id, stripe_customer_id, meter, began_at ORDER BY starts_at),
           down AS (PARTITION BY organization_id, stripe_customer_id, meter, began_at ORDER BY starts_at DESC)
), stated AS (
    -- Never below 0: what was added too long ago can no longer be taken back.
    SELECT window_id, period_level,
           greatest(floor(period_level) - floor(lag(period_level, 1, base) OVER up), 0) AS target
      FROM levelled
    WINDOW up AS (PARTITION BY organization_id, stripe_customer_id, meter, began_at ORDER BY starts_at)
)
UPDATE usage_windows w
   SET period_level = stated.period_level, target = stated.target, units = stated.target,
       cut_due = w.cut_due OR w.target <> stated.target
  FROM stated
 WHERE w.window_id = stated.window_id AND (w.period_level <> stated.period_level OR w.target <> stated.target);
