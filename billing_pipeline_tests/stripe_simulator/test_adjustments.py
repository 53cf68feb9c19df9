"""Cancelling a meter event through the official SDK."""

from __future__ import annotations

from datetime import timedelta

import pytest
import stripe

from billing_pipeline_tests.fix_simulator import KEY
from billing_pipeline_tests.stripe_simulator.conftest import make_account

DAY = 86_400


def cancel(account, identifier="a", event_name="api_calls"):
    return account.client.v1.billing.meter_event_adjustments.create(
        {"event_name": event_name, "type": "cancel", "cancel": {"identifier": identifier}}
    )


@pytest.mark.parametrize("channel", ["v1", "v2", "stream"])
def test_cancelled_event_disappears_from_the_summaries(account, channel):
    if channel == "v1":
        account.send("3", identifier="a")
    elif channel == "v2":
        account.client.v2.billing.meter_events.create(account.event("3", identifier="a"))
    else:
        account.stream(account.event("3", identifier="a"))
    account.send("1")
    adjustment = cancel(account)

    assert adjustment.to_dict() == {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": "a"},
        "event_name": "api_calls",
        "livemode": False,
        "status": "complete",
        "type": "cancel",
    }
    assert account.total() == 1.0
    sums = account.core.handle("GET", "/_journal/meter_events", {"group": "customer"}, key=KEY).body["data"]
    assert sums == [{"customer": account.customer, "count": 1, "value": "1"}]


def test_event_can_be_cancelled_for_24_hours_after_its_receipt(account):
    account.send(identifier="a", timestamp=account.now - 30 * DAY)
    account.send(identifier="b")
    account.clock.advance(seconds=DAY - 1)
    cancel(account, "a")
    account.clock.advance(seconds=1)
    with pytest.raises(stripe.InvalidRequestError, match="more than 24 hours ago"):
        cancel(account, "b")

    assert account.total() == 1.0


@pytest.mark.parametrize(("identifier", "event_name"), [("unknown", "api_calls"), ("a", "other")])
def test_unknown_event_cannot_be_cancelled(account, identifier, event_name):
    account.send(identifier="a")
    with pytest.raises(stripe.InvalidRequestError, match="No meter event found"):
        cancel(account, identifier, event_name)

    assert account.total() == 1.0


def test_event_is_cancelled_once(account):
    account.send("3", identifier="a")
    cancel(account)
    with pytest.raises(stripe.InvalidRequestError, match="already been cancelled"):
        cancel(account)

    assert len(account.journal("meter_event_cancelled")) == 1


def test_cancelled_identifier_stays_taken(account):
    account.send("3", identifier="a")
    cancel(account)

    assert "already exists" in str(account.refused(identifier="a"))


def test_event_counted_after_a_cancelled_one_of_the_same_identifier_stays(account):
    account.send("3", identifier="a")
    cancel(account)
    account.clock.advance(seconds=DAY)
    account.send("4", identifier="a")

    assert account.total() == 4.0


def test_cancellation_is_pending_until_it_shows():
    account = make_account(stream_delay=timedelta(minutes=1))
    account.send("3", identifier="a")

    assert cancel(account).status == "pending"
    assert account.total() == 3.0
    account.clock.advance(minutes=1)
    assert account.total() == 0
