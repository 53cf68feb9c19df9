-- Why an organization's hour was billed what it was.  All of these run in one snapshot, read one hour or one billing
-- period of one customer, and write nothing.

-- name: is_known_organization
SELECT EXISTS (SELECT FROM customer_mappings WHERE organization_id = %(organization_id)s)
       OR EXISTS (SELECT FROM usage_windows WHERE organization_id = %(organization_id)s) AS known;

-- name: mapped_organizations_like
-- Names to compare more closely: those with the same first letter, or of which one contains the other.
SELECT DISTINCT organization_id
  FROM customer_mappings
 WHERE lower(left(organization_id, 1)) = lower(left(%(organization_id)s::text, 1))
    OR position(lower(%(organization_id)s) IN lower(organization_id)) > 0
    OR position(lower(organization_id) IN lower(%(organization_id)s)) > 0
 ORDER BY organization_id
 LIMIT %(limit)s;

-- name: known_meters
SELECT DISTINCT meter FROM meter_versions ORDER BY meter;

-- name: place_of_entry
-- Asked by its number or by its name at Stripe; each has an index.
SELECT e.entry_id, w.organization_id, w.meter, w.starts_at
  FROM ledger_entries e
  JOIN usage_windows w USING (window_id)
 WHERE e.entry_id = %(entry_id)s::bigint OR e.identifier = %(identifier)s::text;

-- name: canary_of_name
SELECT event_name, started_at FROM canaries WHERE identifier = %(identifier)s;

-- name: definitions_of_hour
SELECT meter, version, event_types, aggregation, event_name, unit_scale, choices IS NOT NULL AS is_filtered, property,
       valid_from, valid_until
  FROM meter_versions
 WHERE tstzrange(valid_from, valid_until) @> %(hour_at)s AND (%(meter)s::text IS NULL OR meter = %(meter)s)
 ORDER BY meter;

-- name: windows_of_hour
SELECT window_id, stripe_customer_id, meter, meter_version, event_name, starts_at, ends_at, target, carried, units,
       quantity, period_level, event_count, contract_version, cutoff_at, cut_after, hold_reason, sealed_at,
       coalesce((SELECT a.units FROM adjusted_units a WHERE a.window_id = w.window_id), 0) AS adjusted,
       (SELECT string_agg(format('%%s of %%s is %%s', coalesce(i.stripe_invoice_item_id, 'an invoice item'),
                                 i.stripe_invoice_id, replace(i.state, '_', ' ')), '; ' ORDER BY i.adjustment_id)
          FROM adjusted_windows a JOIN invoice_adjustments i USING (adjustment_id)
         WHERE a.window_id = w.window_id AND i.state <> 'refused') AS adjusted_by
  FROM usage_windows w
 WHERE organization_id = %(organization_id)s
   AND starts_at >= %(hour_at)s AND starts_at < %(hour_at)s + interval '1 hour'
   AND (%(meter)s::text IS NULL OR meter = %(meter)s)
 ORDER BY meter, starts_at, stripe_customer_id, window_id;

-- part: judged_rows
-- the organization's rows of the hour with what the contract says of each.  Versions change on full hours, so one look
-- at them is enough for all rows.
(SELECT s.event_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at, {properties} AS properties,
        contract_fault(s.event_id, s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at,
            s.event_type = ANY (ARRAY(SELECT unnest(event_types) FROM definition
                                       WHERE aggregation NOT IN ('count', 'unique'))),
            {property_missing}) AS fault
   FROM {source} s
  WHERE s.organization_id = %(organization_id)s
    AND s.occurred_at >= %(hour_at)s AND s.occurred_at < %(hour_at)s + interval '1 hour')

