"""The hour that a person means is taken where it is certain, and asked for where it is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.given_hours import hour_given
from billing_pipeline.errors import UserError

NOW = datetime(2026, 11, 21, 17, 43, tzinfo=UTC)
ONE = datetime(2026, 11, 20, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20T13",
        "2026-11-20 13",
        "2026-11-20T13Z",
        " 2026-11-20T13:00Z ",
        "2026-11-20T13:59:59.999999Z",
        "2026-11-20T14:10:00+01:00",
        "2026-11-20T18:45+05:30",
        "2026-11-19T23-14",
    ],
)
def test_the_hour_is_utc(text):
    assert hour_given(text, now=NOW) == ONE


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2026, 11, 20)),
    st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_whatever_the_offset_the_instant_lies_in_its_hour(naive, offset):
    instant = naive.replace(tzinfo=offset)

    hour_at = hour_given(instant.isoformat(), now=NOW)

    assert hour_at <= instant < hour_at + timedelta(hours=1)
    assert (hour_at.utcoffset(), hour_at.minute, hour_at.second, hour_at.microsecond) == (timedelta(0), 0, 0, 0)


def test_the_hour_under_way_is_no_future():
    assert hour_given("2026-11-21T17", now=NOW) == NOW.replace(minute=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("yesterday", "yesterday is not a time; write it like"),
        ("", " is not a time"),
        ("2026-02-30T13", "is not a time"),
        ("2026-11-20T24", "is not a time"),
        ("2026-11-20", "2026-11-20 has no offset, so it may be one of many hours; name its hour"),
        ("2026-11-20T13:00", "2026-11-20T13:00Z is that time in UTC"),
        ("2026-11-20T13:27:01", "2026-11-20T13:27Z is that time in UTC"),
        ("9999-12-31T23:59:59-05:00", "is not a time"),
        ("0001-01-01T00:00:00+05:00", "is not a time"),
        ("2026-11-21T18", "2026-11-21 18:00 UTC lies in the future; it is 2026-11-21 17:43 UTC now"),
    ],
)
def test_what_may_be_many_hours_or_none_is_refused(text, words):
    with pytest.raises(UserError) as refused:
        hour_given(text, now=NOW)

    assert words in str(refused.value)
