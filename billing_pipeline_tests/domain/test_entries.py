"""What is stated next, and what an answer means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.entries import (
    NOT_STATED,
    TRANSITIONS,
    VALUE_MAX,
    Cut,
    DuplicateWithoutAttempt,
    EntryState,
    HoldReason,
    Outcome,
    decide_cut,
    retry_delay,
    state_after,
)

TEN = datetime(2026, 3, 10, 10, tzinfo=UTC)
PAST_MAX = timedelta(days=34)


def decide(**overrides):
    facts = {
        "target": 10,
        "stated": 0,
        "next_sequence": 0,
        "last_slot_at": None,
        "starts_at": TEN,
        "ends_at": TEN + timedelta(hours=1),
        "now": TEN + timedelta(hours=2),
        "past_max": PAST_MAX,
    }
    return decide_cut(**(facts | overrides))


@given(targets=st.lists(st.integers(0, VALUE_MAX), min_size=1, max_size=59))
def test_entries_always_add_up_to_the_latest_target(targets):
    stated, sequence, last_slot = 0, 0, None
    for target in targets:
        cut = decide(target=target, stated=stated, next_sequence=sequence, last_slot_at=last_slot)
        if cut is not None:
            stated, sequence, last_slot = stated + cut.value, sequence + 1, cut.slot_at

    assert stated == targets[-1]


def test_nothing_owed_makes_no_entry():
    assert decide(target=7, stated=7) is None


def test_less_usage_than_stated_is_taken_back():
    assert decide(target=3, stated=10, next_sequence=1, last_slot_at=TEN) == Cut(1, -7, TEN + timedelta(minutes=1))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"target": VALUE_MAX + 1}, HoldReason.TOO_LARGE),
        ({"last_slot_at": TEN + timedelta(minutes=59)}, HoldReason.NO_SLOT),
        ({"now": TEN + PAST_MAX + timedelta(seconds=1)}, HoldReason.TOO_OLD),
    ],
)
def test_what_stripe_cannot_take_is_held_for_a_person(facts, reason):
    assert decide(**facts) is reason


def test_the_largest_and_oldest_that_stripe_takes_are_not_held():
    assert decide(target=VALUE_MAX, now=TEN + PAST_MAX) == Cut(0, VALUE_MAX, TEN)


@pytest.mark.parametrize(
    ("outcome", "earlier_unknown", "state"),
    [
        (Outcome.OK, False, EntryState.ACCEPTED),
        (Outcome.OK, True, EntryState.ACCEPTED),
        (Outcome.DUPLICATE, True, EntryState.ACCEPTED),
        (Outcome.NOT_EXECUTED, False, EntryState.PENDING),
        (Outcome.NOT_EXECUTED, True, EntryState.AMBIGUOUS),
        (Outcome.REJECTED, False, EntryState.REJECTED),
        (Outcome.REJECTED, True, EntryState.AMBIGUOUS),
        (Outcome.UNKNOWN, False, EntryState.AMBIGUOUS),
        (Outcome.UNKNOWN, True, EntryState.AMBIGUOUS),
    ],
)
def test_an_answer_leads_to_one_state(outcome, earlier_unknown, state):
    assert state_after(outcome, earlier_unknown=earlier_unknown) is state
    assert state is EntryState.AMBIGUOUS or (EntryState.AMBIGUOUS, state) in TRANSITIONS


def test_a_duplicate_of_something_never_sent_is_no_success():
    with pytest.raises(DuplicateWithoutAttempt):
        state_after(Outcome.DUPLICATE, earlier_unknown=False)


def test_no_state_that_counts_as_final_can_be_left():
    final = {EntryState.CONFIRMED, EntryState.ADOPTED} | NOT_STATED

    assert not [arrow for arrow in TRANSITIONS if arrow[0] in final]


@given(attempts=st.integers(1, 10_000))
def test_a_retry_waits_between_five_seconds_and_ten_minutes(attempts):
    assert timedelta(seconds=5) <= retry_delay(attempts) <= timedelta(minutes=10)
    assert retry_delay(attempts) <= retry_delay(attempts + 1)
