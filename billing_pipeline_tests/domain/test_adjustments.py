"""What a draft is to bill of usage that came after its period's invoice: each unit once, or a reason why not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.adjustments import (
    RENEWAL,
    LateWindow,
    Leave,
    Next,
    decide_adjustments,
    decide_next,
    nothing_under_way,
)
from billing_pipeline.domain.catalogue import LateUsage
from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.domain.protocol import IDENTIFIER_MEMORY, ProtocolTimes

HOUR = timedelta(hours=1)
START = datetime(2026, 10, 1, tzinfo=UTC)
PRICE = UnitPrice("usd", Decimal("0.25"))
TIMES = ProtocolTimes()


def window(number, owed, *, organization_id="acme", meter="tokens"):
    starts_at = START + number * HOUR
    return LateWindow(number, organization_id, meter, f"{meter}_total", starts_at, starts_at + HOUR, Decimal(owed))


def decide(windows, policy=LateUsage.INVOICE_ITEM, price=PRICE, reason=RENEWAL):
    return decide_adjustments(windows, {"tokens": policy}, {"tokens_total": price}, billing_reason=reason)


windows_of_many = st.lists(
    st.builds(
        window,
        st.integers(0, 500),
        st.integers(-1_000, 1_000).filter(bool),
        organization_id=st.sampled_from(["acme", "beta"]),
        meter=st.sampled_from(["tokens", "calls", "gone"]),
    ),
    unique_by=lambda one: one.window_id,
    max_size=30,
)


@given(
    windows_of_many,
    st.dictionaries(st.sampled_from(["tokens", "calls"]), st.sampled_from(LateUsage)),
    st.dictionaries(st.sampled_from(["tokens_total", "calls_total"]), st.sampled_from([PRICE, None])),
    st.sampled_from([RENEWAL, "subscription_update"]),
)
def test_every_unit_is_billed_once_or_left_with_a_reason(windows, policies, prices, reason):
    adjustments, left = decide_adjustments(windows, policies, prices, billing_reason=reason)

    assert sum(one.units for one in adjustments) + sum(one.units for one in left) == sum(one.owed for one in windows)
    covered = [late.window_id for one in adjustments for late in one.windows]
    assert len(covered) == len(set(covered))
    for one in adjustments:
        assert one.units == sum(late.owed for late in one.windows) != 0
        assert {(late.organization_id, late.meter) for late in one.windows} == {(one.organization_id, one.meter)}
        assert (one.price is None) == (policies[one.meter] is LateUsage.WRITE_OFF and one.units > 0)


def test_the_item_spans_its_windows():
    ((one,), left) = decide([window(5, 3), window(2, 4)])

    assert (one.units, one.price, one.starts_at, one.ends_at) == (7, PRICE, START + 2 * HOUR, START + 6 * HOUR)
    assert left == []


def test_what_adds_up_to_nothing_is_left_alone():
    assert decide([window(1, 3), window(2, -3)]) == ([], [])


def test_a_meter_without_one_price_per_unit_is_left_for_a_person():
    adjustments, (left,) = decide([window(1, 3)], price=None)

    assert (adjustments, left.units, left.why) == ([], 3, Leave.NO_PRICE)


@pytest.mark.parametrize(
    ("policy", "reason", "billed"),
    [
        (LateUsage.INVOICE_ITEM, "subscription_update", True),
        (LateUsage.NEXT_PERIOD, "subscription_update", False),
        (LateUsage.NEXT_PERIOD, RENEWAL, True),
    ],
)
def test_next_period_waits_for_a_renewal_and_an_invoice_item_for_any_draft(policy, reason, billed):
    adjustments, left = decide([window(1, 3)], policy, reason=reason)

    assert (bool(adjustments), [one.why for one in left]) == (billed, [] if billed else [Leave.NOT_A_RENEWAL])


def test_a_write_off_forgives_what_is_owed_to_us_and_never_what_we_owe():
    ((forgiven,), _) = decide([window(1, 3)], LateUsage.WRITE_OFF)
    ((given_back,), _) = decide([window(1, -3)], LateUsage.WRITE_OFF)

    assert (forgiven.price, given_back.price) == (None, PRICE)


def test_an_item_that_is_not_there_is_asked_for_while_stripe_knows_its_key_or_once_nothing_is_under_way():
    def at(first, last):
        now = START + timedelta(days=3)
        return decide_next(first_attempt_at=now - first, last_attempt_at=now - last, now=now, times=TIMES)

    assert TIMES.safe_send < IDENTIFIER_MEMORY
    assert decide_next(first_attempt_at=None, last_attempt_at=None, now=START, times=TIMES) is Next.SEND
    assert at(TIMES.safe_send - timedelta(seconds=1), timedelta(0)) is Next.SEND
    assert at(TIMES.safe_send, TIMES.lateness - timedelta(seconds=1)) is Next.WAIT
    assert at(TIMES.safe_send, TIMES.lateness) is Next.SEND


def test_a_request_may_be_under_way_for_the_lateness():
    assert nothing_under_way(None, START, TIMES)
    assert not nothing_under_way(START, START + TIMES.lateness - timedelta(seconds=1), TIMES)
    assert nothing_under_way(START, START + TIMES.lateness, TIMES)
