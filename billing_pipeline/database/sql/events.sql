-- part: chosen_events
-- A person's choice of events; what is null chooses all.  An organization's are those that name it, and those of its
-- customers' objects.
(%(statuses)s::text[] IS NULL OR e.processing_outcome = ANY (%(statuses)s::text[]))
   AND (%(event_type)s::text IS NULL OR e.event_type = %(event_type)s)
   AND (%(types)s::text[] IS NULL
        OR e.payload_style = 'snapshot'
           AND (e.event_type = ANY (%(types)s::text[]) OR e.event_type ^@ ANY (%(beginnings)s::text[]))
        OR e.payload_style = 'thin' AND %(thin)s::boolean)
   AND (%(organization_id)s::text IS NULL
        OR e.tenant_hint = %(organization_id)s
        OR e.object_key = ANY (ARRAY(
               SELECT unnest(ARRAY[c.stripe_customer_id, s.id])
                 FROM customer_organizations c
                 LEFT JOIN LATERAL (
                      SELECT stripe_subscription_id FROM subscriptions
                       WHERE stripe_customer_id = c.stripe_customer_id
                      UNION ALL
                      SELECT stripe_invoice_id FROM invoices WHERE stripe_customer_id = c.stripe_customer_id
                      UNION ALL
                      SELECT stripe_session_id FROM checkout_sessions WHERE stripe_customer_id = c.stripe_customer_id
                      ) s(id) ON true
                WHERE c.organization_id = %(organization_id)s)))

-- name: list_events
-- A page, the newest first; `after` is the last event of the page before.
SELECT e.stripe_event_id, e.event_type, e.payload_style, e.object_id, e.tenant_hint, e.received_at,
       e.processing_outcome, coalesce(d.attempts, e.attempts) AS attempts, d.due_at, e.error_class,
       EXISTS (SELECT FROM event_notes n WHERE n.stripe_event_id = e.stripe_event_id) AS has_notes
  FROM stripe_events e
  LEFT JOIN event_dispatches d USING (stripe_event_id)
 WHERE {chosen_events}
   AND (%(after)s::text IS NULL
        OR (e.received_at, e.stripe_event_id)
           < ((SELECT received_at FROM stripe_events WHERE stripe_event_id = %(after)s), %(after)s::text))
 ORDER BY e.received_at DESC, e.stripe_event_id DESC
 LIMIT %(limit)s;

-- name: count_events_after
-- How many more there are; counted no further than anybody reads.
SELECT count(*) AS events
  FROM (SELECT
          FROM stripe_events e
         WHERE {chosen_events}
           AND (e.received_at, e.stripe_event_id)
               < ((SELECT received_at FROM stripe_events WHERE stripe_event_id = %(after)s), %(after)s::text)
         LIMIT %(limit)s) counted;

-- name: known_events
SELECT stripe_event_id FROM stripe_events WHERE stripe_event_id = ANY (%(ids)s);

-- name: show_event
SELECT e.stripe_event_id, e.event_type, e.payload_style, e.api_version, e.livemode, e.stripe_account, e.object_id,
       e.object_key, e.created_at, e.tenant_hint, e.origin, e.matched_secret, octet_length(e.raw_body) AS body_bytes,
       encode(e.body_digest, 'hex') AS body_digest, e.payload, e.received_at, e.attempted_at, e.processed_at,
       e.failed_at, e.processing_outcome, coalesce(d.attempts, e.attempts) AS attempts, d.due_at, d.claimed_at,
       e.error_class, e.processing_error
  FROM stripe_events e
  LEFT JOIN event_dispatches d USING (stripe_event_id)
 WHERE e.stripe_event_id = %(stripe_event_id)s;

-- name: notes_of_event
SELECT note, actor, noted_at FROM event_notes WHERE stripe_event_id = %(stripe_event_id)s ORDER BY note_id;

-- name: rows_about_object
-- What is kept of the object that an event is about, whichever event it is from.
SELECT 'stripe_customers' AS table_name, stripe_customer_id AS row_id, source, version_at
  FROM stripe_customers WHERE stripe_customer_id = %(object_key)s
UNION ALL
SELECT 'subscriptions', stripe_subscription_id, source, version_at
  FROM subscriptions WHERE stripe_subscription_id = %(object_key)s
UNION ALL
SELECT 'invoices', stripe_invoice_id, source, version_at
  FROM invoices WHERE stripe_invoice_id = %(object_key)s
UNION ALL
SELECT 'checkout_sessions', stripe_session_id, source, version_at
  FROM checkout_sessions WHERE stripe_session_id = %(object_key)s
UNION ALL
SELECT 'feature_summaries', stripe_customer_id, source, version_at
  FROM feature_summaries WHERE stripe_customer_id = %(object_key)s
 ORDER BY 1;

-- name: questions_about_object
SELECT object_kind, reason, due_at, error FROM object_refetches WHERE object_id = %(object_key)s ORDER BY 1;

-- name: annotate_event
INSERT INTO event_notes (stripe_event_id, note, actor, noted_at)
SELECT stripe_event_id, %(note)s, %(actor)s, %(now)s FROM stripe_events WHERE stripe_event_id = %(stripe_event_id)s;

-- name: choose_events
-- For a replay: the oldest by Stripe's clock first, the way they happened.
SELECT e.stripe_event_id, e.event_type, e.processing_outcome, e.attempted_at, e.payload IS NOT NULL AS has_payload
  FROM stripe_events e
 WHERE {chosen_events}
 ORDER BY e.created_at, e.stripe_event_id
 LIMIT %(limit)s;

