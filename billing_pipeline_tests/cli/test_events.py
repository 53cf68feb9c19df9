"""`billing-pipeline events` says what is in the inbox, what to do and what a replay did, and exits accordingly."""

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.cli.command import COMMAND, billing_pipeline, environment
from billing_pipeline_tests.webhooks.events import event, store, subscription

pytestmark = pytest.mark.slow
NOW = datetime.now(UTC) - timedelta(hours=3)


@pytest.fixture
def stack(tmp_path, database_url):
    """Where to run a command; nothing else is configured, and no Stripe answers."""
    return {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "STRIPE_API_BASE": "http://127.0.0.1:1",
        "STRIPE_SECRET_KEY": "sk_test_of_the_tests",
        "COLUMNS": 120,
    }


@pytest.fixture
def inbox(connection):
    """A processed event, one of nobody's that has failed, and one that cannot be read."""
    person = {"name": "Ada Lovelace", "email": "ada@example.com"}
    store(connection, [event("customer.subscription.created", subscription(), id="evt_good")], now=NOW)
    nobodys = subscription(id="sub_2", customer="cus_2", metadata={}, customer_details=person)
    store(connection, [event("customer.subscription.created", nobodys, id="evt_nobodys")], now=NOW)
    broken = event("customer.subscription.updated", subscription(id="sub_3", status=7), id="evt_broken")
    store(connection, [broken], now=NOW + timedelta(minutes=1))
    Dispatcher(connection, lambda: NOW + timedelta(minutes=2)).drain(events_max=10)
    return connection


def test_the_list_is_one_line_each_and_says_what_to_do(stack, inbox):
    code, out, err = billing_pipeline("events", "list", **stack)

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["age", "outcome", "event", "type", "about", "organization", "attempts", "error"]
    assert lines[1].split()[1:4] == ["h", "failed", "evt_broken"]
    assert "unreadable, next try now" in lines[1]
    assert "`billing-pipeline events show evt_broken` says what to do" in out


def test_a_page_names_the_next(stack, inbox):
    code, out, err = billing_pipeline("events", "list", "--limit", "1", "--handler", "subscription", **stack)
    assert (code, err) == (0, "")
    [following] = [line for line in out.splitlines() if "more:" in line]
    assert following.startswith("2 more: `billing-pipeline events list --handler subscription --limit 1 --page evt_")

    code, out, err = billing_pipeline("events", "list", "--json", "--limit", "2", "--status", "failed", **stack)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [one["stripe_event_id"] for one in found["events"]] == ["evt_broken", "evt_nobodys"]
    assert (found["more"], found["next_page"]) == (0, None)
    assert billing_pipeline("events", "list", "--status", "parked", **stack)[1] == "No webhook event is so.\n"


def test_show_says_what_failed_and_what_to_do_without_the_person(stack, inbox):
    code, out, err = billing_pipeline("events", "show", "evt_nobodys", "--payload", **stack)

    assert (code, err) == (0, "")
    assert out.startswith("evt_nobodys: failed, next try now\n")
    assert "class  unknown_account" in out
    assert "to do  Insert the customer into customer_mappings" in out
    assert "subscriptions sub_2: from this event" in out
    assert '"customer_details": "[redacted]"' in out
    assert "Ada" not in out
    assert "@" not in out

    code, out, err = billing_pipeline("events", "show", "evt_good", "--json", **stack)
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert (shown["processing_outcome"], shown["rows"][0]["from_this_event"]) == ("processed", True)
    assert "payload" not in shown


def test_a_note_is_shown_and_marked(stack, inbox):
    code, out, err = billing_pipeline("events", "annotate", "evt_broken", "--note", "INC-42", "--by", "Ada", **stack)
    assert (code, err) == (0, "")
    assert out.startswith("Noted by Ada.")
    assert "UTC, Ada: INC-42" in billing_pipeline("events", "show", "evt_broken", **stack)[1]
    listed = billing_pipeline("events", "list", **stack)[1]
    assert "evt_broken *" in listed
    assert "* has notes" in listed


def test_a_dry_run_shows_changes_and_a_replay_makes_them(stack, inbox):
    map_customer(inbox, "acme", "cus_2")

    code, out, err = billing_pipeline("events", "replay", "--event-id", "evt_nobodys", "--dry-run", **stack)
    assert (code, err) == (0, "")
    assert "evt_nobodys  customer.subscription.created  processed" in out
    assert '    organization_id: (none) -> "acme"' in out
    assert "Nothing was changed." in out
    assert "Ada" not in out
    assert inbox.execute("SELECT count(*) FROM event_notes").fetchone() == (0,)

    code, out, err = billing_pipeline("events", "replay", "--event-id", "evt_nobodys", "--yes", "--by", "Ada", **stack)
    assert (code, err) == (0, "1 of 1: evt_nobodys processed\n")
    assert "Ended well: 1 of 1 event." in out
    assert inbox.execute("SELECT actor, note FROM event_notes").fetchall() == [("Ada", "Replayed; it was failed.")]


