-- All of these run in one REPEATABLE READ transaction, so that a window is never counted half before and half
-- after somebody else's commit.

-- name: lock_aggregations
-- One aggregation at a time: taken before the transaction's snapshot, it makes the later one also the newer one.
LOCK TABLE aggregations IN SHARE ROW EXCLUSIVE MODE;

-- name: use_working_memory
-- For this transaction: with PostgreSQL's default of 4 MB the sorts and hashes of a month spill to disk.
SET LOCAL work_mem = '64MB';

-- name: prefer_hashing
-- For sum_hours: the planner takes the contract's many branches for dear, shares them among workers, and then sorts five
-- million rows to put them together, which takes three times the processor time of one hash.
SET LOCAL enable_sort = off;

-- name: prefer_nothing
SET LOCAL enable_sort = on;

-- name: latest_aggregation
SELECT max(cutoff_at) AS cutoff_at, max(cutoff_at) FILTER (WHERE scope = 'full') AS full_cutoff_at
  FROM aggregations;

-- name: close_meter_versions
-- A definition that the catalogue no longer holds ends with the hour under way; one that has not begun never does.
WITH ended AS (
    SELECT v.meter, v.valid_from
      FROM meter_versions v
     WHERE v.valid_until IS NULL AND NOT EXISTS (
           SELECT
             FROM jsonb_to_recordset(%(definitions)s::jsonb) AS current (meter text, version text)
            WHERE current.meter = v.meter AND current.version = v.version)
), closed AS (
    UPDATE meter_versions v
       SET valid_until = %(next_hour_at)s
      FROM ended
     WHERE v.meter = ended.meter AND v.valid_from = ended.valid_from AND v.valid_from < %(next_hour_at)s
)
DELETE FROM meter_versions v
 USING ended
 WHERE v.meter = ended.meter AND v.valid_from = ended.valid_from AND v.valid_from >= %(next_hour_at)s;

-- name: open_meter_versions
-- The first versions of a ledger begin where billing begins; any later one with the next full hour.
INSERT INTO meter_versions
       (meter, version, event_types, aggregation, event_name, unit_scale, choices, property, valid_from)
SELECT meter, version, event_types, aggregation, event_name, unit_scale, choices, property,
       CASE WHEN EXISTS (SELECT FROM meter_versions)
            THEN greatest(%(next_hour_at)s, %(billing_start)s) ELSE %(billing_start)s END
  FROM jsonb_to_recordset(%(definitions)s::jsonb)
       AS current (meter text, version text, event_types text[], aggregation text, event_name text, unit_scale numeric,
                   choices jsonb[], property text)
 WHERE NOT EXISTS (
       SELECT FROM meter_versions v
        WHERE v.meter = current.meter AND v.version = current.version AND v.valid_until IS NULL);

-- name: kinds_of_counting
-- What the definitions of any hour ask for beyond sums and counts; what none asks for is not read.
SELECT coalesce(bool_or(choices IS NOT NULL OR property IS NOT NULL), false) AS properties,
       coalesce(bool_or(aggregation NOT IN ('sum', 'count')), false) AS period_levels,
       coalesce(bool_or(aggregation = 'unique'), false) AS unique_values
  FROM meter_versions;

-- part: lacks_a_property
-- Of a row of the source, called s.
EXISTS (SELECT FROM billing_pipeline.meter_versions n
         WHERE n.property IS NOT NULL AND s.event_type = ANY (n.event_types)
           AND tstzrange(n.valid_from, n.valid_until) @> s.occurred_at
           AND coalesce(s.properties ->> n.property, '') = '')

-- name: find_touched_hours
-- Hours whose rows may have changed since the last cutoff: new rows, rows that left quarantine, hours whose
-- organization was given to another customer, and hours in which a billing period was found to begin or end.  Deleted
-- rows leave no trace here; the daily full scope finds them.
CREATE TEMP TABLE touched_hours ON COMMIT DROP AS
SELECT organization_id, date_trunc('hour', occurred_at, 'UTC') AS hour_at
  FROM {source} s
 WHERE recorded_at >= {since} AND occurred_at >= {reach_start} AND occurred_at < {reach_end}
   AND organization_id IS NOT NULL
