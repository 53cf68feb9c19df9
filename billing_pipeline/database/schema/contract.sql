-- The row contract as the database knows it; `usage/row_contract.py` states the same rules for the report.
-- A property test holds the two equal row by row.  Aggregation uses this one, inside the snapshot it counts,
-- so that a row which arrives after validation cannot slip past it.
-- Ages are measured against recorded_at, not against now: a row's verdict must not change as it grows old.
-- A quantity is needed for an event type that some meter sums; a count does without, but a wrong one is a fault for all.
-- PostgreSQL knows times that neither Python nor Arrow can hold; they are refused before anything is computed of them,
-- with the last day of the year 9999, whose windows would end outside it.
-- Every expression is immutable (a time plus an interval is not), so that the planner can inline the function: as a
-- call it costs a million rows several seconds.
CREATE FUNCTION billing_pipeline.contract_fault(
    event_id text, organization_id text, event_type text, quantity numeric,
    occurred_at timestamptz, recorded_at timestamptz, quantity_needed boolean DEFAULT true,
    property_missing boolean DEFAULT false
) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN event_id IS NULL OR event_id = '' THEN 'event_id_missing'
    WHEN organization_id IS NULL OR organization_id = '' THEN 'organization_id_missing'
    WHEN event_type IS NULL OR event_type = '' THEN 'event_type_missing'
    WHEN quantity IS NULL AND quantity_needed THEN 'quantity_missing'
    WHEN quantity IN ('NaN', 'Infinity', '-Infinity') THEN 'quantity_not_finite'
    WHEN quantity < 0 THEN 'quantity_negative'
    WHEN quantity >= 1000000000000000 OR scale(trim_scale(quantity)) > 12 THEN 'quantity_too_many_digits'
    WHEN property_missing THEN 'property_missing'
    WHEN occurred_at IS NULL THEN 'occurred_at_missing'
    WHEN recorded_at IS NULL THEN 'recorded_at_missing'
    WHEN least(occurred_at, recorded_at) < '0001-01-01 00:00:00+00'
        OR greatest(occurred_at, recorded_at) >= '9999-12-31 00:00:00+00' THEN 'time_out_of_range'
    WHEN occurred_at - recorded_at > interval '5 minutes' THEN 'occurred_at_in_future'
    WHEN recorded_at - occurred_at > interval '840 hours' THEN 'occurred_at_too_old'
END;
