-- name: lock_feed
-- One writer at a time, until its transaction ends.  The lock is given back after the rows can be seen, so ids rise in the
-- order of the commits, and who has read up to one has missed none below it.
SELECT pg_try_advisory_xact_lock(8722, 1) AS is_ours;

-- name: due_candidates
SELECT c.stripe_event_id, c.attempts, e.event_type, e.tenant_hint, e.created_at, e.payload::text AS payload,
       e.received_at >= %(kept_since)s AS is_recent
  FROM feed_candidates c
  JOIN stripe_events e USING (stripe_event_id)
 WHERE c.due_at <= %(now)s
 ORDER BY c.due_at, c.stripe_event_id
 LIMIT %(limit)s;

-- name: organizations_at
-- Whose each customer was at the event's time: what a person mapped then comes before what is known now, so that a
-- customer who was handed over takes nothing of one organization to the other.
SELECT a.stripe_event_id, coalesce(m.organization_id, o.organization_id) AS organization_id
  FROM unnest(%(ids)s::text[], %(customers)s::text[], %(moments)s::timestamptz[])
       AS a(stripe_event_id, stripe_customer_id, created_at)
  LEFT JOIN LATERAL (
       SELECT organization_id FROM customer_mappings
        WHERE text_range(stripe_customer_id, stripe_customer_id, '[]')
              && text_range(a.stripe_customer_id, a.stripe_customer_id, '[]')
          AND valid_during @> a.created_at) m ON true
  LEFT JOIN customer_organizations o ON o.stripe_customer_id = a.stripe_customer_id;

-- name: write_feed
-- In the order that is given; an event that is in the feed already stays as it was told.
INSERT INTO billing_event_feed (organization_id, stripe_event_id, event_type, payload, fed_at)
SELECT r.organization_id, r.stripe_event_id, r.event_type, r.payload, %(now)s
  FROM unnest(%(organizations)s::text[], %(ids)s::text[], %(types)s::text[], %(payloads)s::jsonb[]) WITH ORDINALITY
       AS r(organization_id, stripe_event_id, event_type, payload, place)
 ORDER BY r.place
ON CONFLICT (stripe_event_id) DO NOTHING
RETURNING feed_id, organization_id, stripe_event_id, event_type;

-- name: settle_candidates
DELETE FROM feed_candidates WHERE stripe_event_id = ANY (%(ids)s);

-- name: postpone_candidates
UPDATE feed_candidates c
   SET attempts = c.attempts + 1, due_at = p.due_at
  FROM unnest(%(ids)s::text[], %(due)s::timestamptz[]) AS p(stripe_event_id, due_at)
 WHERE c.stripe_event_id = p.stripe_event_id;

-- name: find_unfed
-- Processed events that the feed does not have and does not wait for: what the writer gave up, and what was handled while
-- the stream was off.
INSERT INTO feed_candidates (stripe_event_id, due_at)
SELECT e.stripe_event_id, %(now)s
  FROM stripe_events e
 WHERE e.received_at >= %(received_since)s
   AND e.processing_outcome = 'processed' AND e.payload_style = 'snapshot' AND e.payload IS NOT NULL
   AND NOT EXISTS (SELECT FROM billing_event_feed f WHERE f.stripe_event_id = e.stripe_event_id)
 ORDER BY e.stripe_event_id
ON CONFLICT (stripe_event_id) DO NOTHING;

-- name: purge_feed
-- The oldest, and never the newest of all: by that one a reader's id from another life of the database is told.
DELETE FROM billing_event_feed
 WHERE feed_id IN (SELECT feed_id
                     FROM (SELECT feed_id, fed_at FROM billing_event_feed ORDER BY feed_id LIMIT %(limit)s) oldest
                    WHERE fed_at < %(fed_before)s)
   AND feed_id < (SELECT max(feed_id) FROM billing_event_feed);

-- name: feed_after
SELECT feed_id, payload::text AS payload
  FROM billing_event_feed
 WHERE organization_id = %(organization_id)s AND feed_id > %(after)s
 ORDER BY feed_id
 LIMIT %(limit)s;

-- name: feed_newest
SELECT feed_id, payload
  FROM (SELECT feed_id, payload::text AS payload
          FROM billing_event_feed
         WHERE organization_id = %(organization_id)s
         ORDER BY feed_id DESC
         LIMIT %(limit)s) newest
 ORDER BY feed_id;

-- name: feed_heads
-- The newest of each organization, by one look into the index for each.
SELECT o.organization_id, newest.feed_id
  FROM unnest(%(organizations)s::text[]) AS o(organization_id)
 CROSS JOIN LATERAL (SELECT feed_id FROM billing_event_feed f
                      WHERE f.organization_id = o.organization_id ORDER BY feed_id DESC LIMIT 1) newest;

-- name: feed_ends
-- Where an organization's feed is, and what is kept of the whole.
SELECT coalesce((SELECT max(feed_id) FROM billing_event_feed WHERE organization_id = %(organization_id)s), 0) AS head,
       coalesce((SELECT min(feed_id) FROM billing_event_feed), 0) AS oldest,
       coalesce((SELECT max(feed_id) FROM billing_event_feed), 0) AS newest;

-- name: feed_by_type
SELECT event_type, count(*) AS rows, count(DISTINCT organization_id) AS organizations, max(fed_at) AS newest_at
  FROM billing_event_feed
 GROUP BY event_type
 ORDER BY event_type;

-- name: feed_payloads
-- A page of the feed, for whoever looks at all of it.
SELECT feed_id, organization_id, stripe_event_id, event_type, payload
  FROM billing_event_feed
 WHERE feed_id > %(after)s AND fed_at >= %(fed_since)s
 ORDER BY feed_id
 LIMIT %(limit)s;

-- name: waiting_candidates
SELECT count(*) AS candidates, min(due_at) AS oldest_at FROM feed_candidates;
