-- Where every row of the source is: counted, in quarantine, left out by the catalogue, or not yet judged.

-- part: meters_by_filter
-- the meters whose filter takes the row.
(SELECT array_agg(d.meter ORDER BY d.meter)
   FROM definition d
  WHERE d.event_type = s.event_type AND tstzrange(d.valid_from, d.valid_until) @> s.occurred_at
    AND d.choices IS NOT NULL AND s.properties @> ANY (d.choices))

-- name: account_for_source_rows
-- Each row has one place, by plain rules in this order.  What the rules say is compared with what the stages did: with
-- the rows in quarantine one by one, and with the windows by sums per organization, meter and hour, because a window
-- keeps no names.
-- Rows without an offender are places; the others are findings.  What the catalogue leaves out needs no flush to be so.
-- Not yet judged is what was recorded since the last validation or aggregation, less the overlap of both: a row may
-- have been committed later than it was recorded.
WITH definition AS MATERIALIZED (
    SELECT meter, aggregation, choices, valid_from, valid_until, unnest(event_types) AS event_type FROM meter_versions
), judged AS (
    -- OFFSET 0 keeps each verdict from being computed once for every place that asks for it.
    SELECT s.event_id, s.organization_id, s.event_type, s.occurred_at,
           contract_fault(s.event_id, s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at,
               EXISTS (SELECT FROM definition d
                        WHERE d.event_type = s.event_type AND d.aggregation NOT IN ('count', 'unique')
                          AND tstzrange(d.valid_from, d.valid_until) @> s.occurred_at),
               {property_missing}) IS NULL AS is_right,
           -- By a filter or without one: the contract knows the type then.
           EXISTS (SELECT FROM definition d
                    WHERE d.event_type = s.event_type
                      AND tstzrange(d.valid_from, d.valid_until) @> s.occurred_at) AS is_defined,
           {filtered_meters} AS filtered_meters,
           s.event_type = ANY (%(known_event_types)s::text[]) AS is_known,
           coalesce(s.recorded_at >= %(judged_before)s, true) AS is_new_to_contract,
           s.recorded_at >= %(counted_before)s OR coalesce(q.mended_at >= %(counted_before)s, false) AS is_new_to_windows,
           q.event_id IS NOT NULL AND q.mended_at IS NULL AS in_quarantine,
           q.dismissed_at IS NOT NULL AS is_dismissed,
           q.mended_at IS NULL
               AND (q.organization_id, q.event_type, q.quantity, q.occurred_at) IS NOT DISTINCT FROM
                   (s.organization_id, s.event_type, trim_scale(s.quantity)::text, s.occurred_at) AS is_as_found
      FROM {source} s
      LEFT JOIN quarantined_events q ON q.event_id = s.event_id
     WHERE s.occurred_at >= {reach_start} OR s.recorded_at >= {recorded_since} OR s.recorded_at IS NULL
    OFFSET 0
), one_place AS (
    SELECT event_id, organization_id, event_type, occurred_at, is_new_to_windows, filtered_meters,
           CASE WHEN event_id IS NULL OR event_id = '' THEN 'without_event_id'
                WHEN in_quarantine AND NOT (is_right AND is_defined AND occurred_at >= {counted_from})
                THEN CASE WHEN is_dismissed THEN 'dismissed' ELSE 'waiting' END
                WHEN in_quarantine
                THEN CASE WHEN is_new_to_contract OR NOT is_as_found THEN 'not_judged_yet'
                          ELSE 'counted_and_quarantined' END
                WHEN NOT is_right OR NOT is_defined AND NOT is_known
                THEN CASE WHEN is_new_to_contract THEN 'not_judged_yet' ELSE 'not_quarantined' END
                WHEN occurred_at < {counted_from} THEN 'outside_reach'
                WHEN occurred_at >= {counted_until} THEN 'not_judged_yet'
                WHEN is_metered THEN 'counted'
                WHEN is_defined THEN 'filtered_out'
                WHEN is_known IS NULL OR NOT EXISTS (SELECT FROM definition) THEN 'not_judged_yet'
                WHEN occurred_at < (SELECT min(valid_from) FROM definition) THEN 'before_billing_start'
                WHEN EXISTS (SELECT FROM definition d WHERE d.event_type = judged.event_type)
                THEN 'no_meter_in_its_hour'
                ELSE 'ignored_event_type' END AS place
      FROM (SELECT *, filtered_meters IS NOT NULL OR EXISTS (
                   SELECT FROM definition d
                    WHERE d.event_type = judged.event_type AND d.choices IS NULL
                      AND tstzrange(d.valid_from, d.valid_until) @> judged.occurred_at) AS is_metered
              FROM judged) judged
    OFFSET 0
), placed AS (
    -- Whose and when matters only for what is compared with windows, or told.
    SELECT place, CASE WHEN is_compared THEN organization_id END AS organization_id,
           CASE WHEN is_compared THEN event_type END AS event_type,
           CASE WHEN is_compared THEN date_trunc('hour', occurred_at, 'UTC') END AS hour_at,
           CASE WHEN is_compared THEN filtered_meters END AS filtered_meters,
           is_compared AND is_new_to_windows AS is_new_to_windows,
           count(*) AS rows,
           min(event_id) FILTER (WHERE place <> 'counted' AND is_compared) AS sample
      FROM (SELECT *, place IN ('counted', 'not_quarantined', 'counted_and_quarantined') AS is_compared
              FROM one_place) one
     GROUP BY 1, 2, 3, 4, 5, 6
), compared AS (
    SELECT organization_id, meter, hour_at, coalesce(due.settled, 0) AS settled, coalesce(due.rows, 0) AS rows,
           coalesce(counted.rows, 0) AS counted
      FROM (SELECT p.organization_id, d.meter, p.hour_at, sum(p.rows) AS rows,
                   coalesce(sum(p.rows) FILTER (WHERE NOT p.is_new_to_windows), 0) AS settled
              FROM placed p
              JOIN definition d ON d.event_type = p.event_type
               AND tstzrange(d.valid_from, d.valid_until) @> p.hour_at
               AND (d.choices IS NULL OR d.meter = ANY (p.filtered_meters))
             WHERE p.place = 'counted'
             GROUP BY p.organization_id, d.meter, p.hour_at) due
      FULL JOIN (SELECT organization_id, meter, date_trunc('hour', starts_at, 'UTC') AS hour_at, sum(event_count) AS rows
                   FROM usage_windows
                  WHERE starts_at >= {counted_from} AND event_count > 0
                  GROUP BY 1, 2, 3) counted USING (organization_id, meter, hour_at)
), behind AS (
    SELECT DISTINCT organization_id, hour_at FROM compared WHERE counted < rows
)
SELECT place, sum(rows)::bigint AS rows, NULL AS offender, NULL AS detail
  FROM (SELECT CASE WHEN p.place = 'counted' AND p.is_new_to_windows
                     AND EXISTS (SELECT FROM behind b
                                  WHERE b.organization_id = p.organization_id AND b.hour_at = p.hour_at)
                    THEN 'not_judged_yet' ELSE p.place END AS place, p.rows
          FROM placed p) by_place
 GROUP BY place
 UNION ALL
(SELECT place, rows, format('%%s %%s %%s', coalesce(organization_id, '-'), coalesce(event_type, '-'), hour_at),
        format('%%s rows, such as %%s', rows, sample)
   FROM placed
  WHERE place IN ('not_quarantined', 'counted_and_quarantined')
  LIMIT 100)
 UNION ALL
(SELECT 'not_counted', (settled - counted)::bigint, format('%%s %%s %%s', organization_id, meter, hour_at),
        format('%%s rows in the source, %%s counted', settled, counted)
   FROM compared
  WHERE counted < settled
  LIMIT 100)
 UNION ALL
(SELECT 'gone_since_counted', (counted - rows)::bigint, format('%%s %%s %%s', organization_id, meter, hour_at),
        format('%%s rows in the source, %%s counted', rows, counted)
   FROM compared
  WHERE counted > rows
  LIMIT 100);