-- name: rows_counted_in_hour
-- What each usage window, or with a null each meter beside its windows, counts of the source now.  Summed here on its
-- own, and not taken from the windows it is compared with.
WITH definition AS MATERIALIZED (
    SELECT meter, aggregation, event_types, choices, property
      FROM meter_versions
     WHERE tstzrange(valid_from, valid_until) @> %(hour_at)s
), metered AS (
    SELECT d.meter, d.aggregation, w.window_id, j.event_id, j.quantity, j.occurred_at, j.recorded_at,
           j.properties ->> d.property AS value,
           d.choices IS NULL OR coalesce(j.properties @> ANY (d.choices), false) AS is_taken
      FROM {judged_rows} j
      JOIN definition d ON j.event_type = ANY (d.event_types) AND (%(meter)s::text IS NULL OR d.meter = %(meter)s)
      LEFT JOIN unnest(%(window_ids)s::bigint[], %(meters)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[])
                AS w (window_id, meter, starts_at, ends_at)
        ON w.meter = d.meter AND j.occurred_at >= w.starts_at AND j.occurred_at < w.ends_at
     WHERE j.fault IS NULL
)
SELECT meter, window_id,
       count(*) FILTER (WHERE is_taken) AS events,
       coalesce(CASE aggregation
            WHEN 'sum' THEN sum(quantity) FILTER (WHERE is_taken)
            WHEN 'count' THEN count(*) FILTER (WHERE is_taken)
            WHEN 'max' THEN max(quantity) FILTER (WHERE is_taken)
            WHEN 'unique' THEN count(DISTINCT value) FILTER (WHERE is_taken)
            -- Of two rows at one instant, the one recorded later is the last.
            ELSE (array_agg(quantity ORDER BY occurred_at DESC, recorded_at DESC, quantity DESC)
                      FILTER (WHERE is_taken))[1] END, 0) AS quantity,
       count(*) FILTER (WHERE is_taken AND recorded_at > %(counted_before)s) AS events_since,
       count(*) FILTER (WHERE NOT is_taken) AS events_filtered,
       bool_or(recorded_at >= %(touched_since)s) AS is_touched,
       coalesce((array_agg(event_id ORDER BY occurred_at, event_id) FILTER (WHERE is_taken))[1:%(limit)s::int], '{{}}')
           AS event_ids
  FROM metered
 GROUP BY meter, aggregation, window_id
 ORDER BY meter, window_id NULLS LAST;

