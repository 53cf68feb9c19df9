"""POST /v2/billing/meter_events through the official SDK: the rules of v1, with codes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import stripe

from billing_pipeline_tests.fix_simulator import make_core, running_simulator
from billing_pipeline_tests.stripe_simulator.conftest import make_account

DAY = 86_400


def create(account, options=None, **overrides):
    return account.client.v2.billing.meter_events.create(account.event(**overrides), options)


def refused(account, **overrides):
    with pytest.raises(stripe.InvalidRequestError) as caught:
        create(account, **overrides)
    assert account.journal("meter_event") == []
    return caught.value


def test_meter_event_is_answered_as_stripe_does_and_counted_once(account):
    answer = create(account, value="2.5", identifier="a", timestamp="2026-06-15T12:00:00Z")

    assert answer.to_dict() == {
        "object": "v2.billing.meter_event",
        "created": "2026-06-15T12:00:30.000Z",
        "event_name": "api_calls",
        "identifier": "a",
        "livemode": False,
        "payload": {"stripe_customer_id": account.customer, "value": "2.5"},
        "timestamp": "2026-06-15T12:00:00.000Z",
    }
    assert account.total() == 2.5


@pytest.mark.parametrize(
    ("code", "overrides"),
    [
        ("no_meter", {"event_name": "unknown"}),
        ("payload_no_customer_defined", {"payload": {"value": "1"}}),
        ("payload_no_value_defined", {"payload": {"stripe_customer_id": "x"}}),
        ("payload_invalid_value", {"value": "many"}),
        ("payload_invalid_value", {"value": "1234567890123456"}),
        ("resource_missing", {"payload": {"stripe_customer_id": "cus_x", "value": "1"}}),
        ("timestamp_too_far_in_past", {"timestamp": "2026-05-01T00:00:00Z"}),
        ("timestamp_in_future", {"timestamp": "2026-06-15T12:05:31Z"}),
    ],
)
def test_refusal_names_its_code(account, code, overrides):
    error = refused(account, **overrides)

    assert (error.http_status, error.code) == (400, code)


def test_archived_meter_is_told_from_an_unknown_one(account):
    account.client.v1.billing.meters.deactivate(account.meter)

    assert refused(account).code == "archived_meter"


def test_identifier_is_shared_with_v1_and_the_duplicate_has_a_code(account):
    account.send("7", identifier="same")
    with pytest.raises(stripe.InvalidRequestError) as caught:
        create(account, identifier="same")
    create(account, identifier="other")

    assert caught.value.code == "duplicate_meter_event"
    assert "already exists" in str(account.refused(identifier="other"))
    assert account.total() == 8.0


def test_failed_request_is_executed_again_under_its_key(account):
    """v1 repeats the error of an executed request; v2 repeats success only."""
    key = {"idempotency_key": "k"}
    account.client.v1.billing.meters.deactivate(account.meter)
    with pytest.raises(stripe.InvalidRequestError):
        create(account, key)
    account.client.v1.billing.meters.reactivate(account.meter)
    first, again = create(account, key), create(account, key)

    assert again.identifier == first.identifier
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert account.total() == 1.0


def test_key_is_remembered_for_30_days(account):
    key, stamped = {"idempotency_key": "k"}, {"timestamp": "2026-06-15T12:00:00Z"}
    first = create(account, key, **stamped)
    account.clock.advance(seconds=30 * DAY - 1)
    assert create(account, key, **stamped).identifier == first.identifier

    account.clock.advance(seconds=1)
    assert create(account, key, **stamped).identifier != first.identifier


def test_second_call_for_the_same_customer_and_meter_is_a_conflict():
    account = make_account(core=make_core())
    with (
        running_simulator(account.core, processing=timedelta(seconds=0.4)) as running,
        ThreadPoolExecutor(2) as pool,
    ):

        def send(number):
            try:
                return running.client().v2.billing.meter_events.create(account.event(identifier=f"e{number}"))
            except stripe.APIError as error:
                return error

        [conflict] = [answer for answer in pool.map(send, range(2)) if isinstance(answer, stripe.APIError)]

    assert conflict.http_status == 409
    assert conflict.json_body["error"]["code"] == "too_many_concurrent_requests"
    assert len(account.journal("meter_event")) == 1
