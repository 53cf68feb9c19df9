"""Where a usage window stands is one sentence that never calls settled what is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.domain.standing import RELEASABLE, Ledger, OpenEntry, Standing, verdict

NOW = datetime(2026, 11, 21, 17, 43, tzinfo=UTC)
HOUR = timedelta(hours=1)
LEDGER = Ledger(NOW, NOW - timedelta(minutes=5), ProtocolTimes(), "live")
SETTLED = Standing(7, Decimal(4217), Decimal(4217), Decimal(4217), NOW - 3 * HOUR)
ENTRY = OpenEntry(81, Decimal(4217), "pending", first_attempt_at=NOW - 2 * HOUR, last_attempt_at=NOW - HOUR)


def said(ledger=LEDGER, **changes):
    return verdict(replace(SETTLED, **changes), ledger)


def test_settled_is_said_plainly():
    found = said()

    assert (found.text, found.command) == ("Stated 4,217 units; Stripe shows 4,217; nothing is owed.", None)
    assert found.is_settled


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_mapped": False}, "4,217 units owed: the organization had no Stripe customer then"),
        (
            {"stated": Decimal(0), "proved": Decimal(0), "refused": replace(ENTRY, words="no such customer")},
            "4,217 units owed: Stripe refused entry 81 (no such customer)",
        ),
        (
            {"stated": Decimal(0), "hold_reason": "more_than_the_meters_hour_max"},
            "4,217 units owed: the window is on hold, more than the meters hour max, and waits for a person.",
        ),
        (
            {"proved": Decimal(0), "open_entry": replace(ENTRY, state="ambiguous")},
            "4,217 units owed: entry 81 is ambiguous since 2026-11-21 15:43 UTC, decided at the latest "
            "2026-11-22 20:43 UTC",
        ),
        ({"proved": Decimal(0), "open_entry": ENTRY}, "4,217 units owed: entry 81 is cut and not sent yet; the next"),
        (
            {"proved": Decimal(0), "open_entry": replace(ENTRY, retry_at=NOW + HOUR)},
            "not sent yet; the first flush after 2026-11-21 18:43 UTC sends it.",
        ),
        (
            {"proved": Decimal(0), "accepted": (replace(ENTRY, state="accepted"),)},
            "Stated 4,217 units; Stripe took 4,217 of them and has not shown them yet, expected by 2026-11-22 01:43",
        ),
        (
            {"stated": Decimal(4216), "sealed_at": NOW - HOUR},
            "1 unit owed: they came after the seal of 2026-11-21 16:43 UTC and are never sent; the next draft is",
        ),
        (
            {"stated": Decimal(4300), "sealed_at": NOW - HOUR},
            "83 units to be taken back: they came after the seal",
        ),
        ({"stated": Decimal(0)}, "4,217 units owed: the next flush states the difference."),
        (
            {"stated": Decimal(0), "ends_at": NOW},
            "4,217 units owed: the hour is stated by the first flush after 2026-11-21 17:48 UTC.",
        ),
        ({"stated": Decimal(0), "cut_after": NOW + HOUR}, "waits until 2026-11-21 18:43 UTC"),
        ({"shown": Decimal(4000), "all_entries": Decimal(4217)}, "but Stripe shows 4,000 for the clock hour"),
        ({"source_says": "The source now says 4,300."}, "Stripe shows 4,217. The source now says 4,300."),
    ],
)
def test_what_is_not_settled_says_why(changes, words):
    found = said(**changes)

    assert words in found.text
    assert not found.is_settled
    assert "nothing is owed." not in found.text


@pytest.mark.parametrize("reason", HoldReason)
def test_a_person_is_sent_to_release_only_what_can_be_released(reason):
    command = said(stated=Decimal(0), hold_reason=str(reason)).command

    assert command == (
        "billing-pipeline holds release 7 --by NAME --reason TEXT"
        if reason in RELEASABLE
        else "billing-pipeline ledger status"
    )


def test_a_frozen_ledger_comes_before_every_other_command():
    frozen = replace(LEDGER, frozen_at=NOW - HOUR, frozen_reason="the mark is ahead")

    found = said(frozen, stated=Decimal(0), hold_reason="rejected_by_stripe")
    assert "frozen since 2026-11-21 16:43 UTC, so nothing is sent: the mark is ahead." in found.text
    assert found.command == "billing-pipeline ledger status"
    assert "frozen" not in said(frozen).text


@pytest.mark.parametrize(("level", "words"), [("off", "billing is off"), ("shadow", "billing is in shadow mode")])
def test_a_level_that_sends_nothing_is_the_reason(level, words):
    assert words in said(replace(LEDGER, level=level), proved=Decimal(0), open_entry=ENTRY).text


amounts = st.integers(0, 10**15).map(Decimal)


@given(
    target=amounts,
    stated=amounts,
    proved=amounts,
    state=st.sampled_from([None, "pending", "ambiguous"]),
    accepted=st.booleans(),
    refused=st.booleans(),
    hold_reason=st.sampled_from([None, *map(str, HoldReason)]),
    sealed=st.booleans(),
    is_mapped=st.booleans(),
    frozen=st.booleans(),
)
def test_nothing_is_called_settled_while_units_or_an_entry_are_open(
    target, stated, proved, state, accepted, refused, hold_reason, sealed, is_mapped, frozen
):
    standing = Standing(
        7,
        target,
        stated,
        proved,
        NOW - 3 * HOUR,
        is_mapped=is_mapped,
        open_entry=replace(ENTRY, state=state) if state else None,
        accepted=(replace(ENTRY, state="accepted"),) if accepted else (),
        refused=replace(ENTRY, state="rejected") if refused else None,
        hold_reason=hold_reason,
        sealed_at=NOW if sealed else None,
    )
    found = verdict(standing, replace(LEDGER, frozen_at=NOW if frozen else None))

    is_open = state or accepted or refused or hold_reason
    if is_mapped:
        assert found.is_settled == (target == stated and not is_open)
    else:
        assert found.is_settled <= (target == 0)
    assert found.text.endswith(".")
