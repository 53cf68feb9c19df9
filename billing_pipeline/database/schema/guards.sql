-- What no code may do, whoever writes it: the ledger is append-only and its states move only forward.

CREATE FUNCTION billing_pipeline.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: it is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- Only states, times, fence and hold may change, and states only along the protocol's arrows.
CREATE FUNCTION billing_pipeline.guard_ledger_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF ROW(NEW.entry_id, NEW.window_id, NEW.sequence, NEW.epoch, NEW.stripe_customer_id, NEW.event_name,
           NEW.value, NEW.slot_at, NEW.identifier, NEW.created_at)
       IS DISTINCT FROM
       ROW(OLD.entry_id, OLD.window_id, OLD.sequence, OLD.epoch, OLD.stripe_customer_id, OLD.event_name,
           OLD.value, OLD.slot_at, OLD.identifier, OLD.created_at)
    THEN
        RAISE EXCEPTION 'ledger entry % is immutable', OLD.entry_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NEW.fence < OLD.fence THEN
        RAISE EXCEPTION 'stale fence % on ledger entry %', NEW.fence, OLD.entry_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    -- The 20 hours of safe resending count from here; only proof that no attempt was executed sets it back.
    IF OLD.first_attempt_at IS NOT NULL AND NEW.first_attempt_at IS DISTINCT FROM OLD.first_attempt_at
       AND NOT (NEW.first_attempt_at IS NULL AND OLD.state = 'ambiguous' AND NEW.state = 'pending')
    THEN
        RAISE EXCEPTION 'the first attempt of ledger entry % cannot be moved', OLD.entry_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state::text || '>' || NEW.state::text) NOT IN (
        'pending>ambiguous', 'pending>replaced',
        'ambiguous>pending', 'ambiguous>accepted', 'ambiguous>confirmed', 'ambiguous>rejected', 'ambiguous>replaced',
        'accepted>confirmed', 'accepted>rejected', 'accepted>replaced'
    ) THEN
        RAISE EXCEPTION 'ledger entry % may not go from % to %', OLD.entry_id, OLD.state, NEW.state
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- An attempt's outcome is written once.
CREATE FUNCTION billing_pipeline.guard_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.outcome IS NOT NULL
       OR ROW(NEW.attempt_id, NEW.entry_id, NEW.fence, NEW.channel, NEW.started_at)
          IS DISTINCT FROM ROW(OLD.attempt_id, OLD.entry_id, OLD.fence, OLD.channel, OLD.started_at)
    THEN
        RAISE EXCEPTION 'attempt % is append-only', OLD.attempt_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- An entry begins as a statement to be sent, or as what Stripe was found to show; never half-way.
CREATE FUNCTION billing_pipeline.guard_new_ledger_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state NOT IN ('pending', 'adopted') OR NEW.first_attempt_at IS NOT NULL OR NEW.fence <> 0 THEN
        RAISE EXCEPTION 'a ledger entry may not begin as %', NEW.state
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER guard_new BEFORE INSERT ON billing_pipeline.ledger_entries
    FOR EACH ROW EXECUTE FUNCTION billing_pipeline.guard_new_ledger_entry();
CREATE TRIGGER guard_change BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW EXECUTE FUNCTION billing_pipeline.guard_ledger_entry();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER guard_change BEFORE UPDATE ON billing_pipeline.attempts
    FOR EACH ROW EXECUTE FUNCTION billing_pipeline.guard_attempt();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.attempts
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pipeline.evidence
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.usage_windows
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pipeline.ledger_operations
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.canaries
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
