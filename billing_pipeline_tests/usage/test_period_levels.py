"""Meters of a level: whatever comes late, changes or goes, a billing period's windows add up to its level."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.database.queries import statements
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline_tests.builders import NOON, billable_event, insert_events, map_customer
from billing_pipeline_tests.fix_aggregation import catalogue_of

HOUR = timedelta(hours=1)
DAY = 24 * HOUR
TIMES = [NOON - 12 * DAY, NOON - 10 * DAY, *(NOON + n * timedelta(minutes=25) for n in range(-1, 6))]
"""The first two lie in February; of the others, several share an hour."""


def seats(**overrides):
    return billable_event(**({"event_type": "seats"} | overrides))


def meter(aggregation, scale="1", **keys):
    extra = {"property": '"user"'} if aggregation == "unique" else {}
    lines = [f"{key} = {value}" for key, value in (extra | keys).items()]
    return catalogue_of(
        f'[meters.seats]\nevent_types = ["seats"]\naggregation = "{aggregation}"\nunit_scale = "{scale}"\n'
        + "\n".join(lines)
    )


def hours(connection):
    """Start of each window that is worth something -> its target."""
    return dict(connection.execute("SELECT starts_at, target FROM usage_windows WHERE target <> 0").fetchall())


def know_edges(connection, now, *edges):
    """Stripe counts acme's usage into another period from each of these instants on."""
    for at in edges:
        connection.execute(
            "INSERT INTO billing_periods (stripe_customer_id, event_name, during, subscription_item_id, synced_at) "
            "VALUES ('cus_1', 'seats', tstzrange(%s, 'infinity'), %s, %s)",
            (at, f"si_{at}", now),
        )


@pytest.fixture
def levels(aggregator):
    map_customer(aggregator.connection, "acme", "cus_1")
    # A mapping newer than the last cutoff touches every window.
    aggregator.connection.execute("UPDATE customer_mappings SET created_at = %s", (NOON - 60 * DAY,))
    return aggregator


def test_of_a_max_each_hour_adds_what_the_highest_value_grew_by(levels):
    levels.catalogue = meter("max")
    insert_events(
        levels.connection,
        seats(quantity=Decimal(5)),
        seats(quantity=Decimal(3), occurred_at=NOON + timedelta(minutes=10)),
        seats(quantity=Decimal(4), occurred_at=NOON + HOUR),
        seats(quantity=Decimal(9), occurred_at=NOON + 2 * HOUR),
    )

    levels()

    assert hours(levels.connection) == {NOON: 5, NOON + 2 * HOUR: 4}


def test_a_high_value_that_comes_late_takes_back_what_later_hours_added(levels):
    levels.catalogue = meter("max")
    insert_events(levels.connection, seats(quantity=Decimal(5)), seats(quantity=Decimal(9), occurred_at=NOON + HOUR))
    levels()

    insert_events(levels.connection, seats(quantity=Decimal(8), recorded_at=levels.now))
    levels(Scope.TOUCHED)

    assert hours(levels.connection) == {NOON: 8, NOON + HOUR: 1}


def test_of_a_last_the_hours_add_up_to_the_latest_value_and_none_is_below_zero(levels):
    levels.catalogue = meter("last")
    insert_events(levels.connection, seats(quantity=Decimal(5)), seats(quantity=Decimal(9), occurred_at=NOON + HOUR))
    levels()
    assert hours(levels.connection) == {NOON: 5, NOON + HOUR: 4}

    levels.now += HOUR
    insert_events(levels.connection, seats(quantity=Decimal(3), occurred_at=NOON + 2 * HOUR, recorded_at=levels.now))
    levels(Scope.TOUCHED)

    assert hours(levels.connection) == {NOON: 3}


