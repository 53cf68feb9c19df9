-- What the source is, asked of PostgreSQL's catalogs and planner; none of these reads a row of it.

-- name: source_columns
-- What the source relation really has; an empty answer means that it does not exist or is not visible.
SELECT c.relkind::text AS kind, a.attname::text AS name, format_type(a.atttypid, NULL) AS type,
       format_type(a.atttypid, a.atttypmod) AS declared,
       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = a.atttypid ORDER BY e.enumsortorder) AS labels
  FROM pg_class c
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.oid = to_regclass(%(relation)s)
 ORDER BY a.attnum;

-- name: hold_source
-- Until the end of the transaction nobody changes its columns or drops its indexes, nor those behind a view.
LOCK TABLE {source} IN ACCESS SHARE MODE;

-- name: prove_unique_event_ids
-- PostgreSQL's planner removes this join where, and only where, it can prove that the source holds an event_id at most
-- once: by a unique index, through a plain view over such a table too, or by the view's own DISTINCT or GROUP BY.
-- A plan with only one node is the proof; the statement is never run.
EXPLAIN (FORMAT JSON, COSTS OFF)
SELECT asked.event_id
  FROM (VALUES ({an_id}), ({an_id})) AS asked (event_id)
  LEFT JOIN {source} s ON s.event_id = asked.event_id;

-- name: partitioned_with_unique_event_ids
-- Before PostgreSQL 16 the planner proves nothing about a partitioned table; its own unique index does.
SELECT EXISTS (
    SELECT FROM pg_class c
      JOIN pg_index i ON i.indrelid = c.oid
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
     WHERE c.oid = to_regclass(%(relation)s) AND c.relkind = 'p'
       AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indnkeyatts = 1
       AND i.indpred IS NULL AND i.indexprs IS NULL AND a.attname = %(column)s) AS proven;

-- name: last_source_shape
SELECT kind, columns FROM source_shapes WHERE relation = %(relation)s;

-- name: remember_source_shape
INSERT INTO source_shapes AS last (relation, kind, columns, changed_at)
VALUES (%(relation)s, %(kind)s, %(columns)s, %(now)s)
    ON CONFLICT (relation) DO UPDATE
   SET kind = excluded.kind, columns = excluded.columns, changed_at = excluded.changed_at
 WHERE (last.kind, last.columns) IS DISTINCT FROM (excluded.kind, excluded.columns);

-- name: plan_by_index
-- For this transaction: a plan that still scans a table whole has no index to choose.
SET LOCAL enable_seqscan = off;

-- name: plan_rows_recorded_since
EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF) SELECT FROM {source} s WHERE s.recorded_at >= {since};

-- name: plan_rows_occurred_since
EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF) SELECT FROM {source} s WHERE s.occurred_at >= {since};

-- name: plan_rows_of_an_event
-- The id comes from a subselect, so that no value of its type has to be known.
EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF) SELECT FROM {source} s WHERE s.event_id = (SELECT {an_id});

-- name: leading_index_columns
-- What each btree index begins with, null for an expression: behind another column, a condition reads all of it.
-- An index of another kind, such as BRIN, serves each of its columns alike.
SELECT n.nspname::text AS schema, c.relname::text AS name, a.attname::text AS column
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_index i ON i.indexrelid = c.oid
  JOIN pg_am m ON m.oid = c.relam AND m.amname = 'btree'
  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attnum > 0
 WHERE c.relname = ANY (%(names)s);

-- name: source_table_statistics
-- What the planner knows of a table and one column of it: how many rows, and how closely they lie in its order.
SELECT c.reltuples::bigint AS rows, coalesce(abs(s.correlation) > 0.99, false) AS in_order
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = %(column)s AND NOT s.inherited
 WHERE n.nspname = %(schema)s AND c.relname = %(table)s;
