"""`billing-pipeline explain` says why something was billed, and docs/operations.md shows it."""

from __future__ import annotations

import json
import re
import shlex
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from billing_pipeline.domain.windows import day_of
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.fix_flow import Subscriptions

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
TIME = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d)?)?")
ID = re.compile(r"\b(cus|req|si|in|il|be1_t)_[0-9a-f]+")


@pytest.fixture
def stack(tmp_path, database_url, simulator):
    """Where to run a command, and the settings that lead it to this test's database and simulator."""
    return {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "STRIPE_API_BASE": simulator.url,
        "STRIPE_SECRET_KEY": simulator.key,
        "ENABLE_BILLING": "true",
        "BILLING_MODE": "live",
    }


@pytest.fixture
def at(flow, bill, simulator):
    """Yesterday's 13:00, billed and shown, in a period that ended half an hour ago; a row waits in quarantine."""
    [customer] = bill("acme").values()
    now = flow.clock()
    yesterday = day_of(now) - timedelta(days=1)
    subscriptions = Subscriptions(simulator)
    subscription = subscriptions.create(customer, yesterday - timedelta(days=2))
    # Asked before the period ends, as an hourly flush does.
    flow.sync_periods()
    flow.give_lease_back()
    subscriptions.reset_anchor(subscription, now - timedelta(minutes=30))
    hour_at = yesterday.replace(hour=13)
    insert_events(
        flow.connection,
        *(
            billable_event(event_id=event_id, quantity=quantity, occurred_at=at)
            for event_id, quantity, at in (
                ("evt-201", Decimal(3000), hour_at + timedelta(minutes=2)),
                ("evt-202", Decimal(1200), hour_at + timedelta(minutes=31)),
                ("evt-203", Decimal(17), hour_at + timedelta(minutes=58)),
                ("evt-204", None, hour_at + timedelta(minutes=59)),
                ("evt-198", Decimal(800), hour_at - timedelta(days=1)),
            )
        ),
    )
    flush(flow)
    return hour_at


def line_of(simulator):
    """The one line of the ended period's invoice, as the command takes it."""
    [invoice, _first] = simulator.client().v1.invoices.list().data
    [line] = invoice.lines.data
    return f"{invoice.id}/{line.id}"


def masked(text):
    return [line.rstrip() for line in ID.sub(r"\1_ID", TIME.sub("TIME", text)).strip().splitlines()]


def test_the_document_shows_what_the_command_prints(stack, at, simulator):
    text = DOCUMENT.read_text(encoding="utf-8").split("## Why was this billed")[1].split("\n## ")[0]
    blocks = re.findall(r"^```text\n\$ billing-pipeline (.*)\n((?:.*\n)*?)```", text, re.MULTILINE)
    assert len(blocks) == 2

    for command, output in blocks:
        arguments = shlex.split(re.sub(r"in_\w+/il_\w+", line_of(simulator), command))
        arguments = [re.sub(r"^\d{4}-\d\d-\d\dT", f"{at:%Y-%m-%d}T", argument) for argument in arguments]
        code, out, err = billing_pipeline(*arguments, **stack)
        assert (code, err) == (0, ""), command
        assert masked(out) == masked(output), command


def test_programs_get_every_digit_and_every_time(stack, at, flow):
    code, out, err = billing_pipeline("explain", "--org", "acme", "--at", f"{at:%Y-%m-%dT%H}", "--json", **stack)

    assert (code, err) == (0, "")
    told = json.loads(out)
    [window] = told["windows"]
    [entry] = window["entries"]
    [(count, units)] = flow.connection.execute(
        "SELECT count(quantity), sum(quantity) FROM public.billable_events "
        "WHERE occurred_at >= %s AND occurred_at < %s + interval '1 hour'",
        (at, at),
    ).fetchall()
    assert (window["counted"]["events"], window["counted"]["quantity"]) == (count, f"{units:f}") == (3, "4217")
    assert (window["row"]["target"], entry["row"]["value"], entry["row"]["state"]) == ("4217", "4217", "confirmed")
    assert entry["attempts"][0]["http_status"] == 200
    assert (told["hour_at"], told["verdict"]["is_settled"]) == (at.isoformat(), True)
    assert window["price"] == {"currency": "usd", "minor_units": "1"}
    assert [(group["reason"], group["event_ids"]) for group in told["not_counted"]] == [
        ("quantity_missing", ["evt-204"])
    ]


