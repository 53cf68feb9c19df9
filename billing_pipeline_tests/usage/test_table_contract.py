"""What must be there is missed when it is not, and requiring what nobody knows is told at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.domain.contract_rules import RULES
from billing_pipeline.errors import ContractBlocked, SettingsError
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.usage.test_contract import CATALOGUE, NOW, event, validate

DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)


def table_faults(report):
    return {fault.reason: fault.samples for fault in report.faults if fault.severity == "table"}


def test_a_required_type_without_a_row_fails_and_names_the_types(connection, database_url):
    insert_events(connection, event())

    report = validate(connection, database_url, required_event_types=("request", "tokens", "login"))

    assert table_faults(report) == {"required_event_type_absent": ("request", "login")}
    assert not report.passed


def test_one_row_of_each_required_type_is_enough_also_of_an_ignored_one(connection, database_url):
    insert_events(connection, event(), event(event_type="login", quantity=None))

    assert validate(connection, database_url, required_event_types=("tokens", "login")).passed


def test_nothing_required_is_fine(connection, database_url):
    insert_events(connection, event())

    assert validate(connection, database_url, required_event_types=()).faults == ()


@pytest.mark.parametrize(
    ("occurred_at", "there"),
    [
        (NOW - 30 * DAY, True),
        (NOW - 30 * DAY - MICROSECOND, False),
        ("infinity", False),
        ("-infinity", False),
        ("58165-03-10 12:00+00", False),
        (NOW + timedelta(hours=2), False),
    ],
)
def test_only_a_row_inside_the_lookback_is_there(connection, database_url, occurred_at, there):
    insert_events(connection, event(occurred_at=occurred_at, recorded_at=NOW))

    found = table_faults(validate(connection, database_url, required_event_types=("tokens",)))

    assert found == ({} if there else {"lookback_empty": (), "required_event_type_absent": ("tokens",)})


def test_a_required_type_that_no_catalogue_knows_is_told_at_once(connection, database_url, settings):
    wrong = settings.model_copy(
        update={"stripe_billing_contract_required_event_types": ("prompt_tokens", "espresso", "tea")}
    )

    with pytest.raises(SettingsError, match=r"does not know: espresso, tea\. Add them to a meter or to ignored_event"):
        UsageFlow(connection, database_url, wrong, holder="test")


def test_the_required_types_are_a_list_with_commas_and_zeitgeist_is_sugar(monkeypatch):
    assert load_settings().required_event_types == ()
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_REQUIRED_EVENT_TYPES", " a, b ,,a ")
    assert load_settings().required_event_types == ("a", "b")
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_REQUIRE_ZEITGEIST", "1")
    assert load_settings().required_event_types == ("a", "b", "zeitgeist")
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_REQUIRED_EVENT_TYPES", "zeitgeist")
    assert load_settings().required_event_types == ("zeitgeist",)


@pytest.mark.parametrize("fail_closed", [False, True])
def test_a_flush_without_a_required_type_goes_on_with_a_warning_or_not_at_all(flow, bill, simulator, fail_closed):
    bill("acme")
    closed = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    insert_events(flow.connection, billable_event(occurred_at=closed))
    flow.settings = flow.settings.model_copy(
        update={
            "stripe_billing_contract_required_event_types": ("api_request",),
            "stripe_billing_contract_fail_closed": fail_closed,
        }
    )

    if fail_closed:
        with pytest.raises(ContractBlocked, match=r"required_event_type_absent"):
            flush(flow)
    else:
        assert table_faults(flush(flow).contract) == {"required_event_type_absent": ("api_request",)}

    assert sum(counted_by_stripe(simulator).values()) == (0 if fail_closed else 1)


def test_every_fault_is_a_rule_with_its_severity(connection, database_url):
    insert_events(connection, event(event_type="login", organization_id=None), event(event_id="b", quantity=-1))

    report = validate(connection, database_url, required_event_types=tuple(CATALOGUE.known_event_types))

    assert len(report.faults) == 3
    assert all(fault.severity is RULES[fault.reason].severity for fault in report.faults)
