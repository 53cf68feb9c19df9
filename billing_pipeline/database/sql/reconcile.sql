-- Both statements run in one snapshot.  They read the hours in reach, back to the start of their month because
-- fractions are carried within it, and whatever is not settled before that: age alone never hides what is owed.

-- part: period_levels_of_the_source
-- the level of each billing period, from its rows alone.  Of a period that began before the
-- reach not every row is read; its windows stand for it.
UNION ALL
SELECT organization_id, meter, count(*) AS events,
       CASE WHEN began_at < {reach_start} THEN 0
            WHEN aggregation = 'max' THEN floor(max(quantity * unit_scale))
            WHEN aggregation = 'unique' THEN floor(sum(unit_scale) FILTER (WHERE is_new))
            ELSE floor((array_agg(quantity * unit_scale ORDER BY occurred_at DESC, recorded_at DESC, quantity DESC))[1])
            END AS units
  FROM (SELECT s.organization_id, m.stripe_customer_id, s.quantity, s.occurred_at, s.recorded_at, v.meter,
               v.aggregation, v.unit_scale, began.began_at,
               row_number() OVER (PARTITION BY s.organization_id, m.stripe_customer_id, v.meter, began.began_at,
                                               s.properties ->> v.property ORDER BY s.occurred_at) = 1 AS is_new
          FROM source_row s
          JOIN version v
            ON v.event_type = s.event_type AND tstzrange(v.valid_from, v.valid_until) @> s.occurred_at
           AND (v.choices IS NULL OR s.properties @> ANY (v.choices))
          LEFT JOIN customer_mappings m ON m.organization_id = s.organization_id AND m.valid_during @> s.occurred_at
          LEFT JOIN (SELECT stripe_customer_id, event_name, edge_at AS began_at,
                            lead(edge_at, 1, 'infinity') OVER (PARTITION BY stripe_customer_id, event_name
                                                                   ORDER BY edge_at) AS until_at
                       FROM (SELECT DISTINCT stripe_customer_id, event_name, edge_at FROM period_edges) edge) period
            ON period.stripe_customer_id = m.stripe_customer_id AND period.event_name = v.event_name
           AND s.occurred_at >= period.began_at AND s.occurred_at < period.until_at
         CROSS JOIN LATERAL (
               SELECT greatest(coalesce(period.began_at, date_trunc('month', s.occurred_at, 'UTC')),
                               {period_level_since}) AS began_at) began
         WHERE s.fault IS NULL AND v.aggregation NOT IN ('sum', 'count')) metered
 GROUP BY organization_id, stripe_customer_id, meter, aggregation, began_at

