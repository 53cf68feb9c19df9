"""A meter whose units or volume change is told, with numbers; quiet weekends and young meters are not."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.domain.contract_rules import Severity
from billing_pipeline.domain.volume import VolumeFactors
from billing_pipeline.domain.windows import DAY, HOUR, day_of, hour_of
from billing_pipeline.errors import ContractBlocked
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.volume import meter_volumes, volume_faults
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_aggregation import catalogue_of
from billing_pipeline_tests.fix_flow import counted_by_stripe

GRACE = timedelta(minutes=5)
TOKENS = '[meters.tokens]\nevent_types = ["tokens"]\naggregation = "sum"\n'
HOURS_OF_DAY = (3, 9, 15)


def last_day(now):
    """The last complete UTC day of an aggregation at `now`."""
    return day_of(now - timedelta(hours=6)) - DAY


def steady_days(now, event_type, *, quantity, days=10, per_hour=4, day_times=1, hour_times=1, day_rows=True):
    """Rows of `days` equal days and of the last complete hour; the last day's and hour's quantities can be others."""
    last = last_day(now)
    plan = [
        (last - before * DAY + hour * HOUR, quantity * (day_times if before == 0 else 1))
        for before in range(days)
        for hour in HOURS_OF_DAY
        if before or day_rows
    ]
    plan.append((hour_of(now - GRACE) - HOUR, quantity * hour_times))
    return [
        billable_event(
            event_type=event_type,
            quantity=Decimal(each),
            occurred_at=at + timedelta(seconds=number),
            recorded_at=min(at + HOUR, now),
        )
        for at, each in plan
        for number in range(per_hour)
    ]


def faults(aggregator, **factors):
    aggregator()
    found = volume_faults(meter_volumes(aggregator.connection, grace=GRACE), VolumeFactors(**factors))
    return {fault.reason: fault for fault in found}


@pytest.mark.parametrize(
    ("change", "reason", "severity", "told"),
    [
        (
            {"day_times": 1000},
            "units_jumped",
            Severity.TABLE,
            "day 2026-03-09 UTC: 5,000 per event, usually 5 (×1,000)",
        ),
        ({"day_times": Decimal("0.001")}, "units_jumped", Severity.TABLE, "0.005 per event, usually 5 (÷1,000)"),
        ({"day_times": 20}, "volume_jumped", Severity.NOTICE, "day 2026-03-09 UTC: 1,200, usually 60 (×20)"),
        ({"day_times": Decimal("0.05")}, "volume_dropped", Severity.NOTICE, "day 2026-03-09 UTC: 3, usually 60 (÷20)"),
        ({"day_rows": False}, "volume_stopped", Severity.TABLE, "tokens, day 2026-03-09 UTC: 0, usually 60"),
    ],
)
def test_a_last_complete_day_unlike_those_before_is_told_with_its_numbers(aggregator, change, reason, severity, told):
    insert_events(aggregator.connection, *steady_days(aggregator.now, "tokens", quantity=5, **change))

    found = faults(aggregator)[reason]

    assert (found.severity, found.count) == (severity, 1)
    assert told in found.samples[0]


def test_the_last_complete_hour_in_other_units_is_told_at_once(aggregator):
    rows = steady_days(aggregator.now, "tokens", quantity=5, per_hour=120, hour_times=1000)
    insert_events(aggregator.connection, *rows)

    found = faults(aggregator)

    assert found["units_jumped"].samples == ("tokens, hour 2026-03-10 14:00 UTC: 5,000 per event, usually 5 (×1,000)",)
    assert set(found) == {"units_jumped"}


@pytest.mark.parametrize(
    "quiet",
    [
        {"day_times": 4},
        {"day_times": 1000, "days": 7},
        {"day_times": 0, "days": 7},
        {"hour_times": 1000},
    ],
    ids=["within the factors", "six days of history", "six days, then nothing", "an hour of few events"],
)
def test_no_false_alarm(aggregator, quiet):
    insert_events(aggregator.connection, *steady_days(aggregator.now, "tokens", quantity=5, **quiet))

    assert faults(aggregator) == {}


def test_the_factors_decide(aggregator):
    insert_events(aggregator.connection, *steady_days(aggregator.now, "tokens", quantity=5, day_times=8))

    assert set(faults(aggregator)) == {"volume_jumped"}
    assert set(faults(aggregator, volume=9)) == set()
    assert set(faults(aggregator, units=7)) == {"units_jumped", "volume_jumped"}


def test_a_day_settles_before_it_is_judged(aggregator):
    insert_events(aggregator.connection, *steady_days(aggregator.now, "tokens", quantity=5, day_rows=False))
    nightly_load_under_way = day_of(aggregator.now) + timedelta(hours=5, minutes=59)

    aggregator.now = nightly_load_under_way
    assert faults(aggregator) == {}

    aggregator.now += timedelta(minutes=1)
    assert set(faults(aggregator)) == {"volume_stopped"}


def test_a_changed_meter_is_not_judged_by_its_past(aggregator):
    insert_events(aggregator.connection, *steady_days(aggregator.now - 3 * DAY, "tokens", quantity=5))
    aggregator.now -= 3 * DAY
    aggregator()
    aggregator.catalogue = catalogue_of(TOKENS.replace('["tokens"]', '["tokens", "more"]'))
    aggregator()
    aggregator.now += 3 * DAY

    assert faults(aggregator) == {}


def test_a_retired_meter_is_not_missed(aggregator):
    insert_events(aggregator.connection, *steady_days(aggregator.now, "tokens", quantity=5, day_rows=False))
    assert set(faults(aggregator)) == {"volume_stopped"}

    aggregator.catalogue = catalogue_of(TOKENS.replace("meters.tokens", "meters.others"))
    assert faults(aggregator) == {}


def test_organizations_and_parts_of_an_hour_are_summed_exactly(aggregator):
    rows = steady_days(aggregator.now, "tokens", quantity=Decimal("0.000000000001"), days=9)
    others = steady_days(aggregator.now, "tokens", quantity=Decimal("333333333333333"), days=9)
    insert_events(aggregator.connection, *rows, *(row | {"organization_id": "globex"} for row in others))
    aggregator()

    [volume] = meter_volumes(aggregator.connection, grace=GRACE)

    events = 4 * len(HOURS_OF_DAY)
    assert {(day.quantity, day.events) for day in volume.days} == {
        (events * (Decimal("333333333333333") + Decimal("0.000000000001")), 2 * events)
    }
    assert (len(volume.days), volume.days[-1].starts_at) == (9, last_day(aggregator.now))


def test_the_question_costs_one_range_of_an_index(aggregator):
    """However long the ledger's past is, only the last month's windows are read."""
    insert_events(aggregator.connection, *steady_days(aggregator.now, "tokens", quantity=5))
    aggregator()
    connection = aggregator.connection
    connection.execute(
        "INSERT INTO usage_windows (organization_id, meter, meter_version, event_name, starts_at, ends_at, target, "
        "quantity, event_count, contract_version, cutoff_at, cut_due) "
        "SELECT 'acme', 'tokens', version, 'tokens', at, at + interval '1 hour', 1, 1, 1, '1', at, false "
        "FROM meter_versions, generate_series(%s, %s, interval '1 hour') AS at",
        (last_day(aggregator.now) - 1000 * DAY, last_day(aggregator.now) - 100 * DAY),
    )
    connection.execute("ANALYZE usage_windows")
    connection.execute("SET enable_seqscan = off")
    before = rows_read(connection)

    meter_volumes(connection, grace=GRACE)

    by_scan, by_index = rows_read(connection)
    assert by_scan == before[0]
    # The planner itself looks up a few, to learn where the index ends.
    assert by_index - before[1] <= 10 * len(HOURS_OF_DAY) + 10


def rows_read(connection):
    """Of usage_windows, by scanning it and by its indexes."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    question = "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'usage_windows'"
    return connection.execute(question).fetchone()


