"""Every unit is billed in the billing period it was used in, whenever that period's edges become known.

Stripe puts a meter event into a period by its timestamp.  The judge adds up the simulator's journal by timestamp, and
the source rows by the time they occurred.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.stripe_simulator.billing_periods import add_months
from billing_pipeline.usage.adopt import adopt
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events, map_customer
from billing_pipeline_tests.fix_flow import counted_by_stripe, counted_in_periods

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
JUST_BEFORE = timedelta(microseconds=-1)
CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 4 * HOUR
"""An hour that closed long enough ago to be cut, with two more behind it."""
EDGE = CLOSED + timedelta(minutes=37, seconds=12)
MONTH_TURNS = (CLOSED - 2 * HOUR).month != (CLOSED + 2 * HOUR).month
QUIET_HOUR = CLOSED - 6 * HOUR if MONTH_TURNS else CLOSED
"""An hour far enough from the turn of a UTC month, within which fractions are carried."""
QUIET_EDGE = QUIET_HOUR + timedelta(minutes=37, seconds=12)

_names = count(1)


def use(flow, quantity, at, **fields):
    """The product records usage, just now."""
    event = {"quantity": Decimal(quantity), "occurred_at": at, "recorded_at": datetime.now(UTC)}
    insert_events(flow.connection, billable_event(**(event | fields)))


def assert_in_order(flow, *, held=False):
    """No invariant is broken, and every difference between the sides has a reason."""
    now = flow.clock()
    assert violations(flow.connection, settings=flow.settings, mark=flow.mark.read().attempt_id, now=now) == []
    report = reconcile(flow.connection, settings=flow.settings, now=now)
    assert {str(found.kind) for found in report.differences} <= ({"held", "not_cut"} if held else set())


def values(flow):
    return [value for (value,) in flow.connection.execute("SELECT value FROM ledger_entries ORDER BY entry_id")]


@pytest.mark.parametrize("edge", [EDGE, CLOSED, CLOSED + 20 * MINUTE, CLOSED + 3599 * SECOND, CLOSED + SECOND])
def test_an_hour_in_which_a_period_begins_bills_both_periods_right(flow, bill, simulator, subscriptions, edge):
    customer = bill("acme")["acme"]
    subscriptions.create(customer, edge)
    use(flow, 1, edge + JUST_BEFORE)
    use(flow, 2, edge)
    use(flow, 4, CLOSED + HOUR + MINUTE)

    flush(flow)

    assert counted_in_periods(simulator, customer, edge) == [1, 6]
    assert_in_order(flow)


def test_an_edge_found_after_the_usage_was_confirmed_moves_what_lies_behind_it(flow, bill, simulator, subscriptions):
    customer = bill("acme")["acme"]
    use(flow, 60, EDGE + JUST_BEFORE)
    use(flow, 40, EDGE)
    assert flush(flow).confirm.confirmed == 1
    assert counted_in_periods(simulator, customer, EDGE) == [100, 0]

    subscriptions.create(customer, EDGE)
    flush(flow)

    assert counted_in_periods(simulator, customer, EDGE) == [60, 40]
    assert sorted(values(flow)) == [-100, 40, 60, 100]
    assert_in_order(flow)
    assert flush(flow).submit.attempts == 0


def test_what_was_stated_on_both_sides_is_taken_back_on_both(flow, bill, simulator, subscriptions):
    """Forty late rows took the hour's minutes beyond the edge before the edge was known."""
    customer = bill("acme")["acme"]
    edge = CLOSED + 2 * MINUTE + 30 * SECOND
    for number in range(6):
        use(flow, 1 + number, CLOSED + (MINUTE if number % 2 else 30 * MINUTE))
        flush(flow)
    assert all(counted_in_periods(simulator, customer, edge))

    subscriptions.create(customer, edge)
    # One side at a time: the second is taken back when the first has been accepted.
    flush(flow)
    flush(flow)

    assert counted_in_periods(simulator, customer, edge) == [2 + 4 + 6, 1 + 3 + 5]
    assert_in_order(flow)
    assert flush(flow).submit.attempts == 0


