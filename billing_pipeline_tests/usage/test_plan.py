"""A plan says what a flush will send, changes nothing, and binds the flush that is told to keep to it."""

from datetime import timedelta
from functools import partial

import pytest

from billing_pipeline.errors import LedgerFrozen, Refused, UserError
from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.gate import freeze
from billing_pipeline.usage.lease import acquire
from billing_pipeline.usage.plan import KEPT, cut_as_planned, make_plan, read_plan
from billing_pipeline_tests.fix_trial import HOUR, METER, V1_ONLY

pytestmark = [pytest.mark.slow, V1_ONLY]


def contents(trial):
    """Every row of every table of ours, but the plans; by table a digest."""
    tables = trial.rows(
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
        "WHERE schemaname IN ('billing_pipeline', 'public') AND tablename <> 'flush_plans'"
    )
    digest = "SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {} t"
    return {table: trial.rows(digest.format(table))[0][0] for (table,) in tables}


def plan(trial, limit=100):
    return make_plan(trial.flow, limit=limit, actor="ada")


def flush_as_planned(trial, plan_hash):
    stored = read_plan(trial.connection, plan_hash)
    return flush(trial.flow, scope=Scope.FULL, cut=partial(cut_as_planned, trial.flow, stored))


def units(found):
    return {(line.organization_id, line.meter): line.units_added - line.units_taken_back for line in found.lines}


def counted_by_organization(trial):
    owner = {customer: organization_id for organization_id, customer in trial.customers.items()}
    totals = {}
    for (customer, event_name, _), value in trial.counted().items():
        key = (owner[customer], event_name)
        totals[key] = totals.get(key, 0) + value
    return totals


def test_a_plan_changes_nothing_and_sends_nothing(trial):
    trial.use(7)
    trial.flush()
    trial.use(5, hours_before=1)
    trial.use(4, hours_before=2, organization_id="nobody")
    before, requests, mark = contents(trial), len(trial.weather.requests), trial.flow.mark.read()

    found = plan(trial)

    assert units(found) == {("acme", METER): 5}
    assert found.units_unmapped == 4
    assert contents(trial) == before
    assert trial.flow.mark.read() == mark
    assert [request.method for request in trial.weather.requests[requests:] if request.method != "GET"] == []


def test_a_plan_needs_no_lease_and_takes_none_from_a_flush(trial):
    trial.use(7)
    acquire(trial.connection, lock_key="usage-flush", holder="other", ttl=HOUR, now=trial.flow.clock())

    assert units(plan(trial)) == {("acme", METER): 7}
    assert trial.rows("SELECT holder FROM flush_leases") == [("other",)]


def test_the_flush_that_keeps_to_a_plan_sends_exactly_what_it_said(trial):
    trial.bill("globex")
    trial.use(7)
    trial.use(9, organization_id="globex", hours_before=1)
    trial.flush()
    first = counted_by_organization(trial)
    trial.use(5, hours_before=1)
    trial.use(2, organization_id="globex")
    # Taken back as well: the row of 9 is deleted.
    trial.rows("DELETE FROM public.billable_events WHERE quantity = 9 RETURNING 1")

    found = plan(trial)
    assert units(found) == {("acme", METER): 5, ("globex", METER): -7}
    assert [(meter.entries, meter.units_added, meter.units_taken_back) for meter in found.meters] == [(3, 7, 9)]
    report = flush_as_planned(trial, found.plan_hash)

    assert report.submit.accepted == 3
    sent = {key: value - first.get(key, 0) for key, value in counted_by_organization(trial).items()}
    assert sent == units(found)
    trial.require_invariants()


def test_what_was_cut_and_not_sent_is_part_of_the_plan(trial):
    trial.entry(10)
    trial.use(3, hours_before=1)

    found = plan(trial)
    assert units(found) == {("acme", METER): 13}
    flush_as_planned(trial, found.plan_hash)

    assert sum(trial.counted().values()) == 13


