"""Events: every change makes one, it shows the object as it was, and a restart keeps it."""

from __future__ import annotations

import pytest
import stripe

from billing_pipeline.stripe_simulator.journal import FileJournal
from billing_pipeline.stripe_simulator.snapshots import previous_attributes
from billing_pipeline_tests.fix_simulator import KEY, client_without_sockets, make_core
from billing_pipeline_tests.stripe_simulator.lives import make_shop


@pytest.fixture
def shop():
    return make_shop()


def test_an_event_has_the_envelope_and_the_object_of_its_moment(shop):
    made = shop.client.customers.create({"name": "Old"}, {"idempotency_key": "k"})
    shop.client.customers.update(made.id, {"name": "New"})

    created, updated = shop.events()[-2:]
    assert (created["type"], created["data"]["object"]["name"]) == ("customer.created", "Old")
    assert created["data"]["object"] == made.to_dict()
    assert created["request"]["idempotency_key"] == "k"
    assert created["request"]["id"] == made.last_response.request_id
    assert "previous_attributes" not in created["data"]
    assert (updated["type"], updated["data"]["previous_attributes"]) == ("customer.updated", {"name": "Old"})
    for event in (created, updated):
        assert event["id"].startswith("evt_")
        assert (event["object"], event["livemode"], event["api_version"]) == ("event", False, "2026-10-28.endive")
        assert event["created"] == shop.account.now


def test_an_update_that_changes_nothing_makes_no_event(shop):
    id = shop.client.customers.create({"name": "Same"}).id
    before = shop.mark()
    shop.client.customers.update(id, {"name": "Same"})

    assert shop.told_since(before) == []


def test_the_event_of_a_deletion_shows_what_there_was(shop):
    id = shop.client.customers.create({"name": "Gone"}).id
    shop.client.customers.delete(id)

    assert shop.events()[-1]["type"] == "customer.deleted"
    assert shop.events()[-1]["data"]["object"]["name"] == "Gone"


def test_previous_attributes_hold_what_changed_and_of_lists_the_whole():
    before = {"a": 1, "b": {"x": 1, "y": 2}, "c": [1, 2], "d": 4}
    after = {"a": 1, "b": {"x": 1, "y": 3}, "c": [1, 3], "e": 5}

    assert previous_attributes(before, after) == {"b": {"y": 2}, "c": [1, 2], "d": 4, "e": None}


def test_events_are_the_same_after_a_restart(tmp_path):
    journal = FileJournal(tmp_path / "journal")
    shop = make_shop(journal=journal)
    shop.subscribe()
    shop.advance(days=20)
    shop.subscribe(trial_period_days=1)
    shop.advance(days=5)
    before = shop.events()
    journal.close()
    again = client_without_sockets(make_core(shop.account.clock, FileJournal(tmp_path / "journal")))

    assert [e.to_dict() for e in again.v1.events.list({"limit": 100}).auto_paging_iter()][::-1] == before
    assert len(before) > 10
    assert len({event["id"] for event in before}) == len(before)


def test_events_are_found_by_type_pattern_and_time(shop):
    shop.subscribe()
    first = shop.account.now
    shop.advance(days=1)
    shop.client.customers.create({})

    assert shop.told(type="invoice.paid") == ["invoice.paid"]
    assert set(shop.told(type="invoice.*")) == {
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "invoice.updated",
    }
    assert shop.told(types=["customer.created", "invoice.paid"]) == [
        "customer.created",
        "invoice.paid",
        "customer.created",
    ]
    assert shop.told(created={"gt": first}) == ["customer.created"]
    assert shop.told(created={"gte": first, "lt": first + 1}) == shop.told(created={"lte": first})
    assert len(shop.told(created=first)) == len(shop.told()) - 1
    with pytest.raises(stripe.InvalidRequestError, match="at most 20"):
        shop.told(types=[f"t{n}" for n in range(21)])


def test_events_are_paged_both_ways_without_gap_or_repeat(shop):
    for number in range(25):
        shop.client.customers.create({"name": str(number)})
        if number % 5 == 0:
            shop.advance(seconds=1)
    newest_first = [event.id for event in shop.client.events.list({"limit": 100}).data]

    for limit in (1, 7, 100):
        pages = shop.client.events.list({"limit": limit}).auto_paging_iter()
        assert [event.id for event in pages] == newest_first
    forward = shop.client.events.list({"limit": 7, "ending_before": newest_first[-1]}).auto_paging_iter()
    assert [event.id for event in forward] == newest_first[:-1][::-1]
    with pytest.raises(stripe.InvalidRequestError, match="No such event: 'evt_x'"):
        shop.client.events.list({"starting_after": "evt_x"})


def test_events_are_kept_for_30_days(shop):
    id = shop.events()[0]["id"]
    assert shop.client.events.retrieve(id).type == "customer.created"
    shop.advance(days=30)
    assert shop.client.events.retrieve(id).id == id
    shop.advance(seconds=1)

    assert shop.events() == []
    with pytest.raises(stripe.InvalidRequestError, match="No such event"):
        shop.client.events.retrieve(id)


def test_a_meter_event_makes_no_event(shop):
    before = shop.mark()
    shop.account.send("5")

    assert shop.told_since(before) == []
    assert "events" not in list(shop.account.core.journal.read())[-1]
    assert shop.account.core.handle("GET", "/v1/events", {"limit": "1"}, key=KEY).body["has_more"] is False
