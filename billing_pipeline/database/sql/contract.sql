-- name: read_for_contract
-- Read by ADBC as Arrow, on a connection without our search path.  The quantity travels as text, because a float would
-- not be the number that is billed.  Times travel as they are, at 8 bytes each; those that Python cannot hold become the
-- first one beyond what it can, so that they are a fault of their own row.  (As text, which knows every year, a million
-- of them took 0.6 s to write.)
-- `counted` and `summed` are what the definitions of the row's hour say of its type, as aggregation will ask; before
-- the first aggregation there are none, and the catalogue alone decides.  They are asked only where they matter: of a
-- type that the catalogue does not know, and of a row without quantity.
SELECT s.event_id,
       s.organization_id,
       s.event_type,
       s.quantity::text AS quantity,
       CASE WHEN s.occurred_at IS NOT NULL
            THEN greatest(least(s.occurred_at, '9999-12-31 00:00:00+00'), '0001-12-31 00:00:00+00 BC') END
           AS occurred_at,
       CASE WHEN s.recorded_at IS NOT NULL
            THEN greatest(least(s.recorded_at, '9999-12-31 00:00:00+00'), '0001-12-31 00:00:00+00 BC') END
           AS recorded_at,
       {property_missing} AS property_missing,
       s.event_type <> ALL ({known_event_types}::text[]) AND EXISTS (
           SELECT FROM billing_pipeline.meter_versions v
            WHERE s.event_type = ANY (v.event_types)
              AND tstzrange(v.valid_from, v.valid_until) @> s.occurred_at) AS counted,
       CASE WHEN s.quantity IS NULL AND EXISTS (SELECT FROM billing_pipeline.meter_versions)
            THEN EXISTS (SELECT FROM billing_pipeline.meter_versions v
                          WHERE s.event_type = ANY (v.event_types) AND v.aggregation NOT IN ('count', 'unique')
                            AND tstzrange(v.valid_from, v.valid_until) @> s.occurred_at) END AS summed
  FROM {rows} s;

-- part: rows_recorded_since
-- The whole lookback is asked for by occurred_at too: a row that was broken after it was counted may have kept or lost
-- its recorded_at.
SELECT *
  FROM {source} s
 WHERE recorded_at >= {recorded_since} OR occurred_at >= {occurred_since} OR recorded_at IS NULL

-- part: rows_in_quarantine
-- What a person asks to have judged again: the rows they name, or, with null, all that wait.
SELECT s.*
  FROM billing_pipeline.quarantined_events q
  JOIN {source} s ON {same_event}
 WHERE CASE WHEN {event_ids}::text[] IS NULL THEN q.mended_at IS NULL AND q.dismissed_at IS NULL
            ELSE q.event_id = ANY ({event_ids}::text[]) END

-- part: missing_property
-- by the definitions of the row's hour, or by the catalogue where there are none yet.
CASE WHEN EXISTS (SELECT FROM billing_pipeline.meter_versions) THEN {lacks_a_property}
     ELSE EXISTS (SELECT FROM jsonb_to_recordset({needed_properties}::jsonb) AS n (event_type text, property text)
                   WHERE n.event_type = s.event_type AND coalesce(s.properties ->> n.property, '') = '') END

-- name: source_has_rows_between
SELECT EXISTS (SELECT FROM {source} s WHERE occurred_at >= %(since)s AND occurred_at < %(until)s) AS found;

-- name: absent_event_types
-- Which of these types have no row in the lookback.  LIMIT makes each search end with its first row; without it the
-- planner may turn the question into a join that reads the whole lookback.
SELECT required.event_type
  FROM unnest(%(event_types)s::text[]) WITH ORDINALITY AS required (event_type, place)
  LEFT JOIN LATERAL (
       SELECT true AS is_there
         FROM {source} s
        WHERE s.event_type = required.event_type AND s.occurred_at >= %(since)s AND s.occurred_at < %(until)s
        LIMIT 1) seen ON true
 WHERE seen.is_there IS NULL
 ORDER BY required.place;

-- name: some_unmapped_organizations
-- By their names alone, from one to the next in the index: asked with every flush, it must not cost more with every
-- window that nobody can be billed for.
WITH RECURSIVE unmapped AS (
    (SELECT organization_id
       FROM usage_windows
      WHERE stripe_customer_id IS NULL AND target > 0
      ORDER BY organization_id
      LIMIT 1)
    UNION ALL
    SELECT (SELECT w.organization_id
              FROM usage_windows w
             WHERE w.stripe_customer_id IS NULL AND w.target > 0 AND w.organization_id > unmapped.organization_id
             ORDER BY w.organization_id
             LIMIT 1)
      FROM unmapped
     WHERE unmapped.organization_id IS NOT NULL
)
SELECT organization_id FROM unmapped WHERE organization_id IS NOT NULL LIMIT 100;

-- name: unmapped_organizations
-- Organizations with usage that no Stripe customer can take: owed, and shown as such.
SELECT organization_id, count(*) AS windows, sum(target) AS units
  FROM usage_windows
 WHERE stripe_customer_id IS NULL AND target > 0
 GROUP BY organization_id
 ORDER BY units DESC, organization_id
 LIMIT 100;

-- name: quarantine_events
-- The first sight and its time stay; the reason follows the row.  A dismissal speaks of the row as it was found then:
-- a row that reads otherwise now, or was right in between, waits again.
INSERT INTO quarantined_events AS q
       (event_id, reason, contract_version, organization_id, event_type, quantity, occurred_at, first_seen_at, last_seen_at)