def test_nothing_is_restated_while_what_it_replaces_cannot_be_taken_back(flow, bill, simulator, subscriptions):
    customer = bill("acme")["acme"]
    use(flow, 60, EDGE + JUST_BEFORE)
    use(flow, 40, EDGE)
    flush(flow)
    # A late row's entry was refused by Stripe and waits for a person.
    use(flow, 5, EDGE)
    flow.aggregate()
    flow.cut()
    flow.connection.execute("UPDATE ledger_entries SET hold_reason = 'a person looks' WHERE state = 'pending'")
    subscriptions.create(customer, EDGE)

    flush(flow)
    assert counted_in_periods(simulator, customer, EDGE) == [100, 0]

    flow.connection.execute("UPDATE ledger_entries SET hold_reason = NULL WHERE state = 'pending'")
    for _ in range(3):
        flush(flow)

    assert counted_in_periods(simulator, customer, EDGE) == [60, 45]
    assert_in_order(flow)


def test_nothing_is_restated_when_the_taking_back_has_no_minute(flow, bill, simulator, subscriptions):
    """Two edges a few seconds apart in one minute, and an entry in it: only a person can take that back."""
    customer = bill("acme")["acme"]
    use(flow, 7, CLOSED)
    flush(flow)
    subscription = subscriptions.create(customer, CLOSED - 20 * SECOND)
    flow.sync_periods()
    subscriptions.reset_anchor(subscription, CLOSED + 20 * SECOND)

    assert flush(flow).cut.windows_held == 1
    flush(flow)

    edges = (CLOSED - 20 * SECOND, CLOSED + 20 * SECOND)
    assert counted_in_periods(simulator, customer, *edges) == [0, 7, 0]
    assert_in_order(flow, held=True)


def test_an_entry_beside_its_full_window_follows_an_edge_found_between_them(flow, bill, simulator, subscriptions):
    """The window of one minute is full, so its late row stands before it, and then a period begins in between."""
    customers = bill("old-acme", "new-acme")
    old = customers["old-acme"]
    flow.connection.execute("DELETE FROM customer_mappings")
    change = CLOSED + MINUTE
    map_customer(flow.connection, "acme", old, f"(,{change})")
    map_customer(flow.connection, "acme", customers["new-acme"], f"[{change},)")
    for quantity in (8, 1):
        use(flow, quantity, CLOSED)
        flush(flow)
    edge = CLOSED - 12 * MINUTE + 30 * SECOND
    assert counted_in_periods(simulator, old, edge) == [1, 8]

    subscriptions.create(old, edge)
    flush(flow)
    flush(flow)

    assert counted_in_periods(simulator, old, edge) == [0, 9]
    assert_in_order(flow)


def test_an_edge_that_moves_moves_the_usage_between(flow, bill, simulator, subscriptions):
    """An anchor reset is seen only after the natural end had split the hour."""
    customer = bill("acme")["acme"]
    subscription = subscriptions.create(customer, EDGE)
    for at in (EDGE + JUST_BEFORE, EDGE, EDGE + 10 * MINUTE):
        use(flow, 1, at)
    flush(flow)
    assert counted_in_periods(simulator, customer, EDGE) == [1, 2]

    subscriptions.reset_anchor(subscription, EDGE + 10 * MINUTE)
    flush(flow)

    assert counted_in_periods(simulator, customer, EDGE, EDGE + 10 * MINUTE) == [1, 1, 1]
    assert_in_order(flow)


def test_a_canceled_subscription_ends_its_period_at_once(flow, bill, simulator, subscriptions):
    customer = bill("acme")["acme"]
    subscription = subscriptions.create(customer, CLOSED - 72 * HOUR)
    use(flow, 8, EDGE + JUST_BEFORE)
    use(flow, 9, EDGE)
    flush(flow)

    subscriptions.cancel(subscription, EDGE)
    flush(flow)

    assert counted_in_periods(simulator, customer, EDGE) == [8, 9]
    assert_in_order(flow)


def test_a_period_that_rolls_over_splits_its_hour(flow, bill, simulator, subscriptions):
    """The renewal of a month ago's subscription, seen by syncs before and after it."""
    customer = bill("acme")["acme"]
    month_ago = datetime.fromtimestamp(add_months(int(EDGE.timestamp()), -1), UTC)
    edge = datetime.fromtimestamp(add_months(int(month_ago.timestamp()), 1), UTC)
    subscriptions.create(customer, month_ago)
    with subscriptions.at(month_ago + HOUR):
        flow.sync_periods()
    use(flow, 3, edge + JUST_BEFORE)
    use(flow, 5, edge)

    flush(flow)

    assert counted_in_periods(simulator, customer, month_ago, edge) == [0, 3, 5]
    periods = flow.connection.execute("SELECT lower(during), upper(during) FROM billing_periods ORDER BY 1").fetchall()
    assert periods[0] == (month_ago, edge)
    assert periods[1][0] == edge
    assert_in_order(flow)


