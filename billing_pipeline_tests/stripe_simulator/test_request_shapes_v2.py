"""The simulator and Stripe's published specification agree on what a well-formed v2 request is."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline_tests.fix_simulator import KEY
from billing_pipeline_tests.stripe_simulator.conftest import make_account

SPECIFICATION = Path(__file__).parents[3] / "shared" / "stripe" / "openapi" / "meter_operations.json"
EVENTS, STREAM = "/v2/billing/meter_events", "/v2/billing/meter_event_stream"
SHAPE_CODES = {"parameter_unknown", "parameter_missing", "parameter_invalid_empty"}
SHAPE_WORDS = ("Invalid ", "Missing ", "Received unknown ", "You passed an empty string")


def schema_of(path):
    if not SPECIFICATION.parents[2].exists():
        pytest.skip(f"{SPECIFICATION.parents[2]} is not there: the copy of Stripe's specification is kept beside it")
    operation = json.loads(SPECIFICATION.read_text())["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return jsonschema.Draft202012Validator(schema)


def is_shape_refusal(answer):
    error = answer.body.get("error", {})
    return error.get("code") in SHAPE_CODES or error.get("message", "").startswith(SHAPE_WORDS)


names = st.text(min_size=1, max_size=3)
leaves = names | st.integers() | st.none() | st.booleans()
# Timestamps are of the right form or no strings at all: the specification's `format` is a note, not a rule.
stamps = st.sampled_from(["2026-06-15T12:00:00Z", "2026-06-15T12:00:00.25+02:00", 7, None])
events = st.fixed_dictionaries(
    {},
    optional={
        "event_name": st.just("api_calls") | leaves,
        "identifier": leaves,
        "payload": st.dictionaries(names, leaves, max_size=2) | leaves,
        "timestamp": stamps,
    },
)


@settings(max_examples=200, deadline=None)
@given(params=events)
def test_simulator_and_specification_agree_on_every_event(params):
    schema, account = schema_of(EVENTS), make_account()
    answer = account.core.handle("POST", EVENTS, params, key=KEY)

    assert is_shape_refusal(answer) == (not schema.is_valid(params))


@settings(max_examples=200, deadline=None)
@given(params=st.fixed_dictionaries({}, optional={"events": st.lists(events, min_size=1, max_size=3) | leaves}))
def test_simulator_and_specification_agree_on_every_batch(params):
    schema, account = schema_of(STREAM), make_account()
    token = account.client.v2.billing.meter_event_session.create().authentication_token
    answer = account.core.handle("POST", STREAM, params, key=token)

    assert answer.status == (200 if schema.is_valid(params) else 400)
    assert is_shape_refusal(answer) == (not schema.is_valid(params))