-- name: rows_not_counted_in_hour
-- Where the other rows are, by the rules that account for every row of the source, in the same order.
-- OFFSET 0 computes each verdict once, and keeps to looking up each broken row by its id: of a large quarantine the
-- planner would rather read all.
WITH definition AS MATERIALIZED (
    SELECT meter, aggregation, event_types, choices, property
      FROM meter_versions
     WHERE tstzrange(valid_from, valid_until) @> %(hour_at)s
), judged AS (
    SELECT *, coalesce(fault, CASE WHEN NOT is_defined AND NOT is_known THEN 'event_type_unknown' END) AS reason
      FROM (SELECT j.*, EXISTS (SELECT FROM definition d WHERE j.event_type = ANY (d.event_types)) AS is_defined,
                   EXISTS (SELECT FROM definition d
                            WHERE j.event_type = ANY (d.event_types)
                              AND (d.choices IS NULL OR j.properties @> ANY (d.choices))) AS is_metered,
                   j.event_type = ANY (%(known_event_types)s::text[]) AS is_known
              FROM {judged_rows} j
             -- Asked for one meter, rows of types that are known to be no business of it are beside the point.
             WHERE %(meter)s::text IS NULL
                OR EXISTS (SELECT FROM meter_versions v WHERE v.meter = %(meter)s AND j.event_type = ANY (v.event_types))
                OR NOT EXISTS (SELECT FROM definition d WHERE j.event_type = ANY (d.event_types))
                   AND coalesce(j.event_type <> ALL (%(known_event_types)s::text[]), true)) j
    OFFSET 0
), placed AS (
    SELECT j.event_id, j.event_type, j.quantity, j.occurred_at, j.reason, q.dismissed_by, q.dismissed_reason,
           CASE WHEN j.event_id IS NULL OR j.event_id = '' THEN 'without_event_id'
                WHEN j.reason IS NOT NULL AND q.event_id IS NOT NULL
                THEN CASE WHEN q.dismissed_at IS NULL THEN 'waiting' ELSE 'dismissed' END
                WHEN j.reason IS NOT NULL THEN 'not_judged_yet'
                WHEN j.is_metered THEN 'counted'
                WHEN j.is_defined THEN 'filtered_out'
                WHEN j.is_known IS NULL THEN 'not_judged_yet'
                WHEN j.occurred_at < (SELECT min(valid_from) FROM meter_versions) THEN 'before_billing_start'
                WHEN EXISTS (SELECT FROM meter_versions v WHERE j.event_type = ANY (v.event_types))
                THEN 'no_meter_in_its_hour'
                ELSE 'ignored_event_type' END AS place
      FROM judged j
      LEFT JOIN LATERAL (
           SELECT q.event_id, q.dismissed_at, q.dismissed_by, q.dismissed_reason
             FROM quarantined_events q
            WHERE q.event_id = j.event_id AND j.reason IS NOT NULL AND q.mended_at IS NULL
           OFFSET 0) q ON true
    OFFSET 0
)
SELECT place, reason, event_type, dismissed_by, dismissed_reason, count(*) AS events,
       coalesce(sum(quantity) FILTER (WHERE quantity >= 0 AND quantity < 'Infinity'), 0) AS quantity,
       (array_agg(coalesce(event_id, '') ORDER BY occurred_at, event_id))[1:%(limit)s::int] AS event_ids,
       count(*) OVER () AS groups
  FROM placed
 WHERE place <> 'counted'
 GROUP BY place, reason, event_type, dismissed_by, dismissed_reason
 ORDER BY count(*) DESC, place, reason, event_type
 LIMIT %(groups_limit)s;

-- name: entries_of_windows
SELECT e.entry_id, e.window_id, e.sequence::int AS sequence, e.value::numeric AS value, e.state::text AS state,
       e.slot_at, e.identifier, e.epoch, e.hold_reason, e.created_at, e.first_attempt_at, e.last_attempt_at,
       nullif(o.retry_at, 'infinity') AS retry_at
  FROM ledger_entries e
  LEFT JOIN open_entries o USING (entry_id)
 WHERE e.window_id = ANY (%(window_ids)s::bigint[])
 ORDER BY e.window_id, e.sequence, e.entry_id;

-- name: attempts_of_entries
-- The latest of each, in the order in which they were made.
SELECT entry_id, attempt_id, attempts_of_entry, channel, started_at, finished_at, outcome, http_status::int AS http_status,
       error_code, error_message, request_id
  FROM (SELECT *, row_number() OVER (PARTITION BY entry_id ORDER BY attempt_id DESC) AS place,
               count(*) OVER (PARTITION BY entry_id) AS attempts_of_entry
          FROM attempts
         WHERE entry_id = ANY (%(entry_ids)s::bigint[])) latest
 WHERE place <= %(limit)s
 ORDER BY attempt_id;

-- name: evidence_of_entries
SELECT entry_id, kind, observed::numeric AS observed, granularity, observed_at
  FROM evidence
 WHERE entry_id = ANY (%(entry_ids)s::bigint[])
 ORDER BY evidence_id;

-- name: shown_hours_of_lanes
-- What Stripe last showed for these hours beside what the ledger has stated in them, whichever window it is of.
SELECT lane.customer AS stripe_customer_id, lane.event_name, lane.hour_at, s.observed::numeric AS observed, s.observed_at,
       e.proved, e.unproved
  FROM unnest(%(customers)s::text[], %(event_names)s::text[], %(hours)s::timestamptz[])
       AS lane (customer, event_name, hour_at)
  LEFT JOIN meter_summaries s ON s.stripe_customer_id = lane.customer AND s.event_name = lane.event_name
   AND s.hour_at = lane.hour_at
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted')), 0) AS proved,
              coalesce(sum(value) FILTER (WHERE state IN ('pending', 'ambiguous', 'accepted')), 0) AS unproved
         FROM ledger_entries
        WHERE stripe_customer_id = lane.customer AND event_name = lane.event_name AND NOT replaced
          AND slot_at >= lane.hour_at AND slot_at < lane.hour_at + interval '1 hour') e
 ORDER BY lane.hour_at;

