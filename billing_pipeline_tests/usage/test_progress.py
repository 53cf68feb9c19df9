"""How far usage is on its way, by hour and by age, is read as it is in the ledger."""

from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.domain.windows import HOUR, hour_of
from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline.usage.progress import (
    AGES,
    owed_by_age,
    proof_lag_by_hour,
    shown_hours,
    stated_by_hour,
    unsettled_by_age,
)
from billing_pipeline_tests.builders import NOON
from billing_pipeline_tests.fix_trial import METER, V1_ONLY

pytestmark = pytest.mark.slow


def in_age(name, units):
    return [Decimal(units) if one == name else Decimal(0) for one, _ in AGES]


def stated(trial):
    return {
        hour.hour_at: (hour.event_name, hour.entries, hour.sent, hour.confirmed, hour.units, hour.units_confirmed)
        for hour in stated_by_hour(trial.connection, now=trial.flow.clock())
    }


def owed(trial):
    return owed_by_age(trial.connection, closed_before=trial.flow.closed_before(), now=trial.flow.clock())


def unsettled(trial):
    return unsettled_by_age(trial.connection, now=trial.flow.clock())


def test_the_hours_shown_end_with_the_one_that_is_not_over():
    hours = shown_hours(NOON + timedelta(minutes=59))

    assert (len(hours), hours[0], hours[-1]) == (48, NOON - 47 * HOUR, NOON)


@V1_ONLY
def test_units_are_stated_for_the_hour_they_were_used_in_and_count_as_confirmed_when_stripe_shows_them(trial):
    trial.use(7)
    trial.use(5, hours_before=2)
    trial.use(1_000, hours_before=50)
    trial.weather.lag = HOUR
    trial.flush()
    assert stated(trial) == {
        trial.closed: (METER, 1, 1, 0, 7, 0),
        trial.closed - 2 * HOUR: (METER, 1, 1, 0, 5, 0),
    }

    trial.pass_time(hours=2)
    trial.use(-2, quantity=Decimal(3), hours_before=2)
    trial.flush()
    found = stated(trial)
    assert found[trial.closed] == (METER, 1, 1, 1, 7, 7)
    assert found[trial.closed - 2 * HOUR][1:] == (2, 2, 1, 8, 5)


@V1_ONLY
def test_what_is_owed_is_told_by_the_age_of_its_hour(trial):
    assert owed(trial) == in_age("none", 0)
    trial.use(4, organization_id="nobody")
    trial.use(9, organization_id="nobody", hours_before=30)
    trial.use(7)
    trial.flow.validate_contract()
    trial.flow.aggregate()
    assert owed(trial) == [Decimal(units) for units in (0, 11, 0, 9, 0, 0)]

    trial.flush()
    assert owed(trial) == [Decimal(units) for units in (0, 4, 0, 9, 0, 0)]


@V1_ONLY
def test_an_hour_that_is_not_closed_is_not_owed(trial):
    trial.use(4, organization_id="nobody", occurred_at=hour_of(trial.flow.clock()))
    trial.flow.validate_contract()
    trial.flow.aggregate()

    assert owed(trial) == in_age("none", 0)


@V1_ONLY
def test_what_is_in_doubt_and_what_is_not_proved_are_told_by_the_age_of_their_first_send(trial):
    trial.use(7)
    trial.weather.lag = HOUR
    trial.weather.faults = [FaultKind.LOSE_ANSWER]
    trial.flush()
    assert unsettled(trial) == {"ambiguous": in_age("0-1 h", 7), "accepted": in_age("none", 0)}

    trial.pass_time(minutes=10)
    trial.flush()
    assert unsettled(trial) == {"ambiguous": in_age("none", 0), "accepted": in_age("0-1 h", 7)}
    trial.pass_time(hours=5)
    assert unsettled(trial)["accepted"] == in_age("1-6 h", 7)

    trial.flush()
    assert unsettled(trial)["accepted"] == in_age("none", 0)


@V1_ONLY
def test_the_longest_wait_for_a_proof_is_told_by_the_hour_it_came_in(trial):
    assert proof_lag_by_hour(trial.connection, now=trial.flow.clock()) == []
    trial.use(7)
    trial.weather.lag = HOUR
    trial.flush()
    trial.pass_time(hours=2)
    trial.use(5, hours_before=1)
    trial.flush()
    proved_at = hour_of(trial.flow.clock())
    [lag] = proof_lag_by_hour(trial.connection, now=trial.flow.clock())
    assert lag.hour_at == proved_at
    assert timedelta(hours=2) <= lag.longest < timedelta(hours=2, minutes=5)

    trial.pass_time(hours=50)
    assert proof_lag_by_hour(trial.connection, now=trial.flow.clock()) == []
