"""The Idempotency-Key: what is repeated, what is refused, and for how long, through the official SDK."""

from __future__ import annotations

import pytest
import stripe

KEY = {"idempotency_key": "attempt-1"}


def test_repeated_key_gives_the_first_answer_and_counts_nothing(account):
    first = account.send("25", identifier="a", timestamp=account.now, options=KEY)
    account.clock.advance(hours=1)
    again = account.send("25", identifier="a", timestamp=first.timestamp, options=KEY)

    assert again.to_dict() == first.to_dict()
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.last_response.headers
    assert again.last_response.request_id != first.last_response.request_id
    assert len(account.journal("meter_event")) == 1


def test_identifier_made_for_the_first_request_is_the_one_repeated(account):
    identifiers = {account.send(identifier=None, options=KEY).identifier for _ in range(2)}

    assert len(identifiers) == 1


def test_key_with_other_parameters_is_an_idempotency_error(account):
    account.send("25", options=KEY)
    error = account.refused(stripe.IdempotencyError, value="26", options=KEY)

    assert (error.http_status, error.error.type) == (400, "idempotency_error")


def test_key_with_another_endpoint_is_an_idempotency_error(account):
    account.client.v1.customers.create({}, KEY)
    with pytest.raises(stripe.IdempotencyError):
        account.client.v1.billing.meters.deactivate(account.meter, {}, KEY)

    assert account.client.v1.billing.meters.retrieve(account.meter).status == "active"


def test_error_of_an_executed_request_is_repeated_even_when_its_cause_is_gone(account):
    account.client.v1.billing.meters.deactivate(account.meter)
    first = account.refused(options=KEY)
    account.client.v1.billing.meters.reactivate(account.meter)
    again = account.refused(options=KEY)

    assert (again.http_status, again.json_body) == (first.http_status, first.json_body)
    assert again.headers["idempotent-replayed"] == "true"


def test_malformed_request_leaves_its_key_free(account):
    account.refused(identifier="x" * 101, options=KEY)
    account.send(identifier="x", options=KEY)

    assert len(account.journal("meter_event")) == 1


def test_unauthenticated_request_leaves_its_key_free(account):
    with pytest.raises(stripe.AuthenticationError):
        account.client.v1.customers.create({}, {**KEY, "api_key": "sk_live_x"})
    account.client.v1.customers.create({}, KEY)

    assert len(account.journal("customer")) == 2


def test_key_is_forgotten_once_24_hours_old_and_not_a_second_before(account):
    first = account.send(identifier=None, timestamp=account.now, options=KEY)
    account.clock.advance(seconds=86_399)
    assert account.send(identifier=None, timestamp=first.timestamp, options=KEY).identifier == first.identifier

    account.clock.advance(seconds=1)
    assert account.send(identifier=None, timestamp=first.timestamp, options=KEY).identifier != first.identifier


def test_key_does_not_shield_an_identifier(account):
    """Two layers: a fresh key for the same identifier is still the same event."""
    account.send(identifier="a", options=KEY)

    assert "already exists" in str(account.refused(identifier="a", options={"idempotency_key": "attempt-2"}))


def test_key_of_more_than_255_characters_is_refused(account):
    account.send(options={"idempotency_key": "k" * 255})

    assert "255" in str(account.refused(options={"idempotency_key": "k" * 256}))
