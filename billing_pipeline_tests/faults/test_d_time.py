"""Table D, what time does: late packets, forgotten identifiers, short sessions, old timestamps and long outages.

Ledger and Stripe live by one clock here, which tests move by hours and days.
"""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from itertools import cycle
from types import SimpleNamespace

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.reconciliation.expiry import usage_about_to_expire
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.stripe_api import meter_events
from billing_pipeline.stripe_simulator.faults import Fault, FaultKind
from billing_pipeline_tests.acceptance.test_usage_is_billed_once import use_environment
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.fix_trial import HOUR, METER, V1_ONLY, V2_ONLY

SECOND = timedelta(seconds=1)


def test_d10_nothing_is_sent_after_stripe_may_have_forgotten_the_identifier(trial):
    entry = trial.entry(10)
    trial.weather.faults = [FaultKind.LOSE_ANSWER] * 2
    trial.send()

    trial.pass_time(hours=19, minutes=59)
    assert trial.send().attempts == 1, "up to then the same identifier is safe"
    trial.pass_time(minutes=11)
    assert trial.send().attempts == 0

    assert trial.states() == ["ambiguous"]
    trial.require_invariants()
    trial.flow.confirm()
    assert trial.states() == ["confirmed"], "the summary knows"
    assert trial.counted() == {entry: 10}


def test_d10_what_was_lost_and_is_no_longer_sent_comes_back_as_another_entry(trial):
    """Beyond the safe time only a summary may say that nothing was counted; then the amount is owed again."""
    entry = trial.entry(10)
    trial.weather.faults = [FaultKind.LOSE_REQUEST]
    trial.flow.submit()
    trial.pass_time(hours=20, minutes=1)

    trial.flush()
    assert trial.states() == ["replaced"]
    trial.flush()

    assert trial.states() == ["replaced", "confirmed"]
    assert trial.counted() == {entry: 10}
    trial.require_invariants()


class Monotonic:
    """The machine's monotonic clock, moved by hand."""

    def __init__(self, monkeypatch):
        self.shift = 0.0
        monkeypatch.setattr(meter_events, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + self.shift))


def sessions_made(trial):
    return len(trial.simulator.journal("meter_event_session"))


@V2_ONLY
def test_d12_an_expired_session_executes_nothing_and_the_next_one_takes_the_same_entries(trial):
    entry = trial.entry(10)

    def sleep(request):
        # Between the session and its use the machine slept for longer than the session lives.
        if request.path.endswith("meter_event_session") and sessions_made(trial) == 0:
            trial.time.advance(minutes=16)

    trial.weather.other_faults = sleep
    assert trial.send().not_executed == 1

    assert trial.rows("SELECT error_code FROM attempts") == [("session_expired",)]
    assert (trial.states(), trial.counted()) == (["pending"], {})
    trial.pass_time(seconds=30)
    trial.send()
    assert (trial.states(), sessions_made(trial)) == (["accepted"], 2)
    assert trial.counted() == {entry: 10}


@V2_ONLY
@pytest.mark.parametrize(("waited", "sessions"), [(-5, 1), (0, 2)])
def test_d12_a_session_is_renewed_at_ten_minutes_of_its_fifteen(trial, monkeypatch, waited, sessions):
    for hours_before in range(101):
        trial.use(1, hours_before=hours_before)
    trial.cut()
    clock = Monotonic(monkeypatch)

    def wait(number):
        if number == 1:
            clock.shift = 600 + waited

    trial.weather.before_send = wait
    assert trial.send().accepted == 101

    assert sessions_made(trial) == sessions
    assert len(trial.counted()) == 101


@pytest.mark.parametrize("attempt", [1, 2])
def test_d15_a_packet_that_arrives_an_hour_late_counts_once(trial, attempt):
    """The first attempt, or the last one at the end of the safe time, is delivered an hour later than sent."""
    entry = trial.entry(10)
    late = Fault(FaultKind.LATE_DELIVERY, HOUR)
    trial.weather.faults = [late] if attempt == 1 else [FaultKind.LOSE_ANSWER, late]
    trial.send()
    if attempt == 1:
        trial.pass_time(minutes=11)
    else:
        trial.pass_time(hours=19, minutes=59)
    trial.send()
    trial.pass_time(hours=2)
    trial.simulator.core.deliver_due()

    trial.prove()

    assert trial.states() == ["confirmed"]
    assert trial.counted() == {entry: 10}
    trial.require_invariants()


