-- What only the preflight asks; everything else it asks with the statements of the flush itself.

-- name: wait_no_longer_than
SELECT set_config('statement_timeout', %(statement_timeout)s, true), set_config('lock_timeout', %(lock_timeout)s, true);

-- name: usage_without_customer
-- Of what was aggregated: how many organizations nobody can be billed for, what they used, and who used most.
SELECT count(*) AS organizations, coalesce(sum(units), 0) AS units,
       (array_agg(organization_id ORDER BY units DESC, organization_id))[1:3] AS names
  FROM (SELECT organization_id, sum(target) AS units
          FROM usage_windows
         WHERE stripe_customer_id IS NULL AND target > 0
         GROUP BY organization_id) unmapped;

-- name: rows_without_customer
-- Before the first aggregation: the same of the source's last days, in rows, because nothing says yet what they are worth.
SELECT count(*) AS organizations, (array_agg(organization_id ORDER BY organization_id))[1:3] AS names
  FROM (SELECT DISTINCT s.organization_id
          FROM {source} s
         WHERE s.organization_id <> '' AND s.occurred_at >= %(since)s AND s.occurred_at < %(until)s
           AND NOT EXISTS (SELECT FROM customer_mappings m WHERE m.organization_id = s.organization_id)) unmapped;

-- name: has_aggregated
SELECT EXISTS (SELECT FROM aggregations) AS found;

-- name: tables_not_writable
-- Tables of ours that a flush writes and this login may not; a grant that was forgotten shows only in the first flush.
SELECT c.relname::text AS name
  FROM pg_class c
 WHERE c.relnamespace = 'billing_pipeline'::regnamespace AND c.relkind = 'r' AND c.relname <> 'alembic_version'
   AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT'))
 ORDER BY c.relname;

-- name: latest_use
-- The last end of an index on occurred_at, where there is one.
SELECT max(s.occurred_at) AS occurred_at FROM {source} s WHERE s.occurred_at >= %(since)s AND s.occurred_at < %(until)s;
