-- The instants at which Stripe begins to count a customer's usage of a meter into another billing period.
-- The end of a period and the start of the next are one instant in two rows.  An edge too many splits an hour for
-- nothing; an edge too few bills usage in the wrong period.
CREATE VIEW billing_pipeline.period_edges AS
SELECT stripe_customer_id, event_name, lower(during) AS edge_at, synced_at FROM billing_pipeline.billing_periods
UNION ALL
SELECT stripe_customer_id, event_name, upper(during) AS edge_at, synced_at FROM billing_pipeline.billing_periods;