def test_a_new_customer_and_a_new_period_in_one_hour(flow, bill, simulator, subscriptions):
    customers = bill("old-acme", "new-acme")
    old, new = customers["old-acme"], customers["new-acme"]
    flow.connection.execute("DELETE FROM customer_mappings")
    change = CLOSED + 37 * MINUTE + 10 * SECOND
    map_customer(flow.connection, "acme", old, f"(,{change})")
    map_customer(flow.connection, "acme", new, f"[{change},)")
    # Two seconds without a subscription have no minute of their own, but Stripe bills them as the time before.
    subscriptions.create(new, EDGE)
    subscriptions.create(old, CLOSED + 5 * MINUTE)
    for quantity, at in (
        (1, CLOSED),
        (2, CLOSED + 5 * MINUTE),
        (4, change + JUST_BEFORE),
        (8, change),
        (16, EDGE + JUST_BEFORE),
        (32, EDGE),
    ):
        use(flow, quantity, at)

    flush(flow)

    assert counted_in_periods(simulator, old, CLOSED + 5 * MINUTE) == [1, 2 + 4]
    assert counted_in_periods(simulator, new, EDGE) == [8 + 16, 32]
    assert_in_order(flow)


def test_usage_of_a_period_without_a_whole_minute_waits_for_a_person(flow, bill, simulator, subscriptions):
    customer = bill("acme")["acme"]
    subscription = subscriptions.create(customer, EDGE)
    flow.sync_periods()
    subscriptions.cancel(subscription, EDGE + 30 * SECOND)
    for at in (EDGE + JUST_BEFORE, EDGE, EDGE + 30 * SECOND):
        use(flow, 1, at)

    assert flush(flow).cut.windows_held == 1

    assert counted_in_periods(simulator, customer, EDGE, EDGE + 30 * SECOND) == [1, 0, 1]
    assert_in_order(flow, held=True)


def test_fractions_are_carried_within_their_period(flow, bill, simulator, subscriptions):
    customer = bill("acme")["acme"]
    subscriptions.create(customer, QUIET_EDGE)
    for number in range(3):
        use(flow, "0.5", QUIET_HOUR - number * HOUR)
        use(flow, "0.7", QUIET_EDGE + number * HOUR)

    flush(flow)

    assert counted_in_periods(simulator, customer, QUIET_EDGE) == [1, 2]
    report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    assert [(str(found.kind), found.units) for found in report.differences] == [("fraction", Decimal("0.6"))]


def test_a_carried_unit_finds_its_period_when_the_edge_is_found_later(flow, bill, simulator, subscriptions):
    customer = bill("acme")["acme"]
    for number in range(3):
        use(flow, "0.5", QUIET_HOUR - number * HOUR)
    use(flow, "0.5", QUIET_EDGE)
    flush(flow)
    subscriptions.create(customer, QUIET_EDGE)

    flush(flow)
    flush(flow)

    assert counted_in_periods(simulator, customer, QUIET_EDGE) == [1, 0]
    assert violations(flow.connection, settings=flow.settings, mark=flow.mark.read().attempt_id, now=flow.clock()) == []
    assert not reconcile(flow.connection, settings=flow.settings, now=flow.clock()).faults


def test_recovery_adopts_what_stripe_shows_into_the_period_it_is_in(flow, bill, simulator, subscriptions):
    customer = bill("acme")["acme"]
    subscriptions.create(customer, EDGE)
    flush(flow)
    # Sent by a ledger that a restore took back.
    simulator.client().v1.billing.meter_events.create(
        {
            "event_name": "prompt_tokens",
            "payload": {"stripe_customer_id": customer, "value": "5"},
            "timestamp": int((EDGE + 48 * SECOND).timestamp()),
        }
    )
    report = adopt(
        flow.connection,
        flow.summaries,
        catalogue=flow.catalogue,
        mark=flow.mark,
        since=CLOSED,
        actor="a",
        reason="test",
        clock=flow.clock,
    )
    assert [found.stripe_units for found in report.adoptions] == [5]

    use(flow, 3, EDGE + JUST_BEFORE)
    use(flow, 5, EDGE)
    flush(flow)

    assert counted_in_periods(simulator, customer, EDGE) == [3, 5]
    assert sorted(values(flow)) == [3, 5]


