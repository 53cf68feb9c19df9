"""`preflight` says of everything whether it is in place, exits by it, and docs/operations.md shows it."""

from __future__ import annotations

import json
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from billing_pipeline.domain.probes import PROBES
from billing_pipeline.usage import gate
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.usage.test_preflight import add_price, whole_database

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
PLANTED = {
    "STRIPE_SECRET_KEY": "sk_test_planted_key_WXYZ",
    "BILLING_MARK_URL": "s3://planted-bucket/mark.json?token=planted",
    "DATABASE_URL": "postgresql://billing:planted@127.0.0.1:1/billing",
    "DAGSTER_DATABASE_URL": "postgresql://dagster:planted@127.0.0.1:1/dagster",
}


@pytest.fixture
def preflight(tmp_path, database_url, simulator):
    """Runs the command against this test's database and simulator; no Dagster answers."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))

        def run(*arguments, **settings):
            where = {
                "DATABASE_URL": database_url,
                "BILLING_STATE_DIR": tmp_path,
                "STRIPE_API_BASE": simulator.url,
                "STRIPE_SECRET_KEY": simulator.key,
                "ENABLE_BILLING": "true",
                "BILLING_MODE": "live",
                "DAGSTER_PORT": nobody.getsockname()[1],
            }
            return billing_pipeline("preflight", *arguments, folder=tmp_path, **(where | settings))

        yield run


@pytest.fixture
def in_place(flow, bill, simulator):
    """Set up, mapped and priced, not flushed yet."""
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=datetime.now(UTC) - timedelta(hours=5)))
    for meter in flow.catalogue.meters:
        add_price(simulator, meter.event_name)
    return flow


def results(out):
    return dict(reversed(line.split()[:2]) for line in out.splitlines()[: len(PROBES)])


def test_every_probe_is_one_line_and_nothing_changes(preflight, in_place, simulator):
    before = whole_database(in_place.connection), simulator.journal()

    code, out, err = preflight()

    assert (code, err) == (0, "")
    found = results(out)
    assert list(found) == list(PROBES)
    told = {"contract": "warn", "dagster": "warn"} | dict.fromkeys(
        ("dagster_location", "dagster_daemons", "dagster_schedule"), "skip"
    )
    # A server of tests is set to forget, and one that was given may not be.
    assert found | {"durability": "pass"} == dict.fromkeys(PROBES, "pass") | told
    assert "\ndagster: Run `" in out
    assert "docs/operations.md#preflight-dagster\n" in out
    assert out.rstrip().endswith("Fails closed (by default).")
    assert (whole_database(in_place.connection), simulator.journal()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "applied"),
    [
        ((), 1, "Fails closed (by default)."),
        (("--fail-closed",), 1, "Fails closed (--fail-closed)."),
        (("--no-fail-closed",), 0, "Only reports (--no-fail-closed)."),
    ],
)
def test_a_failure_exits_1_unless_it_is_only_to_be_reported(preflight, in_place, arguments, code, applied):
    gate.bind(in_place.connection, stripe_account="acct_other", livemode=False, now=in_place.clock())
    gate.freeze(in_place.connection, "restored", now=in_place.clock())

    found, out, err = preflight(*arguments)

    assert (found, err) == (code, "")
    assert {name for name, result in results(out).items() if result == "fail"} == {"frozen", "ledger_account"}
    assert re.search(r"^fail  frozen +frozen since .* UTC: restored$", out, re.MULTILINE)
    assert "\nledger_account: Use the key of the ledger's account" in out
    assert out.rstrip().endswith(applied)


@pytest.mark.parametrize(
    ("given", "code", "result"),
    [({}, 0, "warn"), ({"BILLING_MODE": "shadow"}, 1, "fail"), ({"ENABLE_BILLING": "false"}, 1, "fail")],
)
def test_require_enabled_fails_below_live(preflight, in_place, given, code, result):
    found, out, _ = preflight("--require-enabled", **given)

    assert (found, results(out)["level"]) == (code, result)
    assert preflight(**given)[0] == 0
    assert out.rstrip().endswith("; must be live (--require-enabled).")


def test_wrong_settings_are_a_failure_of_one_line_with_all_of_them(preflight):
    code, out, err = preflight(DAGSTER_PORT="many", STRIPE_SECRET_KEY="planted")

    assert (code, err) == (1, "")
    assert set(results(out).values()) == {"fail", "skip"}
    line = out.splitlines()[0]
    assert line.startswith("fail  settings")
    assert "STRIPE_SECRET_KEY: must start with" in line
    assert "DAGSTER_PORT: " in line
    assert "planted" not in out


def test_two_switches_that_contradict_are_told(preflight):
    code, out, _ = preflight(STRIPE_BILLING_ENABLED="0")

    assert code == 1
    assert "ENABLE_BILLING and STRIPE_BILLING_ENABLED contradict each other" in out.splitlines()[0]


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["--require-enabled=maybe"], ["now"]])
def test_a_usage_error_exits_2(preflight, arguments):
    code, out, err = preflight(*arguments)

    assert (code, out) == (2, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("given", "probe", "words"),
    [
        ({"DATABASE_URL": PLANTED["DATABASE_URL"]}, "database", "PostgreSQL does not answer at 127.0.0.1:1/billing"),
        ({"DATABASE_URL": "postgresql://b:pl@nted@h/b"}, "database", "DATABASE_URL is not a URL like"),
        ({"STRIPE_SECRET_KEY": "sk_live_planted_WXYZ"}, "stripe_key", "Stripe refuses the key sk_live_…WXYZ"),
        ({"STRIPE_API_BASE": "http://127.0.0.1:1"}, "stripe_key", "Stripe does not answer at http://127.0.0.1:1"),
        ({"BILLING_METERS_FILE": "no.toml"}, "catalogue", "The meter catalogue no.toml cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_without_a_traceback(preflight, in_place, given, probe, words):
    code, out, err = preflight(**given)

    assert (code, err) == (1, "")
    assert results(out)[probe] == "fail"
    assert words in next(line for line in out.splitlines() if line.split()[1] == probe)
    assert "planted" not in out


def test_the_whole_answer_is_one_json_object(preflight, in_place):
    code, out, err = preflight("--json", "--no-fail-closed", "--require-enabled", BILLING_MODE="shadow")

    answer = json.loads(out)
    probes = {probe.pop("name"): probe for probe in answer.pop("probes")}
    assert (code, err) == (0, "")
    assert answer == {"passed": False, "fail_closed": False, "require_enabled": True}
    assert list(probes) == list(PROBES)
    assert probes["level"]["result"] == "fail"
    assert probes["level"]["do_next"] == PROBES["level"].remedy
    assert probes["level"]["see"] == "docs/operations.md#preflight-level"
    assert probes["frozen"] == {
        "result": "pass",
        "found": "open; not bound to an account yet",
        "do_next": None,
        "see": None,
    }


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("right", [None, "DATABASE_URL", "STRIPE_SECRET_KEY"])
def test_no_secret_is_shown_whatever_fails(preflight, in_place, simulator, form, right):
    code, out, err = preflight(*form, **{name: value for name, value in PLANTED.items() if name != right})

    assert code == 1
    assert "planted" not in out + err


def test_the_document_shows_what_the_command_prints(preflight, in_place, database_url):
    text = DOCUMENT.read_text(encoding="utf-8").split("## Preflight")[1].split("\n## ")[0]
    [(command, shown)] = re.findall(r"^```text\n\$ billing-pipeline (.*)\n((?:.*\n)*?)```", text, re.MULTILINE)
    in_place.connection.execute("DELETE FROM customer_mappings")

    code, out, _ = preflight(*command.split()[1:], BILLING_MODE="shadow")

    assert code == 1
    assert masked(out) == masked(shown)


def masked(text: str) -> str:
    """What differs from run to run, and from server to server, taken out."""
    for pattern, instead in (
        (r"(pass|warn)  durability .*\n", ""),
        (r"durability: .*\n.*\n\n", ""),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d", "TIME"),
        (r"(acct|cus)_\w+", r"\1"),
        (r"PostgreSQL [\d.]+ at [^,]+", "PostgreSQL"),
        (r"port \d+", "port"),
        (r"\d+ s apart", "apart"),
        (r"\d+ warn, (\d+ skipped), \d+ pass", r"\1"),
    ):
        text = re.sub(pattern, instead, text)
    return text
