"""Flushing by hand and by cron: how often it tries, what it says, and whose money it may touch."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline.usage.lease import acquire
from billing_pipeline_tests.builders import billable_event, insert_events, map_customer
from billing_pipeline_tests.cli.command import billing_pipeline, live_against
from billing_pipeline_tests.fix_flow import canary_of, counted_by_stripe, live_settings
from billing_pipeline_tests.fix_simulator import make_core, running_simulator
from billing_pipeline_tests.fix_trial import Weather

ACCOUNT = "acct_1LiveOfTheTests"
LIVE_KEY = "sk_live_0123456789abcdef"
# The simulator takes no live key, so whose it is comes from here; whatever goes further meets its refusal.
WHOSE = f"import billing_pipeline.stripe_api.client as c; c.read_account = lambda *_: c.Account('{ACCOUNT}', None)"
QUICK = "import billing_pipeline.usage.resubmit as r; r.PAUSES_SECONDS = (6, 11); r.JITTER_PART = 100"
SENDERS = [
    ["flush-now"],
    ["flush-hourly"],
    ["enqueue-hourly"],
    ["stripe-setup"],
    ["ledger", "adopt", "--by", "Ada", "--reason", "a drill"],
]


@pytest.fixture
def weather():
    return Weather()


@pytest.fixture
def stack(tmp_path, database_url, connection, weather):
    """Acme used 7 units three hours ago and has a customer; yields how to run a command, and the simulator."""
    with running_simulator(make_core(fault=weather)) as simulator:
        settings = live_settings(database_url, simulator, tmp_path)
        client = simulator.client()
        set_up_catalogue(client, settings, load_catalogue(settings))
        map_customer(connection, "acme", create_customers(client, settings, ["acme"])["acme"])
        at = datetime.now(UTC) - timedelta(hours=3)
        insert_events(connection, billable_event(organization_id="acme", quantity=7, occurred_at=at))
        yield (
            live_against(simulator, folder=tmp_path, database_url=database_url),
            simulator,
        )


def test_an_hourly_flush_sends_again_what_stripe_did_not_answer(stack, weather):
    where, simulator = stack
    weather.faults = [FaultKind.LOSE_ANSWER]

    code, out, err = billing_pipeline("flush-hourly", before=QUICK, **where)

    assert code == 0, err
    assert "2 sent, 0 accepted, 1 duplicate, 0 rejected, 1 unknown" in out
    assert "INFO Stripe usage flush started action=flush_started\n" in err
    assert re.search(
        r"WARNING Stripe meter event submit failed .*organization_id=acme identifier=\S+ idempotency_key=", err
    )
    assert "unanswered=1 attempt=2\n" in err
    assert simulator.key not in out + err
    assert sum(counted_by_stripe(simulator).values()) == 7


def test_a_stripe_that_answers_no_meter_event_sees_three_and_the_flush_says_that_nothing_is_lost(stack, weather):
    where, simulator = stack
    weather.faults = [FaultKind.ERROR_500_BEFORE] * 100

    code, out, err = billing_pipeline("flush-hourly", before=QUICK, **where)

    assert code == 1
    assert "1 entries without an answer wait for the next flush" in out
    assert "\nerror: 1 entries are without an answer from Stripe after 3 attempts. Nothing is lost" in err
    assert len(_usage_sent(weather, simulator)) == 3
    assert len(set(_usage_sent(weather, simulator))) == 1


def _usage_sent(weather, simulator):
    """The identifiers of every request with usage, canaries left out."""
    canary = canary_of(simulator)
    return [request.params["identifier"] for request in weather.sent if canary not in repr(request.params)]


def test_a_flush_now_tries_once(stack, weather):
    where, simulator = stack
    weather.faults = [FaultKind.LOSE_ANSWER]

    code, out, err = billing_pipeline("flush-now", **where)

    assert code == 0, err
    assert "1 sent, 0 accepted, 0 duplicate, 0 rejected, 1 unknown" in out
    assert len(_usage_sent(weather, simulator)) == 1


def test_a_stripe_that_does_not_answer_at_all_is_asked_by_three_flushes(stack):
    where, _ = stack
    at_once = "import billing_pipeline.cli.flush as f; f.RETRY_SECONDS = (0, 0)"

    code, out, err = billing_pipeline(
        "flush-hourly", before=at_once, **where | {"STRIPE_API_BASE": "http://127.0.0.1:1"}
    )

    assert (code, out) == (1, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["Attempt 1 of 3", "Attempt 2 of 3", "error"]
    assert err.endswith("See docs/troubleshooting.md#stripe-does-not-answer.\n")


def test_a_flush_under_way_makes_the_next_end_well_with_nothing_done(stack, weather, connection):
    where, _ = stack
    now = datetime.now(UTC)
    acquire(connection, lock_key="usage-flush", holder="somebody", ttl=timedelta(minutes=55), now=now)

    for command in ("flush-now", "flush-hourly"):
        code, out, err = billing_pipeline(command, **where)
        assert (code, err) == (0, "")
        assert out.startswith("skipped=true: Another flush (somebody) is under way")
    code, out, _ = billing_pipeline("flush-now", "--json", **where)
    assert (code, json.loads(out)["skipped"]) == (0, True)

    assert weather.sent == []
    assert connection.execute("SELECT count(*) FROM usage_windows").fetchone() == (0,)


def test_a_flush_for_programs_is_one_json_object_with_exact_amounts(stack):
    where, _ = stack

    code, out, err = billing_pipeline("flush-now", "--json", **where)

    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["skipped"], told["level"]) == (False, "live")
    assert (told["cut"]["units_added"], told["submit"]["accepted"], told["submit"]["unanswered"]) == (7, 1, 0)


@pytest.mark.parametrize("command", SENDERS, ids=lambda command: " ".join(command[:2]))
def test_what_sends_from_a_shell_wants_the_live_account_typed(tmp_path, database_url, command):
    where = {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "STRIPE_SECRET_KEY": LIVE_KEY,
        "STRIPE_API_BASE": "http://127.0.0.1:1",
        "DAGSTER_PORT": 1,
        "ENABLE_BILLING": "true",
        "BILLING_MODE": "live",
    }
    code, out, err = billing_pipeline(*command, before=WHOSE, **where)
    assert (code, out) == (3, "")
    assert err == (
        f"error: The key is live: this would send real usage to {ACCOUNT}. Nothing was done. "
        f"If that is what you mean, type it: --live {ACCOUNT}\n"
    )

    code, out, err = billing_pipeline(*command, "--live", "acct_other", before=WHOSE, **where)
    assert (code, out) == (3, "")
    assert err == f"error: --live says acct_other, but the key belongs to {ACCOUNT}. Nothing was done.\n"

    code, out, err = billing_pipeline(*command, "--live", ACCOUNT, before=WHOSE, **where)
    assert code != 3
    assert "--live" not in err
    with connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM attempts").fetchone() == (0,)


def test_a_live_account_typed_for_a_test_key_is_a_usage_error(stack, weather):
    where, _ = stack

    code, out, err = billing_pipeline("flush-now", "--live", ACCOUNT, **where)

    assert (code, out) == (2, "")
    assert "is for a live key, and this is none" in err
    assert weather.sent == []


def test_shadow_asks_for_no_account_because_it_sends_nothing(tmp_path, database_url):
    code, _, err = billing_pipeline(
        "flush-now",
        before=WHOSE,
        folder=tmp_path,
        DATABASE_URL=database_url,
        STRIPE_SECRET_KEY=LIVE_KEY,
        STRIPE_API_BASE="http://127.0.0.1:1",
        ENABLE_BILLING="true",
    )

    assert code == 1
    assert err.startswith("error: Stripe does not answer")


def test_a_run_is_not_queued_where_no_dagster_answers(stack):
    where, _ = stack

    code, out, err = billing_pipeline("enqueue-hourly", **where | {"DAGSTER_PORT": 1})

    assert (code, out) == (1, "")
    assert err == "error: Dagster does not answer at port 1 of this machine\n"