def test_d15_a_packet_that_arrives_after_the_retry_was_refused_is_not_forgotten(trial):
    entry = trial.entry(10)
    trial.weather.faults = [Fault(FaultKind.LATE_DELIVERY, HOUR), FaultKind.RATE_LIMITED_429]
    trial.send()
    trial.pass_time(minutes=11)
    trial.send()
    assert trial.states() == ["ambiguous"], "the first attempt is still under way"
    trial.pass_time(hours=2)
    trial.simulator.core.deliver_due()

    trial.flush()

    assert trial.states() == ["confirmed"]
    assert trial.counted() == {entry: 10}


def test_d15_a_request_that_the_network_delivers_twice_counts_once(trial):
    entry = trial.entry(10)
    trial.weather.faults = [FaultKind.DUPLICATED_DELIVERY]

    trial.send()
    trial.prove()

    assert trial.states() == ["confirmed"]
    assert trial.counted() == {entry: 10}


def be_this_old(trial, age):
    """Let the one entry's slot be `age` old, on the ledger's clock and on Stripe's."""
    slot_at = trial.rows("SELECT slot_at FROM ledger_entries")[0][0]
    trial.pass_time(seconds=(age - (trial.flow.clock() - slot_at)).total_seconds())


def test_d16_the_oldest_slot_that_is_sent_is_taken_by_stripe(trial):
    entry = trial.entry(10)
    be_this_old(trial, trial.settings.protocol_times.past_max - 20 * SECOND)

    assert trial.send().accepted == 1
    trial.pass_time(seconds=30)
    assert trial.flow.apply_error_reports().entries_rejected == 0
    assert trial.counted() == {entry: 10}


def test_d16_an_older_slot_is_held_as_owed_and_not_sent(trial):
    trial.entry(10)
    be_this_old(trial, trial.settings.protocol_times.past_max)

    assert trial.send().attempts == 0

    assert trial.rows("SELECT hold_reason FROM ledger_entries") == [("older_than_stripe_accepts",)]
    assert trial.counted() == {}


@V1_ONLY
@pytest.mark.parametrize("ahead", [-60, 60])
def test_d16_no_slot_lies_ahead_even_with_the_worst_clock_the_gate_lets_through(trial, ahead):
    trial.use(10)
    # A window that closed just now, and Stripe's clock a minute apart.
    grace_none = trial.another_flow(billing_window_grace_seconds=0)
    # Stripe tells its time in whole seconds, and some pass on a busy machine before it is compared.
    trial.time.advance(seconds=ahead - (1 if ahead > 0 else -6))
    trial.cut()
    grace_none.cut()

    trial.flow.submit()

    slots = [record["timestamp"] for record in trial.simulator.journal("meter_event")]
    assert trial.states() == ["accepted"]
    assert len(slots) == 4, "the entry and a canary per meter"
    assert max(slots) <= trial.time().timestamp() + 60, "Stripe takes five minutes"


@V1_ONLY
@pytest.mark.parametrize(
    ("age", "told"),
    [(timedelta(days=30) - 60 * SECOND, 0), (timedelta(days=30), 10), (timedelta(days=34, hours=22), 10)],
)
def test_d16_from_30_days_on_unsent_usage_is_told_while_it_can_still_be_sent(trial, age, told):
    trial.entry(10)
    be_this_old(trial, age)

    found = usage_about_to_expire(trial.connection, trial.settings.protocol_times, now=trial.flow.clock())

    assert sum(one.units for one in found) == told
    assert [(one.organization_id, one.meter) for one in found] == ([("acme", METER)] if told else [])


@V1_ONLY
@pytest.mark.parametrize("kind", ["unmapped", "rejected", "sent"])
def test_d16_the_alarm_counts_what_is_owed_and_not_what_was_sent(trial, kind):
    trial.use(10)
    if kind == "unmapped":
        trial.connection.execute("DELETE FROM customer_mappings")
    trial.cut()
    if kind == "rejected":
        trial.flow.stripe.v1.customers.delete(trial.customer)
    trial.send()
    trial.pass_time(days=31)

    found = usage_about_to_expire(trial.connection, trial.settings.protocol_times, now=trial.flow.clock())

    assert sum(one.units for one in found) == (0 if kind == "sent" else 10)


