"""A stored event is delivered to a real intake again: a failed one is requeued and handled, a processed one stays."""

import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.database.connection import connect
from billing_pipeline.domain.signature import verify_signature
from billing_pipeline.domain.signing import signature_header
from billing_pipeline.errors import Unavailable, UserError
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.replay import named_events
from billing_pipeline.webhooks.replay_http import deliver, outcomes, require_address
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.signing import SECRET
from billing_pipeline_tests.webhooks.conftest import serving
from billing_pipeline_tests.webhooks.events import event, store, subscription

NOW = datetime.now(UTC) - timedelta(hours=1)


def now():
    return datetime.now(UTC)


@pytest.fixture
def inbox(connection):
    """One event that has failed, because nobody has its customer, and one that is processed."""
    nobodys = subscription(id="sub_2", customer="cus_2", metadata={})
    store(connection, [event("customer.subscription.created", nobodys, id="evt_nobodys")], now=NOW)
    store(connection, [event("customer.subscription.created", subscription(), id="evt_good")], now=NOW)
    Dispatcher(connection, lambda: NOW).run_once()
    map_customer(connection, "acme", "cus_2")
    # The next try is far away, so whatever handles it now was asked to.
    connection.execute("UPDATE event_dispatches SET due_at = now() + interval '1 day'")
    return connection