def test_one_that_fails_again_is_told_and_exits_1(stack, inbox):
    code, out, err = billing_pipeline(
        "events", "replay", "--status", "failed", "--status", "processed", "--yes", "--json", **stack
    )

    assert code == 1
    ends = {one["stripe_event_id"]: one["ended_well"] for one in json.loads(out)["events"]}
    assert ends == {"evt_good": True, "evt_nobodys": False, "evt_broken": False}
    assert "3 of 3" in err


@pytest.mark.parametrize(
    ("arguments", "expected", "words"),
    [
        (["show", "evt_x"], 2, "Not in the inbox: evt_x."),
        (["annotate", "evt_x", "--note", "n"], 2, "Not in the inbox: evt_x."),
        (["annotate", "evt_good"], 2, "Missing option '--note'"),
        (["list", "--page", "evt_x"], 2, "Not in the inbox: evt_x."),
        (["list", "--status", "odd"], 2, "Invalid value for '--status'"),
        (["replay", "--yes"], 2, "Say which"),
        (["replay", "--event-id", "evt_good", "--status", "failed", "--yes"], 2, "not both"),
        (["replay", "--event-id", "evt_good", "--handler", "thin", "--yes"], 2, "--handler narrows --status"),
        (["replay", "--event-id", "evt_good"], 2, "Nobody can be asked here, so say --yes"),
        (["replay", "--event-id", "evt_x", "--event-id", "evt_good", "--yes"], 2, "Not in the inbox: evt_x."),
        (["replay", "--event-id", "evt_good", "--yes", "--webhook-url", "http://x"], 2, "is for --via http"),
        (["replay", "--event-id", "evt_good", "--yes", "--via", "http", "--webhook-url", "x"], 2, "is no address"),
        (
            ["replay", "--event-id", "evt_good", "--yes", "--via", "http", "--webhook-url", "https://who:pa55@x/y"],
            2,
            "must not have a user or a password",
        ),
        (["replay", "--event-id", "evt_good", "--yes", "--via", "http"], 2, "STRIPE_WEBHOOK_SECRET is not set"),
        (["replay", "--event-id", "evt_purged", "--yes"], 3, "The payload is no longer kept of evt_purged"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_its_exit_code_and_no_change(stack, inbox, arguments, expected, words):
    store(inbox, [event("charge.failed", {"id": "ch_1", "object": "charge"}, id="evt_purged")], now=NOW)
    inbox.execute("UPDATE stripe_events SET payload = NULL WHERE stripe_event_id = 'evt_purged'")
    before = inbox.execute("SELECT t::text FROM stripe_events t ORDER BY 1").fetchall()

    code, out, err = billing_pipeline("events", *arguments, **stack)

    assert (code, out) == (expected, "")
    assert words in err
    assert "Traceback" not in err
    assert "pa55" not in err
    assert inbox.execute("SELECT t::text FROM stripe_events t ORDER BY 1").fetchall() == before
    assert inbox.execute("SELECT count(*) FROM event_notes").fetchone() == (0,)


@pytest.mark.parametrize(("answer", "code"), [(b"\n", 1), (b"n\n", 1), (b"y\n", 0)])
def test_a_person_is_asked_and_nothing_happens_without_a_yes(stack, inbox, answer, code):
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    process = subprocess.run(
        [sys.executable, "-c", f"{COMMAND}\nrun()", "events", "replay", "--event-id", "evt_good"],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=stack["folder"],
        env=environment(**{name: value for name, value in stack.items() if name != "folder"}),
    )
    os.close(ours)
    os.close(theirs)

    assert process.returncode == code, process.stderr
    assert "Handle 1 event again? [y/N]" in process.stderr
    assert ("Nothing was replayed." in process.stdout) is (code == 1)
    assert inbox.execute("SELECT count(*) FROM event_notes").fetchone() == (1 - code,)


def test_a_purge_says_first_what_would_go(stack, inbox):
    inbox.execute("UPDATE stripe_events SET received_at = received_at - interval '100 days'")

    code, out, err = billing_pipeline("events", "purge", "--dry-run", **stack)
    assert (code, err) == (0, "")
    assert out.startswith("Would let the bodies of 1 event (0 bytes as delivered) and 0 answers of Stripe's go")
    code, out, err = billing_pipeline("events", "purge", **stack)
    assert (code, err) == (0, "")
    assert out.startswith("Bodies gone: 1 event and 0 answers of Stripe's,")
    kept = "SELECT stripe_event_id FROM stripe_events WHERE payload IS NOT NULL ORDER BY 1"
    assert inbox.execute(kept).fetchall() == [("evt_broken",), ("evt_nobodys",)]


@pytest.mark.parametrize("command", ["list", "show", "replay", "annotate", "purge"])
def test_the_help_has_an_example(tmp_path, command):
    code, out, _ = billing_pipeline("events", command, "--help", folder=tmp_path)

    assert code == 0
    assert f"Example: billing-pipeline events {command}" in out
