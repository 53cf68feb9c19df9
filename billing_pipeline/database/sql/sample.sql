-- The demo's rows; nothing else writes the source.

-- name: record_sample_events
-- As a product would: an event sent twice is one row.
INSERT INTO {source} (event_id, organization_id, event_type, quantity, occurred_at, recorded_at)
SELECT *
  FROM unnest(%(event_ids)s::text[], %(organization_ids)s::text[], %(event_types)s::text[], %(quantities)s::numeric[],
              %(occurred_ats)s::timestamptz[], %(recorded_ats)s::timestamptz[])
    ON CONFLICT (event_id) DO NOTHING;

-- name: correct_sample_events
UPDATE {source} s
   SET quantity = corrected.quantity, recorded_at = corrected.recorded_at
  FROM unnest(%(event_ids)s::text[], %(quantities)s::numeric[], %(recorded_ats)s::timestamptz[])
       AS corrected (event_id, quantity, recorded_at)
 WHERE s.event_id = corrected.event_id;

-- name: foreign_rows
-- Rows that the demo did not make; a sandbox with any is not the demo's to empty.
SELECT count(*) AS rows FROM {source} WHERE event_id NOT LIKE 'demo-%%';