@contextmanager
def dispatching(database_url):
    """A worker beside the intake."""
    stop = threading.Event()

    def work():
        with connect(database_url) as own:
            dispatcher = Dispatcher(own, DatabaseClock(own))
            while not stop.is_set():
                dispatcher.run_once()
                stop.wait(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("kept", [True, False], ids=["raw body", "payload only"])
def test_the_command_replays_through_an_intake_and_its_worker(tmp_path, database_url, inbox, kept):
    if kept:
        inbox.execute("UPDATE stripe_events SET raw_body = convert_to(payload::text, 'UTF8')")
    with serving(database_url) as intake, dispatching(database_url):
        code, out, err = billing_pipeline(
            *("events", "replay", "--event-id", "evt_nobodys", "--event-id", "evt_good", "--yes", "--via", "http"),
            *("--webhook-url", f"{intake.url}/webhooks/stripe"),
            folder=tmp_path,
            DATABASE_URL=database_url,
            STRIPE_WEBHOOK_SECRET=SECRET,
        )

    assert code == 0, out + err
    assert "evt_nobodys answered 200 requeued" in err
    assert "evt_good answered 200 already_processed" in err
    assert "Ended well: 2 of 2 events." in out
    assert inbox.execute("SELECT organization_id, active FROM entitlements ORDER BY 1").fetchall() == [("acme", True)]
    outcomes = inbox.execute("SELECT stripe_event_id, processing_outcome, attempts FROM stripe_events ORDER BY 1")
    assert outcomes.fetchall() == [("evt_good", "processed", 1), ("evt_nobodys", "processed", 2)]


def test_an_event_that_nobody_handles_in_time_is_told_and_exits_1(tmp_path, database_url, inbox):
    with serving(database_url) as intake:
        code, out, _ = billing_pipeline(
            *("events", "replay", "--status", "failed", "--yes", "--via", "http", "--wait", "1", "--json"),
            *("--webhook-url", f"{intake.url}/webhooks/stripe"),
            folder=tmp_path,
            DATABASE_URL=database_url,
            STRIPE_WEBHOOK_SECRET=SECRET,
        )

    assert code == 1
    found = json.loads(out)
    assert [(one["stripe_event_id"], one["ended_well"]) for one in found["events"]] == [("evt_nobodys", False)]
    assert found["delivered"] == [{"stripe_event_id": "evt_nobodys", "http_status": 200, "status": "requeued"}]


def test_an_intake_with_another_secret_is_told_with_the_cause(tmp_path, database_url, inbox):
    with serving(database_url) as intake:
        code, out, err = billing_pipeline(
            *("events", "replay", "--event-id", "evt_nobodys", "--yes", "--via", "http"),
            *("--webhook-url", f"{intake.url}/webhooks/stripe"),
            folder=tmp_path,
            DATABASE_URL=database_url,
            STRIPE_WEBHOOK_SECRET="whsec_of_somebody_else",
        )

    assert code == 1
    assert "evt_nobodys: not taken, HTTP 400. Its STRIPE_WEBHOOK_SECRET does not have ours" in out
    assert "somebody_else" not in out + err


def test_a_dry_run_names_the_target_and_delivers_nothing(tmp_path, database_url, inbox):
    code, out, err = billing_pipeline(
        *("events", "replay", "--event-id", "evt_nobodys", "--dry-run", "--via", "http"),
        folder=tmp_path,
        DATABASE_URL=database_url,
        BILLING_INTAKE_PORT=1,
    )

    assert (code, err) == (0, "")
    assert "Would deliver 1 event to http://127.0.0.1:1/webhooks/stripe." in out
    assert "payload  {" in out


def test_an_answer_says_whether_the_intake_has_the_event(database_url, inbox):
    chosen = named_events(inbox, ["evt_good", "evt_nobodys"])
    with serving(database_url) as intake:
        url = f"{intake.url}/webhooks/stripe"
        right = list(deliver(inbox, chosen, url=url, secret=SECRET, clock=now))
        [wrong, _] = deliver(inbox, chosen, url=url, secret="whsec_of_somebody_else", clock=now)
        [nowhere, _] = deliver(inbox, chosen, url=f"{intake.url}/healthz/no", secret=SECRET, clock=now)
        asleep = []
        found = outcomes(inbox, chosen, clock=now, patience=timedelta(seconds=0.1), sleep=asleep.append)

    assert {one.stripe_event_id: (one.is_taken, one.status) for one in right} == {
        "evt_good": (True, "already_processed"),
        "evt_nobodys": (True, "requeued"),
    }
    assert (wrong.is_taken, wrong.http_status, wrong.status) == (False, 400, "refused")
    assert "STRIPE_WEBHOOK_SECRET" in wrong.why_not
    assert (nowhere.http_status, nowhere.status) == (404, None)
    assert "--webhook-url" in nowhere.why_not
    # Nobody handles it here, so it was waited for and then given up.
    assert asleep
    assert {one.stripe_event_id: one.ended_well for one in found} == {"evt_good": True, "evt_nobodys": False}


@contextmanager
def answering(status, headers, seen):
    """A server that gives everybody one answer, and notes what it was asked."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.command, self.headers["Stripe-Signature"]))
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_takes_no_event(inbox, status):
    elsewhere, asked = [], []
    with answering(200, {}, elsewhere) as login, answering(status, {"Location": f"{login}/login"}, asked) as url:
        [told] = deliver(inbox, named_events(inbox, ["evt_good"]), url=url, secret=SECRET, clock=now)

    assert (len(asked), elsewhere) == (1, [])
    assert (told.http_status, told.is_taken) == (status, False)
    assert told.why_not.startswith("It redirects, and a signed delivery follows no redirect.")


def test_no_intake_is_told_with_what_to_do(inbox):
    parcels = deliver(
        inbox,
        named_events(inbox, ["evt_good"]),
        url="http://127.0.0.1:1/webhooks/stripe",
        secret=SECRET,
        clock=now,
    )
    with pytest.raises(Unavailable, match=r"No intake answers at .* Start it with `billing-pipeline serve`"):
        list(parcels)


def test_what_is_handled_badly_again_is_not_waited_for(inbox):
    [chosen] = named_events(inbox, ["evt_nobodys"])
    inbox.execute("UPDATE stripe_events SET attempted_at = now() WHERE stripe_event_id = 'evt_nobodys'")

    def sleep(_seconds):
        raise AssertionError("it has been handled, and failed")

    [end] = outcomes(inbox, [chosen], clock=now, patience=timedelta(hours=1), sleep=sleep)
    assert end.processing_outcome == "failed"


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8000", "http://a b", "http://a\nb"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UserError, match="is no address"):
        require_address(url)


@pytest.mark.parametrize(
    "url", ["https://who:pa55@x/y", "http://pa55@x", "ftp://who:pa55@x", "http://who:pa55/5@x", "w:pa55@x"]
)
def test_an_address_with_a_password_is_refused_without_showing_it(url):
    with pytest.raises(UserError, match="must not have a user or a password") as refused:
        require_address(url)
    assert "pa55" not in str(refused.value)


def test_our_signature_is_one_that_the_intake_takes():
    header = signature_header(b'{"id":"evt_1"}', SECRET, at=now())

    assert verify_signature(b'{"id":"evt_1"}', header, [SECRET], now=now())