def test_a_latest_value_that_is_taken_out_gives_back_what_it_took(levels):
    levels.catalogue = meter("last")
    low = seats(quantity=Decimal(3), occurred_at=NOON + 2 * HOUR, event_id="low")
    insert_events(
        levels.connection, seats(quantity=Decimal(5)), seats(quantity=Decimal(9), occurred_at=NOON + HOUR), low
    )
    levels()
    levels.connection.execute("DELETE FROM public.billable_events WHERE event_id = 'low'")

    levels()

    assert hours(levels.connection) == {NOON: 5, NOON + HOUR: 4}


def test_an_hour_whose_latest_value_rises_gives_back_what_it_took(levels):
    levels.catalogue = meter("last")
    insert_events(levels.connection, seats(quantity=Decimal(5)), seats(quantity=Decimal(3), occurred_at=NOON + HOUR))
    levels()
    assert hours(levels.connection) == {NOON: 3}

    later = NOON + HOUR + timedelta(minutes=1)
    insert_events(levels.connection, seats(quantity=Decimal(9), occurred_at=later, recorded_at=levels.now))
    levels(Scope.TOUCHED)

    assert hours(levels.connection) == {NOON: 5, NOON + HOUR: 4}


def test_of_a_unique_a_value_counts_once_in_its_billing_period(levels):
    levels.catalogue = meter("unique")
    insert_events(
        levels.connection,
        seats(properties={"user": "ann"}),
        seats(properties={"user": "bob"}, quantity=None),
        seats(properties={"user": "ann"}, occurred_at=NOON + HOUR),
        seats(properties={"user": "cy"}, occurred_at=NOON + HOUR),
    )

    levels()

    assert hours(levels.connection) == {NOON: 2, NOON + HOUR: 1}


def test_a_value_seen_earlier_than_known_moves_to_the_earlier_hour(levels):
    levels.catalogue = meter("unique")
    insert_events(levels.connection, seats(properties={"user": "ann"}, occurred_at=NOON + HOUR))
    levels()

    insert_events(levels.connection, seats(properties={"user": "ann"}, recorded_at=levels.now))
    levels(Scope.TOUCHED)

    assert hours(levels.connection) == {NOON: 1}


def test_a_row_without_the_property_that_is_counted_by_is_not_counted(levels):
    levels.catalogue = meter("unique")
    insert_events(
        levels.connection, seats(properties={"user": ""}), seats(properties={}), seats(), seats(properties={"user": 7})
    )

    levels()

    assert hours(levels.connection) == {NOON: 1}


def test_another_aggregation_begins_its_level_anew(levels):
    levels.catalogue = meter("max")
    insert_events(levels.connection, seats(quantity=Decimal(5)))
    levels()
    levels.catalogue = meter("last")
    levels()
    levels.now += 2 * HOUR
    edge = NOON + 4 * HOUR
    insert_events(levels.connection, seats(quantity=Decimal(2), occurred_at=edge, recorded_at=levels.now))

    levels(Scope.TOUCHED)

    assert hours(levels.connection) == {NOON: 5, edge: 2}


def test_an_edge_that_becomes_known_later_begins_the_level_anew_behind_it(levels):
    levels.catalogue = meter("max")
    insert_events(
        levels.connection, seats(quantity=Decimal(5)), seats(quantity=Decimal(4), occurred_at=NOON + 2 * HOUR)
    )
    levels()
    assert hours(levels.connection) == {NOON: 5}

    levels.now += HOUR
    know_edges(levels.connection, levels.now, NOON + HOUR)
    levels(Scope.TOUCHED)

    assert hours(levels.connection) == {NOON: 5, NOON + 2 * HOUR: 4}


def level(aggregation, rows):
    """What these rows of one billing period come to, in plain Python."""
    if aggregation == "max":
        return max((row["quantity"] for row in rows), default=Decimal(0))
    if aggregation == "unique":
        return Decimal(len({row["properties"]["user"] for row in rows}))
    return max(((r["occurred_at"], r["recorded_at"], r["quantity"]) for r in rows), default=(0, 0, Decimal(0)))[2]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), aggregation=st.sampled_from(["max", "last", "unique"]), scale=st.sampled_from(["1", "0.37"]))
