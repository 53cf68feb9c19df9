-- Adjustments: what sealed windows are owed, put on the draft of a later invoice.

-- name: drafts_to_close
-- Drafts of our customers' subscriptions that nobody has closed yet, the first to become final first.
SELECT i.stripe_invoice_id, i.stripe_customer_id
  FROM invoices i
 WHERE i.status = 'draft' AND i.created_at <= %(created_before)s AND i.stripe_subscription_id IS NOT NULL
   AND EXISTS (SELECT FROM customer_mappings m WHERE m.stripe_customer_id = i.stripe_customer_id)
   AND NOT EXISTS (SELECT FROM closed_invoices c WHERE c.stripe_invoice_id = i.stripe_invoice_id)
 ORDER BY i.finalizes_at NULLS LAST, i.created_at, i.stripe_invoice_id
 LIMIT %(limit)s;

-- name: lock_late_windows
-- In the order aggregation writes windows in.  What they are owed is read by the next statement, after the lock.
SELECT window_id
  FROM usage_windows
 WHERE stripe_customer_id = %(stripe_customer_id)s AND sealed_at IS NOT NULL AND cut_due
 ORDER BY organization_id, stripe_customer_id, meter, starts_at
   FOR NO KEY UPDATE;

-- name: late_windows
SELECT * FROM (
    SELECT w.window_id, w.organization_id, w.meter, w.event_name, w.starts_at, w.ends_at,
           w.target - coalesce(e.stated, 0) - coalesce(a.units, 0) AS owed
      FROM usage_windows w
      LEFT JOIN LATERAL (
           SELECT sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')) AS stated
             FROM ledger_entries WHERE window_id = w.window_id) e ON true
      LEFT JOIN LATERAL (SELECT units FROM adjusted_units WHERE window_id = w.window_id) a ON true
     WHERE w.window_id = ANY (%(window_ids)s::bigint[])) late
 WHERE owed <> 0
 ORDER BY organization_id, meter, starts_at, window_id;

-- name: insert_adjustment
-- Nothing is inserted where this invoice was already adjusted for it; then its windows are owed on.
INSERT INTO invoice_adjustments (identifier, stripe_invoice_id, stripe_customer_id, organization_id, meter, event_name,
       units, currency, unit_amount, starts_at, ends_at, state, settled_at, created_at)
VALUES (%(identifier)s, %(stripe_invoice_id)s, %(stripe_customer_id)s, %(organization_id)s, %(meter)s, %(event_name)s,
       %(units)s, %(currency)s, %(unit_amount)s::numeric, %(starts_at)s, %(ends_at)s,
       CASE WHEN %(unit_amount)s::numeric IS NULL THEN 'written_off' ELSE 'pending' END,
       CASE WHEN %(unit_amount)s::numeric IS NULL THEN %(now)s END, %(now)s)
    ON CONFLICT (stripe_invoice_id, organization_id, meter, event_name) DO NOTHING
RETURNING adjustment_id;

-- name: insert_adjusted_windows
INSERT INTO adjusted_windows (adjustment_id, window_id, units)
SELECT %(adjustment_id)s, window_id, units
  FROM unnest(%(window_ids)s::bigint[], %(units_owed)s::numeric[]) AS late(window_id, units);

-- name: close_invoice
INSERT INTO closed_invoices (stripe_invoice_id, closed_at) VALUES (%(stripe_invoice_id)s, %(now)s)
    ON CONFLICT (stripe_invoice_id) DO NOTHING;

-- name: due_adjustments
SELECT adjustment_id, identifier, stripe_invoice_id, stripe_customer_id, organization_id, meter, units, currency,
       unit_amount, starts_at, ends_at, attempts, first_attempt_at, last_attempt_at
  FROM invoice_adjustments
 WHERE state IN ('pending', 'ambiguous') AND (retry_at IS NULL OR retry_at <= %(now)s)
 ORDER BY adjustment_id
 LIMIT %(limit)s;

-- name: attempt_adjustment
-- Committed before the request.  The number of attempts is the fence: of two workers only one gets the row.
UPDATE invoice_adjustments
   SET state = 'ambiguous', attempts = attempts + 1, first_attempt_at = coalesce(first_attempt_at, %(now)s),
       last_attempt_at = %(now)s, retry_at = %(retry_at)s
 WHERE adjustment_id = %(adjustment_id)s AND attempts = %(attempts)s AND state IN ('pending', 'ambiguous')
RETURNING adjustment_id;

-- name: settle_adjustment
UPDATE invoice_adjustments
   SET state = %(state)s, stripe_invoice_item_id = %(stripe_invoice_item_id)s, last_error = %(last_error)s,
       settled_at = %(now)s, retry_at = NULL
 WHERE adjustment_id = %(adjustment_id)s AND attempts = %(attempts)s AND state IN ('pending', 'ambiguous');

-- name: postpone_adjustment
UPDATE invoice_adjustments
   SET last_error = %(last_error)s, retry_at = %(retry_at)s
 WHERE adjustment_id = %(adjustment_id)s AND attempts = %(attempts)s AND state IN ('pending', 'ambiguous');

-- name: adjustments_in_doubt
-- The oldest first: a request may have reached Stripe, and nobody knows.
SELECT identifier, stripe_invoice_id, stripe_customer_id, organization_id, meter, units, currency, unit_amount,
       starts_at, ends_at, state, stripe_invoice_item_id, last_error, created_at, settled_at
  FROM invoice_adjustments
 WHERE state IN ('pending', 'ambiguous')
 ORDER BY adjustment_id
 LIMIT %(limit)s;

-- name: latest_adjustments
-- For whoever asks what became of them, the latest first.
SELECT identifier, stripe_invoice_id, stripe_customer_id, organization_id, meter, units, currency, unit_amount,
       starts_at, ends_at, state, stripe_invoice_item_id, last_error, created_at, settled_at
  FROM invoice_adjustments
 ORDER BY adjustment_id DESC
 LIMIT %(limit)s;

-- name: adjustments_by_state
SELECT state AS status, count(*) AS rows FROM invoice_adjustments GROUP BY state ORDER BY state;