-- name: periods_of_lanes
SELECT DISTINCT p.stripe_customer_id, p.event_name, lower(p.during) AS starts_at,
       nullif(upper(p.during), 'infinity') AS ends_at, p.subscription_item_id
  FROM unnest(%(customers)s::text[], %(event_names)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[])
       AS lane (customer, event_name, starts_at, ends_at)
  JOIN billing_periods p ON p.stripe_customer_id = lane.customer AND p.event_name = lane.event_name
   AND p.during && tstzrange(lane.starts_at, lane.ends_at)
 ORDER BY starts_at, p.subscription_item_id;

-- name: seals_of_hour
SELECT s.stripe_customer_id, s.event_name, lower(s.during) AS starts_at, upper(s.during) AS ends_at, s.sealed_at,
       o.actor, o.reason
  FROM seals s
  JOIN ledger_operations o USING (operation_id)
 WHERE s.stripe_customer_id = ANY (%(customers)s::text[])
   AND s.during && tstzrange(%(hour_at)s, %(hour_at)s + interval '1 hour')
 ORDER BY s.sealed_at;

-- name: operations_on_hour
-- What persons decided about these windows.  A rebilling counts the hours from its beginning on that Stripe still takes.
SELECT action, actor, reason, done_at, details ->> 'meter' AS meter, details ->> 'difference' AS difference
  FROM ledger_operations
 WHERE action = 'rebill' AND details ->> 'meter' = ANY (%(meters)s::text[])
   AND (details ->> 'since')::timestamptz <= %(hour_at)s
   AND %(hour_at)s >= done_at - interval '841 hours' AND %(hour_at)s <= done_at
    OR action = 'release_hold' AND EXISTS (
       SELECT FROM jsonb_array_elements_text(details -> 'window_ids') AS released (window_id)
        WHERE released.window_id::bigint = ANY (%(window_ids)s::bigint[]))
 ORDER BY operation_id;

-- name: levels_before_windows
-- Where a window of a period level goes on from: the last window before it in the same billing period, or in the UTC
-- month where Stripe knows no period.
SELECT w.window_id, began.began_at, before.starts_at AS before_at, before.period_level AS level_before
  FROM usage_windows w
  LEFT JOIN meter_versions v ON v.meter = w.meter AND tstzrange(v.valid_from, v.valid_until) @> w.starts_at
 CROSS JOIN LATERAL (
       SELECT greatest(coalesce((SELECT max(e.edge_at)
                                   FROM period_edges e
                                  WHERE e.stripe_customer_id = w.stripe_customer_id AND e.event_name = w.event_name
                                    AND e.edge_at <= w.starts_at),
                                date_trunc('month', w.starts_at, 'UTC')),
                       {period_level_since}) AS began_at) began
  LEFT JOIN LATERAL (
       SELECT b.starts_at, b.period_level
         FROM usage_windows b
        WHERE b.organization_id = w.organization_id AND b.meter = w.meter
          AND b.stripe_customer_id IS NOT DISTINCT FROM w.stripe_customer_id
          AND b.starts_at >= began.began_at AND b.starts_at < w.starts_at
          AND b.period_level >= 0 AND b.event_count > 0
        ORDER BY b.starts_at DESC
        LIMIT 1) before ON true
 WHERE w.window_id = ANY (%(window_ids)s::bigint[]) AND w.period_level IS NOT NULL;