def test_an_organization_without_subscription_has_no_edges(flow, bill, simulator):
    customers = bill("acme")
    use(flow, 1, EDGE)

    assert flush(flow).periods.items_read == 0
    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", CLOSED): 1}


@dataclass(frozen=True)
class Story:
    """What happens to one organization; seconds count from the beginning of the hour before `CLOSED`."""

    edges: tuple[int, ...]
    moves_at: int | None
    rows: tuple[tuple[int, int], ...]
    late: tuple[tuple[int, int], ...]
    flushed_before_the_edges: bool
    stated_in_many: bool


SPAN = 3 * 3600
ODD = [0, 1, 3599, 3600, 3601, 3659, 3660, 5400, 5430, 7140, 7170, 7199, 7200, 7201]
seconds = st.sampled_from(ODD) | st.integers(0, SPAN - 1)


@st.composite
def stories(draw):
    # Twenty minutes leave room for every entry, and stay below the rationing of minutes; closer edges have a test of
    # their own.
    edges = sorted(draw(st.sets(seconds, min_size=1, max_size=2)))
    if len(edges) == 2 and edges[1] - edges[0] < 1200:
        edges.pop()
    moves_at = draw(st.none() | seconds)
    near = [moment for edge in (*edges, moves_at or 0) for moment in (edge - 1, edge, edge + 1)]
    times = seconds | st.sampled_from([moment for moment in near if 0 <= moment < SPAN])
    rows = st.lists(st.tuples(times, st.integers(1, 9)), min_size=1, max_size=6).map(tuple)
    return Story(tuple(edges), moves_at, draw(rows), draw(rows), draw(st.booleans()), draw(st.booleans()))


# No shrinking: every try flushes again, and a story is short as it is.
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(told=st.lists(stories(), min_size=1, max_size=3))
def test_every_period_is_billed_what_was_used_in_it(flow, bill, simulator, subscriptions, told):
    """Random anchors, resets, changes of customer and late rows, with the edges known before the usage or after."""
    start = CLOSED - HOUR
    acted = [(story, f"org-{next(_names)}") for story in told]
    customers = bill(*(f"{name}-{side}" for _, name in acted for side in "ab"))
    flow.connection.execute("DELETE FROM customer_mappings WHERE organization_id LIKE 'org-%-_'")

    def record(rows, name):
        for second, quantity in rows:
            use(flow, quantity, start + second * SECOND, organization_id=name)

    for story, name in acted:
        if story.moves_at is None:
            map_customer(flow.connection, name, customers[f"{name}-a"])
        else:
            moved = start + story.moves_at * SECOND
            map_customer(flow.connection, name, customers[f"{name}-a"], f"(,{moved})")
            map_customer(flow.connection, name, customers[f"{name}-b"], f"[{moved},)")
        if story.flushed_before_the_edges:
            record(story.rows, name)
    flush(flow)
    for story, name in acted:
        if story.stated_in_many:
            record([(second, 1) for second, _ in story.rows], name)
            flush(flow)
    for story, name in acted:
        for side in "ab":
            first, *resets = (start + second * SECOND for second in story.edges)
            subscription = subscriptions.create(customers[f"{name}-{side}"], first)
            for reset in resets:
                with subscriptions.at(reset - SECOND):
                    flow.sync_periods()
                subscriptions.reset_anchor(subscription, reset)
    for story, name in acted:
        record(story.late if story.flushed_before_the_edges else (*story.rows, *story.late), name)

    for _ in range(8):
        if flush(flow).cut.entries == 0:
            break

    for story, name in acted:
        edges = [start + second * SECOND for second in story.edges]
        rows = flow.connection.execute(
            "SELECT occurred_at, quantity FROM public.billable_events WHERE organization_id = %s", (name,)
        ).fetchall()
        used = Counter()
        for at, quantity in rows:
            side = "b" if story.moves_at is not None and at >= start + story.moves_at * SECOND else "a"
            used[side, sum(edge <= at for edge in edges)] += int(quantity)
        for side in "ab":
            expected = [used[side, number] for number in range(len(edges) + 1)]
            assert counted_in_periods(simulator, customers[f"{name}-{side}"], *edges) == expected
    assert_in_order(flow)
    flow.aggregate(Scope.FULL)
    assert flush(flow).cut.entries == 0
