-- name: ledger_account
-- The whole ledger in one row, for people: what was read, what became of it.
SELECT (SELECT count(*) FROM {source}) AS source_rows,
       (SELECT count(*) FROM quarantined_events WHERE mended_at IS NULL) AS quarantined,
       (SELECT count(*) FROM usage_windows WHERE event_count > 0) AS windows,
       count(*) AS entries,
       coalesce(sum(value) FILTER (WHERE value > 0), 0) AS units_added,
       coalesce(-sum(value) FILTER (WHERE value < 0), 0) AS units_taken_back,
       count(*) FILTER (WHERE state IN ('accepted', 'confirmed', 'adopted')) AS accepted,
       count(*) FILTER (WHERE state IN ('confirmed', 'adopted')) AS confirmed,
       (SELECT count(*) FROM attempts) AS attempts
  FROM ledger_entries;
