-- What adjustments stand for, by usage window: Stripe units that are billed, or not billed, by them.
CREATE VIEW billing_pipeline.adjusted_units AS
SELECT w.window_id, sum(w.units) AS units
  FROM billing_pipeline.adjusted_windows w
  JOIN billing_pipeline.invoice_adjustments a USING (adjustment_id)
 WHERE a.state <> 'refused'
 GROUP BY w.window_id;