UNION
SELECT s.organization_id, date_trunc('hour', s.occurred_at, 'UTC')
  FROM quarantined_events q
  JOIN {source} s ON {same_event}
 WHERE q.mended_at >= {since} AND s.occurred_at >= {reach_start} AND s.occurred_at < {reach_end}
   AND s.organization_id IS NOT NULL
UNION
-- OFFSET 0 keeps to the windows of these organizations: a guess that many mappings are new would read all windows.
SELECT m.organization_id, date_trunc('hour', w.starts_at, 'UTC')
  FROM customer_mappings m
 CROSS JOIN LATERAL (
       SELECT w.starts_at
         FROM usage_windows w
        WHERE w.organization_id = m.organization_id AND w.starts_at >= {reach_start}
          AND tstzrange(w.starts_at, w.ends_at) && m.valid_during
       OFFSET 0) w
 WHERE m.created_at >= {since}
UNION
SELECT m.organization_id, date_trunc('hour', e.edge_at, 'UTC')
  FROM period_edges e
  JOIN customer_mappings m ON m.stripe_customer_id = e.stripe_customer_id
 WHERE e.synced_at >= {since} AND e.edge_at >= {reach_start} AND e.edge_at < {reach_end};

-- name: analyze_touched_hours
-- A temporary table has no statistics of its own accord, and without them the plans below are guesses.
ANALYZE touched_hours;

-- name: first_touched_hour
SELECT min(hour_at) AS first_hour_at FROM touched_hours;

-- The full scope is every hour of the reach, so it needs no list of hours: where the touched scope has a join with
-- touched_hours, it has nothing.

-- part: rows_of_all_hours
(SELECT date_trunc('hour', s.occurred_at, 'UTC') AS hour_at, s.event_id, s.organization_id, s.event_type, s.quantity,
        s.occurred_at, s.recorded_at, {properties} AS properties
   FROM {source} s
  WHERE occurred_at >= {first_hour} AND occurred_at < {reach_end})

-- part: rows_of_touched_hours
-- Both kinds of condition are here on purpose: the planner probes the index on occurred_at
-- for a few hours, and hashes one scan for many.
(SELECT h.hour_at, s.event_id, s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at,
        {properties} AS properties
   FROM (SELECT DISTINCT hour_at FROM touched_hours) h
   JOIN {source} s ON date_trunc('hour', s.occurred_at, 'UTC') = h.hour_at
    AND s.occurred_at >= h.hour_at AND s.occurred_at < h.hour_at + interval '1 hour'
  WHERE s.occurred_at >= {first_hour} AND s.occurred_at < {reach_end})

-- name: versions_that_need_a_quantity
SELECT event_types, valid_from, valid_until
  FROM meter_versions
 WHERE aggregation NOT IN ('count', 'unique');

-- part: needs_a_quantity
-- Of a row of the source, called s: whether one definition asks for it.  Written out, because next to a subquery for
-- each row, as dear as the planner takes it for, any way to group the rows looks the same.
(s.event_type = ANY ({event_types}) AND s.occurred_at >= {valid_from}
 AND s.occurred_at < coalesce({valid_until}, 'infinity'::timestamptz))

-- part: fault_of_row
-- Of a row of the source, called s.
contract_fault(s.event_id, s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at,
               {quantity_needed}, {property_missing})

-- part: is_good_row
-- Of a row of the source, called s: whether fault_of_row is null.  Nearly every row is plainly good, which takes half as
-- long to see; the contract is asked about the others.  Years are looked at before anything is added to them.
CASE WHEN CASE WHEN s.occurred_at >= '1900-01-01 00:00:00+00' AND s.occurred_at < '9999-01-01 00:00:00+00'
               THEN s.recorded_at BETWEEN s.occurred_at - interval '5 minutes' AND s.occurred_at + interval '840 hours'
                    AND s.event_id <> '' AND s.organization_id <> '' AND s.event_type <> ''
                    AND s.quantity >= 0 AND s.quantity < 1000000000000000 AND scale(s.quantity) <= 12
                    AND NOT {property_missing} END
     THEN true
     ELSE {fault} IS NULL END

-- name: sum_hours
-- The good rows, added up before anything is asked about them: nearly every hour belongs whole to one customer and one
-- billing period, and what is asked of an hour once is not asked of each of its rows.
CREATE TEMP TABLE hour_sums ON COMMIT DROP AS
SELECT organization_id, hour_at, event_type, sum(quantity) AS quantity, count(*) AS events,
       max(recorded_at) AS last_recorded_at
  FROM {rows} s
 WHERE {is_good}
 GROUP BY organization_id, hour_at, event_type;

