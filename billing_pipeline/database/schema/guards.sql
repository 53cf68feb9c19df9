-- What no code may do, whoever writes it: the ledger is append-only and its states move only forward.

CREATE FUNCTION billing_pipeline.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: it is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- The guards of a change are conditions of their triggers, because a function called for each row of a batch costs more
-- than the change itself; the function only says what was refused.
CREATE FUNCTION billing_pipeline.refuse_entry_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'integrity_constraint_violation', MESSAGE = CASE TG_ARGV[0]
        WHEN 'statement' THEN format('ledger entry %s is immutable', OLD.entry_id)
        WHEN 'fence' THEN format('stale fence %s on ledger entry %s', NEW.fence, OLD.entry_id)
        WHEN 'first_attempt' THEN format('the first attempt of ledger entry %s cannot be moved', OLD.entry_id)
        ELSE format('ledger entry %s may not go from %s to %s', OLD.entry_id, OLD.state, NEW.state)
    END;
END $$;

CREATE FUNCTION billing_pipeline.refuse_attempt_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'attempt % is append-only', OLD.attempt_id
        USING ERRCODE = 'integrity_constraint_violation';
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

-- An attempt is made of an entry that is there; entries are never deleted, so one look is enough.
CREATE FUNCTION billing_pipeline.guard_new_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT count(*) FROM billing_pipeline.ledger_entries WHERE entry_id = ANY (ARRAY(SELECT entry_id FROM added)))
       <> (SELECT count(DISTINCT entry_id) FROM added)
    THEN
        RAISE EXCEPTION 'an attempt names an entry that is not in the ledger'
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER guard_new BEFORE INSERT ON billing_pipeline.ledger_entries
    FOR EACH ROW EXECUTE FUNCTION billing_pipeline.guard_new_ledger_entry();
-- Only states, times, fence and hold may change, and states only along the protocol's arrows.
CREATE TRIGGER guard_statement BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (
        ROW(NEW.entry_id, NEW.window_id, NEW.sequence, NEW.epoch, NEW.stripe_customer_id, NEW.event_name,
            NEW.value, NEW.slot_at, NEW.identifier, NEW.created_at)
        IS DISTINCT FROM
        ROW(OLD.entry_id, OLD.window_id, OLD.sequence, OLD.epoch, OLD.stripe_customer_id, OLD.event_name,
            OLD.value, OLD.slot_at, OLD.identifier, OLD.created_at))
    EXECUTE FUNCTION billing_pipeline.refuse_entry_change('statement');
CREATE TRIGGER guard_fence BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (NEW.fence < OLD.fence)
    EXECUTE FUNCTION billing_pipeline.refuse_entry_change('fence');
-- The 20 hours of safe resending count from here; only proof that no attempt was executed sets it back.
CREATE TRIGGER guard_first_attempt BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (
        OLD.first_attempt_at IS NOT NULL AND NEW.first_attempt_at IS DISTINCT FROM OLD.first_attempt_at
        AND NOT (NEW.first_attempt_at IS NULL AND OLD.state = 'ambiguous' AND NEW.state = 'pending'))
    EXECUTE FUNCTION billing_pipeline.refuse_entry_change('first_attempt');
CREATE TRIGGER guard_state BEFORE UPDATE ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (
        NEW.state <> OLD.state
        AND NOT (OLD.state = 'pending' AND NEW.state IN ('ambiguous', 'replaced'))
        AND NOT (OLD.state = 'ambiguous' AND NEW.state IN ('pending', 'accepted', 'confirmed', 'rejected', 'replaced'))
        AND NOT (OLD.state = 'accepted' AND NEW.state IN ('confirmed', 'rejected', 'replaced')))
    EXECUTE FUNCTION billing_pipeline.refuse_entry_change('state');
CREATE TRIGGER refuse_delete BEFORE DELETE OR TRUNCATE ON billing_pipeline.ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
CREATE TRIGGER guard_new AFTER INSERT ON billing_pipeline.attempts
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.guard_new_attempts();
-- An attempt's outcome is written once.
CREATE TRIGGER guard_change BEFORE UPDATE ON billing_pipeline.attempts
    FOR EACH ROW WHEN (
        OLD.outcome IS NOT NULL
        OR ROW(NEW.attempt_id, NEW.entry_id, NEW.fence, NEW.channel, NEW.started_at)
           IS DISTINCT FROM ROW(OLD.attempt_id, OLD.entry_id, OLD.fence, OLD.channel, OLD.started_at))
    EXECUTE FUNCTION billing_pipeline.refuse_attempt_change();
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

