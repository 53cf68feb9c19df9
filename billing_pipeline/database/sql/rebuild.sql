-- name: events_applied
-- Every event that the live projections were made from and that still has its payload: the handled ones, and those whose
-- object is kept although its customer belongs to nobody.  One that is to be handled again was handled before.
-- One that failed when it was replayed is among them as long as a live row is from it, or that row would seem to be from
-- nowhere; the live tables are named in full, because the search path leads to the copy.
-- In no order: of each object the greatest version stays.  Payloads of types that change nothing are not even read.
SELECT stripe_event_id, event_type, created_at, payload
  FROM stripe_events
 WHERE payload IS NOT NULL AND payload_style = 'snapshot'
   AND attempted_at >= %(since)s
   AND event_type LIKE ANY (%(types)s::text[])
   AND (error_class IS NULL OR error_class = 'unknown_account')
UNION ALL
SELECT stripe_event_id, event_type, created_at, payload
  FROM stripe_events
 WHERE payload IS NOT NULL AND payload_style = 'snapshot'
   AND attempted_at >= %(since)s
   AND event_type LIKE ANY (%(types)s::text[])
   AND error_class <> 'unknown_account'
   AND stripe_event_id IN (SELECT source FROM billing_pipeline.stripe_customers
                           UNION ALL SELECT source FROM billing_pipeline.subscriptions
                           UNION ALL SELECT source FROM billing_pipeline.invoices
                           UNION ALL SELECT source FROM billing_pipeline.checkout_sessions
                           UNION ALL SELECT source FROM billing_pipeline.feature_summaries);

-- name: snapshots_applied
SELECT object_kind, object_id, read_at, payload
  FROM object_snapshots
 WHERE payload IS NOT NULL AND stored_at >= %(since)s;

-- name: payloads_gone
-- Handled events and answers whose payload's retention is over: what only they said cannot be made again.
SELECT (SELECT count(*) FROM stripe_events
         WHERE payload IS NULL AND processing_outcome = 'processed' AND payload_style = 'snapshot')
     + (SELECT count(*) FROM object_snapshots WHERE payload IS NULL) AS payloads;
