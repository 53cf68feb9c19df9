-- name: claim_dispatches
-- Each claim is committed before any work, so that a worker that dies leaves it behind, and it is taken back after the
-- SLA.  Events of an object that another worker has now wait; that only saves work, because rows keep the greatest
-- version whoever writes them.
WITH due AS (
    SELECT d.stripe_event_id
      FROM event_dispatches d
     WHERE d.due_at <= %(now)s
       AND (%(only)s::text[] IS NULL OR d.stripe_event_id = ANY (%(only)s::text[]))
       AND (CASE WHEN %(lapsed)s::boolean THEN d.claimed_at < %(stuck_before)s ELSE d.claimed_at IS NULL END)
       AND NOT EXISTS (SELECT FROM event_dispatches other
                        WHERE other.object_key = d.object_key AND other.claimed_at >= %(stuck_before)s)
     ORDER BY d.due_at, d.stripe_event_id
     LIMIT %(limit)s
       FOR UPDATE SKIP LOCKED
)
UPDATE event_dispatches d
   SET claimed_at = %(now)s, fence = d.fence + 1, attempts = d.attempts + 1
  FROM due
 WHERE d.stripe_event_id = due.stripe_event_id
RETURNING d.stripe_event_id, d.fence;

-- name: park_abandoned
-- Claimed as often as an event may be, and never given back: it may be what ends its workers.
WITH abandoned AS (
    DELETE FROM event_dispatches
     WHERE stripe_event_id IN (SELECT stripe_event_id FROM event_dispatches
                                WHERE claimed_at < %(stuck_before)s AND attempts >= %(attempts_limit)s
                                  AND (%(only)s::text[] IS NULL OR stripe_event_id = ANY (%(only)s::text[]))
                                  FOR UPDATE SKIP LOCKED)
    RETURNING stripe_event_id, attempts
)
UPDATE stripe_events e
   SET processing_outcome = 'parked', failed_at = %(now)s, attempted_at = %(now)s, attempts = abandoned.attempts,
       error_class = %(error_class)s, processing_error = %(error)s
  FROM abandoned
 WHERE e.stripe_event_id = abandoned.stripe_event_id;

-- name: unfinished_events
SELECT stripe_event_id
  FROM stripe_events
 WHERE processing_outcome = %(outcome)s AND processing_outcome IN ('failed', 'parked')
   AND (%(only)s::text[] IS NULL OR stripe_event_id = ANY (%(only)s::text[]))
 ORDER BY received_at, stripe_event_id
 LIMIT %(limit)s;

-- name: hold_claimed
-- The claims that are still ours, locked, with what they are about; in the order of Stripe's clock within an object.
-- The payload as text: read by a parser that takes a third of the driver's time.
SELECT d.stripe_event_id, d.attempts, e.event_type, e.payload_style, e.created_at, e.tenant_hint,
       e.payload::text AS payload, e.processing_outcome
  FROM event_dispatches d
  JOIN stripe_events e USING (stripe_event_id)
 WHERE d.stripe_event_id = ANY (%(ids)s)
   AND (d.stripe_event_id, d.fence) IN (SELECT * FROM unnest(%(ids)s::text[], %(fences)s::bigint[]))
 ORDER BY d.object_key, d.created_at, d.stripe_event_id
   FOR UPDATE OF d;

-- name: finish_events
-- Handled or ignored: the end, in the transaction of what the event changed.  Each join is by key from the smaller side,
-- so that the time grows with the batch and not with its square.  Where there is a feed, it learns of the event with that.
WITH done AS (
    DELETE FROM event_dispatches d
     USING unnest(%(ids)s::text[], %(outcomes)s::text[]) AS o(stripe_event_id, outcome)
     WHERE d.stripe_event_id = o.stripe_event_id
    RETURNING d.stripe_event_id, d.attempts, o.outcome
), to_feed AS (
    INSERT INTO feed_candidates (stripe_event_id, due_at)
    SELECT stripe_event_id, %(now)s FROM done WHERE outcome = 'processed' AND %(feeds)s::boolean
    ORDER BY stripe_event_id
    ON CONFLICT (stripe_event_id) DO NOTHING
)
UPDATE stripe_events e
   SET processing_outcome = done.outcome, processed_at = %(now)s, attempted_at = %(now)s, attempts = done.attempts,
       error_class = NULL, processing_error = NULL
  FROM done
 WHERE e.stripe_event_id = done.stripe_event_id
   AND e.processed_at IS NULL;

