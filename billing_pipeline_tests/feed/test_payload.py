"""A payload says the same whatever shape Stripe's event has, fits its schema, and knows nothing about a person."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from billing_pipeline.domain.projections.projected import Projected
from billing_pipeline.feed.payload import LINES_MAX, VERSION, faults_of, make_payload, schema
from billing_pipeline.webhooks.handlers import understood
from billing_pipeline_tests.fixtures import load_fixtures
from billing_pipeline_tests.webhooks.events import event, invoice, subscription

GOLDEN = Path(__file__).with_name("golden")
VERSIONS = ("2024-06-20", "2026-10-28.endive")
SAMPLES = Path(__file__).parents[3] / "shared" / "stripe" / "webhook_events"
PERSONAL = ("email", "name", "phone", "address", "ip", "description", "card", "receipt")


def payload_of(one):
    shown = understood(one["type"], one)
    return shown and make_payload(
        shown,
        organization_id="acme",
        stripe_event_id=one["id"],
        event_type=one["type"],
        occurred_at=datetime.fromtimestamp(one["created"], UTC),
    )


def fixtures(version):
    return {one["type"]: one for one in load_fixtures() if one.get("api_version") == version}


@pytest.mark.parametrize("event_type", sorted(fixtures(VERSIONS[0])))
@pytest.mark.parametrize("version", VERSIONS)
def test_both_api_versions_give_the_golden_payload(version, event_type):
    """One file for both: what a consumer reads does not depend on the API version of the endpoint."""
    payload = payload_of(fixtures(version)[event_type])
    golden = json.loads((GOLDEN / f"{event_type}.json").read_text(encoding="utf-8"))

    assert payload | {"stripe_event_id": golden["stripe_event_id"]} == golden
    assert faults_of(payload) == []


def test_the_schema_is_a_schema_and_says_its_version():
    Draft202012Validator.check_schema(schema())

    assert schema()["properties"]["version"] == {"description": "of this schema", "const": VERSION}


def test_nothing_about_a_person_is_in_it():
    person = {
        "customer_email": "grace@example.com",
        "customer_name": "Grace Hopper",
        "customer_address": {"line1": "1 Main St"},
        "description": "for Grace Hopper",
        "footer": "Dear Grace",
        "metadata": {"organization_id": "acme", "note": "Grace"},
    }
    told = invoice(**person)
    told["lines"]["data"][0] |= {"description": "Grace Hopper's seat", "metadata": {"user": "Grace"}}

    assert "race" not in json.dumps(payload_of(event("invoice.paid", told)))
    assert "race" not in json.dumps(
        payload_of(event("customer.updated", {"id": "cus_1", "object": "customer", **person}))
    )


def names_in(value):
    if isinstance(value, dict):
        for name, inner in value.get("properties", {}).items():
            yield name
            yield from names_in(inner)
        if "items" in value:
            yield from names_in(value["items"])


def test_the_schema_has_no_field_for_a_person():
    assert [name for name in names_in(schema()) if any(part in name.split("_") for part in PERSONAL)] == []


def test_an_invoice_of_many_lines_says_that_it_shows_only_some():
    told = invoice()
    told["lines"]["data"] *= LINES_MAX + 1
    shown = payload_of(event("invoice.paid", told))["invoice"]

    assert (len(shown["lines"]), shown["lines_complete"]) == (LINES_MAX, False)


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"version": 2}, "$.version"),
        ({"email": "grace@example.com"}, "$"),
        ({"occurred_at": "2026-09-21T12:00:00"}, "$.occurred_at"),
        ({"subscription": None}, "$.subscription"),
        ({"invoice": {"total": 48.5}}, "$.invoice"),
        ({"organization_id": None}, "$.organization_id"),
    ],
)
def test_what_does_not_fit_is_found_and_not_quoted(change, at):
    payload = payload_of(event("customer.subscription.created", subscription()))
    faults = faults_of(payload | change)

    assert [fault for fault in faults if fault.startswith(at)]
    assert "grace" not in "".join(faults)


AMOUNT = st.none() | st.integers(-(2**63) + 1, 2**63 - 1)
TEXT = st.none() | st.text(max_size=20)
SECOND = st.none() | st.integers(0, 4_000_000_000)


@given(
    amounts=st.fixed_dictionaries(dict.fromkeys(("subtotal", "total", "amount_due", "amount_paid"), AMOUNT)),
    texts=st.fixed_dictionaries(dict.fromkeys(("number", "billing_reason"), TEXT)),
    seconds=st.fixed_dictionaries(dict.fromkeys(("finalized_at", "paid_at"), SECOND)),
    status=st.sampled_from(["draft", "open", "paid", "void", "uncollectible"]),
    currency=st.none() | st.sampled_from(["usd", "jpy", "kwd"]),
)
def test_every_invoice_that_can_be_read_fits_the_schema_with_exact_amounts(amounts, texts, seconds, status, currency):
    told = invoice(**amounts, **texts, status=status, currency=currency, status_transitions=seconds)
    payload = json.loads(json.dumps(payload_of(event("invoice.updated", told))))

    assert faults_of(payload) == []
    assert {name: payload["invoice"][name] for name in amounts} == amounts


@pytest.mark.skipif(
    not SAMPLES.parents[1].exists(), reason=f"{SAMPLES.parents[1]} is not there: Stripe's sample events are kept in it"
)
def test_stripes_own_sample_events_fit_the_schema():
    told = 0
    for path in sorted(SAMPLES.glob("[!_]*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        payload = payload_of(one) if isinstance(understood(one["type"], one), Projected) else None
        if payload is not None:
            told += 1
            assert faults_of(payload) == [], path.name

    assert told >= 10