def test_a_plan_that_no_longer_holds_is_refused_before_anything_is_cut_or_sent(trial):
    trial.use(7)
    found = plan(trial)
    trial.use(1)

    with pytest.raises(Refused) as refusal:
        flush_as_planned(trial, found.plan_hash)

    assert "prompt_tokens 1 entries, +7 -0 units then, 1 entries, +8 -0 units now" in str(refusal.value)
    assert trial.states() == []
    assert trial.usage_requests() == 0
    # And nothing is in the way of the next.
    flush_as_planned(trial, plan(trial).plan_hash)
    assert sum(trial.counted().values()) == 8


def test_the_same_amount_of_another_organization_is_another_plan(trial):
    trial.bill("globex")
    trial.use(7)
    found = plan(trial)
    trial.rows("UPDATE public.billable_events SET organization_id = 'globex', recorded_at = now() RETURNING 1")

    with pytest.raises(Refused, match="the same amounts, of other hours"):
        flush_as_planned(trial, found.plan_hash)
    assert trial.usage_requests() == 0


def test_an_hour_that_closes_after_the_plan_is_left_to_the_next_flush(trial):
    trial.use(7)
    now = trial.flow.clock()
    trial.use(2, occurred_at=now.replace(minute=0, second=0, microsecond=0))
    found = plan(trial)
    trial.pass_time(hours=2)

    flush_as_planned(trial, found.plan_hash)
    assert sum(trial.counted().values()) == 7
    trial.flush()
    assert sum(trial.counted().values()) == 9


def test_two_plans_of_the_same_source_are_one(trial):
    trial.use(7)
    trial.use(5, hours_before=1)

    assert plan(trial).plan_hash == plan(trial).plan_hash
    assert trial.rows("SELECT made_by, meters -> 0 -> 'units_added' FROM flush_plans") == [("ada", 12)]


def test_what_is_in_doubt_is_told_apart_from_what_is_new(trial):
    trial.use(7)
    trial.weather.lag = HOUR
    trial.weather.faults = [FaultKind.LOSE_ANSWER]
    trial.flush()
    trial.use(5, hours_before=1)

    found = plan(trial)
    assert (units(found), found.sent_again) == ({("acme", METER): 5}, 1)
    trial.pass_time(minutes=10)
    flush_as_planned(trial, found.plan_hash)
    assert sum(trial.counted().values()) == 12


def test_an_empty_plan_is_not_kept(trial):
    found = plan(trial)

    assert found.is_empty
    assert trial.rows("SELECT count(*) FROM flush_plans") == [(0,)]


def test_a_frozen_ledger_has_no_plan(trial):
    trial.use(7)
    freeze(trial.connection, "a drill", now=trial.flow.clock())

    with pytest.raises(LedgerFrozen, match="a drill"):
        plan(trial)


def test_a_plan_of_a_restored_ledger_is_refused_and_leaves_the_freeze_to_the_flush(trial):
    trial.use(7)
    trial.flush()
    # As a restore does it: the attempts are gone, the mark is not.
    trial.connection.execute(
        "SET session_replication_role = replica; DELETE FROM attempts; SET session_replication_role = origin"
    )

    with pytest.raises(LedgerFrozen, match="restored from a backup"):
        plan(trial)
    assert trial.rows("SELECT frozen_at FROM ledger_identity") == [(None,)]


def test_a_plan_nobody_made_is_a_usage_error(trial):
    with pytest.raises(UserError, match="There is no plan 0123456789abcdef; plans are kept for 7 days"):
        read_plan(trial.connection, "0123456789abcdef")


def test_old_plans_are_dropped_when_a_new_one_is_made(trial):
    trial.use(7)
    old = plan(trial)
    trial.use(1)
    trial.pass_time(days=KEPT / timedelta(days=1) + 1)
    plan(trial)

    with pytest.raises(UserError):
        read_plan(trial.connection, old.plan_hash)


def test_only_the_largest_are_listed_and_the_totals_are_of_all(trial):
    trial.bill("globex")
    trial.use(7)
    trial.use(9, organization_id="globex")

    found = plan(trial, limit=1)

    assert units(found) == {("globex", METER): 9}
    assert (found.organizations, found.meters[0].units_added) == (2, 16)