-- name: named_events
SELECT e.stripe_event_id, e.event_type, e.processing_outcome, e.attempted_at, e.payload IS NOT NULL AS has_payload
  FROM stripe_events e
 WHERE e.stripe_event_id = ANY (%(ids)s)
 ORDER BY e.created_at, e.stripe_event_id;

-- name: claim_for_replay
-- As if they had just arrived, and taken at once, so that no other worker takes them in between; the raised fence keeps
-- one that has them now from recording anything.
WITH taken AS (
    INSERT INTO event_dispatches AS d (stripe_event_id, object_key, created_at, due_at, attempts, fence, claimed_at)
    SELECT stripe_event_id, object_key, created_at, %(now)s, 1, 1, %(now)s
      FROM stripe_events
     WHERE stripe_event_id = ANY (%(ids)s)
     ORDER BY stripe_event_id
    ON CONFLICT (stripe_event_id) DO UPDATE
       SET due_at = excluded.due_at, attempts = 1, fence = d.fence + 1, claimed_at = excluded.claimed_at
    RETURNING d.stripe_event_id, d.fence
), reset AS (
    UPDATE stripe_events e
       SET processing_outcome = 'received', processed_at = NULL, attempts = 0, error_class = NULL,
           processing_error = NULL
      FROM taken
     WHERE e.stripe_event_id = taken.stripe_event_id
)
SELECT stripe_event_id, fence FROM taken;

-- name: outcomes_of_events
SELECT e.stripe_event_id, e.event_type, e.processing_outcome, e.error_class, e.processing_error, e.attempts,
       e.attempted_at, d.due_at
  FROM stripe_events e
  LEFT JOIN event_dispatches d USING (stripe_event_id)
 WHERE e.stripe_event_id = ANY (%(ids)s)
 ORDER BY e.created_at, e.stripe_event_id;

-- name: payloads_of_events
SELECT stripe_event_id, event_type, payload, created_at FROM stripe_events
 WHERE stripe_event_id = ANY (%(ids)s)
 ORDER BY created_at, stripe_event_id;

-- name: body_of_event
SELECT raw_body, payload FROM stripe_events WHERE stripe_event_id = %(stripe_event_id)s;

-- name: rows_of_stripe_customers
SELECT stripe_customer_id AS row_id, to_jsonb(t) AS content FROM stripe_customers t
 WHERE stripe_customer_id = ANY (%(ids)s);

-- name: rows_of_subscriptions
SELECT stripe_subscription_id AS row_id, to_jsonb(t) AS content FROM subscriptions t
 WHERE stripe_subscription_id = ANY (%(ids)s);

-- name: rows_of_invoices
SELECT stripe_invoice_id AS row_id, to_jsonb(t) AS content FROM invoices t WHERE stripe_invoice_id = ANY (%(ids)s);

-- name: rows_of_checkout_sessions
SELECT stripe_session_id AS row_id, to_jsonb(t) AS content FROM checkout_sessions t
 WHERE stripe_session_id = ANY (%(ids)s);

-- name: rows_of_feature_summaries
SELECT stripe_customer_id AS row_id, to_jsonb(t) AS content FROM feature_summaries t
 WHERE stripe_customer_id = ANY (%(ids)s);

-- name: rows_of_object_refetches
SELECT object_id || ' ' || object_kind AS row_id, to_jsonb(t) AS content FROM object_refetches t
 WHERE object_id = ANY (%(ids)s);

-- name: rows_of_customer_organizations
SELECT stripe_customer_id AS row_id, to_jsonb(t) AS content FROM customer_organizations t
 WHERE stripe_customer_id = ANY (%(ids)s);

-- name: rows_of_entitlements
SELECT organization_id || ' ' || feature AS row_id, to_jsonb(t) AS content FROM entitlements t
 WHERE organization_id = ANY (%(ids)s);

-- name: old_bodies
-- What a purge would take.
SELECT count(*) AS events, coalesce(sum(octet_length(raw_body)), 0)::bigint AS bytes,
       (SELECT count(*) FROM object_snapshots
         WHERE stored_at < %(received_before)s AND payload IS NOT NULL) AS answers
  FROM stripe_events
 WHERE received_at < %(received_before)s AND processed_at IS NOT NULL AND payload IS NOT NULL;

-- name: purge_bodies
-- One batch, the oldest first; an event that somebody has locked is left to the next purge.
WITH old AS (
    SELECT stripe_event_id
      FROM stripe_events
     WHERE received_at < %(received_before)s AND processed_at IS NOT NULL AND payload IS NOT NULL
     ORDER BY received_at
     LIMIT %(limit)s
       FOR UPDATE SKIP LOCKED
)
UPDATE stripe_events e SET raw_body = NULL, payload = NULL FROM old WHERE e.stripe_event_id = old.stripe_event_id;

-- name: purge_answers
-- The same for what Stripe showed when asked; each was written to its row when it was stored.
WITH old AS (
    SELECT snapshot_id
      FROM object_snapshots
     WHERE stored_at < %(received_before)s AND payload IS NOT NULL
     ORDER BY stored_at
     LIMIT %(limit)s
       FOR UPDATE SKIP LOCKED
)
UPDATE object_snapshots s SET payload = NULL FROM old WHERE s.snapshot_id = old.snapshot_id;
