"""Error reports of the stream: windows, samples, filters and pages, in the shapes that Stripe's events have."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import stripe

from billing_pipeline_tests.stripe_simulator.conftest import make_account

THIN_EVENTS = Path(__file__).parents[3] / "shared" / "stripe" / "thin_events"
REPORT, NO_METER = "v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"


def sample(name):
    if not THIN_EVENTS.parents[1].exists():
        pytest.skip(f"{THIN_EVENTS.parents[1]} is not there: Stripe's sample events are kept beside it")
    return json.loads((THIN_EVENTS / name).read_text())


def shape(value):
    """The keys and types of a JSON value; a list has the shapes of its items."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def bad(account, number=0, **overrides):
    return account.event(**{"identifier": f"bad{number}", "payload": {"value": "1"}, **overrides})


def listed(account, **params):
    return account.client.v2.core.events.list(params).data


def test_report_of_a_meter_has_the_shape_of_stripe(account):
    expected = sample("v1.billing.meter.error_report_triggered.fetched.one_code.json")
    notified = sample("v1.billing.meter.error_report_triggered.notification.json")
    account.stream(bad(account))
    account.clock.advance(seconds=10)
    [event] = listed(account)
    fetched = account.client.v2.core.events.retrieve(event.id)

    assert shape(event.to_dict()) == shape(notified)
    assert shape(fetched.to_dict()) == shape(expected)
    assert isinstance(fetched, stripe.events.V1BillingMeterErrorReportTriggeredEvent)
    assert fetched.fetch_related_object().id == account.meter
    assert fetched.data.developer_message_summary == "There is 1 invalid event"
    [error_type] = fetched.data.reason.error_types
    [expected_type] = expected["data"]["reason"]["error_types"]
    assert error_type.sample_errors[0].error_message == expected_type["sample_errors"][0]["error_message"]


def test_report_without_a_meter_has_the_shape_of_stripe(account):
    expected = sample("v1.billing.meter.no_meter_found.fetched.json")
    account.stream(account.event(event_name="unknown"))
    account.clock.advance(seconds=10)
    [event] = listed(account)
    fetched = account.client.v2.core.events.retrieve(event.id)

    assert shape(event.to_dict()) == shape(sample("v1.billing.meter.no_meter_found.notification.json"))
    assert shape(fetched.to_dict()) == shape(expected)
    assert isinstance(fetched, stripe.events.V1BillingMeterNoMeterFoundEvent)


def test_report_appears_when_its_window_of_10_seconds_has_closed(account):
    """Noon and 30 seconds opens a window; the last event of it comes 9 seconds later."""
    account.stream(bad(account, 1))
    account.clock.advance(seconds=9)
    account.stream(bad(account, 2))
    assert listed(account) == []

    account.clock.advance(seconds=1)
    account.stream(bad(account, 3))
    [event] = listed(account)
    data = account.client.v2.core.events.retrieve(event.id).data
    assert (data.validation_start, data.validation_end) == ("2026-06-15T12:00:30.000Z", "2026-06-15T12:00:40.000Z")
    assert data.reason.error_count == 2

    account.clock.advance(seconds=10)
    assert len(listed(account)) == 2


def test_report_that_has_not_appeared_cannot_be_fetched(account):
    account.stream(bad(account))
    account.clock.advance(seconds=10)
    [event] = listed(account)
    account.clock.advance(seconds=-1)
    for id in (event.id, "evt_test_unknown"):
        with pytest.raises(stripe.InvalidRequestError, match="No such event") as caught:
            account.client.v2.core.events.retrieve(id)
        assert (caught.value.http_status, caught.value.code) == (404, "not_found")


def test_report_counts_everything_and_samples_a_few():
    account = make_account(error_samples_max=2)
    account.stream(*(bad(account, n) for n in range(50)), bad(account, 50, payload={"stripe_customer_id": "x"}))
    account.clock.advance(seconds=10)
    [event] = listed(account)
    data = account.client.v2.core.events.retrieve(event.id).data

    assert data.developer_message_summary == "There are 51 invalid events"
    assert [(t.code, t.error_count) for t in data.reason.error_types] == [
        ("meter_event_no_customer_defined", 50),
        ("meter_event_value_not_found", 1),
    ]
    samples = data.reason.error_types[0].sample_errors
    assert [s.request.identifier for s in samples] == ["bad0", "bad1"]


def test_meters_are_reported_apart_and_found_by_type_and_object(account):
    other = account.client.v1.billing.meters.create(
        {"display_name": "Other", "event_name": "other", "default_aggregation": {"formula": "sum"}}
    )
    account.stream(bad(account), bad(account, 1, event_name="other"), bad(account, 2, event_name="unknown"))
    account.clock.advance(seconds=10)

    assert len(listed(account)) == 3
    assert [e.related_object.id for e in listed(account, object_id=other.id)] == [other.id]
    assert [e.type for e in listed(account, types=[NO_METER])] == [NO_METER]
    assert len(listed(account, types=[NO_METER, REPORT])) == 3
    assert listed(account, types=["v2.core.other"]) == []
    with pytest.raises(stripe.InvalidRequestError, match="at most 20"):
        listed(account, types=[f"t{n}" for n in range(21)])


def test_created_bounds_are_read_to_the_fraction(account):
    account.stream(bad(account))
    account.clock.advance(seconds=10)
    created = "2026-06-15T12:00:40Z"

    def found(**bounds):
        return len(listed(account, created=bounds)) == 1

    assert found(gte=created)
    assert found(lte=created)
    assert not found(gt=created)
    assert not found(lt=created)
    assert found(lt="2026-06-15T12:00:40.001Z", gt="2026-06-15T14:00:39.999+02:00")


def test_pages_show_every_report_once_newest_first(account):
    for number in range(7):
        account.stream(bad(account, number), bad(account, number, event_name="unknown"))
        account.clock.advance(seconds=10)
    pages = account.client.v2.core.events.list(
        {"limit": 3, "types": [REPORT], "created": {"gte": "2026-01-01T00:00:00Z"}}
    )
    first = pages.data
    created = [event.created for event in pages.auto_paging_iter()]

    assert len(first) == 3
    assert len(created) == 7
    assert created == sorted(set(created), reverse=True)
    assert len(list(account.client.v2.core.events.list({"limit": 5}).auto_paging_iter())) == 14


def test_reports_go_back_30_days(account):
    account.stream(bad(account))
    account.clock.advance(seconds=10)
    [event] = listed(account)
    account.clock.advance(days=30)
    assert [e.id for e in listed(account)] == [event.id]

    account.clock.advance(seconds=1)
    assert listed(account) == []
    with pytest.raises(stripe.InvalidRequestError, match="No such event"):
        account.client.v2.core.events.retrieve(event.id)


def test_delay_moves_the_window():
    account = make_account(stream_delay=timedelta(seconds=25))
    account.stream(bad(account))
    account.clock.advance(seconds=30)
    [event] = listed(account)

    assert event.created == "2026-06-15T12:01:00.000Z"