-- name: reconcile_usage
-- The source and the ledger per organization and meter.  The source is summed on its own here, by the definitions
-- that were valid in each hour, and not taken from the windows it is compared with.
WITH source_row AS (
    SELECT s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at, {properties} AS properties,
           contract_fault(event_id, organization_id, event_type, quantity, occurred_at, recorded_at,
               EXISTS (SELECT FROM meter_versions n
                        WHERE event_type = ANY (n.event_types) AND n.aggregation NOT IN ('count', 'unique')
                          AND tstzrange(n.valid_from, n.valid_until) @> occurred_at),
               {property_missing}) AS fault
      FROM {source} s
     WHERE occurred_at >= {reach_start} AND occurred_at < {reach_end}
), version AS (
    SELECT v.*, unnest(event_types) AS event_type FROM meter_versions v
), source AS (
    SELECT organization_id, meter, sum(events) AS events, sum(units) AS units
      FROM (SELECT s.organization_id, v.meter, count(*) FILTER (WHERE s.fault IS NULL) AS events,
                   sum(CASE v.aggregation WHEN 'count' THEN 1 ELSE s.quantity END) FILTER (WHERE s.fault IS NULL)
                       * v.unit_scale AS units
              FROM source_row s
              JOIN version v
                ON v.event_type = s.event_type AND tstzrange(v.valid_from, v.valid_until) @> s.occurred_at
               AND (v.choices IS NULL OR s.properties @> ANY (v.choices))
             WHERE v.aggregation IN ('sum', 'count')
             GROUP BY s.organization_id, v.meter, v.unit_scale
             {period_levels_of_the_source}) by_scale
     WHERE events > 0
     GROUP BY organization_id, meter
), older AS (
    SELECT w.*
      FROM usage_windows w
     WHERE w.starts_at < {month_start}
       AND w.window_id IN (
           SELECT window_id FROM usage_windows WHERE cut_due OR hold_reason IS NOT NULL
           UNION
           SELECT window_id FROM ledger_entries
            WHERE NOT settled OR hold_reason IS NOT NULL)
), entry AS (
    SELECT window_id,
           coalesce(sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')), 0) AS stated,
           coalesce(sum(value) FILTER (WHERE state IN ('pending', 'ambiguous')), 0) AS in_flight,
           coalesce(sum(value) FILTER (WHERE state = 'accepted'), 0) AS unconfirmed,
           coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted')), 0) AS confirmed,
           -- The least that the window can come to: a correction below it waits.
           coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted') OR state = 'accepted' AND value < 0), 0)
               AS assured,
           bool_or(state = 'rejected' AND hold_reason IS NOT NULL) AS rejected,
           bool_or(state IN ('pending', 'ambiguous')) AS open
      -- An entry's minute may be in the hour before its window, or after it: each entry is in exactly one of the two.
      FROM (SELECT window_id, state, value, hold_reason
              FROM ledger_entries
             WHERE slot_at >= {month_start} - interval '1 hour'
             UNION ALL
            SELECT window_id, e.state, e.value, e.hold_reason
              FROM older
              JOIN ledger_entries e USING (window_id)
             WHERE e.slot_at < {month_start} - interval '1 hour') e
     GROUP BY window_id
), owed AS (
    -- Each window's difference has one reason: the first that holds.
    SELECT w.organization_id, w.stripe_customer_id, w.meter, w.event_name, w.starts_at, w.sealed_at, w.units, w.target,
           e.stated, e.in_flight, e.unconfirmed, e.confirmed,
           w.target - coalesce(e.stated, 0) - coalesce(a.units, 0) AS owed, coalesce(a.units, 0) AS adjusted,
           -- Rows that have left the reach are no longer read; their windows stand for them.
           w.starts_at < {reach_start} OR w.period_level IS NOT NULL AND {reach_start} > (
               SELECT greatest(coalesce((SELECT max(e.edge_at)
                                           FROM period_edges e
                                          WHERE e.stripe_customer_id = w.stripe_customer_id
                                            AND e.event_name = w.event_name AND e.edge_at <= w.starts_at),
                                        date_trunc('month', w.starts_at, 'UTC')), {period_level_since})
                 FROM meter_versions v
                WHERE v.meter = w.meter AND tstzrange(v.valid_from, v.valid_until) @> w.starts_at) AS stands_for_rows,
           CASE WHEN w.stripe_customer_id IS NULL THEN 'unmapped'
                WHEN w.sealed_at IS NOT NULL THEN 'after_seal'
                WHEN w.hold_reason IS NOT NULL THEN 'held'
                WHEN e.rejected THEN 'rejected'
                WHEN w.ends_at > {closed_before} THEN 'still_open'
                WHEN e.open OR w.target - e.stated < least(-e.assured, 0)
                     OR w.target > coalesce(e.stated, 0) AND EXISTS (
                        -- Its organization is to be taken back from first, and that is on hold.
                        SELECT
                          FROM usage_windows held
                         WHERE held.organization_id = w.organization_id AND held.meter = w.meter
                           AND held.hold_reason = 'too_much_taken_back_at_once') THEN 'waiting'
                WHEN w.cut_after > {now} THEN 'coalesced' END AS reason
      FROM (SELECT * FROM usage_windows WHERE starts_at >= {month_start} UNION ALL SELECT * FROM older) w
      LEFT JOIN entry e USING (window_id)
      LEFT JOIN adjusted_units a USING (window_id)
), chain AS (
    SELECT organization_id, meter,
           sum(CASE WHEN starts_at >= {month_start} THEN units ELSE target END) AS counted_units,
           sum(CASE WHEN starts_at >= {month_start} THEN units ELSE target END)
               FILTER (WHERE stands_for_rows) AS past_units,
           floor(sum(units - target) FILTER (WHERE starts_at >= {month_start})) AS miscarried,
           bool_or(sealed_at IS NOT NULL) AS has_seal,
           -- Where carried units could have gone to, and where they could have been taken from.
           bool_or(sealed_at IS NULL AND starts_at >= {reach_start}) AS takes,
           bool_or(sealed_at IS NULL AND starts_at >= {reach_start} AND target > 0) AS gives,
           sum(target) AS target, sum(stated) AS stated, sum(in_flight) AS in_flight,
           sum(unconfirmed) AS unconfirmed, sum(confirmed) AS confirmed,
           sum(owed) FILTER (WHERE reason = 'unmapped') AS unmapped,
           sum(owed) FILTER (WHERE reason = 'after_seal') AS after_seal, sum(adjusted) AS adjusted,
           sum(owed) FILTER (WHERE reason = 'held') AS held,
           sum(owed) FILTER (WHERE reason = 'rejected') AS rejected,
           sum(owed) FILTER (WHERE reason = 'still_open') AS still_open,
           sum(owed) FILTER (WHERE reason = 'waiting') AS waiting,
           sum(owed) FILTER (WHERE reason = 'coalesced') AS coalesced
      FROM owed
     GROUP BY organization_id, stripe_customer_id, meter, date_trunc('month', starts_at, 'UTC'),
              -- Fractions are carried within a billing period; a window without any adds nothing to what is carried.
              CASE WHEN units <> target THEN (
                  SELECT max(e.edge_at)
                    FROM period_edges e
                   WHERE e.stripe_customer_id = owed.stripe_customer_id AND e.event_name = owed.event_name
                     AND e.edge_at <= owed.starts_at) END
), ledger AS (
    SELECT organization_id, meter, sum(counted_units) AS counted_units, sum(past_units) AS past_units,
           -- Two customers' faults do not make up for each other.
           sum(miscarried) FILTER (WHERE miscarried > 0 AND NOT excused) AS lost,
           sum(miscarried) FILTER (WHERE miscarried < 0 AND NOT excused) AS gained,
           sum(miscarried) FILTER (WHERE excused) AS fractions_after_seal,
           sum(target) AS target, sum(stated) AS stated, sum(in_flight) AS in_flight,
           sum(unconfirmed) AS unconfirmed, sum(confirmed) AS confirmed, sum(unmapped) AS unmapped,
           sum(after_seal) AS after_seal, sum(adjusted) AS adjusted, sum(held) AS held, sum(rejected) AS rejected,
           sum(still_open) AS still_open, sum(waiting) AS waiting, sum(coalesced) AS coalesced
      FROM (SELECT *, has_seal AND CASE WHEN miscarried > 0 THEN NOT takes ELSE NOT gives END AS excused
              FROM chain) judged
     GROUP BY organization_id, meter
)
SELECT organization_id, meter,
       coalesce(source.events, 0) AS source_events,
       trim_scale(coalesce(source.units, 0) + coalesce(past_units, 0)) AS source_units,
       trim_scale(coalesce(counted_units, 0)) AS counted_units,
       coalesce(lost, 0) AS lost, coalesce(gained, 0) AS gained,
       coalesce(target, 0) AS target, coalesce(stated, 0) AS stated, coalesce(confirmed, 0) AS confirmed,
       coalesce(in_flight, 0) AS in_flight, coalesce(unconfirmed, 0) AS unconfirmed,
       coalesce(rejected, 0) AS rejected, coalesce(unmapped, 0) AS unmapped, coalesce(held, 0) AS held,
       coalesce(after_seal, 0) AS after_seal, coalesce(adjusted, 0) AS adjusted,
       coalesce(fractions_after_seal, 0) AS fractions_after_seal,
       coalesce(still_open, 0) AS still_open, coalesce(waiting, 0) AS waiting, coalesce(coalesced, 0) AS coalesced
  FROM source
  FULL JOIN ledger USING (organization_id, meter)
 ORDER BY organization_id, meter;

-- name: differing_hours
-- Hours in which Stripe last showed something other than what is confirmed.  Only these are looked at closely, so the
-- work follows the differences: which of their entries may be shown or not, and which were confirmed only after the
-- summary was read.
WITH hour AS (
    SELECT stripe_customer_id, event_name, date_trunc('hour', slot_at, 'UTC') AS hour_at, min(window_id) AS window_id,
           coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted')), 0) AS confirmed,
           coalesce(sum(value) FILTER (WHERE state NOT IN ('confirmed', 'adopted') AND value > 0), 0) AS open_added,
           coalesce(sum(value) FILTER (WHERE state NOT IN ('confirmed', 'adopted') AND value < 0), 0) AS open_taken
      FROM ledger_entries
     WHERE slot_at >= {month_start} AND state NOT IN ('rejected', 'replaced')
     GROUP BY stripe_customer_id, event_name, hour_at
)
SELECT coalesce(w.organization_id, mapped.organization_id, s.stripe_customer_id) AS organization_id,
       coalesce(w.meter, metered.meter, s.event_name) AS meter,
       s.observed::numeric AS observed, coalesce(hour.confirmed, 0) AS confirmed,
       coalesce(hour.open_added, 0) AS open_added, coalesce(hour.open_taken, 0) AS open_taken,
       coalesce(later.added, 0) AS later_added, coalesce(later.taken, 0) AS later_taken
  FROM meter_summaries s
  LEFT JOIN hour ON hour.stripe_customer_id = s.stripe_customer_id AND hour.event_name = s.event_name
   AND hour.hour_at = s.hour_at
  LEFT JOIN usage_windows w ON w.window_id = hour.window_id
  LEFT JOIN LATERAL (
       SELECT organization_id
         FROM customer_mappings m
        WHERE m.stripe_customer_id = s.stripe_customer_id
          AND m.valid_during && tstzrange(s.hour_at, s.hour_at + interval '1 hour')
        LIMIT 1) mapped ON true
  LEFT JOIN LATERAL (
       SELECT meter
         FROM meter_versions v
        WHERE v.event_name = s.event_name AND tstzrange(v.valid_from, v.valid_until) @> s.hour_at
        LIMIT 1) metered ON true
  LEFT JOIN LATERAL (
       SELECT sum(e.value) FILTER (WHERE e.value > 0) AS added, sum(e.value) FILTER (WHERE e.value < 0) AS taken
         FROM ledger_entries e
        WHERE e.stripe_customer_id = s.stripe_customer_id AND e.event_name = s.event_name
          AND e.slot_at >= s.hour_at AND e.slot_at < s.hour_at + interval '1 hour'
          AND e.state IN ('confirmed', 'adopted')
          AND EXISTS (SELECT FROM evidence v
                       WHERE v.entry_id = e.entry_id AND v.kind IN ('summary_present', 'adoption')
                         AND v.observed_at > s.observed_at)) later ON true
 WHERE s.hour_at >= {month_start} AND s.observed <> coalesce(hour.confirmed, 0);
