"""`validate-contract` answers for every rule, exits 1 only when failing closed, and never speaks for a flush."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.domain.contract_rules import RULES
from billing_pipeline.usage.contract import latest_report
from billing_pipeline.usage.lease import acquire
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline

METERS = '[meters.tokens]\nevent_types = ["prompt_tokens"]\naggregation = "sum"\n'
CLOSED_SETTING = "STRIPE_BILLING_CONTRACT_FAIL_CLOSED"


@pytest.fixture
def validate(tmp_path, database_url, connection):
    """Runs the command over a source with one good row and one bad; it never needs Stripe."""
    at = datetime.now(UTC) - timedelta(hours=3)
    insert_events(
        connection,
        billable_event(occurred_at=at),
        billable_event(event_id="bad", quantity=-1, occurred_at=at),
    )
    (tmp_path / "meters.toml").write_text(f'ignored_event_types = ["zeitgeist"]\n{METERS}')

    def run(*arguments, **settings):
        where = {
            "DATABASE_URL": database_url,
            "BILLING_METERS_FILE": "meters.toml",
            "BILLING_STATE_DIR": "state",
            "STRIPE_API_BASE": "http://127.0.0.1:1",
        }
        return billing_pipeline("validate-contract", *arguments, folder=tmp_path, **(where | settings))

    return run


def test_every_rule_is_one_line_with_its_verdict_and_samples(validate):
    code, out, err = validate()

    assert (code, err) == (0, "")
    lines = dict(reversed(line.split()[:2]) for line in out.splitlines()[: len(RULES)])
    assert lines == dict.fromkeys(RULES, "pass") | {"quantity_negative": "warn"}
    assert any(line.split() == ["warn", "quantity_negative", "1", "bad"] for line in out.splitlines())
    assert RULES["quantity_negative"].remedy in out
    assert "No rule fails; 2 rows of the last 30 days of public.billable_events read. Fails closed (by default)." in out


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "applied"),
    [
        ((), {}, 1, "Fails closed (by default)"),
        (("--fail-closed",), {}, 1, "Fails closed (--fail-closed)"),
        (("--no-fail-closed",), {}, 0, "Only warns (--no-fail-closed)"),
        ((), {CLOSED_SETTING: "0"}, 0, f"Only warns ({CLOSED_SETTING})"),
        ((), {CLOSED_SETTING: "1"}, 1, f"Fails closed ({CLOSED_SETTING})"),
        (("--fail-closed",), {CLOSED_SETTING: "0"}, 1, "Fails closed (--fail-closed)"),
    ],
)
def test_a_table_fault_exits_1_only_when_failing_closed_and_says_who_decided(
    validate, arguments, settings, code, applied
):
    found, out, _ = validate("--lookback-days", "30", "--require-zeitgeist", *arguments, **settings)

    assert found == code
    assert "\nfail  required_event_type_absent" in out
    assert applied in out


def test_the_whole_answer_is_one_json_object(validate, connection):
    code, out, _ = validate("--json", "--require-zeitgeist", "--lookback-days", "7")

    answer = json.loads(out)
    rules = {rule.pop("reason"): rule for rule in answer.pop("rules")}
    assert code == 1
    assert answer == {
        "passed": False,
        "fail_closed": True,
        "source": "public.billable_events",
        "lookback_days": 7,
        "required_event_types": ["zeitgeist"],
        "rows_read": 2,
    }
    assert rules["required_event_type_absent"] == {
        "result": "fail",
        "severity": "table",
        "count": 1,
        "samples": ["zeitgeist"],
        "meaning": RULES["required_event_type_absent"].meaning,
        "remedy": RULES["required_event_type_absent"].remedy,
    }
    assert set(rules) == set(RULES)


def test_a_source_that_cannot_be_read_passes_no_other_rule(validate, connection):
    connection.execute("ALTER TABLE public.billable_events RENAME quantity TO amount")

    code, out, _ = validate()

    assert code == 1
    assert "fail  source_columns_wrong         " in out
    assert "quantity: absent, expected numeric" in out
    assert "skip  lookback_empty" in out
    assert "pass  quantity_negative" not in out


def test_more_than_35_days_is_refused_with_the_reason(validate):
    code, out, err = validate("--lookback-days", "36")
    assert (code, out) == (2, "")
    assert "must be at most 35: Stripe takes no meter events older than 35 days" in err

    code, _, err = validate(STRIPE_BILLING_CONTRACT_LOOKBACK_DAYS="36")
    assert code == 2
    assert "must be at most 35: Stripe takes no older meter events" in err

    assert validate("--lookback-days", "35")[0] == 0


def test_it_quarantines_but_the_gate_does_not_go_by_it(validate, connection):
    validate()

    assert connection.execute("SELECT event_id, reason FROM quarantined_events").fetchall() == [
        ("bad", "quantity_negative")
    ]
    assert latest_report(connection) is None


def test_while_a_flush_is_under_way_nothing_was_validated_and_that_is_no_pass(validate, connection):
    ttl = timedelta(minutes=5)
    acquire(connection, lock_key="usage-flush", holder="somebody", ttl=ttl, now=datetime.now(UTC))

    code, out, err = validate()

    assert (code, out) == (1, "")
    assert err.startswith("error: Another flush (somebody) is under way")
    assert "The contract was not validated; try again after that." in err