-- name: forget_dispatches
DELETE FROM event_dispatches WHERE stripe_event_id = ANY (%(ids)s);

-- name: postpone_events
-- Failed: tried again at due_at.
WITH waiting AS (
    UPDATE event_dispatches d
       SET claimed_at = NULL, due_at = f.due_at
      FROM unnest(%(ids)s::text[], %(due)s::timestamptz[], %(classes)s::text[], %(errors)s::text[])
           AS f(stripe_event_id, due_at, error_class, error)
     WHERE d.stripe_event_id = f.stripe_event_id
    RETURNING d.stripe_event_id, d.attempts, f.error_class, f.error
)
UPDATE stripe_events e
   SET processing_outcome = 'failed', failed_at = %(now)s, attempted_at = %(now)s, attempts = waiting.attempts,
       error_class = waiting.error_class, processing_error = waiting.error
  FROM waiting
 WHERE e.stripe_event_id = waiting.stripe_event_id;

-- name: park_events
-- Failed too often: it waits for a person.
WITH parked AS (
    DELETE FROM event_dispatches d
     USING unnest(%(ids)s::text[], %(classes)s::text[], %(errors)s::text[]) AS f(stripe_event_id, error_class, error)
     WHERE d.stripe_event_id = f.stripe_event_id
    RETURNING d.stripe_event_id, d.attempts, f.error_class, f.error
)
UPDATE stripe_events e
   SET processing_outcome = 'parked', failed_at = %(now)s, attempted_at = %(now)s, attempts = parked.attempts,
       error_class = parked.error_class, processing_error = parked.error
  FROM parked
 WHERE e.stripe_event_id = parked.stripe_event_id;

-- name: request_refetches
INSERT INTO object_refetches AS asked (object_id, object_kind, reason, not_before, due_at)
SELECT DISTINCT ON (object_id, object_kind) object_id, object_kind, reason, not_before, %(now)s
  FROM unnest(%(ids)s::text[], %(kinds)s::text[], %(reasons)s::text[], %(moments)s::timestamptz[])
       AS r(object_id, object_kind, reason, not_before)
 ORDER BY object_id, object_kind, not_before DESC
ON CONFLICT (object_id, object_kind) DO UPDATE
   SET not_before = greatest(asked.not_before, excluded.not_before), reason = excluded.reason,
       due_at = least(asked.due_at, excluded.due_at);

-- name: due_refetches
SELECT object_id, object_kind, reason, not_before, attempts
  FROM object_refetches
 WHERE due_at <= %(now)s
 ORDER BY due_at, object_id
 LIMIT %(limit)s;

-- name: store_snapshot
INSERT INTO object_snapshots (object_id, object_kind, read_at, reason, payload, stored_at)
VALUES (%(object_id)s, %(object_kind)s, %(read_at)s, %(reason)s, %(payload)s, %(now)s);

-- name: finish_refetch
-- Not where a later event asked again meanwhile.
DELETE FROM object_refetches
 WHERE object_id = %(object_id)s AND object_kind = %(object_kind)s AND not_before < %(read_at)s;

-- name: postpone_refetch
UPDATE object_refetches
   SET attempts = attempts + %(failed)s, due_at = %(due_at)s, error = %(error)s
 WHERE object_id = %(object_id)s AND object_kind = %(object_kind)s;

-- name: thin_among
SELECT stripe_event_id, event_type
  FROM stripe_events
 WHERE stripe_event_id = ANY (%(ids)s) AND payload_style = 'thin' AND event_type = ANY (%(types)s)
   AND processed_at IS NULL;