@pytest.mark.parametrize("validates", [True, False])
def test_failing_closed_a_jump_of_units_stops_before_anything_is_cut(flow, bill, simulator, validates):
    bill("acme")
    now = flow.clock()
    insert_events(flow.connection, *steady_days(now, "prompt_tokens", quantity=5, per_hour=120, hour_times=1000))
    flow.settings = flow.settings.model_copy(
        update={
            "stripe_billing_contract_fail_closed": True,
            "stripe_billing_validate_contract_before_flush": validates,
        }
    )
    if not validates:
        flush(flow)
        assert counted_by_stripe(simulator)
        return

    with pytest.raises(ContractBlocked, match=r"units_jumped: prompt_tokens, hour .* 5,000 per event, usually 5.*cut"):
        flush(flow)
    assert flow.connection.execute("SELECT count(*) FROM ledger_entries").fetchone() == (0,)

    flow.connection.execute("UPDATE public.billable_events SET quantity = 5, recorded_at = clock_timestamp()")
    report = flush(flow, scope=Scope.TOUCHED)
    assert (report.volume, sum(counted_by_stripe(simulator).values())) == ([], 31 * 120 * 5)


def test_without_failing_closed_a_jump_is_told_and_nobody_is_stopped(flow, bill, simulator):
    bill("acme")
    now = flow.clock()
    insert_events(flow.connection, *steady_days(now, "prompt_tokens", quantity=5, day_times=1000))

    report = flush(flow)

    assert {fault.reason for fault in report.volume} == {"units_jumped", "volume_jumped"}
    assert counted_by_stripe(simulator)