SELECT event_id, reason, %(contract_version)s, organization_id, event_type, trim_scale(quantity::numeric)::text,
       occurred_at, %(now)s, %(now)s
  FROM unnest(%(event_ids)s::text[], %(reasons)s::text[], %(organization_ids)s::text[], %(event_types)s::text[],
              %(quantities)s::text[], %(occurred_ats)s::timestamptz[])
       AS bad (event_id, reason, organization_id, event_type, quantity, occurred_at)
    -- In one order, so that two writers of the same rows do not wait for each other.
 ORDER BY event_id
    ON CONFLICT (event_id) DO UPDATE
   SET reason = excluded.reason, contract_version = excluded.contract_version,
       organization_id = excluded.organization_id, event_type = excluded.event_type,
       quantity = excluded.quantity, occurred_at = excluded.occurred_at,
       last_seen_at = excluded.last_seen_at, mended_at = NULL,
       (dismissed_at, dismissed_by, dismissed_reason) = (
           SELECT q.dismissed_at, q.dismissed_by, q.dismissed_reason
            WHERE q.mended_at IS NULL
              AND (q.reason, q.organization_id, q.event_type, q.quantity, q.occurred_at)
                  IS NOT DISTINCT FROM (excluded.reason, excluded.organization_id, excluded.event_type,
                                        excluded.quantity, excluded.occurred_at));

-- name: mend_quarantined_events
-- A row that was put right, or taken away, upstream leaves quarantine by itself, dismissed or not.
-- Looked at are the rows recorded since then, and of all others the latest `looked_at_limit`; null is every one.  With
-- event_ids, only those.
-- The arrays make the planner look up what it needs in the indexes: of a large quarantine it would rather read all.
WITH looked_at AS (
    SELECT event_id
      FROM (SELECT event_id FROM quarantined_events
             WHERE mended_at IS NULL AND (%(event_ids)s::text[] IS NULL OR event_id = ANY (%(event_ids)s::text[]))
             ORDER BY first_seen_at DESC
             LIMIT %(looked_at_limit)s) latest
     UNION
    SELECT event_id
      FROM quarantined_events
     WHERE mended_at IS NULL
       AND event_id = ANY (ARRAY(SELECT event_id FROM {source} s WHERE recorded_at >= %(recorded_since)s))
), mended AS (
    SELECT event_id
      FROM looked_at q
     WHERE NOT EXISTS (
           SELECT FROM {source} s
            CROSS JOIN LATERAL (
                  SELECT EXISTS (SELECT FROM meter_versions) AS any_hour,
                         EXISTS (SELECT FROM meter_versions v
                                  WHERE s.event_type = ANY (v.event_types)
                                    AND tstzrange(v.valid_from, v.valid_until) @> s.occurred_at) AS counted,
                         EXISTS (SELECT FROM meter_versions v
                                  WHERE s.event_type = ANY (v.event_types) AND v.aggregation NOT IN ('count', 'unique')
                                    AND tstzrange(v.valid_from, v.valid_until) @> s.occurred_at) AS summed) hour
            WHERE {same_event}
              AND (contract_fault(s.event_id, s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at,
                                  CASE WHEN hour.any_hour THEN hour.summed
                                       ELSE s.event_type = ANY (%(summed_event_types)s::text[]) END,
                                  {property_missing}) IS NOT NULL
                   OR s.event_type <> ALL (%(known_event_types)s::text[]) AND NOT hour.counted))
)
UPDATE quarantined_events
   SET mended_at = %(now)s
 WHERE mended_at IS NULL AND event_id = ANY (ARRAY(SELECT event_id FROM mended));

-- name: record_contract_run
INSERT INTO contract_runs (contract_version, catalogue_version, cutoff_at, rows_read, faults, passed, known_event_types,
                           finished_at)
VALUES (%(contract_version)s, %(catalogue_version)s, %(cutoff_at)s, %(rows_read)s, %(faults)s, %(passed)s,
        %(known_event_types)s, %(now)s)
RETURNING contract_run_id;

-- name: latest_contract_run
SELECT contract_run_id, contract_version, catalogue_version, cutoff_at, rows_read, faults, passed, finished_at
  FROM contract_runs
 ORDER BY contract_run_id DESC
 LIMIT 1;

-- name: latest_judgement
-- The last validation that read the source: since when, and by which catalogue, rows are judged.
SELECT catalogue_version, cutoff_at, known_event_types
  FROM contract_runs
 WHERE known_event_types IS NOT NULL
 ORDER BY contract_run_id DESC
 LIMIT 1;

-- name: quarantine_summary
-- What waits, by reason.  The samples are read from the index, which spares sorting all of them.
SELECT reason, events, first_seen_at,
       ARRAY(SELECT q.event_id FROM quarantined_events q
              WHERE q.mended_at IS NULL AND q.dismissed_at IS NULL AND q.reason = waiting.reason
              ORDER BY q.first_seen_at, q.event_id LIMIT 5) AS sample_event_ids
  FROM (SELECT reason, count(*) AS events, min(first_seen_at) AS first_seen_at
          FROM quarantined_events
         WHERE mended_at IS NULL AND dismissed_at IS NULL
         GROUP BY reason) waiting
 ORDER BY reason;