def test_an_entry_leads_to_its_hour_and_fewer_ids_are_named_when_asked(stack, at, flow):
    [(entry_id, identifier)] = flow.connection.execute(
        "SELECT entry_id, identifier FROM ledger_entries WHERE value = 4217"
    ).fetchall()

    for asked in (["--entry", str(entry_id)], ["--identifier", identifier]):
        code, out, err = billing_pipeline("explain", *asked, "--events", "1", **stack)
        assert (code, err) == (0, "")
        assert out.splitlines()[0] == f"acme, the hour of {at:%Y-%m-%d %H:%M} UTC"
        assert "evt-201 and 2 more" in out


def test_without_stripe_only_the_price_is_unknown(stack, at):
    away = stack | {"STRIPE_API_BASE": "http://127.0.0.1:1"}
    code, out, err = billing_pipeline("explain", "--org", "acme", "--at", f"{at:%Y-%m-%dT%H}Z", **away)

    assert (code, err) == (0, "")
    assert "unknown because: Stripe does not answer at http://127.0.0.1:1" in out
    assert out.strip().endswith("Stated 4,217 units; Stripe shows 4,217; nothing is owed.")


def test_any_time_in_the_hour_will_do_and_the_hour_is_told(stack, at):
    shifted = (at + timedelta(hours=5, minutes=51)).strftime("%Y-%m-%dT%H:%M:%S+05:30")
    code, out, err = billing_pipeline("explain", "--org", "acme", "--at", shifted, **stack)

    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"acme, the hour of {at:%Y-%m-%d %H:%M} UTC"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "error: Say what to explain: one of --org, --entry, --identifier, --invoice-line"),
        (["--org", "acme"], "error: --org needs --at"),
        (["--org", "acme", "--entry", "1"], "error: --org and --entry are different questions"),
        (["--entry", "1", "--at", "2026-11-20T13Z"], "error: --at and --meter belong to --org"),
        (["--entry", "99999"], "error: The ledger has no entry 99999."),
        (["--entry", "99999999999999999999"], "error: The ledger has no entry 99999999999999999999."),
        (["--org", "acme", "--at", "2999-01-01T00Z"], "error: 2999-01-01 00:00 UTC lies in the future"),
        (["--org", "amce", "--at", "2026-11-01T00Z"], "Did you mean acme?"),
        (["--invoice-line", "il_1"], "error: il_1 does not name a line: Stripe has no address for a line alone"),
        (["--invoice-line", "in_1/il_1"], "error: Stripe has no invoice in_1 in this account and mode."),
    ],
)
def test_what_cannot_be_explained_is_one_sentence(stack, at, arguments, words):
    code, out, err = billing_pipeline("explain", *arguments, **stack)

    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_a_line_that_is_not_the_invoices_names_those_that_are(stack, at, simulator):
    line = line_of(simulator)
    code, out, err = billing_pipeline("explain", "--invoice-line", f"{line.split('/')[0]}/il_other", **stack)

    assert (code, out) == (2, "")
    assert f"there are {line}." in err


def test_a_final_line_with_too_few_units_says_so_and_where_to_look(stack, at, flow, simulator):
    # The draft became final before the late row was sent.
    simulator.clock.advance(hours=2)
    insert_events(
        flow.connection,
        billable_event(quantity=Decimal(83), occurred_at=at, recorded_at=flow.clock()),
    )
    shift = timedelta(hours=2)
    clock = flow.clock
    flow.clock = lambda: clock() + shift
    flush(flow)

    code, out, err = billing_pipeline("explain", "--invoice-line", line_of(simulator), "--json", **stack)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["line"]["quantity"], told["proved"], told["target"]) == ("5017", "5100", "5100")
    assert told["verdict"]["text"] == (
        "The line bills 5,017 units; the ledger has proved 5,100 in its period. "
        "The line has 83 units too few, and is final: the invoice needs an adjustment."
    )
    assert [day["proved"] for day in told["days"]] == ["800", "4300"]

    flow.connection.execute("UPDATE meter_summaries SET observed = 4000 WHERE hour_at = %s", (at,))
    code, out, err = billing_pipeline("explain", "--invoice-line", line_of(simulator), **stack)
    assert (code, err) == (0, "")
    assert "Hours whose sides disagree" in out
    assert f"explain --org acme --at {at:%Y-%m-%dT%H}Z" in out.splitlines()[-1]