-- name: analyze_hour_sums
ANALYZE hour_sums;

-- name: find_period_parts
-- The hours that a billing period's edge cuts, part by part; the edge belongs to the later one.
CREATE TEMP TABLE period_parts ON COMMIT DROP AS
WITH cut_hour AS (
    SELECT stripe_customer_id, event_name, date_trunc('hour', edge_at, 'UTC') AS hour_at, edge_at
      FROM period_edges
     WHERE edge_at >= {first_hour} AND edge_at < {reach_end} AND edge_at > date_trunc('hour', edge_at, 'UTC')
)
SELECT stripe_customer_id, event_name, hour_at, part_at AS starts_at,
       lead(part_at, 1, hour_at + interval '1 hour') OVER hour AS ends_at
  FROM (SELECT stripe_customer_id, event_name, hour_at, edge_at AS part_at FROM cut_hour
         UNION
        SELECT stripe_customer_id, event_name, hour_at, hour_at FROM cut_hour) part
WINDOW hour AS (PARTITION BY stripe_customer_id, event_name, hour_at ORDER BY part_at);

-- name: analyze_period_parts
ANALYZE period_parts;

-- name: find_split_hours
-- The hours in which an organization's customer or the customer's billing period changes.
CREATE TEMP TABLE split_hours ON COMMIT DROP AS
SELECT organization_id, date_trunc('hour', bound_at, 'UTC') AS hour_at
  FROM (SELECT organization_id, lower(valid_during) AS bound_at FROM customer_mappings
         UNION
        SELECT organization_id, upper(valid_during) FROM customer_mappings) m
 WHERE bound_at >= {first_hour} AND bound_at < {reach_end} AND bound_at > date_trunc('hour', bound_at, 'UTC')
UNION
SELECT m.organization_id, p.hour_at
  FROM period_parts p
  JOIN customer_mappings m ON m.stripe_customer_id = p.stripe_customer_id
   AND m.valid_during && tstzrange(p.hour_at, p.hour_at + interval '1 hour');

-- name: analyze_split_hours
ANALYZE split_hours;

-- name: rows_looked_at_singly
-- Whether any row must be: in an hour that is split, or of a type that some meter does not just add up.
SELECT EXISTS (SELECT FROM split_hours) OR EXISTS (SELECT FROM meter_versions WHERE {not_added_up}) AS found;

-- part: of_touched_hours
JOIN touched_hours t ON t.organization_id = r.organization_id AND t.hour_at = r.hour_at

-- part: not_added_up
-- Of a row of meter_versions.
(choices IS NOT NULL OR aggregation NOT IN ('sum', 'count'))

-- name: read_usage_rows
-- The good rows that hour_sums cannot stand for.  The verdict is a column, not a condition: the planner would take a
-- condition on it for one that hardly any row meets.
CREATE TEMP TABLE usage_rows ON COMMIT DROP AS
SELECT organization_id, hour_at, event_type, quantity, occurred_at, recorded_at, properties, is_split,
       {fault} AS fault
  FROM (SELECT s.*, (organization_id, hour_at) IN (SELECT organization_id, hour_at FROM split_hours) AS is_split
          FROM {rows} s) s
 WHERE {looked_at_singly}
   AND (is_split OR event_type IN (SELECT unnest(event_types) FROM meter_versions WHERE {not_added_up}));

-- name: analyze_usage_rows
ANALYZE usage_rows;

-- part: metered_rows
-- the rows looked at singly in touched hours, once for each meter that counts them so, with
-- whose they are and the part of the hour they lie in.
SELECT r.organization_id, r.hour_at, r.quantity, r.occurred_at, r.recorded_at, r.properties ->> v.property AS value,
       v.meter, v.aggregation, m.mapping_id, m.stripe_customer_id,
       p.starts_at AS part_starts_at, p.ends_at AS part_ends_at
  FROM usage_rows r
  {of_touched_hours}
  JOIN (SELECT meter, aggregation, event_name, choices, property, valid_from, valid_until,
               unnest(event_types) AS event_type, {not_added_up} AS not_added_up
          FROM meter_versions) v
    ON v.event_type = r.event_type AND tstzrange(v.valid_from, v.valid_until) @> r.hour_at
   AND (r.is_split OR v.not_added_up)
   AND (v.choices IS NULL OR r.properties @> ANY (v.choices))
  LEFT JOIN customer_mappings m ON m.organization_id = r.organization_id AND m.valid_during @> r.occurred_at
  LEFT JOIN period_parts p ON p.stripe_customer_id = m.stripe_customer_id AND p.event_name = v.event_name
   AND p.hour_at = r.hour_at AND r.occurred_at >= p.starts_at AND r.occurred_at < p.ends_at
 WHERE r.fault IS NULL