-- part: hours_of_lane
-- each hour of a customer's meter in a billing period: what its usage windows are worth, what the ledger has proved and
-- what not yet, and what Stripe last showed.  Stripe bills by timestamp, so an entry is in the hour of its minute.
(SELECT hour_at, coalesce(sum(target), 0) AS target, coalesce(sum(proved), 0) AS proved,
        coalesce(sum(unproved), 0) AS unproved, sum(observed) AS observed
   FROM (SELECT date_trunc('hour', w.starts_at, 'UTC') AS hour_at, w.target, NULL::numeric AS proved,
                NULL::numeric AS unproved, NULL::numeric AS observed
           FROM usage_windows w
          WHERE w.organization_id = ANY (%(organization_ids)s::text[]) AND w.stripe_customer_id = %(stripe_customer_id)s
            AND w.event_name = %(event_name)s
            AND w.starts_at >= %(period_start)s AND w.starts_at < %(period_end)s
          UNION ALL
         SELECT date_trunc('hour', slot_at, 'UTC'), NULL,
                CASE WHEN state IN ('confirmed', 'adopted') THEN value END,
                CASE WHEN state IN ('pending', 'ambiguous', 'accepted') THEN value END, NULL
           FROM ledger_entries
          WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s AND NOT replaced
            AND slot_at >= %(period_start)s AND slot_at < %(period_end)s
          UNION ALL
         SELECT hour_at, NULL, NULL, NULL, observed
           FROM meter_summaries
          WHERE stripe_customer_id = %(stripe_customer_id)s AND event_name = %(event_name)s
            AND hour_at >= date_trunc('hour', %(period_start)s, 'UTC') AND hour_at < %(period_end)s) part
  GROUP BY hour_at)

-- name: organizations_of_lane
-- Who was billed to the customer: by the mappings, or by what was stated in the period.
SELECT organization_id FROM customer_mappings WHERE stripe_customer_id = %(stripe_customer_id)s
 UNION
SELECT w.organization_id
  FROM ledger_entries e
  JOIN usage_windows w USING (window_id)
 WHERE e.stripe_customer_id = %(stripe_customer_id)s AND e.event_name = %(event_name)s AND NOT e.replaced
   AND e.slot_at >= %(period_start)s AND e.slot_at < %(period_end)s
 ORDER BY organization_id;

-- name: sums_of_lane
SELECT coalesce(sum(target), 0) AS target, coalesce(sum(proved), 0) AS proved, coalesce(sum(unproved), 0) AS unproved,
       count(*) FILTER (WHERE {differs}) AS hours_differing
  FROM {hours_of_lane} hour;

-- name: days_of_lane
-- The latest days, in order.
SELECT day_at, target, proved, unproved, observed
  FROM (SELECT date_trunc('day', hour_at, 'UTC') AS day_at, sum(target) AS target, sum(proved) AS proved,
               sum(unproved) AS unproved, sum(observed) AS observed
          FROM {hours_of_lane} hour
         GROUP BY 1
         ORDER BY 1 DESC
         LIMIT %(limit)s) latest
 ORDER BY day_at;

-- part: differs
-- of an hour: whether its sides disagree.
(target <> proved OR observed <> proved)

-- name: differing_hours_of_lane
SELECT hour_at, target, proved, unproved, observed
  FROM {hours_of_lane} hour
 WHERE {differs}
 ORDER BY hour_at
 LIMIT %(limit)s;

-- name: seals_of_lane_with_reason
SELECT s.stripe_customer_id, s.event_name, lower(s.during) AS starts_at, upper(s.during) AS ends_at, s.sealed_at,
       o.actor, o.reason
  FROM seals s
  JOIN ledger_operations o USING (operation_id)
 WHERE s.stripe_customer_id = %(stripe_customer_id)s AND (s.event_name IS NULL OR s.event_name = %(event_name)s)
   AND s.during && tstzrange(%(period_start)s, %(period_end)s)
 ORDER BY s.sealed_at;
