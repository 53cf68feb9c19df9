"""What is read of an event before it is stored, and what is refused."""

import copy
from datetime import UTC, datetime
from json import dumps

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.domain.envelope import PayloadStyle, parse_envelope
from billing_pipeline.errors import DeliveryRefused

SNAPSHOT = {
    "id": "evt_1",
    "object": "event",
    "api_version": "2026-10-28.endive",
    "created": 1764547200,
    "livemode": False,
    "type": "customer.subscription.updated",
    "data": {"object": {"id": "sub_1", "object": "subscription", "metadata": {"organization_id": "acme"}}},
}
THIN = {
    "id": "evt_test_2",
    "object": "v2.core.event",
    "created": "2026-11-20T13:00:00.123Z",
    "livemode": False,
    "type": "v1.billing.meter.error_report_triggered",
    "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def changed(event, **changes):
    return {**copy.deepcopy(event), **changes}


def about(**fields):
    return changed(SNAPSHOT, data={"object": fields})


def test_a_snapshot_is_read():
    envelope = parse_envelope(dumps(SNAPSHOT))

    assert envelope.payload_style is PayloadStyle.SNAPSHOT
    assert envelope.created_at == datetime(2025, 12, 1, tzinfo=UTC)
    assert (envelope.object_id, envelope.object_key, envelope.tenant_hint) == ("sub_1", "sub_1", "acme")


def test_a_thin_event_is_read_with_its_milliseconds():
    envelope = parse_envelope(dumps(THIN))

    assert envelope.payload_style is PayloadStyle.THIN
    assert envelope.created_at == datetime(2026, 11, 20, 13, 0, 0, 123_000, tzinfo=UTC)
    assert (envelope.object_id, envelope.tenant_hint) == ("mtr_1", None)


@pytest.mark.parametrize(
    ("event", "key"),
    [
        (about(object="entitlements.active_entitlement_summary", customer="cus_1"), "cus_1"),
        (about(object="invoice", customer={"id": "cus_2", "object": "customer"}), "cus_2"),
        (about(object="invoice"), "evt_1"),
        (changed(THIN, related_object=None), "evt_test_2"),
    ],
    ids=["summary of a customer", "expanded customer", "nothing to hold on to", "thin about nothing"],
)
def test_what_has_no_id_is_ordered_by_its_customer_or_alone(event, key):
    envelope = parse_envelope(dumps(event))

    assert (envelope.object_id, envelope.object_key) == (None, key)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"client_reference_id": "acme", "metadata": {"tenant_id": "other"}}, "acme"),
        ({"metadata": {"tenant_id": "default"}}, "default"),
        ({"metadata": {"tenant_id": "x" * 300}}, None),
        ({"metadata": {"tenant_id": "a\nb"}}, None),
        ({"metadata": ["acme"]}, None),
        ({}, None),
    ],
)
def test_the_tenant_is_only_what_the_object_says(fields, hint):
    assert parse_envelope(dumps(about(id="sub_1", **fields))).tenant_hint == hint


@pytest.mark.parametrize(
    "event",
    [
        [],
        None,
        changed(SNAPSHOT, id="sub_1"),
        changed(SNAPSHOT, id="evt_" + "1" * 300),
        changed(SNAPSHOT, id=None),
        changed(SNAPSHOT, type=""),
        changed(SNAPSHOT, type="a\nb"),
        changed(SNAPSHOT, livemode=0),
        changed(SNAPSHOT, data={}),
        changed(SNAPSHOT, data={"object": []}),
        changed(SNAPSHOT, created=True),
        changed(SNAPSHOT, created=10**20),
        changed(SNAPSHOT, created="soon"),
        changed(THIN, related_object=[1]),
    ],
)
def test_what_cannot_be_stripes_is_refused(event):
    with pytest.raises(DeliveryRefused, match="not an event of Stripe's") as refused:
        parse_envelope(dumps(event))

    assert refused.value.reason == "invalid_payload"


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from([SNAPSHOT, THIN]), st.dictionaries(st.sampled_from([*SNAPSHOT, *THIN]), JSON, max_size=3))
def test_no_delivery_makes_anything_but_an_envelope_or_a_refusal(event, changes):
    try:
        envelope = parse_envelope(dumps(changed(event, **changes)))
    except DeliveryRefused:
        return
    assert envelope.object_key
    assert envelope.created_at.tzinfo is not None


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=4).map("other_{}".format), JSON, max_size=4))
def test_nothing_else_in_an_event_changes_its_envelope(others):
    around = others | SNAPSHOT | others
    within = others | about(**(others | SNAPSHOT["data"]["object"]))

    assert parse_envelope(dumps(around)) == parse_envelope(dumps(within)) == parse_envelope(dumps(SNAPSHOT))


@pytest.mark.parametrize("text", ["", "{", '{"id": NaN}', "[" * 100_000, '{"a":' * 100_000])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(DeliveryRefused, match="no JSON"):
        parse_envelope(text)
