-- name: read_for_contract
-- Read by ADBC as Arrow.  The quantity travels as text, because a float would not be the number that is billed.  Times
-- travel as they are, at 8 bytes each; those that Python cannot hold become the first one beyond what it can, so that
-- they are a fault of their own row.  (As text, which knows every year, a million of them took 0.6 s to write.)
-- The whole lookback is asked for by occurred_at too: a row that was broken after it was counted may have kept or lost
-- its recorded_at.
SELECT event_id,
       organization_id,
       event_type,
       quantity::text AS quantity,
       CASE WHEN occurred_at IS NOT NULL
            THEN greatest(least(occurred_at, '9999-12-31 00:00:00+00'), '0001-12-31 00:00:00+00 BC') END AS occurred_at,
       CASE WHEN recorded_at IS NOT NULL
            THEN greatest(least(recorded_at, '9999-12-31 00:00:00+00'), '0001-12-31 00:00:00+00 BC') END AS recorded_at,
       {property_missing} AS property_missing
  FROM {source} s
 WHERE recorded_at >= {recorded_since} OR occurred_at >= {occurred_since} OR recorded_at IS NULL;

-- name: needed_property_is_missing
-- A part of the two statements that judge by today's catalogue.
EXISTS (SELECT FROM jsonb_to_recordset({needed_properties}::jsonb) AS n (event_type text, property text)
         WHERE n.event_type = s.event_type AND coalesce(s.properties ->> n.property, '') = '')

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

-- name: unmapped_organizations
-- Organizations with usage that no Stripe customer can take: owed, and shown as such.
SELECT organization_id, count(*) AS windows, sum(target) AS units
  FROM usage_windows
 WHERE stripe_customer_id IS NULL AND target > 0
 GROUP BY organization_id
 ORDER BY units DESC, organization_id
 LIMIT 100;

-- name: quarantine_events
-- The first sight and its time stay; the reason follows the row.
INSERT INTO quarantined_events
       (event_id, reason, contract_version, organization_id, event_type, quantity, occurred_at, first_seen_at, last_seen_at)
SELECT event_id, reason, %(contract_version)s, organization_id, event_type, quantity, occurred_at, %(now)s, %(now)s
  FROM unnest(%(event_ids)s::text[], %(reasons)s::text[], %(organization_ids)s::text[], %(event_types)s::text[],
              %(quantities)s::text[], %(occurred_ats)s::timestamptz[])
       AS bad (event_id, reason, organization_id, event_type, quantity, occurred_at)
    ON CONFLICT (event_id) DO UPDATE
   SET reason = excluded.reason, contract_version = excluded.contract_version,
       organization_id = excluded.organization_id, event_type = excluded.event_type,
       quantity = excluded.quantity, occurred_at = excluded.occurred_at,
       last_seen_at = excluded.last_seen_at, mended_at = NULL;

-- name: mend_quarantined_events
-- A row that was put right, or taken away, upstream leaves quarantine by itself.
UPDATE quarantined_events q
   SET mended_at = %(now)s
 WHERE q.mended_at IS NULL
   AND NOT EXISTS (
       SELECT FROM {source} s
        WHERE {same_event}
          AND (contract_fault(s.event_id, s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at,
                              s.event_type = ANY (%(summed_event_types)s::text[]), {property_missing}) IS NOT NULL
               OR s.event_type <> ALL (%(known_event_types)s::text[])));

-- name: record_contract_run
INSERT INTO contract_runs (contract_version, catalogue_version, cutoff_at, rows_read, faults, passed, finished_at)
VALUES (%(contract_version)s, %(catalogue_version)s, %(cutoff_at)s, %(rows_read)s, %(faults)s, %(passed)s, %(now)s)
RETURNING contract_run_id;

-- name: latest_contract_run
SELECT contract_run_id, contract_version, catalogue_version, cutoff_at, rows_read, faults, passed, finished_at
  FROM contract_runs
 ORDER BY contract_run_id DESC
 LIMIT 1;

-- name: quarantine_summary
SELECT reason, count(*) AS events, min(first_seen_at) AS first_seen_at,
       (array_agg(event_id ORDER BY first_seen_at, event_id))[1:5] AS sample_event_ids
  FROM quarantined_events
 WHERE mended_at IS NULL
 GROUP BY reason
 ORDER BY reason;