-- part: counted_singly
-- what is counted row by row.
SELECT organization_id, hour_at, meter, mapping_id, part_starts_at, part_ends_at,
       {quantity} AS quantity, count(*) AS event_count, max(recorded_at) AS last_recorded_at
  FROM ({metered_rows}) metered
 WHERE aggregation = ANY ({aggregations})
 GROUP BY organization_id, hour_at, meter, aggregation, mapping_id, part_starts_at, part_ends_at

-- part: counted_whole
-- the touched hours that have one customer and one period.
SELECT r.organization_id, r.hour_at, v.meter, m.mapping_id,
       NULL::timestamptz AS part_starts_at, NULL::timestamptz AS part_ends_at,
       sum(CASE v.aggregation WHEN 'count' THEN r.events ELSE r.quantity END) AS quantity,
       sum(r.events)::bigint AS event_count, max(r.last_recorded_at) AS last_recorded_at
  FROM hour_sums r
  {of_touched_hours}
  JOIN (SELECT meter, aggregation, valid_from, valid_until, unnest(event_types) AS event_type
          FROM meter_versions WHERE NOT {not_added_up}) v
    ON v.event_type = r.event_type AND tstzrange(v.valid_from, v.valid_until) @> r.hour_at
  LEFT JOIN customer_mappings m ON m.organization_id = r.organization_id AND m.valid_during @> r.hour_at
 WHERE (r.organization_id, r.hour_at) NOT IN (SELECT organization_id, hour_at FROM split_hours)
 GROUP BY r.organization_id, r.hour_at, v.meter, m.mapping_id

-- name: make_counted_windows
CREATE TEMP TABLE counted_windows (
    organization_id text, stripe_customer_id text, meter text, meter_version text, event_name text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, units numeric, period_level numeric, event_count bigint,
    last_recorded_at timestamptz
) ON COMMIT DROP;

-- name: count_windows
-- Each touched hour is counted whole, by the definitions that were valid in it, and split where the organization's
-- customer or the customer's billing period changes.
INSERT INTO counted_windows
SELECT c.organization_id,
       m.stripe_customer_id,
       c.meter,
       v.version AS meter_version,
       v.event_name,
       greatest(c.hour_at, lower(m.valid_during), c.part_starts_at) AS starts_at,
       least(c.hour_at + interval '1 hour', upper(m.valid_during), c.part_ends_at) AS ends_at,
       c.quantity,
       {units} AS units,
       {period_level} AS period_level,
       c.event_count,
       c.last_recorded_at
  FROM ({counted}) c
  JOIN meter_versions v ON v.meter = c.meter AND tstzrange(v.valid_from, v.valid_until) @> c.hour_at
  LEFT JOIN customer_mappings m ON m.mapping_id = c.mapping_id;

-- part: quantity_of_deltas
sum(CASE aggregation WHEN 'count' THEN 1 ELSE quantity END)

-- part: quantity_of_period_levels
-- of two rows at one instant, the one recorded later is the last.
CASE aggregation WHEN 'max' THEN max(quantity)
                 WHEN 'unique' THEN count(DISTINCT value)
                 ELSE (array_agg(quantity ORDER BY occurred_at DESC, recorded_at DESC, quantity DESC))[1] END

-- name: analyze_counted_windows
ANALYZE counted_windows;

-- part: windows_of_touched_hours
(SELECT w.*
   FROM touched_hours t
   JOIN usage_windows w ON w.organization_id = t.organization_id AND date_trunc('hour', w.starts_at, 'UTC') = t.hour_at)

