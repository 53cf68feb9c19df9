"""A subscription's billing periods at a moment, as its answers state them.

Asked by every subscription endpoint.  Since API version 2025-03-31 the period is stated on each item, not on the
subscription.  Periods are counted in months from the anchor and roll by themselves: they follow from the clock, not
from a job.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime

from billing_pipeline.stripe_simulator.display import displayed
from billing_pipeline.stripe_simulator.wire import Body

_MONTHS = {"month": 1, "year": 12}


def months_of(price: Body) -> int:
    """How long one period of the price is."""
    return _MONTHS[price["recurring"]["interval"]] * int(price["recurring"]["interval_count"])


def add_months(epoch: int, months: int) -> int:
    """The same day and time of a later month, or that month's last day when it is shorter."""
    start = datetime.fromtimestamp(epoch, UTC)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return int(start.replace(year=year, month=month + 1, day=day).timestamp())


def period_at(created: int, anchor: int, months: int, epoch: int) -> tuple[int, int]:
    """The billing period [start, end) that holds `epoch`, in epoch seconds.

    Counted from the anchor each time, so that a period anchored on the 31st returns to the 31st.
    """
    if epoch < anchor:
        return created, anchor
    begun, now = datetime.fromtimestamp(anchor, UTC), datetime.fromtimestamp(epoch, UTC)
    count = ((now.year - begun.year) * 12 + now.month - begun.month) // months
    if add_months(anchor, count * months) > epoch:
        count -= 1
    return add_months(anchor, count * months), add_months(anchor, (count + 1) * months)


def with_periods(subscription: Body, epoch: int) -> Body:
    """The subscription as Stripe shows it at `epoch`; a canceled one keeps the period it ended in."""
    at = min(epoch, subscription["ended_at"] or epoch)
    items = []
    for item in subscription["items"]["data"]:
        anchor, months = subscription["billing_cycle_anchor"], months_of(item["price"])
        # A trial lasts until its anchor, which is where the first paid period begins.
        start, end = period_at(subscription.get("trial_start") or subscription["created"], anchor, months, at)
        items.append({**item, "current_period_start": start, "current_period_end": end})
    return {**subscription, "items": {**subscription["items"], "data": items}}


def first_period_end(subscription: Body, epoch: int) -> int:
    """The earliest end of the items' periods: what Stripe's filter `current_period_end` looks at."""
    return min(int(item["current_period_end"]) for item in with_periods(subscription, epoch)["items"]["data"])


def shown(subscription: Body, epoch: int) -> Body:
    """The subscription as an answer holds it: of a long list of items only the first page."""
    return displayed("subscription", with_periods(subscription, epoch))
