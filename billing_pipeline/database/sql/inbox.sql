-- name: commit_durably
-- A role or a database may have it off; what is acknowledged must survive a crash.  A stronger setting stays.
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';

-- name: store_events
-- Each event once, with its work and its count.  In the order of their ids, so that two batches wait for each other and
-- never both.  A body is sent once: the payload is made of it here, unless something in it had to be replaced first.
-- All of it is one statement, because what a delivery waits for is mostly the ways there and back; as a transaction of
-- its own it is committed as durably as `commit_durably` demands.
WITH durable AS (
    SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'
), delivered AS (
    SELECT *
      FROM unnest(%(stripe_event_id)b::text[], %(event_type)b::text[], %(payload_style)b::text[],
                  %(api_version)b::text[], %(livemode)b::boolean[], %(stripe_account)b::text[], %(object_id)b::text[],
                  %(object_key)b::text[], %(created)b::timestamptz[], %(tenant_hint)b::text[],
                  %(raw_body)b::bytea[], %(payload)b::text[], %(matched_secret)b::text[])
        AS d(stripe_event_id, event_type, payload_style, api_version, livemode, stripe_account, object_id, object_key,
             created_at, tenant_hint, raw_body, payload, matched_secret)
     WHERE (SELECT count(*) FROM durable) >= 0
), stored AS (
    INSERT INTO stripe_events (stripe_event_id, event_type, payload_style, api_version, livemode, stripe_account,
                               object_id, object_key, created_at, tenant_hint, raw_body, body_digest, payload, origin,
                               matched_secret)
    SELECT stripe_event_id, event_type, payload_style, api_version, livemode, stripe_account, object_id, object_key,
           created_at, tenant_hint, raw_body, sha256(raw_body),
           coalesce(payload, convert_from(raw_body, 'UTF8'))::jsonb, %(origin)s::text, matched_secret
      FROM delivered
     ORDER BY stripe_event_id
        ON CONFLICT (stripe_event_id) DO NOTHING
    RETURNING stripe_event_id, event_type, object_key, created_at
), counted AS (
    INSERT INTO delivery_counts (hour_at, event_type, result, deliveries)
    SELECT date_trunc('hour', clock_timestamp(), 'UTC'), event_type, 'accepted', count(*)
      FROM stored
     WHERE %(origin)s::text = 'webhook'
     GROUP BY event_type
     ORDER BY event_type
        ON CONFLICT (hour_at, event_type, result) DO UPDATE
       SET deliveries = delivery_counts.deliveries + excluded.deliveries
)
INSERT INTO event_dispatches (stripe_event_id, object_key, created_at, due_at)
SELECT stripe_event_id, object_key, created_at, clock_timestamp()
  FROM stored
RETURNING stripe_event_id;

-- name: repeated_events
-- What became of events that are delivered again, in the order given, and whether it is still the same body.
SELECT e.stripe_event_id, e.processing_outcome, coalesce(e.body_digest <> sha256(r.raw_body), false) AS other_body
  FROM unnest(%(stripe_event_id)b::text[], %(raw_body)b::bytea[])
       WITH ORDINALITY AS r(stripe_event_id, raw_body, place)
  JOIN stripe_events e USING (stripe_event_id)
 ORDER BY r.place;

-- name: put_back_dispatches
-- Failed ones that wait for their next try, and ones whose worker has not come back in time; the raised fence keeps
-- that one from recording anything.  What another transaction holds is being worked on, so it is left to it.
WITH waiting AS (
    SELECT d.stripe_event_id
      FROM event_dispatches d
      JOIN stripe_events e USING (stripe_event_id)
     WHERE d.stripe_event_id = ANY(%(stripe_event_id)b::text[])
       AND (CASE WHEN d.claimed_at IS NULL THEN e.processing_outcome = 'failed'
                 ELSE d.claimed_at < clock_timestamp() - %(stuck_age)s END)
     ORDER BY d.stripe_event_id
       FOR UPDATE OF d SKIP LOCKED
)
UPDATE event_dispatches d
   SET due_at = least(d.due_at, clock_timestamp()), claimed_at = NULL, fence = d.fence + 1
  FROM waiting w
 WHERE d.stripe_event_id = w.stripe_event_id
RETURNING d.stripe_event_id;

-- name: dispatch_again
-- Parked ones, and any that is unfinished without being anybody's work.  Locked, so that none is put back after another
-- request has put it back and the dispatcher has finished it.
WITH idle AS (
    SELECT e.stripe_event_id, e.object_key, e.created_at
      FROM stripe_events e
     WHERE e.stripe_event_id = ANY(%(stripe_event_id)b::text[])
       AND e.processing_outcome IN ('received', 'failed', 'parked')
       AND NOT EXISTS (SELECT FROM event_dispatches d WHERE d.stripe_event_id = e.stripe_event_id)
     ORDER BY e.stripe_event_id
       FOR UPDATE OF e
), again AS (
    UPDATE stripe_events e
       SET processing_outcome = 'received'
      FROM idle i
     WHERE e.stripe_event_id = i.stripe_event_id
)
INSERT INTO event_dispatches (stripe_event_id, object_key, created_at, due_at)
SELECT stripe_event_id, object_key, created_at, clock_timestamp()
  FROM idle
    ON CONFLICT (stripe_event_id) DO NOTHING
RETURNING stripe_event_id;

-- name: count_deliveries
INSERT INTO delivery_counts (hour_at, event_type, result, deliveries)
SELECT date_trunc('hour', clock_timestamp(), 'UTC'), c.event_type, c.result, c.deliveries
  FROM unnest(%(event_type)b::text[], %(result)b::text[], %(deliveries)b::bigint[])
    AS c(event_type, result, deliveries)
 ORDER BY c.event_type, c.result
    ON CONFLICT (hour_at, event_type, result) DO UPDATE
   SET deliveries = delivery_counts.deliveries + excluded.deliveries;

-- name: count_signature_failures
INSERT INTO signature_failures (minute_at, reason, deliveries)
SELECT f.minute_at, f.reason, f.deliveries
  FROM unnest(%(minute)b::timestamptz[], %(reason)b::text[], %(deliveries)b::bigint[])
    AS f(minute_at, reason, deliveries)
 ORDER BY f.minute_at, f.reason
    ON CONFLICT (minute_at, reason) DO UPDATE
   SET deliveries = signature_failures.deliveries + excluded.deliveries;
