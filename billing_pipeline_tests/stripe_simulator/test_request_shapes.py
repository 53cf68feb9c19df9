"""The simulator and Stripe's published specification agree on what a well-formed meter event request is."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline_tests.fix_simulator import KEY
from billing_pipeline_tests.stripe_simulator.conftest import make_account

PATH = "/v1/billing/meter_events"
SPECIFICATION = Path(__file__).parents[3] / "shared" / "stripe" / "openapi" / "meter_operations.json"

# Refusals about the form of a request; all others speak about the account's state.
SHAPE_CODES = {"parameter_unknown", "parameter_missing", "parameter_invalid_integer"}
SHAPE_WORDS = ("Invalid ", "Missing ", "Received unknown ")


@pytest.fixture(scope="module")
def schema():
    if not SPECIFICATION.parents[2].exists():
        pytest.skip(f"{SPECIFICATION.parents[2]} is not there: the copy of Stripe's specification is kept beside it")
    operation = json.loads(SPECIFICATION.read_text())["paths"][PATH]["post"]
    return jsonschema.Draft202012Validator(
        operation["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]
    )


def typed(params):
    """A form knows only strings; read it with the types that the specification gives."""

    def number(text):
        return int(text) if isinstance(text, str) and text.removeprefix("-").isdecimal() else text

    lists = {"expand": list(params["expand"].values())} if isinstance(params.get("expand"), dict) else {}
    stamps = {"timestamp": number(params["timestamp"])} if "timestamp" in params else {}
    return {**params, **lists, **stamps}


def is_shape_refusal(answer):
    error = answer.body.get("error", {})
    return error.get("code") in SHAPE_CODES or error.get("message", "").startswith(SHAPE_WORDS)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"identifier": "x" * 100},
        {"timestamp": 1781524800},
        {"expand": ["payload"]},
        {"payload_extra": {"region": "eu"}},
    ],
)
def test_request_of_the_sdk_that_is_counted_is_well_formed(schema, extra):
    account = make_account()
    seen = []
    begin = account.core.begin
    account.core.begin = lambda request: seen.append(request) or begin(request)
    extra = dict(extra)
    payload = {"stripe_customer_id": account.customer, "value": "1", **extra.pop("payload_extra", {})}
    account.send(payload=payload, **extra)
    [request] = seen

    assert (request.method, request.path) == ("POST", PATH)
    schema.validate(typed(request.params))


@pytest.mark.parametrize(
    "params",
    [
        {"quantity": "3"},
        {"identifier": "x" * 101},
        {"event_name": "x" * 101},
        {"event_name": None},
        {"payload": None},
        {"payload": "text"},
        {"payload": {"stripe_customer_id": "c", "value": {"deep": "1"}}},
        {"timestamp": "soon"},
        {"timestamp": "1.5"},
        {"timestamp": {"gte": "1"}},
    ],
)
def test_request_that_the_specification_forbids_is_refused_for_its_form(schema, params):
    account = make_account()
    valid = {"event_name": "api_calls", "payload": {"stripe_customer_id": account.customer, "value": "1"}}
    given = {name: value for name, value in {**valid, **params}.items() if value is not None}
    answer = account.core.handle("POST", PATH, given, key=KEY)

    assert not schema.is_valid(typed(given))
    assert answer.status == 400
    assert is_shape_refusal(answer)


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)
long_text = st.sampled_from(["api_calls", "x" * 100, "x" * 101])
raw = text | st.dictionaries(text, text, max_size=2)
requests = st.fixed_dictionaries(
    {},
    optional={
        "event_name": long_text | raw,
        "identifier": long_text | raw,
        "payload": st.dictionaries(text, text | st.just({"a": "b"}), min_size=1) | text,
        "timestamp": st.integers(0, 2**40).map(str) | text,
        "colour": text,
    },
)


@settings(max_examples=300, deadline=None)
@given(params=requests)
def test_simulator_and_specification_agree_on_every_form(schema, params):
    account = make_account()
    answer = account.core.handle("POST", PATH, params, key=KEY)

    assert is_shape_refusal(answer) == (not schema.is_valid(typed(params)))


def test_error_is_an_object_the_sdk_understands(schema):
    error = make_account().refused(quantity=1)

    assert isinstance(error, stripe.InvalidRequestError)
    assert error.error.type == "invalid_request_error"
