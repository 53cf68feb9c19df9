-- Counting old hours of one meter by the definition that the catalogue gives it now.  All of it runs in the transaction
-- of the aggregation that follows.

-- name: definitions_to_replace
-- The definitions of the hours in question, the current one (open) last.
SELECT event_name, valid_from
  FROM meter_versions
 WHERE meter = %(meter)s AND (valid_until IS NULL OR valid_until > %(since)s)
 ORDER BY valid_from;

-- name: first_billed_hour
SELECT min(valid_from) AS first_hour_at FROM meter_versions;

-- name: drop_definitions_since
DELETE FROM meter_versions WHERE meter = %(meter)s AND valid_until IS NOT NULL AND valid_from >= %(since)s;

-- name: end_definitions_at
UPDATE meter_versions
   SET valid_until = %(since)s
 WHERE meter = %(meter)s AND valid_until IS NOT NULL AND valid_until > %(since)s;

-- name: begin_current_definition_at
UPDATE meter_versions SET valid_from = %(since)s WHERE meter = %(meter)s AND valid_until IS NULL;

-- name: units_by_organization
-- Of every hour that Stripe still takes: a fraction may be carried to a window before the hours in question.
SELECT organization_id, sum(target) AS units, coalesce(sum(target) FILTER (WHERE sealed_at IS NOT NULL), 0) AS sealed
  FROM usage_windows
 WHERE meter = %(meter)s AND starts_at >= %(reach_start)s
 GROUP BY organization_id;