@V1_ONLY
def test_d16_the_alarm_is_a_failed_check_and_a_line_of_the_ledgers_status(trial, tmp_path, monkeypatch):
    old = trial.flow.clock() - timedelta(days=31)
    trial.connection.execute("DELETE FROM customer_mappings")
    trial.use(10, occurred_at=old, recorded_at=old)
    trial.cut()
    use_environment(monkeypatch, trial.settings)

    run = dg.materialize(
        [*(defs.assets or []), *(defs.asset_checks or [])],
        selection=dg.AssetSelection.checks_for_assets(dg.AssetKey("usage_reconciliation")),
        resources=dict(defs.resources or {}),
    )
    code, out, err = billing_pipeline(
        "ledger", "status", folder=tmp_path, DATABASE_URL=trial.database_url, BILLING_STATE_DIR=str(tmp_path)
    )

    passed = {check.check_name: check.passed for check in run.get_asset_check_evaluations()}
    assert passed["usage_is_sent_in_time"] is False
    assert (code, err) == (0, "")
    assert "10 units older than 30 days and not sent, refused from day 34 on" in out
    assert f"acme, {METER}: 10 since {old:%Y-%m-%d}" in out


OUTAGES = [1, 19, 21, 40]


@pytest.mark.parametrize("hours", OUTAGES)
def test_d20_an_outage_of_any_length_loses_nothing_and_doubles_nothing(trial, hours):
    """Meter events go out every hour; during the outage half of them are counted unheard, the others are lost."""
    truth = Counter()

    def use(number):
        hour = trial.closed - number * HOUR
        trial.use(number + 1, hours_before=number)
        truth[(trial.customer, METER, hour)] += number + 1

    for number in range(4):
        use(number)
    blows = cycle(
        [FaultKind.LOSE_ANSWER, FaultKind.LOSE_REQUEST, FaultKind.ERROR_500_AFTER, FaultKind.ERROR_500_BEFORE]
    )
    for hour in range(hours):
        trial.weather.faults = [next(blows) for _ in range(50)]
        trial.flush()
        if hour % 10 == 5:
            use(4 + hour)
        trial.pass_time(hours=1)
    trial.require_invariants()
    trial.weather.faults = []
    for _ in range(5):
        trial.flush()
        trial.pass_time(hours=10)
    trial.flush()

    assert trial.counted() == dict(truth)
    assert set(trial.states()) <= {"confirmed", "replaced"}
    identifiers = Counter(record["identifier"] for record in trial.simulator.journal("meter_event"))
    assert max(identifiers.values()) == 1
    trial.require_invariants()


@V1_ONLY
@pytest.mark.parametrize("hours", [1, 40])
def test_d20_while_nothing_of_stripe_answers_no_attempt_is_made_and_afterwards_all_is_sent(trial, hours):
    trial.use(10)
    trial.weather.other_faults = lambda request: Fault(FaultKind.LOSE_REQUEST)
    for _ in range(hours):
        with pytest.raises(StripeUnavailable, match="does not answer at " + trial.simulator.url):
            trial.flush()
        trial.pass_time(hours=1)
    assert trial.outcomes() == []

    trial.weather.other_faults = lambda request: None
    trial.flush()

    assert trial.states() == ["confirmed"]
    assert list(trial.counted().values()) == [10]


def test_d20_an_outage_of_more_than_35_days_sends_nothing_late_and_names_it_owed(trial):
    trial.entry(10)
    trial.weather.faults = [FaultKind.LOSE_REQUEST] * 4
    trial.flow.submit()
    trial.pass_time(days=36)

    trial.flush()
    trial.flush()

    assert trial.counted() == {}
    assert trial.states() == ["replaced"]
    report = reconcile(trial.connection, settings=trial.settings, now=trial.flow.clock())
    assert [(found.kind, found.units) for found in report.differences] == [("held", 10)]


def test_d20_a_ledger_with_nothing_else_to_send_still_finds_out_what_was_lost(trial):
    """The canary of the only flush was lost with its entry, and no usage follows that would bring another."""
    trial.entry(10)
    trial.weather.faults = [FaultKind.ASYNC_SILENT_DROP] * 9
    trial.flow.submit()
    trial.weather.faults = []
    assert trial.states() == ["accepted"]

    for _ in range(12):
        trial.pass_time(hours=2)
        trial.flush()

    assert trial.states() == ["replaced", "confirmed"]
    assert list(trial.counted().values()) == [10]
