"""What an answer means."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.entries import (
    NOT_STATED,
    TRANSITIONS,
    DuplicateWithoutAttempt,
    EntryState,
    Outcome,
    retry_delay,
    state_after,
)


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
