"""Table D, the wrong Stripe: another account, another mode, or meters that count otherwise than the catalogue says.

Each is noticed before anything is sent; a swapped key makes one request, the one that asks whose it is.
"""

from __future__ import annotations

import pytest

from billing_pipeline.errors import IdentityMismatch, StripeRefused
from billing_pipeline.stripe_simulator.faults import Fault, FaultKind
from billing_pipeline_tests.fix_simulator import SimulatorClock, make_core, running_simulator
from billing_pipeline_tests.fix_trial import METER, V1_ONLY, V2_ONLY, Weather

STAGES = ["submit", "confirm", "apply_error_reports", "cut"]


@pytest.fixture
def other_account(trial):
    """A second Stripe account, and the requests it has seen."""
    weather = Weather()
    with running_simulator(make_core(SimulatorClock(), fault=weather)) as simulator:
        yield simulator, weather


@pytest.mark.parametrize("stage", STAGES)
def test_d17_a_key_of_another_account_makes_one_request_and_sends_nothing(trial, other_account, stage):
    trial.entry(10)
    simulator, weather = other_account
    swapped = trial.another_flow(stripe_api_base=simulator.url, stripe_secret_key="sk_test_of_another_account")

    with pytest.raises(IdentityMismatch, match="This ledger is bound to"):
        getattr(swapped, stage)()

    assert [(request.method, request.path) for request in weather.requests] == [("GET", "/v1/account")]
    assert (trial.states(), trial.outcomes()) == (["pending"], [])


@V1_ONLY
@pytest.mark.parametrize("stage", STAGES)
def test_d17_a_live_key_at_a_test_ledger_makes_one_request_and_sends_nothing(trial, stage):
    trial.entry(10)
    before = len(trial.weather.requests)
    live = trial.another_flow(stripe_secret_key="sk_live_0123456789abcdef")

    with pytest.raises(StripeRefused) as refusal:
        getattr(live, stage)()

    assert "0123456789" not in str(refusal.value)
    assert [request.path for request in trial.weather.requests[before:]] == ["/v1/account"]
    assert trial.states() == ["pending"]


@V1_ONLY
def test_d17_a_test_key_at_a_live_ledger_sends_nothing(trial):
    trial.entry(10)
    trial.connection.execute("UPDATE ledger_identity SET livemode = true")

    with pytest.raises(IdentityMismatch, match="live mode"):
        trial.flow.submit()

    assert trial.counted() == {}


@V1_ONLY
def test_d17_an_answer_of_the_other_mode_is_no_success(trial):
    entry = trial.entry(10)
    trial.weather.faults = [FaultKind.WRONG_MODE]

    assert trial.send().unknown == 1

    assert trial.rows("SELECT error_code FROM attempts") == [("foreign_answer",)]
    trial.pass_time(minutes=11)
    trial.send()
    assert trial.counted() == {entry: 10}


@V2_ONLY
def test_d17_a_session_of_the_other_mode_is_not_used(trial):
    trial.entry(10)
    trial.weather.other_faults = lambda request: Fault(FaultKind.WRONG_MODE)

    assert trial.send().not_executed == 1

    assert (trial.states(), trial.weather.sent) == (["pending"], [])


@V1_ONLY
def test_d17_a_summary_of_the_other_mode_proves_nothing(trial):
    trial.entry(10)
    trial.send()
    trial.weather.other_faults = lambda request: (
        Fault(FaultKind.WRONG_MODE) if request.path.endswith("/event_summaries") else None
    )

    with pytest.raises(StripeRefused, match="live mode"):
        trial.flow.confirm()

    assert trial.states() == ["accepted"]


WRONG_METERS = {
    "counts_events": {"default_aggregation": {"formula": "count"}},
    "keeps_the_last": {"default_aggregation": {"formula": "last"}},
    "keeps_one_event_an_hour": {"event_time_window": "hour"},
    "keeps_one_event_a_day": {"event_time_window": "day"},
    "another_value_key": {"value_settings": {"event_payload_key": "tokens"}},
    "another_customer_key": {"customer_mapping": {"type": "by_id", "event_payload_key": "account"}},
    "archived": None,
}


@pytest.mark.parametrize("wrong", WRONG_METERS.values(), ids=WRONG_METERS.keys())
def test_d19_a_meter_that_counts_otherwise_than_the_catalogue_says_gets_nothing(trial, wrong):
    trial.entry(10)
    trial.flow.stripe.v1.billing.meters.deactivate(trial.flow.meters_at_stripe[METER].meter_id)
    if wrong is not None:
        right = {"display_name": "x", "event_name": METER, "default_aggregation": {"formula": "sum"}}
        trial.flow.stripe.v1.billing.meters.create(right | wrong)

    with pytest.raises(StripeRefused, match=METER):
        trial.another_flow().submit()

    assert trial.weather.sent == []
    assert (trial.states(), trial.outcomes()) == (["pending"], [])


def test_d19_the_meters_that_setup_makes_are_the_ones_a_flush_asks_for(trial):
    entry = trial.entry(10)

    trial.another_flow().submit()

    assert trial.counted() == {entry: 10}