-- The submitter's work list follows the entries, whoever changes them.  An entry that Stripe takes for 35 days is due
-- by then; the submitter sets an earlier time when an attempt's outcome is unknown.
CREATE FUNCTION billing_pipeline.open_new_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO billing_pipeline.open_entries (entry_id, window_id, send_by, retry_at)
    SELECT entry_id, window_id, slot_at + interval '35 days',
           CASE WHEN hold_reason IS NOT NULL THEN 'infinity'::timestamptz END
      FROM added
     WHERE state IN ('pending', 'ambiguous');
    RETURN NULL;
END $$;

CREATE FUNCTION billing_pipeline.close_settled_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM billing_pipeline.open_entries
     WHERE entry_id = ANY (ARRAY(SELECT entry_id FROM changed WHERE state NOT IN ('pending', 'ambiguous')));
    RETURN NULL;
END $$;

CREATE FUNCTION billing_pipeline.hold_open_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE billing_pipeline.open_entries
       SET retry_at = CASE WHEN NEW.hold_reason IS NOT NULL THEN 'infinity'::timestamptz END
     WHERE entry_id = NEW.entry_id;
    RETURN NULL;
END $$;

CREATE TRIGGER open_new AFTER INSERT ON billing_pipeline.ledger_entries
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.open_new_entries();
CREATE TRIGGER close AFTER UPDATE ON billing_pipeline.ledger_entries
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.close_settled_entries();
CREATE TRIGGER hold AFTER UPDATE OF hold_reason ON billing_pipeline.ledger_entries
    FOR EACH ROW WHEN (NEW.hold_reason IS DISTINCT FROM OLD.hold_reason)
    EXECUTE FUNCTION billing_pipeline.hold_open_entry();

-- Seals: the invoice of a period is final, so nothing more may be stated for it.

-- A window is sealed by a seal, which says who and why; never while anything of it is open or on hold; and for ever.
CREATE FUNCTION billing_pipeline.guard_sealing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.sealed_at IS NOT NULL THEN
        RAISE EXCEPTION 'usage window % is sealed, and a seal is never taken off or moved', OLD.window_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NOT EXISTS (
        SELECT FROM billing_pipeline.seals s
         WHERE s.stripe_customer_id = NEW.stripe_customer_id
           AND (s.event_name IS NULL OR s.event_name = NEW.event_name)
           AND s.during @> tstzrange(NEW.starts_at, NEW.ends_at) AND s.sealed_at = NEW.sealed_at)
    THEN
        RAISE EXCEPTION 'usage window % may not be sealed: no seal covers it', NEW.window_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NEW.hold_reason IS NOT NULL OR EXISTS (
        SELECT FROM billing_pipeline.ledger_entries e
         WHERE e.window_id = NEW.window_id
           AND (e.state IN ('pending', 'ambiguous', 'accepted') OR e.hold_reason IS NOT NULL))
    THEN
        RAISE EXCEPTION 'usage window % may not be sealed: it is on hold or has an entry that is not settled', NEW.window_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- Every window is locked before it is looked at: a seal that is not committed yet is waited for.  A filter and no
-- condition, which the planner would move below the lock; it would then see the window of before the wait, and lock none.
CREATE FUNCTION billing_pipeline.refuse_entries_under_a_seal() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    sealed_window bigint;
BEGIN
    SELECT min(window_id) FILTER (WHERE sealed_at IS NOT NULL) INTO sealed_window
      FROM (SELECT window_id, sealed_at
              FROM billing_pipeline.usage_windows
             WHERE window_id IN (SELECT window_id FROM added)
               FOR SHARE) stated;
    IF sealed_window IS NOT NULL THEN
        RAISE EXCEPTION 'usage window % is sealed: it takes no new entry', sealed_window
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER guard_sealing BEFORE UPDATE ON billing_pipeline.usage_windows
    FOR EACH ROW WHEN (OLD.sealed_at IS DISTINCT FROM NEW.sealed_at)
    EXECUTE FUNCTION billing_pipeline.guard_sealing();
CREATE TRIGGER guard_sealed_new BEFORE INSERT ON billing_pipeline.usage_windows
    FOR EACH ROW WHEN (NEW.sealed_at IS NOT NULL)
    EXECUTE FUNCTION billing_pipeline.guard_sealing();
CREATE TRIGGER refuse_under_a_seal AFTER INSERT ON billing_pipeline.ledger_entries
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_entries_under_a_seal();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_pipeline.seals
    FOR EACH STATEMENT EXECUTE FUNCTION billing_pipeline.refuse_change();
