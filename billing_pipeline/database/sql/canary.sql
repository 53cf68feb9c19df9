-- name: insert_canaries
-- Committed before they are sent; a second flush in the same minute sends none.
INSERT INTO canaries (event_name, stripe_customer_id, slot_at, identifier, started_at)
SELECT event_name, %(customer)s, %(slot_at)s, identifier, %(now)s
  FROM unnest(%(event_names)s::text[], %(identifiers)s::text[]) AS canary (event_name, identifier)
    ON CONFLICT DO NOTHING
RETURNING canary_id, event_name, stripe_customer_id, slot_at, identifier;

-- name: record_canaries
UPDATE canaries c SET outcome = sent.outcome
  FROM unnest(%(canary_ids)s::bigint[], %(outcomes)s::text[]) AS sent (canary_id, outcome)
 WHERE c.canary_id = sent.canary_id;

-- name: unseen_canaries
SELECT canary_id, event_name, stripe_customer_id, slot_at, identifier
  FROM canaries
 WHERE seen_at IS NULL AND started_at >= %(since)s AND (outcome IS NULL OR outcome NOT IN ('not_executed', 'rejected'))
 ORDER BY event_name, slot_at;

-- name: mark_canaries_seen
UPDATE canaries SET seen_at = %(now)s WHERE canary_id = ANY (%(canary_ids)s::bigint[]);

-- name: sent_canaries
SELECT event_name, stripe_customer_id, count(*) AS sent
  FROM canaries
 WHERE slot_at >= %(start)s
 GROUP BY event_name, stripe_customer_id
 ORDER BY event_name;

-- name: canary_lag
-- How long the latest visible canary of each meter took to show, and since when a later one has been missing.
SELECT c.event_name, v.sent_at AS visible_sent_at, v.lag,
       min(c.started_at) FILTER (WHERE c.seen_at IS NULL AND c.started_at > v.sent_at) AS missing_since
  FROM canaries c
  LEFT JOIN LATERAL (
       SELECT started_at AS sent_at, seen_at - started_at AS lag
         FROM canaries WHERE event_name = c.event_name AND seen_at IS NOT NULL
        ORDER BY started_at DESC LIMIT 1) v ON true
 GROUP BY c.event_name, v.sent_at, v.lag
 ORDER BY c.event_name;

-- name: unproved_without_canary
-- Absence counts only behind a canary sent after the last attempt: one that shows, or that still has time to show.
SELECT e.event_name
  FROM (SELECT event_name, max(last_attempt_at) AS last_attempt_at
          FROM ledger_entries
         WHERE state IN ('ambiguous', 'accepted')
         GROUP BY event_name) e
 WHERE NOT EXISTS (SELECT FROM canaries c
                    WHERE c.event_name = e.event_name AND c.started_at > e.last_attempt_at
                      AND (c.seen_at IS NOT NULL OR c.started_at > %(now)s - %(absence_after)s))
 LIMIT 1;
