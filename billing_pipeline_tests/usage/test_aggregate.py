"""A window is worth what the source says now: late, changed, deleted and fractional rows included, and no more."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.database.connection import connect
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline_tests.builders import NOON, billable_event, insert_events, map_customer
from billing_pipeline_tests.fix_aggregation import TOKENS, Aggregator, catalogue_of

HOUR = timedelta(hours=1)
HOURS = [NOON - 8 * 24 * HOUR, NOON - 9 * 24 * HOUR, NOON - 10 * 24 * HOUR, NOON - HOUR, NOON]
"""Two calendar months: the third hour lies in February, the others in March."""


def event(**overrides):
    return billable_event(**({"event_type": "tokens"} | overrides))


def chain_sums(connection):
    """Customer and month -> targets and exact units, summed."""
    return {
        (customer, month): (target, units)
        for customer, month, target, units in connection.execute(
            "SELECT stripe_customer_id, date_trunc('month', starts_at, 'UTC'), sum(target), sum(units) "
            "FROM usage_windows GROUP BY 1, 2"
        )
    }


def test_a_row_recorded_late_is_counted_by_the_touched_scope(aggregator):
    insert_events(aggregator.connection, event(quantity=Decimal(10)))
    aggregator()
    insert_events(aggregator.connection, event(quantity=Decimal(7), recorded_at=aggregator.now))
    aggregator.now += HOUR

    report = aggregator(Scope.TOUCHED)

    assert aggregator.targets() == {("tokens", NOON): 17}
    assert (report.windows_computed, report.windows_changed) == (1, 1)


@pytest.mark.parametrize("kind", ["50% off", "50%% off", "%s", "it's", "{fault}", 'a "b"'])
def test_an_event_type_may_be_any_text(aggregator, kind):
    as_toml = json.dumps(kind)
    aggregator.catalogue = catalogue_of(
        f'[meters.sums]\nevent_types = [{as_toml}]\naggregation = "sum"',
        f'[meters.peaks]\nevent_types = [{as_toml}]\naggregation = "max"\nfilter = {{ {as_toml} = {as_toml} }}',
    )
    insert_events(aggregator.connection, event(event_type=kind, quantity=Decimal(7), properties={kind: kind}))

    aggregator()

    assert aggregator.targets() == {("sums", NOON): 7, ("peaks", NOON): 7}


def test_the_touched_scope_leaves_other_organizations_and_hours_alone(aggregator):
    insert_events(
        aggregator.connection,
        event(quantity=Decimal(1)),
        event(quantity=Decimal(2), organization_id="globex"),
        event(quantity=Decimal(4), occurred_at=NOON - HOUR),
    )
    aggregator()
    # Nothing tells of this change but the daily full scope.
    aggregator.connection.execute("UPDATE public.billable_events SET quantity = quantity * 100")
    insert_events(aggregator.connection, event(quantity=Decimal(8), recorded_at=aggregator.now))

    report = aggregator(Scope.TOUCHED)

    targets = aggregator.connection.execute("SELECT target FROM usage_windows ORDER BY target").fetchall()
    assert [target for (target,) in targets] == [2, 4, 108]
    assert report.windows_computed == 1


def test_an_unchanged_window_is_not_written_again(aggregator):
    insert_events(aggregator.connection, event(quantity=Decimal("1.5")), event(quantity=Decimal("2.5")))
    aggregator()
    before = aggregator.connection.execute("SELECT xmin, ctid FROM usage_windows").fetchall()

    report = aggregator()

    assert aggregator.connection.execute("SELECT xmin, ctid FROM usage_windows").fetchall() == before
    assert (report.windows_computed, report.windows_changed, report.windows_carried) == (1, 0, 0)


def test_a_row_as_old_as_stripe_takes_is_counted(aggregator):
    oldest = aggregator.now - timedelta(days=35) + timedelta(minutes=1)
    insert_events(aggregator.connection, event(occurred_at=oldest, recorded_at=aggregator.now))

    aggregator()

    assert list(aggregator.targets().values()) == [1]


def test_a_window_that_left_the_reach_is_neither_emptied_nor_recomputed(aggregator):
    insert_events(aggregator.connection, event(quantity=Decimal(3)))
    aggregator()
    aggregator.connection.execute("DELETE FROM public.billable_events")
    aggregator.now += timedelta(days=36)

    aggregator()

    assert aggregator.targets() == {("tokens", NOON): 3}


@pytest.mark.parametrize(
    "at", ["58165-03-10 12:00+00", "294276-12-31 23:59:59+00", "0044-03-15 12:00+00 BC", "infinity", "-infinity"]
)
@pytest.mark.parametrize("scope", list(Scope))
def test_a_time_beyond_all_calendars_stops_nobody(aggregator, at, scope):
    aggregator()
    insert_events(aggregator.connection, event(occurred_at=at, recorded_at=aggregator.now), event())

    # The good row was recorded long before the last cutoff, so only the full scope finds it.
    aggregator(scope)

    assert aggregator.targets() == ({("tokens", NOON): 1} if scope is Scope.FULL else {})


@pytest.mark.parametrize(("aggregation", "counted"), [("sum", 1), ("count", 2)])
def test_a_row_without_quantity_counts_only_where_none_is_needed(aggregator, aggregation, counted):
    aggregator.catalogue = catalogue_of(f'[meters.tokens]\nevent_types = ["tokens"]\naggregation = "{aggregation}"')
    insert_events(aggregator.connection, event(quantity=None), event())

    aggregator()

    assert aggregator.targets() == {("tokens", NOON): counted}


def test_fractions_of_many_hours_add_up_to_whole_units(aggregator):
    insert_events(
        aggregator.connection,
        *(event(quantity=Decimal("0.9"), occurred_at=NOON - hours * HOUR) for hours in range(20)),
    )

    report = aggregator()

    assert chain_sums(aggregator.connection) == {(None, NOON.replace(day=1, hour=0)): (18, 18)}
    assert report.windows_carried == 1


def test_a_carried_unit_stays_where_it_was_put(aggregator):
    connection = aggregator.connection
    insert_events(connection, *(event(quantity=Decimal("0.5"), occurred_at=NOON - hours * HOUR) for hours in (2, 1)))
    aggregator()
    assert aggregator.targets() == {("tokens", NOON - HOUR): 1}

    # The next hour would be the latest now, and a late row makes the sum exactly two.
    insert_events(
        connection,
        event(quantity=Decimal("0.4")),
        event(quantity=Decimal("0.6"), occurred_at=NOON - 3 * HOUR, recorded_at=NOON),
    )
    aggregator()

    assert aggregator.targets() == {("tokens", NOON - HOUR): 1, ("tokens", NOON): 1}


def test_a_carried_unit_is_taken_back_when_its_fractions_go(aggregator):
    connection = aggregator.connection
    insert_events(
        connection,
        event(event_id="x", quantity=Decimal("0.9"), occurred_at=NOON - HOUR),
        event(quantity=Decimal("0.9")),
    )
    aggregator()
    assert aggregator.targets() == {("tokens", NOON): 1}
    connection.execute("DELETE FROM public.billable_events WHERE event_id = 'x'")

    aggregator()

    assert aggregator.targets() == {}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), scale=st.sampled_from(["1", "0.37", "2.5"]), whole=st.booleans())
def test_the_targets_of_a_month_are_the_whole_part_of_its_exact_sum(aggregator, data, scale, whole):
    """Whatever rows come, change and go, in whatever order; and whole units never move."""
    connection = aggregator.connection
    for table in ("usage_windows", "meter_versions", "aggregations", "public.billable_events", "customer_mappings"):
        connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        connection.execute(f"DELETE FROM {table}")
    map_customer(connection, "acme", "cus_1")
    scale = "3" if whole else scale
    aggregator.catalogue = catalogue_of(
        f'[meters.tokens]\nevent_types = ["tokens"]\naggregation = "sum"\nunit_scale = "{scale}"'
    )
    quantities = st.integers(0, 50).map(Decimal) if whole else st.sampled_from(["0", "0.3", "0.9", "1.5"]).map(Decimal)
    rows = {}
    for step in range(data.draw(st.integers(2, 4))):
        for number in range(data.draw(st.integers(1, 5))):
            event_id = f"{step}-{number}"
            rows[event_id] = event(
                event_id=event_id,
                organization_id=data.draw(st.sampled_from(["acme", "acme", "globex"])),
                occurred_at=data.draw(st.sampled_from(HOURS)),
                quantity=data.draw(quantities),
                recorded_at=aggregator.now,
            )
        for event_id in data.draw(st.sets(st.sampled_from(sorted(rows)), min_size=1, max_size=4)):
            if data.draw(st.booleans()):
                del rows[event_id]
            else:
                rows[event_id] |= {"quantity": data.draw(quantities)}
        connection.execute("DELETE FROM public.billable_events")
        insert_events(connection, *rows.values())

        report = aggregator()

        exact = defaultdict(Decimal)
        for row in rows.values():
            customer = "cus_1" if row["organization_id"] == "acme" else None
            exact[(customer, row["occurred_at"].month)] += row["quantity"] * Decimal(scale)
        sums = {(customer, month.month): target for (customer, month), (target, _) in chain_sums(connection).items()}
        assert {key: target for key, target in sums.items() if target} == {
            key: int(units) for key, units in exact.items() if int(units)
        }
        assert not (whole and report.windows_carried)


@pytest.mark.parametrize(
    ("wanted", "counted"),
    [
        ('{ tier = "pro" }', 1 + 16),
        ('{ tier = ["pro", "team"] }', 1 + 2 + 16),
        ('{ tier = "pro", seats = 3 }', 16),
        ("{ trial = true }", 2),
        ('{ tier = "absent" }', 0),
    ],
)
def test_a_filter_counts_the_rows_whose_properties_match_all_of_it(aggregator, wanted, counted):
    aggregator.catalogue = catalogue_of(TOKENS + f"filter = {wanted}\n")
    insert_events(
        aggregator.connection,
        event(quantity=Decimal(1), properties={"tier": "pro", "seats": "3"}),
        event(quantity=Decimal(2), properties={"tier": "team", "trial": True}),
        event(quantity=Decimal(4), properties={"tier": None, "trial": "true"}),
        event(quantity=Decimal(8), properties=None),
        event(quantity=Decimal(16), properties={"tier": "pro", "seats": 3, "more": {"tier": "team"}}),
    )

    aggregator()

    assert sum(aggregator.targets().values()) == counted


def test_two_aggregations_at_once_both_end_well(aggregator, database_url):
    insert_events(
        aggregator.connection,
        *(
            event(organization_id=f"org-{number}", occurred_at=NOON - hours * HOUR)
            for number in range(10)
            for hours in range(10)
        ),
    )
    failures = []

    def work():
        try:
            with connect(database_url) as connection:
                for _ in range(4):
                    connection.execute("UPDATE public.billable_events SET quantity = quantity + 1 WHERE random() < 0.3")
                    Aggregator(connection)()
        except Exception as exc:
            failures.append(exc)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    aggregator()

    connection = aggregator.connection
    assert failures == []
    assert (
        connection.execute("SELECT sum(target) FROM usage_windows").fetchone()
        == connection.execute("SELECT sum(quantity) FROM public.billable_events").fetchone()
    )


@pytest.mark.parametrize("scope", list(Scope))
def test_the_sources_other_columns_may_have_any_name(aggregator, scope):
    aggregator.connection.execute(
        "ALTER TABLE public.billable_events ADD hour_at timestamptz, ADD is_split boolean, ADD fault text"
    )
    aggregator()
    insert_events(aggregator.connection, event(quantity=Decimal(7), recorded_at=aggregator.now))

    aggregator(scope)

    assert aggregator.targets() == {("tokens", NOON): 7}
