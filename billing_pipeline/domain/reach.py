"""The hours that aggregation counts and reconciliation compares with the source.

Both stages ask here, so that what one counted the other does not miss.  It is no setting: it follows from how old a
meter event Stripe takes, and from how far ahead of its recording an event may occur.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from billing_pipeline.domain.protocol import PAST_LIMIT
from billing_pipeline.domain.windows import HOUR, hour_of

FUTURE_MAX = timedelta(minutes=5)
"""A row may have occurred at most this much after it was recorded.  Stripe: a meter event may lie 5 minutes ahead."""


def reach_start(now: datetime) -> datetime:
    """The first hour within reach: it holds the oldest usage that Stripe still takes."""
    return hour_of(now - PAST_LIMIT)


def reach_end(now: datetime) -> datetime:
    """The end of the next hour; a row that claims to have occurred later waits until its hour has come."""
    return hour_of(now) + 2 * HOUR


def month_of(instant: datetime) -> datetime:
    """The start of the UTC calendar month that contains `instant`: fractions are carried within it."""
    return hour_of(instant).replace(day=1, hour=0)
