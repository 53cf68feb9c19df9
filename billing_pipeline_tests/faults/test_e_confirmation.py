"""Table E, confirmation: what Stripe's summaries prove, what they do not, and what they give away.

Summaries lag, are floats, have bounds and pages, and show whatever anybody wrote to a meter.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from billing_pipeline.domain.cuts import VALUE_MAX
from billing_pipeline.errors import LedgerFrozen, StripeRefused
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.stripe_api.summaries import EXACT_MAX, StripeSummaries, whole_units
from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline.usage.adopt import adopt, release
from billing_pipeline.usage.read_again import READ_AGAIN_AFTER, SHARE
from billing_pipeline_tests.fix_simulator import KEY
from billing_pipeline_tests.fix_trial import HOUR, METER, V1_ONLY

MINUTE = timedelta(minutes=1)
LATER, EARLIER, HIDDEN = "sent later", "sent earlier", "sent later and not shown"


@pytest.mark.parametrize("lag_hours", [0, 1, 6, 8])
def test_e01_no_lag_within_the_settling_time_makes_an_entry_absent(trial, lag_hours):
    entry = trial.entry(10)
    trial.weather.lag = lag_hours * HOUR
    trial.flow.submit()

    for _ in range(lag_hours):
        trial.flush()
        assert trial.states() == ["accepted"]
        trial.pass_time(hours=1)
    trial.flush()

    assert trial.states() == ["confirmed"]
    assert trial.counted() == {entry: 10}


def test_e01_a_lag_beyond_the_settling_time_hides_the_canary_too_and_nothing_is_resent(trial):
    entry = trial.entry(10)
    trial.weather.lag = 30 * HOUR
    trial.flow.submit()

    for _ in range(10):
        trial.pass_time(hours=2, minutes=59)
        trial.flush()
        assert trial.states() == ["accepted"]
    trial.pass_time(hours=1)
    trial.flush()

    assert trial.states() == ["confirmed"]
    assert trial.counted() == {entry: 10}


@pytest.mark.parametrize(
    ("state", "after", "canary", "expected"),
    [
        ("accepted", timedelta(hours=8, minutes=58), LATER, "accepted"),
        ("accepted", timedelta(hours=9, minutes=1), LATER, "replaced"),
        ("accepted", timedelta(hours=9, minutes=1), EARLIER, "accepted"),
        ("accepted", timedelta(days=30), EARLIER, "accepted"),
        ("accepted", timedelta(days=30), HIDDEN, "accepted"),
        ("ambiguous", timedelta(hours=19, minutes=58), LATER, "ambiguous"),
        ("ambiguous", timedelta(hours=20, minutes=1), LATER, "replaced"),
        ("ambiguous", timedelta(hours=20, minutes=1), EARLIER, "ambiguous"),
        ("ambiguous", timedelta(hours=20, minutes=1), HIDDEN, "ambiguous"),
    ],
)
@V1_ONLY
def test_e01_absence_counts_only_late_enough_and_behind_a_later_canary(trial, state, after, canary, expected):
    trial.entry(10)

    def send_canary():
        trial.weather.lag = timedelta(days=60) if canary == HIDDEN else timedelta(0)
        trial.flow.send_canaries_while_frozen()

    if canary == EARLIER:
        send_canary()
        trial.pass_time(minutes=1)
    trial.weather.faults = [FaultKind.ASYNC_SILENT_DROP if state == "accepted" else FaultKind.LOSE_REQUEST]
    trial.send()
    assert trial.states() == [state]
    if canary != EARLIER:
        trial.pass_time(minutes=1)
        send_canary()
        after -= MINUTE
    trial.pass_time(seconds=after.total_seconds())

    trial.flow.confirm()

    assert trial.states() == [expected]
    trial.require_invariants()


@given(units=st.integers(-EXACT_MAX + 1, EXACT_MAX - 1))
@example(units=EXACT_MAX - 1)
@example(units=60 * VALUE_MAX // 8)
def test_e02_every_whole_number_below_2_to_the_53_is_read_back_exactly(units):
    assert whole_units(float(units)) == units
    assert whole_units(units) == units
    assert whole_units(str(Decimal(units))) == units


@given(value=st.floats(allow_infinity=True, allow_nan=True).filter(lambda value: not value.is_integer()))
@example(value=0.1 + 0.2)
@example(value=1e15 + 0.5)
def test_e02_a_value_that_is_not_whole_is_refused(value):
    with pytest.raises(StripeRefused, match="someone else writes this meter"):
        whole_units(value)


@given(units=st.integers(EXACT_MAX, 10**30), sign=st.sampled_from([1, -1]))
def test_e02_a_value_that_a_float_cannot_tell_from_its_neighbour_is_refused(units, sign):
    with pytest.raises(StripeRefused, match=r"2\^53"):
        whole_units(float(sign * units))


def test_e02_the_largest_amount_that_stripe_takes_is_confirmed_to_the_unit(trial):
    entry = trial.entry(VALUE_MAX)

    trial.flush()

    assert trial.states() == ["confirmed"]
    assert trial.counted() == {entry: VALUE_MAX}


@V1_ONLY
def test_e02_a_fraction_that_somebody_wrote_confirms_nothing(trial):
    trial.entry(10)
    trial.send()
    write(trial, "0.5", at=trial.closed + 30 * MINUTE)

    with pytest.raises(StripeRefused, match=r"10\.5 units"):
        trial.flow.confirm()

    assert trial.states() == ["accepted"]


def write(trial, units, *, at, customer=None):
    """Somebody else writes to our meter."""
    trial.simulator.client().v1.billing.meter_events.create(
        {
            "event_name": METER,
            "timestamp": int(at.timestamp()),
            "payload": {"stripe_customer_id": customer or trial.customer, "value": str(units)},
        }
    )


def settle(trial, *quantities):
    """One confirmed entry per quantity, each of an hour of its own."""
    for number, units in enumerate(quantities):
        trial.use(units, hours_before=number)
    trial.flush()
    assert trial.states() == ["confirmed"] * len(quantities)


@pytest.mark.parametrize("at", [0, 1, 59], ids=["its_minute", "the_next", "the_last"])
def test_e03_a_foreign_write_to_an_entrys_hour_freezes_the_ledger_before_the_proof(trial, at):
    trial.entry(10)
    trial.send()
    write(trial, 7, at=trial.closed + at * MINUTE)

    with pytest.raises(LedgerFrozen, match="shows 17 units"):
        trial.flow.confirm()

    with pytest.raises(LedgerFrozen, match="Nothing was sent"):
        trial.flow.submit()
    assert trial.states() == ["accepted"]


def test_e03_a_foreign_write_under_an_entry_that_was_lost_freezes_too(trial):
    """The hour's sum is possible; the entry's own minute is not what was sent."""
    trial.entry(10)
    trial.weather.faults = [FaultKind.LOSE_REQUEST]
    trial.send()
    write(trial, 7, at=trial.closed)

    with pytest.raises(LedgerFrozen, match="shows 7 units"):
        trial.flow.confirm()


def flush_hourly(trial, *, hours):
    for _ in range(hours):
        trial.pass_time(hours=1)
        trial.flush()


@pytest.mark.parametrize("hours_before", [0, 1, 5, 24 * 20], ids=["its_minute", "next_hour", "same_day", "20_days"])
@V1_ONLY
def test_e03_a_foreign_write_after_the_proof_is_seen_within_a_day(trial, hours_before):
    settle(trial, 10)
    write(trial, 7, at=trial.closed - hours_before * HOUR)

    with pytest.raises(LedgerFrozen, match=trial.customer):
        flush_hourly(trial, hours=24)

    trial.use(5, hours_before=2)
    sent = trial.usage_requests()
    with pytest.raises(LedgerFrozen):
        trial.flush()
    assert trial.usage_requests() == sent


@V1_ONLY
def test_e03_units_taken_away_after_the_proof_are_a_difference_without_explanation(trial):
    settle(trial, 10)
    write(trial, -3, at=trial.closed + 5 * MINUTE)
    trial.pass_time(hours=21)

    trial.flush()

    report = reconcile(trial.connection, settings=trial.settings, now=trial.flow.clock())
    assert [(found.kind, found.units, found.is_fault) for found in report.differences] == [("unexplained", 3, True)]


@V1_ONLY
def test_e03_more_taken_away_than_there_was_freezes(trial):
    settle(trial, 10)
    write(trial, -11, at=trial.closed + 5 * MINUTE)
    trial.pass_time(hours=21)

    with pytest.raises(LedgerFrozen, match="shows -1 units"):
        trial.flush()


def summary_reads(trial, since):
    return [
        request.params.get("value_grouping_window", "minute")
        for request in trial.weather.requests[since:]
        if request.path.endswith("/event_summaries") and request.params["customer"] in trial.customers.values()
    ]


@V1_ONLY
def test_e03_a_lane_of_settled_days_is_read_once_a_day_with_one_request(trial):
    settle(trial, *range(1, 60))
    since = len(trial.weather.requests)
    trial.flush()
    assert summary_reads(trial, since) == [], "it was read a moment ago"

    trial.pass_time(seconds=READ_AGAIN_AFTER.total_seconds() + 60)
    reports = [trial.flow.confirm(), trial.flow.confirm()]

    assert [report.lanes_read_again for report in reports] == [1, 0]
    assert summary_reads(trial, since) == ["day"]
    assert set(trial.states()) == {"confirmed"}


@V1_ONLY
def test_e03_a_short_budget_reaches_every_lane_in_turn(trial):
    organizations = [f"org-{number}" for number in range(6)]
    for organization_id in organizations:
        trial.bill(organization_id)
        trial.use(1, organization_id=organization_id)
    trial.flush()
    trial.pass_time(hours=21)
    since = len(trial.weather.requests)
    budget = trial.another_flow(billing_summary_reads_max=2)

    reports = [budget.confirm() for _ in range(3)]

    assert [report.lanes_read_again for report in reports] == [2, 2, 2]
    reads = [
        request.params["customer"]
        for request in trial.weather.requests[since:]
        if request.params.get("value_grouping_window") == "day"
    ]
    assert Counter(reads) == Counter(trial.customers[name] for name in organizations)


@V1_ONLY
def test_e03_a_backlog_to_confirm_leaves_settled_days_their_share(trial):
    settle(trial, 10)
    trial.pass_time(hours=21)
    # Two weeks of entries that Stripe does not show yet, each day a read.
    trial.weather.lag = 100 * HOUR
    for day in range(14):
        trial.use(1, hours_before=24 * (day + 2))
    trial.cut()
    trial.send()

    report = trial.another_flow(billing_summary_reads_max=SHARE).confirm()

    assert report.lanes_read_again == 1
    assert report.reads <= SHARE + 1, "a day under way is finished"
    assert report.waiting == 14


@V1_ONLY
def test_e03_days_that_stripe_takes_nothing_for_are_not_read_again(trial):
    settle(trial, 10)
    trial.pass_time(days=36)
    since = len(trial.weather.requests)

    assert trial.flow.confirm().lanes_read_again == 0
    assert summary_reads(trial, since) == []


def recover(trial):
    """Two persons bring the ledger to what Stripe shows."""
    report = adopt(
        trial.connection,
        trial.flow.summaries,
        catalogue=trial.flow.catalogue,
        mark=trial.flow.mark,
        since=trial.flow.clock() - timedelta(days=10),
        actor="Ann",
        reason="a foreign writer",
        clock=trial.flow.clock,
    )
    release(trial.connection, actor="Bob", reason="looked at it", now=trial.flow.clock())
    return report


@V1_ONLY
def test_e03_foreign_units_are_adopted_by_recovery_and_taken_back(trial):
    settle(trial, 10)
    write(trial, 7, at=trial.closed + 30 * MINUTE)
    trial.pass_time(hours=21)
    with pytest.raises(LedgerFrozen):
        trial.flush()

    assert recover(trial).conflicts == ()
    trial.flush()
    trial.flush()

    assert list(trial.counted().values()) == [10]
    assert trial.states() == ["confirmed", "adopted", "confirmed"]
    trial.require_invariants()


@V1_ONLY
def test_e03_an_excess_that_a_person_has_released_freezes_again_only_when_it_changes(trial):
    settle(trial, 10)
    # In the minute of a confirmed entry, which no recovery can untangle.
    write(trial, 7, at=trial.closed)
    trial.pass_time(hours=21)
    with pytest.raises(LedgerFrozen):
        trial.flush()
    assert len(recover(trial).conflicts) == 1

    for _ in range(2):
        trial.flush()
        trial.pass_time(hours=21)
    found = violations(trial.connection, settings=trial.settings, mark=0, now=trial.flow.clock())
    assert [violation.invariant for violation in found] == ["v07_stripe_knows_no_more_than_we_sent"], "it stays told"

    write(trial, 1, at=trial.closed)
    with pytest.raises(LedgerFrozen, match="shows 18 units"):
        trial.flush()


@V1_ONLY
def test_e04_a_minute_begins_with_its_first_second_and_ends_before_the_next(trial):
    minute = trial.closed + 30 * MINUTE
    for seconds, units in ((-1, 1), (0, 10), (59, 100), (60, 1000)):
        write(trial, units, at=minute + timedelta(seconds=seconds))
    summaries = trial.flow.summaries

    assert summaries.minute(METER, trial.customer, minute) == 110
    assert summaries.minute(METER, trial.customer, minute + MINUTE) == 1000


@V1_ONLY
def test_e04_an_hour_and_a_day_begin_with_their_first_second_and_end_before_the_next(trial):
    midnight = trial.closed.replace(hour=0) - timedelta(days=1)
    for at, units in (
        (midnight - timedelta(seconds=1), 1),
        (midnight, 10),
        (midnight + timedelta(minutes=59, seconds=59), 100),
        (midnight + HOUR, 1000),
        (midnight + timedelta(hours=23, minutes=59, seconds=59), 10_000),
        (midnight + timedelta(days=1), 100_000),
    ):
        write(trial, units, at=at)
    end = midnight + timedelta(days=1)
    summaries = trial.flow.summaries

    assert summaries.hours(METER, trial.customer, midnight, end) == {
        midnight: 110,
        midnight + HOUR: 1000,
        midnight + timedelta(hours=23): 10_000,
    }
    assert summaries.days(METER, trial.customer, midnight, end) == {midnight: 11_110}


def test_e04_usage_at_both_ends_of_an_hour_is_counted_and_confirmed_in_it(trial):
    for number, offset in enumerate([timedelta(0), HOUR - timedelta(microseconds=1), HOUR, -timedelta(microseconds=1)]):
        at = trial.closed - HOUR + offset
        trial.use(10**number, occurred_at=at)

    trial.flush()

    assert trial.counted() == {
        (trial.customer, METER, trial.closed - 2 * HOUR): 1000,
        (trial.customer, METER, trial.closed - HOUR): 11,
        (trial.customer, METER, trial.closed): 100,
    }
    assert trial.states() == ["confirmed"] * 3


def every_hour(trial, hours):
    """One unit in each of the hours before the closed one; returns the span."""
    for number in range(hours):
        write(trial, number + 1, at=trial.closed - number * HOUR)
    return trial.closed - (hours - 1) * HOUR, trial.closed + HOUR


@V1_ONLY
@pytest.mark.parametrize(("hours", "pages"), [(100, 1), (101, 2), (205, 3)])
def test_e05_every_hour_is_read_over_as_many_pages_as_it_takes(trial, hours, pages):
    start, end = every_hour(trial, hours)
    since = len(trial.weather.requests)

    shown = trial.flow.summaries.hours(METER, trial.customer, start, end)

    assert shown == {trial.closed - number * HOUR: number + 1 for number in range(hours)}
    assert len(summary_reads(trial, since)) == pages


@V1_ONLY
def test_e05_a_week_of_hourly_canaries_is_counted_whole(trial):
    """168 rows: with the first page alone, a restored ledger would not be noticed."""
    trial.flow.send_canaries_while_frozen()
    canary = trial.rows("SELECT DISTINCT stripe_customer_id FROM canaries")[0][0]
    for number in range(1, 120):
        write(trial, 1, at=trial.flow.clock() - number * HOUR, customer=canary)

    with pytest.raises(LedgerFrozen, match=f"shows 120 canaries of {METER}, but the ledger sent only 1"):
        trial.flow.submit()


class Pages:
    """A client whose pages are what a test says."""

    def __init__(self, client, starts):
        self.v1 = self
        self.billing = self.meters = self.event_summaries = self
        self.client, self.starts = client, starts

    def list(self, *_):
        return self

    def auto_paging_iter(self):
        return (Row(start) for start in self.starts)


class Row:
    """One hour of a page."""

    livemode, aggregated_value = False, 1.0

    def __init__(self, start):
        self.start_time = int(start.timestamp())


NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)


@V1_ONLY
@pytest.mark.parametrize(
    "starts",
    [
        [NOON, NOON],
        [NOON - HOUR],
        [NOON + 3 * HOUR],
        [NOON + MINUTE],
    ],
    ids=["twice", "before", "after", "between"],
)
def test_e05_pages_that_list_an_hour_twice_or_out_of_place_prove_nothing(trial, starts):
    pages = Pages(trial.simulator.client(KEY), starts)
    summaries = StripeSummaries(pages, trial.settings, {METER: "meter"})

    with pytest.raises(StripeRefused, match="twice or out of place"):
        summaries.hours(METER, trial.customer, NOON, NOON + 3 * HOUR)
