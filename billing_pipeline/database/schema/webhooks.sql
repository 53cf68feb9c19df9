-- What people and other programs read of the webhooks' tables, under the names that they know.

-- Handled events with the object alone, as a first integration usually has them.
CREATE VIEW billing_pipeline.stripe_webhook_events AS
SELECT stripe_event_id AS id, event_type AS type, processed_at, payload -> 'data' -> 'object' AS payload
  FROM billing_pipeline.stripe_events
 WHERE processed_at IS NOT NULL;

CREATE VIEW billing_pipeline.failed_stripe_events AS
SELECT stripe_event_id, event_type, processing_outcome, error_class, processing_error, attempts, tenant_hint,
       received_at, failed_at
  FROM billing_pipeline.stripe_events
 WHERE processing_outcome IN ('failed', 'parked')
 ORDER BY received_at DESC;

CREATE VIEW billing_pipeline.subscription_items AS
SELECT i.subscription_item_id, s.stripe_subscription_id, s.stripe_customer_id, i.price_id, i.product_id, i.meter_id,
       i.usage_type, i.quantity, i.interval, i.interval_count, i.current_period_start, i.current_period_end
  FROM billing_pipeline.subscriptions s,
       jsonb_to_recordset(s.items) AS i(
           subscription_item_id text, price_id text, product_id text, meter_id text, usage_type text, quantity numeric,
           interval text, interval_count integer, current_period_start timestamptz, current_period_end timestamptz);

-- A line names its price but not its meter; older shapes and subscriptions that we know do.
CREATE VIEW billing_pipeline.invoice_lines AS
SELECT l.invoice_line_id, n.stripe_invoice_id, n.stripe_customer_id, l.stripe_subscription_id, l.subscription_item_id,
       l.price_id, coalesce(l.meter_id, i.meter_id) AS meter_id, l.proration, l.quantity, l.amount, n.currency,
       l.unit_amount, l.period_start, l.period_end, l.description, n.status AS invoice_status, n.source
  FROM billing_pipeline.invoices n
 CROSS JOIN jsonb_to_recordset(n.lines) AS l(
           invoice_line_id text, stripe_subscription_id text, subscription_item_id text, price_id text, meter_id text,
           proration boolean, quantity numeric, amount bigint, unit_amount numeric, period_start timestamptz,
           period_end timestamptz, description text)
  LEFT JOIN LATERAL (
           SELECT max(known.meter_id) AS meter_id
             FROM billing_pipeline.subscription_items known
            WHERE known.stripe_subscription_id = coalesce(l.stripe_subscription_id, n.stripe_subscription_id)
              AND known.price_id = l.price_id) i ON true;

-- What each invoice bills of each meter: to be held against what the ledger stated for the same period.
CREATE VIEW billing_pipeline.subscription_usage AS
SELECT stripe_invoice_id, invoice_line_id, stripe_customer_id, stripe_subscription_id, subscription_item_id, price_id,
       meter_id, quantity, amount, currency, period_start, period_end, invoice_status, source
  FROM billing_pipeline.invoice_lines
 WHERE meter_id IS NOT NULL;

-- Whose a customer is now: what a person mapped comes before what Stripe's objects say of themselves.
CREATE VIEW billing_pipeline.known_customer_organizations AS
SELECT c.stripe_customer_id, coalesce(m.organization_id, s.organization_hint, k.organization_hint, h.organization_hint)
           AS organization_id
  FROM (SELECT stripe_customer_id FROM billing_pipeline.subscriptions
        UNION SELECT stripe_customer_id FROM billing_pipeline.checkout_sessions WHERE stripe_customer_id IS NOT NULL
        UNION SELECT stripe_customer_id FROM billing_pipeline.feature_summaries
        UNION SELECT stripe_customer_id FROM billing_pipeline.stripe_customers) c
  LEFT JOIN LATERAL (
        SELECT organization_id FROM billing_pipeline.customer_mappings
         WHERE billing_pipeline.text_range(stripe_customer_id, stripe_customer_id, '[]')
               && billing_pipeline.text_range(c.stripe_customer_id, c.stripe_customer_id, '[]')
           AND valid_during @> now()) m ON true
  LEFT JOIN LATERAL (
        SELECT organization_hint FROM billing_pipeline.subscriptions
         WHERE stripe_customer_id = c.stripe_customer_id AND organization_hint IS NOT NULL
         ORDER BY created_at DESC NULLS LAST, stripe_subscription_id DESC LIMIT 1) s ON true
  LEFT JOIN LATERAL (
        SELECT organization_hint FROM billing_pipeline.checkout_sessions
         WHERE stripe_customer_id = c.stripe_customer_id AND organization_hint IS NOT NULL
         ORDER BY created_at DESC NULLS LAST, stripe_session_id DESC LIMIT 1) k ON true
  LEFT JOIN billing_pipeline.stripe_customers h USING (stripe_customer_id);

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pipeline.event_notes
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.stripe_events
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