def test_a_periods_windows_always_add_up_to_its_level(levels, data, aggregation, scale):
    """Rows arrive late, change and go; edges become known; one recount is of what was touched, the next is full."""
    connection = levels.connection
    for table in (
        "unique_values",
        "usage_windows",
        "meter_versions",
        "aggregations",
        "billing_periods",
        "public.billable_events",
    ):
        connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        connection.execute(f"DELETE FROM {table}")
    levels.catalogue = meter(aggregation, scale)
    levels.now = NOON + 3 * HOUR + timedelta(minutes=20)
    rows, edges = {}, []
    for step in range(data.draw(st.integers(1, 5))):
        levels.now += timedelta(minutes=20)
        for number in range(data.draw(st.integers(0, 5))):
            row = seats(
                event_id=f"{step}-{number}",
                organization_id=data.draw(st.sampled_from(["acme", "acme", "acme", "globex"])),
                occurred_at=data.draw(st.sampled_from(TIMES)),
                quantity=Decimal(data.draw(st.integers(0, 12))),
                properties={"user": data.draw(st.sampled_from("abc"))},
                recorded_at=levels.now,
            )
            rows[row["event_id"]] = row
            insert_events(connection, row)
        edge = data.draw(st.sampled_from(TIMES)) + data.draw(st.sampled_from([0, 7])) * timedelta(minutes=1)
        if edge not in edges and data.draw(st.booleans()):
            edges.append(edge)
            know_edges(connection, levels.now, edge)
        gone = (
            data.draw(st.sets(st.sampled_from(sorted(rows)), max_size=2)) if rows and data.draw(st.booleans()) else ()
        )
        for event_id in gone:
            del rows[event_id]
            connection.execute("DELETE FROM public.billable_events WHERE event_id = %s", (event_id,))

        levels(Scope.FULL if gone else Scope.TOUCHED if step else None)

        assert totals(connection, edges) == expected(rows.values(), edges, aggregation, Decimal(scale))
        assert connection.execute("SELECT count(*) FROM usage_windows WHERE target < 0").fetchone() == (0,)


def period_of(organization_id, at, edges):
    """Where the billing period of this instant begins; a calendar month where there is none."""
    known = [edge for edge in edges if organization_id == "acme" and edge <= at]
    return max(known, default=at.replace(day=1, hour=0, minute=0))


def expected(rows, edges, aggregation, scale):
    of_period = defaultdict(list)
    for row in rows:
        began = period_of(row["organization_id"], row["occurred_at"], edges)
        of_period[(row["organization_id"], began)].append(row)
    worth = {key: int(level(aggregation, found) * scale) for key, found in of_period.items()}
    return {key: units for key, units in worth.items() if units}


def totals(connection, edges):
    found = defaultdict(int)
    for organization_id, starts_at, target in connection.execute(
        "SELECT organization_id, starts_at, target FROM usage_windows WHERE target <> 0"
    ):
        found[(organization_id, period_of(organization_id, starts_at, edges))] += int(target)
    return dict(found)


def test_the_invariant_finds_a_level_that_does_not_add_up_and_no_other(levels):
    def offenders():
        found = levels.connection.execute(invariant, {"now": levels.now}).fetchall()
        return [detail for _, detail in found]

    invariant = statements()["v20_period_levels_add_up"]
    for number, aggregation in enumerate(("max", "last", "max")):
        levels.catalogue = meter(aggregation)
        levels()
        insert_events(
            levels.connection,
            seats(quantity=Decimal(9 - number), occurred_at=levels.now + HOUR, recorded_at=levels.now + HOUR),
        )
        levels.now += 2 * HOUR
        levels()
    assert sorted(hours(levels.connection).values()) == [7, 8, 9]
    assert offenders() == []

    levels.connection.execute("UPDATE usage_windows SET target = 10 WHERE target = 9")

    assert offenders() == ["worth 10, the level went from 0 to 9"]
