"""Identifiers are deterministic, distinct and acceptable to Stripe."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.identifiers import IDENTIFIER_LENGTH_MAX, entry_identifier, idempotency_key

TEN = datetime(2026, 3, 10, 10, tzinfo=UTC)
ENTRY = {
    "stripe_account": "acct_1",
    "livemode": False,
    "event_name": "tokens",
    "organization_id": "acme",
    "stripe_customer_id": "cus_1",
    "starts_at": TEN,
    "ends_at": TEN + timedelta(hours=1),
    "sequence": 0,
    "epoch": 0,
}


@pytest.mark.parametrize(
    "other",
    [
        {"stripe_account": "acct_2"},
        {"livemode": True},
        {"event_name": "requests"},
        {"organization_id": "globex"},
        {"stripe_customer_id": "cus_2"},
        {"starts_at": TEN + timedelta(minutes=1)},
        {"ends_at": TEN + timedelta(minutes=59)},
        {"sequence": 1},
        {"epoch": 1},
    ],
)
def test_every_part_of_an_entry_is_in_its_identifier(other):
    assert entry_identifier(**ENTRY) != entry_identifier(**(ENTRY | other))


def test_the_same_entry_has_the_same_identifier_for_ever():
    # A changed value here would make Stripe count every open entry a second time.
    assert entry_identifier(**ENTRY) == "be1_t_6d882951ea04adaed58148aa62e705a6b7464175"


@given(customer=st.text(max_size=300), organization=st.text(max_size=300), fence=st.integers(1, 2**63 - 1))
def test_identifier_and_idempotency_key_fit_stripes_limits(customer, organization, fence):
    identifier = entry_identifier(**(ENTRY | {"stripe_customer_id": customer, "organization_id": organization}))

    assert len(identifier) <= IDENTIFIER_LENGTH_MAX
    assert identifier.isascii()
    assert len(idempotency_key(identifier, fence)) <= 255


def test_neighbouring_parts_cannot_run_together():
    one = ENTRY | {"organization_id": "a", "stripe_customer_id": "bc"}
    other = ENTRY | {"organization_id": "ab", "stripe_customer_id": "c"}

    assert entry_identifier(**one) != entry_identifier(**other)