-- name: find_changed_windows
-- What was counted beside what is known, in one join: windows that are new or read otherwise, and, with nothing counted,
-- those that no row falls into any more.
CREATE TEMP TABLE changed_windows ON COMMIT DROP AS
SELECT c.*, w.window_id
  FROM counted_windows c
  FULL JOIN (SELECT * FROM {windows} w WHERE w.starts_at >= {first_hour}) w
    ON w.organization_id = c.organization_id AND w.meter = c.meter AND w.starts_at = c.starts_at AND w.ends_at = c.ends_at
   AND coalesce(w.stripe_customer_id, '') = coalesce(c.stripe_customer_id, '')
 WHERE CASE WHEN c.meter IS NULL THEN w.event_count > 0 OR w.target > 0
            ELSE w.window_id IS NULL
                 OR w.meter_version <> c.meter_version OR w.quantity <> c.quantity
                 OR CASE WHEN c.period_level IS NULL THEN w.units <> c.units ELSE w.period_level IS NULL END
                 OR w.event_count <> c.event_count OR w.last_recorded_at IS DISTINCT FROM c.last_recorded_at END;

-- name: analyze_changed_windows
ANALYZE changed_windows;

-- name: merge_counted_windows
-- A window whose rows are as they were is neither written nor locked.  What a window carries stays where it is, as
-- far as the target allows.  The order keeps two writers of the same windows from waiting for each other.
-- A window that a late row brings into a sealed period begins sealed: Stripe would take its usage and bill it to nobody.
-- What a window of a period level is worth depends on others; `state_period_levels` says it.
INSERT INTO usage_windows AS w
       (organization_id, stripe_customer_id, meter, meter_version, event_name, starts_at, ends_at, target, units,
        quantity, period_level, event_count, last_recorded_at, contract_version, cutoff_at, sealed_at)
SELECT c.organization_id, c.stripe_customer_id, c.meter, c.meter_version, c.event_name, c.starts_at, c.ends_at,
       floor(c.units), c.units, c.quantity, c.period_level, c.event_count, c.last_recorded_at, %(contract_version)s,
       %(cutoff_at)s,
       -- Asked once, the first question spares a ledger without seals the second one for every window.
       CASE WHEN EXISTS (SELECT FROM seals) THEN (
            SELECT min(s.sealed_at)
              FROM seals s
             WHERE s.stripe_customer_id = c.stripe_customer_id
               AND (s.event_name IS NULL OR s.event_name = c.event_name)
               AND s.during @> tstzrange(c.starts_at, c.ends_at)) END
  FROM changed_windows c
 WHERE c.meter IS NOT NULL
 ORDER BY c.organization_id, c.stripe_customer_id, c.meter, c.starts_at
    ON CONFLICT ON CONSTRAINT usage_windows_natural_key DO UPDATE
   SET target = CASE WHEN excluded.period_level IS NULL
                     THEN floor(excluded.units) + greatest(w.carried, -floor(excluded.units)) ELSE w.target END,
       carried = greatest(w.carried, -floor(excluded.units)),
       units = CASE WHEN excluded.period_level IS NULL THEN excluded.units ELSE w.units END,
       period_level = CASE WHEN excluded.period_level IS NOT NULL THEN coalesce(w.period_level, excluded.period_level) END,
       quantity = excluded.quantity, event_count = excluded.event_count,
       last_recorded_at = excluded.last_recorded_at, meter_version = excluded.meter_version,
       event_name = excluded.event_name, contract_version = excluded.contract_version,
       cutoff_at = excluded.cutoff_at,
       cut_due = w.cut_due OR excluded.period_level IS NULL
                              AND w.target <> floor(excluded.units) + greatest(w.carried, -floor(excluded.units));

-- name: empty_uncounted_windows
-- A window of a touched hour that no row falls into any more is worth nothing; the cutter will take it back.  What it
-- carries stays, unless an edge now lies inside it: then it belongs to no one period, and others carry for it.
WITH uncounted AS (
    SELECT w.* FROM changed_windows c JOIN usage_windows w USING (window_id) WHERE c.meter IS NULL
), emptied AS (
    SELECT window_id, CASE WHEN lies_across.an_edge THEN 0 ELSE greatest(carried, 0) END AS carried
      FROM uncounted w
     CROSS JOIN LATERAL (
           SELECT EXISTS (
                  SELECT FROM period_parts p
                   WHERE p.stripe_customer_id = w.stripe_customer_id AND p.event_name = w.event_name
                     AND p.starts_at > w.starts_at AND p.starts_at < w.ends_at) AS an_edge) lies_across
     WHERE w.event_count > 0 OR lies_across.an_edge
)
UPDATE usage_windows w
   SET target = emptied.carried, carried = emptied.carried, units = 0, quantity = 0, event_count = 0,
       last_recorded_at = NULL, cutoff_at = %(cutoff_at)s,
       cut_due = w.cut_due OR w.target <> emptied.carried
  FROM emptied
 WHERE w.window_id = emptied.window_id;

