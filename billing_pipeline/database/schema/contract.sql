-- The row contract as the database knows it; `usage/contract.py` states the same rules for the report.
-- A property test holds the two equal row by row.  Aggregation uses this one, inside the snapshot it counts,
-- so that a row which arrives after validation cannot slip past it.
-- Ages are measured against recorded_at, not against now: a row's verdict must not change as it grows old.
CREATE FUNCTION billing_pipeline.contract_fault(
    event_id text, organization_id text, event_type text, quantity numeric,
    occurred_at timestamptz, recorded_at timestamptz
) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN event_id IS NULL OR event_id = '' THEN 'event_id_missing'
    WHEN organization_id IS NULL OR organization_id = '' THEN 'organization_id_missing'
    WHEN event_type IS NULL OR event_type = '' THEN 'event_type_missing'
    WHEN quantity IS NULL THEN 'quantity_missing'
    WHEN quantity IN ('NaN', 'Infinity', '-Infinity') THEN 'quantity_not_finite'
    WHEN quantity < 0 THEN 'quantity_negative'
    WHEN quantity >= 1000000000000000 OR scale(trim_scale(quantity)) > 12 THEN 'quantity_too_many_digits'
    WHEN occurred_at IS NULL OR recorded_at IS NULL OR NOT isfinite(occurred_at) OR NOT isfinite(recorded_at)
        THEN 'occurred_at_missing'
    WHEN occurred_at > recorded_at + interval '5 minutes' THEN 'occurred_at_in_future'
    WHEN occurred_at < recorded_at - interval '840 hours' THEN 'occurred_at_too_old'
END;
