"""What is not proved is told in numbers after every flush, in the log and by checks."""

import logging
from datetime import timedelta

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline.usage.money import failing_entries, money_at_risk
from billing_pipeline_tests.fix_trial import HOUR, V1_ONLY

pytestmark = [pytest.mark.slow, V1_ONLY]


def told(trial):
    return money_at_risk(trial.connection, now=trial.flow.clock())


def check(trial, monkeypatch, name):
    """The check's result, asked by Dagster with this trial's settings."""
    values = {"DATABASE_URL": trial.database_url, "BILLING_STATE_DIR": str(trial.settings.billing_state_dir)}
    values |= {"STRIPE_API_BASE": trial.simulator.url, "STRIPE_SECRET_KEY": trial.simulator.key}
    for setting, value in values.items():
        monkeypatch.setenv(setting, value)
    chosen = dg.AssetSelection.checks(*[key for key in defs.resolve_asset_graph().asset_check_keys if key.name == name])
    result = dg.materialize([*defs.assets, *defs.asset_checks], selection=chosen, resources=defs.resources)
    [evaluation] = result.get_asset_check_evaluations()
    return evaluation


def grow_old(trial, hours):
    """Let every entry have been sent so much earlier; the check goes by the database's own clock."""
    trial.connection.execute(
        "SET session_replication_role = replica;"
        f"UPDATE ledger_entries SET first_attempt_at = first_attempt_at - interval '{hours} hours';"
        "SET session_replication_role = origin"
    )


def test_each_number_counts_what_its_name_says(trial, caplog):
    caplog.set_level(logging.INFO)
    trial.use(7)
    trial.use(4, organization_id="nobody")
    trial.use(0, quantity=None)
    trial.weather.lag = HOUR
    trial.weather.faults = [FaultKind.LOSE_ANSWER]
    trial.flush()
    trial.pass_time(minutes=30)

    found = told(trial)
    assert (found.units_unmapped, found.entries_ambiguous, found.events_quarantined) == (4, 1, 1)
    assert timedelta(minutes=29) < found.oldest_ambiguous < timedelta(minutes=31)
    assert found.time_to_confirmed is None
    [line] = [record for record in caplog.records if record.getMessage() == "Stripe usage flush money at risk"]
    assert (line.action, line.units_unmapped, line.entries_ambiguous) == ("money_at_risk", "4", 1)

    trial.flush()
    trial.pass_time(hours=2)
    trial.flush()
    found = told(trial)
    assert (found.entries_ambiguous, found.units_unconfirmed, found.oldest_ambiguous) == (0, 0, None)
    assert timedelta(hours=2) < found.time_to_confirmed < timedelta(hours=3)


def test_an_entry_that_is_sent_again_and_again_is_named_with_what_the_log_calls_it(trial, monkeypatch):
    trial.use(7)
    trial.weather.lag = 10 * HOUR
    for sends in range(3):
        assert failing_entries(trial.connection) == [], sends
        trial.weather.faults = [FaultKind.LOSE_REQUEST]
        trial.flush()
        trial.pass_time(minutes=15)

    [failing] = failing_entries(trial.connection)
    assert (failing.organization_id, failing.sends) == ("acme", 3)
    assert trial.rows("SELECT identifier FROM ledger_entries") == [(failing.identifier,)]
    evaluation = check(trial, monkeypatch, "meter_events_get_through")
    assert not evaluation.passed
    assert failing.identifier in str(evaluation.metadata["failing"])

    trial.flush()
    assert failing_entries(trial.connection) == []
    assert check(trial, monkeypatch, "meter_events_get_through").passed


def test_doubt_that_lasts_longer_than_the_protocol_takes_is_told(trial, monkeypatch):
    trial.use(7)
    trial.weather.lag = 1_000 * HOUR
    trial.flush()
    grow_old(trial, 30)
    assert check(trial, monkeypatch, "doubt_is_settled_in_time").passed

    grow_old(trial, 10)
    assert not check(trial, monkeypatch, "doubt_is_settled_in_time").passed
