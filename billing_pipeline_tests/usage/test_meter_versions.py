"""A change of the catalogue takes effect with the next full hour and never rewrites one that was counted."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.domain.catalogue import Aggregation, Meter
from billing_pipeline.errors import SettingsError
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.meter_versions import definition
from billing_pipeline_tests.builders import NOON, billable_event, insert_events
from billing_pipeline_tests.fix_aggregation import TOKENS, catalogue_of
from billing_pipeline_tests.fix_flow import counted_by_stripe

HOUR = timedelta(hours=1)
RENAMED = TOKENS.replace("meters.tokens", "meters.llm_tokens") + 'event_name = "tokens"\n'


def event(**overrides):
    return billable_event(**({"event_type": "tokens"} | overrides))


def history(connection):
    return connection.execute(
        "SELECT meter, event_name, unit_scale, valid_from, valid_until FROM meter_versions ORDER BY valid_from, meter"
    ).fetchall()


def test_an_unchanged_catalogue_opens_no_version_twice(aggregator):
    assert [aggregator().meters_changed for _ in range(2)] == [1, 0]


def test_a_new_scale_counts_only_from_the_next_full_hour(aggregator):
    insert_events(aggregator.connection, event(quantity=Decimal(7)))
    aggregator()
    aggregator.catalogue = catalogue_of(TOKENS + "unit_scale = 1000\n")
    edge = aggregator.now.replace(minute=0) + HOUR
    aggregator()

    # Late for an hour of the old definition, and in time for the new one.
    aggregator.now = edge + HOUR
    insert_events(aggregator.connection, event(recorded_at=edge), event(occurred_at=edge))
    aggregator()

    assert aggregator.targets() == {("tokens", NOON): 8, ("tokens", edge): 1000}


def test_a_removed_meters_windows_are_not_emptied(aggregator):
    insert_events(aggregator.connection, event(quantity=Decimal(7)))
    aggregator()
    aggregator.catalogue = catalogue_of('[meters.other]\nevent_types = ["other"]\naggregation = "sum"')

    aggregator.now += 3 * HOUR
    aggregator()

    assert aggregator.targets() == {("tokens", NOON): 7}


def test_a_meter_put_back_counts_no_hour_twice(aggregator):
    insert_events(aggregator.connection, event(quantity=Decimal(7)))
    aggregator()
    original = aggregator.catalogue
    aggregator.catalogue = catalogue_of('[meters.other]\nevent_types = ["other"]\naggregation = "sum"')
    aggregator()
    aggregator.catalogue = original

    aggregator()

    assert aggregator.targets() == {("tokens", NOON): 7}


def test_a_renamed_meter_does_not_bill_the_past_again(aggregator):
    insert_events(aggregator.connection, event(quantity=Decimal(7)))
    aggregator()
    aggregator.catalogue = catalogue_of(RENAMED)

    aggregator()

    assert aggregator.targets() == {("tokens", NOON): 7}


def test_a_version_that_never_began_leaves_no_trace(aggregator):
    aggregator()
    original = aggregator.catalogue
    aggregator.catalogue = catalogue_of(TOKENS + "unit_scale = 5\n")
    aggregator()
    aggregator.catalogue = original
    aggregator()
    edge = aggregator.now.replace(minute=0) + HOUR

    assert [(scale, since, until) for _, _, scale, since, until in history(aggregator.connection)][-2:] == [
        (1, history(aggregator.connection)[0][3], edge),
        (1, edge, None),
    ]


def test_billing_begins_where_the_setting_says(aggregator):
    aggregator.start_at = NOON
    insert_events(aggregator.connection, event(occurred_at=NOON - timedelta(seconds=1)), event())

    aggregator()

    assert aggregator.targets() == {("tokens", NOON): 1}


def test_a_meter_added_later_begins_with_the_next_full_hour_and_not_before_billing(aggregator):
    aggregator.start_at = NOON + 24 * HOUR
    aggregator()
    aggregator.catalogue = catalogue_of(TOKENS, '[meters.other]\nevent_types = ["other"]\naggregation = "count"')
    aggregator()

    assert [since for *_, since, _ in history(aggregator.connection)] == [NOON + 24 * HOUR] * 2


@pytest.mark.parametrize("start_at", ["2026-01-01T00:30:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00+05:30"])
def test_billing_cannot_begin_within_an_hour_or_without_a_zone(start_at):
    with pytest.raises(SettingsError, match="BILLING_START_AT"):
        load_settings(billing_start_at=start_at)


def test_the_order_of_event_types_and_trailing_zeros_are_no_change():
    plain = Meter("tokens", ("a", "b"), Aggregation.SUM, "tokens", Decimal("0.5"))
    same = Meter("tokens", ("b", "a"), Aggregation.SUM, "tokens", Decimal("0.500"))
    other = Meter("tokens", ("b", "a"), Aggregation.COUNT, "tokens", Decimal("0.5"))

    assert definition(plain) == definition(same)
    assert definition(plain)["version"] != definition(other)["version"]


def test_an_old_windows_correction_goes_to_the_stripe_meter_it_was_stated_to(flow, bill, simulator):
    customers = bill("acme")
    closed = flow.clock().replace(minute=0, second=0, microsecond=0) - 5 * HOUR
    row = billable_event(event_id="x", quantity=Decimal(7), occurred_at=closed)
    insert_events(flow.connection, row)
    flush(flow)
    flow.catalogue = catalogue_of(
        '[meters.prompt_tokens]\nevent_types = ["prompt_tokens"]\naggregation = "sum"\nevent_name = "generated_tokens"'
    )
    flow.connection.execute("UPDATE public.billable_events SET quantity = 5")

    flush(flow, scope=Scope.FULL)

    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", closed): 5}
