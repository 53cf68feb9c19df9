"""The rules by which a meter event is counted or refused, through the official SDK."""

from __future__ import annotations

import pytest
import stripe

from billing_pipeline_tests.stripe_simulator.conftest import make_account

DAY = 86_400


def test_meter_event_is_answered_as_stripe_does_and_counted_once(account):
    answer = account.send("25", identifier="first", timestamp=account.now - 60)

    assert answer.to_dict() == {
        "object": "billing.meter_event",
        "created": account.now,
        "event_name": "api_calls",
        "identifier": "first",
        "livemode": False,
        "payload": {"stripe_customer_id": account.customer, "value": "25"},
        "timestamp": account.now - 60,
    }
    [counted] = account.journal("meter_event")
    assert (counted["identifier"], counted["value"], counted["customer"]) == ("first", "25", account.customer)
    assert counted["request_id"] == answer.last_response.request_id


def test_same_identifier_is_refused_and_the_first_value_stays(account):
    account.send("25", identifier="same")
    error = account.refused(value="99", identifier="same")

    assert (error.http_status, error.code) == (400, None)
    assert error.user_message == "An event already exists with identifier same."
    assert error.error.type == "invalid_request_error"
    assert error.headers["stripe-should-retry"] == "false"
    assert [e["value"] for e in account.journal("meter_event")] == ["25"]


def test_identifier_is_unique_in_the_account_not_in_the_meter(account):
    account.client.v1.billing.meters.create(
        {"display_name": "Other", "event_name": "other", "default_aggregation": {"formula": "sum"}}
    )
    account.send(identifier="same")

    assert "already exists" in str(account.refused(identifier="same", event_name="other"))


def test_identifier_is_forgotten_after_the_horizon_and_not_a_second_before(account):
    account.send(identifier="same")
    account.clock.advance(seconds=DAY - 1)
    account.refused(identifier="same")
    account.clock.advance(seconds=1)
    account.send(identifier="same")

    assert len(account.journal("meter_event")) == 2


def test_refused_event_leaves_its_identifier_free(account):
    account.refused(identifier="again", timestamp=account.now - 36 * DAY)
    account.send(identifier="again")

    assert len(account.journal("meter_event")) == 1


def test_identifier_is_made_when_absent_and_never_twice(account):
    identifiers = {account.send(identifier=None).identifier for _ in range(3)}

    assert len(identifiers) == 3


def test_timestamp_may_be_35_days_old_and_no_older(account):
    oldest = account.now - 35 * DAY
    account.send(timestamp=oldest)
    error = account.refused(timestamp=oldest - 1)

    assert error.user_message == (
        "The event timestamp cannot be more than 35 days in past. "
        f"Expected a timestamp greater than or equal to {oldest}."
    )


def test_timestamp_may_be_5_minutes_ahead_and_no_more(account):
    account.send(timestamp=account.now + 300)

    assert "5 minutes in future" in str(account.refused(timestamp=account.now + 301))


def test_timestamp_is_now_when_absent(account):
    assert account.send().timestamp == account.now


@pytest.mark.parametrize("value", ["0", "-7", "0.000000000001", "999999999999999", "-0.5", "000000000000000001"])
def test_plain_decimal_value_is_counted_exactly(account, value):
    account.send(value)

    assert account.journal("meter_event")[-1]["value"] == value


@pytest.mark.parametrize(
    "value", ["1E+3", "1e3", "NaN", "Infinity", "abc", "1,000", "+1", " 1", ".5", "1.", "٣", "0x10"]
)
def test_value_that_is_not_a_plain_decimal_is_refused(account, value):
    assert "must be a decimal number" in str(account.refused(value=value))


@pytest.mark.parametrize("value", ["1234567890123456", "-1.234567890123456", "1000000000000000"])
def test_value_of_more_than_15_digits_is_refused(account, value):
    error = account.refused(value=value)

    assert error.user_message == f"The value in the event payload can have at most 15 digits. Received {value}."


@pytest.mark.parametrize("missing", ["stripe_customer_id", "value"])
def test_payload_must_hold_the_keys_of_the_meter(account, missing):
    payload = {"stripe_customer_id": account.customer, "value": "1", "region": "eu"}
    del payload[missing]

    assert f"'{missing}'" in str(account.refused(payload=payload))


def test_meter_may_name_its_own_payload_keys():
    account = make_account(
        meter={
            "customer_mapping": {"type": "by_id", "event_payload_key": "who"},
            "value_settings": {"event_payload_key": "how_much"},
        }
    )
    account.send(payload={"who": account.customer, "how_much": "4", "region": "eu"})

    assert account.journal("meter_event")[0]["value"] == "4"


def test_unknown_customer_is_refused(account):
    error = account.refused(payload={"stripe_customer_id": "cus_x", "value": "1"})

    assert error.http_status == 400
    assert "No such customer: 'cus_x'" in str(error)


def test_deleted_customer_is_refused(account):
    account.client.v1.customers.delete(account.customer)

    assert "No such customer" in str(account.refused())


def test_unknown_or_inactive_meter_is_refused(account):
    assert "No active meter found" in str(account.refused(event_name="unknown"))

    account.client.v1.billing.meters.deactivate(account.meter)
    assert "No active meter found" in str(account.refused())

    account.client.v1.billing.meters.reactivate(account.meter)
    account.send()


@pytest.mark.parametrize("name", ["identifier", "event_name"])
def test_text_of_more_than_100_characters_is_refused(account, name):
    error = account.refused(**{name: "x" * 101})

    assert error.param == name
    assert "at most 100 characters" in str(error)


def test_identifier_of_100_characters_is_counted(account):
    assert account.send(identifier="x" * 100).identifier == "x" * 100


def test_unknown_parameter_is_refused_by_name(account):
    error = account.refused(quantity=3)

    assert (error.code, error.param) == ("parameter_unknown", "quantity")


@pytest.mark.parametrize("name", ["event_name", "payload"])
def test_missing_parameter_is_refused_by_name(account, name):
    error = account.refused(**{name: None})

    assert (error.code, error.param) == ("parameter_missing", name)


def test_meter_events_cannot_be_listed(account):
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        account.client.raw_request("get", "/v1/billing/meter_events")
