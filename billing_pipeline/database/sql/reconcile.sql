-- name: reconcile_usage
-- Three sides per organization and meter over the lookback: what the source holds, what the ledger says, and what
-- Stripe last showed.  The source is summed on its own here, not taken from the windows it is compared with.
WITH meter AS (
    SELECT *
      FROM unnest({meters}::text[], {event_types}::text[], {aggregations}::text[], {unit_scales}::numeric[],
                  {event_names}::text[])
           AS meter (name, event_type, aggregation, unit_scale, event_name)
), source AS (
    SELECT s.organization_id, meter.name AS meter, count(*) AS events,
           floor(sum(CASE meter.aggregation WHEN 'count' THEN 1 ELSE s.quantity END) * max(meter.unit_scale)) AS units
      FROM {source} s
      JOIN meter ON meter.event_type = s.event_type
     WHERE s.occurred_at >= {lookback_start}
       AND contract_fault(s.event_id, s.organization_id, s.event_type, s.quantity, s.occurred_at, s.recorded_at) IS NULL
     GROUP BY s.organization_id, meter.name
), entry AS (
    SELECT window_id,
           coalesce(sum(value) FILTER (WHERE state NOT IN ('rejected', 'replaced')), 0) AS stated,
           coalesce(sum(value) FILTER (WHERE state IN ('pending', 'ambiguous')), 0) AS in_flight,
           coalesce(sum(value) FILTER (WHERE state = 'accepted'), 0) AS unconfirmed,
           coalesce(sum(value) FILTER (WHERE state IN ('confirmed', 'adopted')), 0) AS confirmed,
           bool_or(state = 'rejected' AND hold_reason IS NOT NULL) AS rejected,
           bool_or(state IN ('pending', 'ambiguous')) AS open
      FROM ledger_entries
     GROUP BY window_id
), owed AS (
    -- Each window's difference has one reason: the first that holds.
    SELECT w.*, e.stated, e.in_flight, e.unconfirmed, e.confirmed, w.target - coalesce(e.stated, 0) AS owed,
           CASE WHEN w.stripe_customer_id IS NULL THEN 'unmapped'
                WHEN w.hold_reason IS NOT NULL THEN 'held'
                WHEN e.rejected THEN 'rejected'
                WHEN w.ends_at > {closed_before} THEN 'still_open'
                WHEN e.open THEN 'waiting' END AS reason
      FROM usage_windows w
      LEFT JOIN entry e USING (window_id)
     WHERE w.starts_at >= {lookback_start}
), ledger AS (
    SELECT organization_id, owed.meter,
           floor(sum(quantity) * max(meter.unit_scale)) AS counted_units,
           sum(target) AS target, sum(stated) AS stated, sum(in_flight) AS in_flight,
           sum(unconfirmed) AS unconfirmed, sum(confirmed) AS confirmed,
           sum(owed) FILTER (WHERE reason = 'unmapped') AS unmapped,
           sum(owed) FILTER (WHERE reason = 'held') AS held,
           sum(owed) FILTER (WHERE reason = 'rejected') AS rejected,
           sum(owed) FILTER (WHERE reason = 'still_open') AS still_open,
           sum(owed) FILTER (WHERE reason = 'waiting') AS waiting
      FROM owed
      JOIN (SELECT DISTINCT name, unit_scale FROM meter) meter ON meter.name = owed.meter
     GROUP BY organization_id, owed.meter
), stripe AS (
    SELECT owner.organization_id, owner.meter, sum(s.observed) AS observed
      FROM meter_summaries s
      JOIN (SELECT DISTINCT event_name, name FROM meter) m ON m.event_name = s.event_name
      JOIN LATERAL (
           SELECT w.organization_id, w.meter
             FROM usage_windows w
            WHERE w.stripe_customer_id = s.stripe_customer_id AND w.meter = m.name
              AND w.starts_at >= s.hour_at AND w.starts_at < s.hour_at + interval '1 hour'
            LIMIT 1) owner ON true
     WHERE s.hour_at >= {lookback_start}
     GROUP BY owner.organization_id, owner.meter
)
SELECT organization_id, meter,
       coalesce(source.events, 0) AS source_events, coalesce(source.units, 0) AS source_units,
       coalesce(counted_units, 0) AS counted_units, coalesce(target, 0) AS target, coalesce(stated, 0) AS stated,
       coalesce(confirmed, 0) AS confirmed, coalesce(observed, 0) AS observed,
       coalesce(in_flight, 0) AS in_flight, coalesce(unconfirmed, 0) AS unconfirmed,
       coalesce(rejected, 0) AS rejected, coalesce(unmapped, 0) AS unmapped, coalesce(held, 0) AS held,
       coalesce(still_open, 0) AS still_open, coalesce(waiting, 0) AS waiting
  FROM source
  FULL JOIN ledger USING (organization_id, meter)
  FULL JOIN stripe USING (organization_id, meter)
 ORDER BY organization_id, meter;