-- part: months_of_all_hours
(SELECT DISTINCT organization_id, date_trunc('month', starts_at, 'UTC') AS month_at
   FROM usage_windows
  WHERE starts_at >= {first_hour} AND (units <> trunc(units) OR carried <> 0))

-- part: months_of_touched_hours
(SELECT DISTINCT organization_id, date_trunc('month', hour_at, 'UTC') AS month_at FROM touched_hours)

-- name: carry_fractions
-- Rounding each window down would lose up to a unit per hour.  So every customer, meter and UTC month, or the part of
-- it that lies in one billing period, is worth the whole part of its exact sum: the units that are missing go to its
-- latest window, the ones too many are taken from there.  A unit once placed is not moved again, so a late row changes
-- its own window and at most one more.
WITH chain AS (
    SELECT w.organization_id, w.stripe_customer_id, w.meter, month.month_at, period.began_at,
           floor(sum(w.units - floor(w.units))) - sum(w.carried) AS missing
      FROM {months} month
      JOIN usage_windows w ON w.organization_id = month.organization_id
       AND date_trunc('month', w.starts_at, 'UTC') = month.month_at
     CROSS JOIN LATERAL (
           SELECT max(e.edge_at) AS began_at
             FROM period_edges e
            WHERE e.stripe_customer_id = w.stripe_customer_id AND e.event_name = w.event_name
              AND e.edge_at <= w.starts_at) period
     WHERE w.starts_at >= date_trunc('month', {first_hour}, 'UTC')
       AND (w.units <> trunc(w.units) OR w.carried <> 0)
     GROUP BY w.organization_id, w.stripe_customer_id, w.meter, month.month_at, period.began_at
    HAVING floor(sum(w.units - floor(w.units))) <> sum(w.carried)
), place AS (
    SELECT w.window_id, w.target, chain.missing, row_number() OVER latest AS place,
           sum(w.target) OVER latest - w.target AS target_before
      FROM chain
      JOIN usage_windows w ON w.organization_id = chain.organization_id AND w.meter = chain.meter
       AND w.stripe_customer_id IS NOT DISTINCT FROM chain.stripe_customer_id
       AND date_trunc('month', w.starts_at, 'UTC') = chain.month_at
     WHERE w.starts_at >= greatest(date_trunc('month', {first_hour}, 'UTC'), {reach_start})
       AND w.sealed_at IS NULL AND w.period_level IS NULL
       AND (SELECT max(e.edge_at)
              FROM period_edges e
             WHERE e.stripe_customer_id = w.stripe_customer_id AND e.event_name = w.event_name
               AND e.edge_at <= w.starts_at) IS NOT DISTINCT FROM chain.began_at
       -- A window with an edge inside is being taken back; nothing may be put there.
       AND NOT EXISTS (
           SELECT
             FROM period_edges e
            WHERE e.stripe_customer_id = w.stripe_customer_id AND e.event_name = w.event_name
              AND e.edge_at > w.starts_at AND e.edge_at < w.ends_at)
    WINDOW latest AS (PARTITION BY chain.organization_id, chain.stripe_customer_id, chain.meter, chain.month_at,
                                   chain.began_at
                      ORDER BY w.starts_at DESC, w.window_id DESC ROWS UNBOUNDED PRECEDING)
), carry AS (
    SELECT window_id,
           CASE WHEN missing > 0 THEN missing ELSE -least(target, -missing - target_before) END AS units
      FROM place
     WHERE (missing > 0 AND place = 1) OR (target > 0 AND target_before < -missing)
)
UPDATE usage_windows w
   SET target = w.target + carry.units, carried = w.carried + carry.units, cut_due = true
  FROM carry
 WHERE w.window_id = carry.window_id;

-- name: record_aggregation
INSERT INTO aggregations (scope, cutoff_at, windows_computed, windows_changed, finished_at)
VALUES (%(scope)s, %(cutoff_at)s, (SELECT count(*) FROM counted_windows), %(windows_changed)s, %(now)s)
RETURNING windows_computed;
