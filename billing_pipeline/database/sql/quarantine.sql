-- Quarantine as a person works with it; contract.sql fills and mends it.

-- name: waiting_by_reason
-- Summed up by organization first: counting distinct ones would sort every row.
SELECT reason, sum(rows)::bigint AS rows, count(organization_id) AS organizations, min(oldest_at) AS oldest_at,
       ARRAY(SELECT s.event_id
               FROM quarantined_events s
              WHERE s.mended_at IS NULL AND s.dismissed_at IS NULL AND s.reason = q.reason
                AND (%(organization_id)s::text IS NULL OR s.organization_id = %(organization_id)s)
              ORDER BY s.first_seen_at, s.event_id
              LIMIT %(limit)s) AS event_ids
  FROM (SELECT reason, organization_id, count(*) AS rows, min(first_seen_at) AS oldest_at
          FROM quarantined_events
         WHERE mended_at IS NULL AND dismissed_at IS NULL
           AND (%(reason)s::text IS NULL OR reason = %(reason)s)
           AND (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
         GROUP BY reason, organization_id) q
 GROUP BY reason
 ORDER BY sum(rows) DESC, reason;

-- name: waiting_units
-- What waits in Stripe units, by the definitions of each row's hour, or of this one where the row has no time.
-- A quantity that is no exact number, or a negative one, adds nothing and is counted as unreadable.
-- Rows are summed up by hour before they meet the definitions.
SELECT q.reason, v.meter, v.event_name, sum(q.rows)::bigint AS rows,
       -- What a row adds to the level of a period is known only once it is counted.
       coalesce(sum(CASE WHEN v.aggregation = 'sum' THEN q.unreadable
                         WHEN v.aggregation <> 'count' THEN q.rows END), 0)::bigint AS unreadable,
       trim_scale(coalesce(sum(CASE v.aggregation WHEN 'count' THEN q.rows WHEN 'sum' THEN q.quantity END
                               * v.unit_scale), 0)) AS units
  FROM (SELECT reason, event_type, date_trunc('hour', coalesce(occurred_at, %(now)s), 'UTC') AS hour_at,
               count(*) AS rows, count(*) FILTER (WHERE readable IS NULL) AS unreadable, sum(readable) AS quantity
          FROM (SELECT *, CASE WHEN quantity ~ '^[0-9]+([.][0-9]+)?$' THEN quantity::numeric END AS readable
                  FROM quarantined_events
                 WHERE mended_at IS NULL AND dismissed_at IS NULL
                   AND (%(reason)s::text IS NULL OR reason = %(reason)s)
                   AND (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)) waiting
         GROUP BY reason, event_type, hour_at) q
  LEFT JOIN (SELECT meter, aggregation, event_name, unit_scale, valid_from, valid_until,
                    unnest(event_types) AS event_type
               FROM meter_versions) v
    ON v.event_type = q.event_type AND tstzrange(v.valid_from, v.valid_until) @> q.hour_at
 GROUP BY q.reason, v.meter, v.event_name
 ORDER BY q.reason, v.meter;

-- name: dismissed_events
SELECT count(*) AS rows FROM quarantined_events WHERE mended_at IS NULL AND dismissed_at IS NOT NULL;

-- name: quarantined_event
SELECT event_id, reason, contract_version, organization_id, event_type, quantity, occurred_at, first_seen_at,
       last_seen_at, mended_at, dismissed_at, dismissed_by, dismissed_reason
  FROM quarantined_events
 WHERE event_id = %(event_id)s;

-- name: source_event
-- As the source has it now, in words: a time may be one that Python cannot hold.
SELECT organization_id, event_type, quantity::text AS quantity, occurred_at::text AS occurred_at,
       recorded_at::text AS recorded_at,
       ARRAY(SELECT v.meter FROM meter_versions v
              WHERE s.event_type = ANY (v.event_types)
                AND tstzrange(v.valid_from, v.valid_until) @> s.occurred_at
                AND (v.choices IS NULL OR s.properties @> ANY (v.choices))
              ORDER BY v.meter) AS meters
  FROM (SELECT %(event_id)s::text AS event_id) q
  JOIN {source} s ON {same_event};

-- name: lock_quarantined_events
-- With whether the source still has the row as it was found: only that is what a person has looked at.
SELECT q.event_id, q.mended_at, q.dismissed_at,
       coalesce((q.organization_id, q.event_type, q.quantity, q.occurred_at) IS NOT DISTINCT FROM
                (s.organization_id, s.event_type, s.quantity, s.occurred_at), false) AS is_as_found
  FROM quarantined_events q
  LEFT JOIN LATERAL (
       SELECT organization_id, event_type, trim_scale(quantity)::text AS quantity,
              CASE WHEN occurred_at >= '0001-01-01 00:00:00+00' AND occurred_at < '9999-12-31 00:00:00+00'
                   THEN occurred_at END AS occurred_at
         FROM {source} s
        WHERE {same_event}) s ON true
 WHERE q.event_id = ANY (%(event_ids)s::text[])
 ORDER BY q.event_id
   FOR UPDATE OF q;

-- name: dismiss_quarantined_events
UPDATE quarantined_events
   SET dismissed_at = %(now)s, dismissed_by = %(actor)s, dismissed_reason = %(reason)s
 WHERE event_id = ANY (%(event_ids)s::text[]) AND mended_at IS NULL AND dismissed_at IS NULL;

-- name: known_quarantined
SELECT event_id FROM quarantined_events WHERE event_id = ANY (%(event_ids)s::text[]);

-- name: undo_dismissals
UPDATE quarantined_events
   SET dismissed_at = NULL, dismissed_by = NULL, dismissed_reason = NULL
 WHERE event_id = ANY (%(event_ids)s::text[]) AND mended_at IS NULL AND dismissed_at IS NOT NULL
RETURNING event_id;

-- name: mended_events
-- What became of the rows that were mended at one instant: taken out of the source, counted by a meter of their hour,
-- or right and counted by none.
SELECT count(*) FILTER (WHERE s.event_id IS NULL) AS gone,
       count(*) FILTER (WHERE s.is_metered) AS counted,
       count(*) FILTER (WHERE NOT s.is_metered) AS left_out
  FROM quarantined_events q
  LEFT JOIN LATERAL (
       SELECT s.event_id,
              NOT EXISTS (SELECT FROM meter_versions) OR EXISTS (
                  SELECT FROM meter_versions v
                   WHERE s.event_type = ANY (v.event_types)
                     AND tstzrange(v.valid_from, v.valid_until) @> s.occurred_at
                     AND (v.choices IS NULL OR s.properties @> ANY (v.choices))) AS is_metered
         FROM {source} s
        WHERE {same_event}) s ON true
 WHERE q.mended_at = %(now)s AND (%(event_ids)s::text[] IS NULL OR q.event_id = ANY (%(event_ids)s::text[]));
