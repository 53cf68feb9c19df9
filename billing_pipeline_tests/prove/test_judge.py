"""The judge finds what it must find, in a journal written by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from billing_pipeline_tests.prove.judge import judge, truth

HOUR = datetime(2026, 3, 1, 12, tzinfo=UTC)
CELL = ("cus_1", "prompt_tokens", HOUR)
SAID = {CELL: [(HOUR, 10)]}


def counted(value, *, minute=0, customer="cus_1", after=timedelta(minutes=5)):
    at = HOUR + timedelta(minutes=minute)
    return {
        "kind": "meter_event",
        "customer": customer,
        "event_name": "prompt_tokens",
        "timestamp": int(at.timestamp()),
        "value": str(value),
        "received_at": (HOUR + after).isoformat(),
    }


def test_what_the_rows_say_is_right():
    verdict = judge({CELL: 10}, [counted(7), counted(3, minute=1)], set(), SAID)

    assert verdict.right
    assert (verdict.lost, verdict.over, verdict.doubled) == (0, 0, 0)


def test_a_unit_too_few_is_lost():
    verdict = judge({CELL: 10}, [counted(9)], set(), SAID)

    assert (verdict.lost, verdict.over) == (1, 0)
    assert verdict.wrong == {CELL: "cus_1 prompt_tokens 2026-03-01T12: -1"}


def test_a_unit_too_many_is_over():
    verdict = judge({CELL: 10}, [counted(11)], set(), SAID)

    assert (verdict.lost, verdict.over) == (0, 1)
    assert not verdict.right


def test_a_doubling_that_is_taken_back_is_over_all_the_same():
    journal = [counted(10), counted(10, minute=1), counted(-10, minute=2)]

    verdict = judge({CELL: 10}, journal, set(), SAID)

    assert (verdict.lost, verdict.over) == (0, 10)
    assert verdict.wrong == {CELL: "cus_1 prompt_tokens 2026-03-01T12: +10 for a moment"}


def test_what_the_source_said_only_later_was_too_many_before():
    said = {CELL: [(HOUR, 10), (HOUR + timedelta(hours=3), 20)]}

    early = judge({CELL: 20}, [counted(20)], set(), said)
    late = judge({CELL: 20}, [counted(20, after=timedelta(hours=4))], set(), said)

    assert (early.over, late.over) == (10, 0)


def test_a_minute_counted_twice_is_doubled():
    assert judge({CELL: 10}, [counted(5), counted(5)], set(), SAID).doubled == 1


def test_a_customer_of_nobody_is_left_out():
    assert judge({}, [counted(1, customer="cus_canary")], {"cus_canary"}, {}).right


def test_truth_adds_quantities_and_counts_events():
    rows = [
        {"organization_id": "acme", "event_type": "prompt_tokens", "quantity": 3, "occurred_at": HOUR},
        {"organization_id": "acme", "event_type": "prompt_tokens", "quantity": 4, "occurred_at": HOUR},
        {"organization_id": "acme", "event_type": "api_request", "quantity": 9, "occurred_at": HOUR},
    ]

    assert truth(rows, {"acme": "cus_1"}, {"api_request"}) == {CELL: 7, ("cus_1", "api_requests", HOUR): 1}
