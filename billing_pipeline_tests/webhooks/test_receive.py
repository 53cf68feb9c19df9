"""A delivery of Stripe's is stored before it is answered; anything else leaves nothing behind but a count."""

import gzip
import http.client
import logging
import secrets
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from billing_pipeline.database.connection import connect
from billing_pipeline.webhooks import committer as committer_module
from billing_pipeline.webhooks import receive as receive_module
from billing_pipeline.webhooks.app import READY_FOR_SECONDS
from billing_pipeline.webhooks.body import BODY_BYTES_MAX
from billing_pipeline.webhooks.metrics import EVENT_TYPES_MAX, WebhookMetrics, WebhookResult
from billing_pipeline_tests.fix_pg_proxy import Loss
from billing_pipeline_tests.signing import NOW, SECRET, body_of, event, signature_header, signed
from billing_pipeline_tests.webhooks.conftest import serving

OTHER = "whsec_another0secret0in0a0roll"
ACCEPTED = {"status": "accepted", "duplicate": False}
REPEATED = {"status": "already_processed", "duplicate": True}


def refused(reason):
    return {"status": "refused", "reason": reason}


def stored(connection):
    return {row[0] for row in connection.execute("SELECT stripe_event_id FROM stripe_events")}


def metric(intake, name, **labels):
    wanted = name + "{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "}"
    lines = intake.ask("GET", "/metrics").raw.decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted)), None)


def said(caplog, words):
    return [record for record in caplog.records if record.getMessage() == words]


def test_a_new_event_is_stored_and_answered_202_and_a_repetition_200(intake, connection, caplog):
    caplog.set_level(logging.INFO)
    first, second = intake.deliver("evt_1"), intake.deliver("evt_1")

    assert (first.status, first.document) == (202, ACCEPTED)
    assert (second.status, second.document) == (200, REPEATED)
    assert stored(connection) == {"evt_1"}
    for words in ("Stripe webhook accepted and queued", "Stripe webhook duplicate ignored"):
        (line,) = said(caplog, words)
        assert line.name == "billing_pipeline.milestones"
        assert (line.stripe_event_id, line.event_type, line.tenant_hint) == (
            "evt_1",
            "customer.subscription.updated",
            "acme",
        )


def test_a_repetition_of_a_parked_event_is_requeued(intake, connection):
    intake.deliver("evt_1")
    connection.execute("DELETE FROM event_dispatches")
    connection.execute(
        "UPDATE stripe_events SET processing_outcome = 'parked', failed_at = now(), error_class = 'x', "
        "processing_error = 'y'"
    )
    again = intake.deliver("evt_1")

    assert (again.status, again.document) == (200, {"status": "requeued", "duplicate": True})
    assert connection.execute("SELECT count(*) FROM event_dispatches").fetchone() == (1,)


def test_g01_fifty_parallel_posts_of_one_event_leave_one_row_and_one_202(intake, connection):
    body, headers = signed(event("evt_1"))
    together = threading.Barrier(50)

    def post(_):
        together.wait()
        return intake.post(body, headers).status

    with ThreadPoolExecutor(50) as pool:
        statuses = Counter(pool.map(post, range(50)))

    assert statuses == {202: 1, 200: 49}
    assert connection.execute("SELECT count(*) FROM stripe_events").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM event_dispatches").fetchone() == (1,)


def test_what_is_not_signed_by_stripe_is_refused_with_its_reason_and_counted(intake, connection, caplog):
    body, _ = signed(event())
    now = int(time.time())
    wrong = {
        "missing_signature": {},
        "invalid_signature": {"Stripe-Signature": signature_header(body, OTHER)},
        "stale_signature": {"Stripe-Signature": signature_header(body, at=now - 400)},
    }
    for reason, headers in wrong.items():
        answer = intake.post(body, headers)
        assert (answer.status, answer.document) == (400, refused(reason))
    early = intake.post(body, {"Stripe-Signature": signature_header(body, at=now + 400)})
    assert early.document == refused("stale_signature")

    assert stored(connection) == set()
    lines = [record for record in caplog.records if record.getMessage().startswith("Signature verification failed: ")]
    assert [(record.levelname, record.args) for record in lines] == [
        ("ERROR", ("missing_signature",)),
        ("ERROR", ("invalid_signature",)),
        ("ERROR", ("stale_signature",)),
    ]
    assert metric(intake, "stripe_webhook_events_total", event_type="unknown", result="missing_signature") == 1
    assert metric(intake, "stripe_webhook_events_total", event_type="unknown", result="invalid_signature") == 3


def test_signature_failures_are_written_when_the_intake_stops_at_the_latest(database_url, connection):
    with serving(database_url, clock=lambda: NOW) as intake:
        for _ in range(3):
            intake.post(b"{}", {})

    rows = connection.execute("SELECT minute_at, reason, deliveries FROM signature_failures").fetchall()
    assert rows == [(NOW.replace(second=0, microsecond=0), "missing_signature", 3)]


def test_signature_failures_are_written_while_the_intake_runs(intake, connection, monkeypatch):
    monkeypatch.setattr(committer_module, "HOUSEKEEPING_SECONDS", 0.05)
    intake.post(b"{}", {})
    deadline = time.monotonic() + 30
    while connection.execute("SELECT sum(deliveries) FROM signature_failures").fetchone() != (1,):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_refused_delivery_is_counted_once_however_long_the_count_waits(intake, connection, monkeypatch):
    monkeypatch.setattr(committer_module, "HOUSEKEEPING_SECONDS", 0.05)
    monkeypatch.setattr(committer_module, "ASKING_SECONDS", 0.2)
    count = "SELECT sum(deliveries) FROM signature_failures"
    with connection.transaction():
        connection.execute("LOCK TABLE signature_failures IN ACCESS EXCLUSIVE MODE")
        intake.post(b"{}", {})
        time.sleep(3)  # It begins to count within two.
    deadline = time.monotonic() + 30
    while connection.execute(count).fetchone() == (None,):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)

    assert connection.execute(count).fetchone() == (1,)


def test_g11_an_altered_body_is_refused_even_if_it_means_the_same(intake, connection):
    body, headers = signed(event())

    assert intake.post(body.replace(b'":', b'": ', 1), headers).document == refused("invalid_signature")
    assert intake.post(body + b"\n", headers).document == refused("invalid_signature")
    assert stored(connection) == set()


def test_a_signed_body_that_is_no_event_is_refused(intake, connection):
    for body in (b"", b"no json", b"[]", body_of(event("sub_1")), body_of(event(data={})), b"\xff"):
        answer = intake.post(body, {"Stripe-Signature": signature_header(body)})
        assert (answer.status, answer.document) == (400, refused("invalid_payload"))
    assert stored(connection) == set()
    assert metric(intake, "stripe_webhook_events_total", event_type="unknown", result="invalid_payload") == 6


def test_an_event_of_the_other_mode_is_refused_with_an_alarm(intake, connection, caplog):
    answer = intake.deliver("evt_1", livemode=True)

    assert (answer.status, answer.document) == (400, refused("wrong_mode"))
    (alarm,) = said(caplog, "Stripe webhook refused: wrong_mode")
    assert (alarm.levelname, alarm.stripe_event_id) == ("ERROR", "evt_1")
    assert stored(connection) == set()


def test_an_event_of_another_account_is_refused_and_one_that_names_ours_is_not(intake, connection):
    assert intake.deliver("evt_1", account="acct_other").document == refused("wrong_account")
    connection.execute(
        "INSERT INTO ledger_identity (ledger_id, stripe_account, livemode, bound_at) "
        "VALUES (gen_random_uuid(), 'acct_ours', false, now())"
    )

    assert intake.deliver("evt_2", account="acct_other").document == refused("wrong_account")
    assert intake.deliver("evt_3", account="acct_ours").document == ACCEPTED
    assert intake.deliver("evt_4", context="acct_other").document == refused("wrong_account")
    assert stored(connection) == {"evt_3"}


def test_g09_deliveries_signed_with_either_secret_are_taken_while_one_is_rolled(database_url, connection):
    with serving(database_url, stripe_webhook_secret=f"{OTHER},{SECRET}") as intake:
        answers = [
            intake.deliver("evt_1", OTHER),
            intake.deliver("evt_2", SECRET),
            intake.deliver("evt_3", SECRET, OTHER),
        ]

    assert [answer.status for answer in answers] == [202] * 3
    rows = connection.execute("SELECT stripe_event_id, matched_secret FROM stripe_events ORDER BY 1").fetchall()
    assert rows == [("evt_1", "whsec_…roll"), ("evt_2", "whsec_…ests"), ("evt_3", "whsec_…roll")]


def test_k29_without_a_secret_nothing_is_taken(database_url, connection):
    with serving(database_url, stripe_webhook_secret=None) as intake:
        answer = intake.deliver()

    assert (answer.status, answer.document) == (503, {"status": "no_webhook_secret"})
    assert stored(connection) == set()


def test_a02_only_this_path_and_post_are_there(intake):
    body, headers = signed(event())
    statuses = {
        path: intake.ask("POST", path, body, headers).status
        for path in (
            "/api/v1/webhooks/stripe",
            "/webhooks/stripe/",
            "/webhooks",
            "/docs",
            "/openapi.json",
            "/redoc",
            "/",
        )
    }

    assert set(statuses.values()) == {404}
    assert {intake.ask(method, "/webhooks/stripe").status for method in ("GET", "PUT", "DELETE", "HEAD")} == {405}


def test_an_unsigned_post_says_that_the_endpoint_can_be_reached(intake):
    assert intake.ask("POST", "/webhooks/stripe").document == refused("missing_signature")


def test_a_body_may_be_as_large_as_the_cap(intake, connection):
    body = body_of(event("evt_1"))
    padded = body[:-1] + b',"pad":"' + b"x" * (BODY_BYTES_MAX - len(body) - 9) + b'"}'
    assert len(padded) == BODY_BYTES_MAX

    assert intake.post(padded, {"Stripe-Signature": signature_header(padded)}).status == 202
    assert stored(connection) == {"evt_1"}


def raw_exchange(intake, request: bytes, more=()) -> bytes:
    """What comes back for these bytes, until the server closes."""
    with socket.create_connection(intake.address, timeout=30) as client:
        client.sendall(request)
        with suppress(OSError):
            for part in more:
                client.sendall(part)
        received = b""
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                received += part
        return received


HEAD = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"


def test_a_body_one_byte_too_large_is_not_even_waited_for(intake, connection):
    body = body_of(event("evt_1")).ljust(BODY_BYTES_MAX + 1)
    head = b"Content-Length: %d\r\nStripe-Signature: %b\r\n\r\n" % (len(body), signature_header(body).encode())

    answer = raw_exchange(intake, HEAD + head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert answer.endswith(b'{"status":"refused","reason":"too_large"}')
    assert stored(connection) == set()


def test_a_body_in_chunks_is_cut_off_at_the_cap(intake):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = raw_exchange(intake, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", [chunk] * 17)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_signed_body_in_chunks_is_taken(intake, connection):
    body, headers = signed(event("evt_1"))
    half = len(body) // 2
    request = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\nStripe-Signature: "
    request += headers["Stripe-Signature"].encode() + b"\r\n\r\n"
    parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:])]

    assert raw_exchange(intake, request, [*parts, b"0\r\n\r\n"]).startswith(b"HTTP/1.1 202 ")
    assert stored(connection) == {"evt_1"}


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length: -1\r\n",
    ],
)
def test_a_request_with_two_framings_is_refused(intake, connection, framing):
    body, headers = signed(event("evt_1"))
    signature = b"Stripe-Signature: " + headers["Stripe-Signature"].encode() + b"\r\n"
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    answer = raw_exchange(intake, HEAD + b"Connection: close\r\n" + framing + signature + b"\r\n" + chunk)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert stored(connection) == set()


def test_nothing_is_decompressed(intake, connection):
    body, headers = signed(event())
    packed = gzip.compress(body)

    answer = intake.post(packed, headers | {"Content-Encoding": "gzip"})
    assert (answer.status, answer.document) == (415, refused("content_encoding"))
    assert intake.post(body, headers | {"Content-Encoding": "identity"}).status == 202


def test_a_client_that_leaves_in_the_middle_leaves_nothing(intake, connection):
    body, headers = signed(event("evt_1"))
    head = HEAD + b"Content-Length: %d\r\nStripe-Signature: " % len(body) + headers["Stripe-Signature"].encode()
    with socket.create_connection(intake.address) as client:
        client.sendall(head + b"\r\n\r\n" + body[:-1])

    assert intake.deliver("evt_2").status == 202
    assert stored(connection) == {"evt_2"}


def test_one_connection_carries_many_deliveries(intake, connection):
    client = http.client.HTTPConnection(*intake.address, timeout=30)
    for number in range(5):
        client.request("POST", "/webhooks/stripe", *signed(event(f"evt_{number}")))
        response = client.getresponse()
        assert (response.status, bool(response.read())) == (202, True)
    client.close()

    assert len(stored(connection)) == 5


def disconnect(connection, database):
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
        (database,),
    )


def test_g04_while_the_database_is_down_stripe_is_told_to_come_again_and_then_it_is_taken(database_url, server_url):
    name = conninfo_to_dict(database_url)["dbname"]
    allow = SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}").format
    with serving(database_url) as intake, connect(server_url) as server:
        assert intake.deliver("evt_1").status == 202
        assert intake.ask("GET", "/readyz").status == 200
        server.execute(allow(Identifier(name), SQL("false")))
        disconnect(server, name)

        down = intake.deliver("evt_2")
        assert (down.status, down.document) == (503, {"status": "not_stored"})
        assert int(down.headers["retry-after"]) > 0
        assert intake.ask("GET", "/healthz").status == 200
        time.sleep(READY_FOR_SECONDS)
        assert intake.ask("GET", "/readyz").status == 503

        server.execute(allow(Identifier(name), SQL("true")))
        assert intake.deliver("evt_2").status == 202
    with connect(database_url) as connection:
        assert stored(connection) == {"evt_1", "evt_2"}


def test_a_restart_between_two_deliveries_is_not_noticed(intake, connection):
    assert intake.deliver("evt_1").status == 202
    disconnect(connection, connection.info.dbname)

    assert intake.deliver("evt_2").status == 202
    assert stored(connection) == {"evt_1", "evt_2"}


def test_g03_nothing_is_answered_before_the_statement_that_stores_and_commits(pg_proxy, connection):
    pg_proxy.at("store_events", Loss.HOLD)
    with serving(pg_proxy.url) as intake, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(intake.deliver, "evt_1")
        assert pg_proxy.reached.wait(30)
        time.sleep(0.3)
        assert not answer.done()
        assert stored(connection) == set()
        pg_proxy.let_go()
        assert answer.result().status == 202
    assert stored(connection) == {"evt_1"}


def test_a_commit_whose_answer_is_lost_is_found_again_and_answered_as_stored(pg_proxy, connection):
    with serving(pg_proxy.url) as intake:
        assert intake.deliver("evt_1").status == 202
        pg_proxy.at("store_events", Loss.CUT)
        answer = intake.deliver("evt_2")

    assert pg_proxy.reached.is_set()
    assert (answer.status, answer.document) == (200, REPEATED)
    assert stored(connection) == {"evt_1", "evt_2"}


def test_who_waits_too_long_is_told_to_come_again_and_nothing_is_stored_behind_his_back(
    intake, connection, monkeypatch
):
    monkeypatch.setattr(receive_module, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(committer_module, "BATCH_MAX", 1)
    intake.deliver("evt_0")
    with ThreadPoolExecutor(2) as pool, connection.transaction():
        connection.execute("LOCK TABLE stripe_events IN SHARE ROW EXCLUSIVE MODE")
        assert {answer.status for answer in pool.map(intake.deliver, ["evt_1", "evt_2"])} == {503}

    assert intake.deliver("evt_3").status == 202
    # Of the two the one that was being stored was; the other was still waiting.
    assert len(stored(connection)) == 3


def test_the_wait_ends_in_time_whatever_else_the_intake_waits_for(intake, connection, monkeypatch):
    """Refused deliveries that are being counted, say, and whose the event is."""
    monkeypatch.setattr(receive_module, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(committer_module, "HOUSEKEEPING_SECONDS", 0.05)
    with connection.transaction(), ThreadPoolExecutor(2) as pool:
        connection.execute("LOCK TABLE stripe_events, signature_failures, ledger_identity IN ACCESS EXCLUSIVE MODE")
        intake.post(b"{}", {})
        time.sleep(0.3)
        began = time.monotonic()
        answers = [pool.submit(intake.deliver, "evt_1"), pool.submit(intake.deliver, "evt_2", account="acct_ours")]
        assert {answer.result().status for answer in answers} == {503}
        assert time.monotonic() - began < 1.5


def test_a_full_queue_turns_away_at_once_and_stores_what_it_took(intake, connection, monkeypatch):
    monkeypatch.setattr(committer_module, "WAITING_MAX", 3)
    monkeypatch.setattr(committer_module, "BATCH_MAX", 1)
    with ThreadPoolExecutor(12) as pool:
        with connection.transaction():
            connection.execute("LOCK TABLE stripe_events IN SHARE ROW EXCLUSIVE MODE")
            answers = {number: pool.submit(intake.deliver, f"evt_{number}") for number in range(12)}
            deadline = time.monotonic() + 30
            while sum(answer.done() for answer in answers.values()) < 8:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            taken = [number for number, answer in answers.items() if not answer.done()]
            assert {answers[number].result().status for number in answers if number not in taken} == {503}
        assert {answers[number].result().status for number in taken} == {202}
    assert stored(connection) == {f"evt_{number}" for number in taken}


def test_who_waits_when_the_intake_is_stopped_is_still_answered(database_url, connection):
    with ThreadPoolExecutor(3) as pool:
        with serving(database_url) as intake, connection.transaction():
            connection.execute("LOCK TABLE stripe_events IN SHARE ROW EXCLUSIVE MODE")
            answers = [pool.submit(intake.deliver, f"evt_{number}") for number in range(3)]
            time.sleep(0.5)
        assert [answer.result().status for answer in answers] == [202] * 3
    assert len(stored(connection)) == 3


def test_one_poisoned_delivery_is_refused_and_its_neighbours_are_stored(intake, connection, monkeypatch):
    bodies = [body_of(event(f"evt_{number}")) for number in range(3)]
    bodies[1] = bodies[1].replace(b'"acme"', b"1e200000")
    with ThreadPoolExecutor(4) as pool:
        with connection.transaction():
            connection.execute("LOCK TABLE stripe_events IN SHARE ROW EXCLUSIVE MODE")
            first = pool.submit(intake.deliver, "evt_first")
            time.sleep(0.3)
            answers = [pool.submit(intake.post, body, {"Stripe-Signature": signature_header(body)}) for body in bodies]
            time.sleep(0.3)
        assert [answer.result().status for answer in [first, *answers]] == [202, 202, 400, 202]
    assert answers[1].result().document == refused("invalid_payload")
    assert stored(connection) == {"evt_first", "evt_0", "evt_2"}


def test_what_runs_in_the_background_runs_for_as_long_as_the_intake_serves(database_url):
    told = []

    @asynccontextmanager
    async def background(metrics, _is_crowded):
        told.append(type(metrics))
        yield
        told.append("ended")

    with serving(database_url, background=background) as intake:
        assert intake.deliver().status == 202
        assert told == [WebhookMetrics]
    assert told == [WebhookMetrics, "ended"]


def test_the_metrics_count_by_type_and_result_and_time_the_answers(intake):
    intake.deliver("evt_1")
    intake.deliver("evt_1")

    updated = {"event_type": "customer.subscription.updated"}
    assert metric(intake, "stripe_webhook_events_total", **updated, result="accepted") == 1
    assert metric(intake, "stripe_webhook_events_total", **updated, result="duplicate") == 1
    timed = {"route": "/webhooks/stripe", "status": "202"}
    assert metric(intake, "billing_http_request_seconds_count", **timed) == 1


def test_a_type_that_nobody_signed_makes_no_time_series(intake):
    body, _ = signed(event(event_type="made.up"))
    intake.post(body, {"Stripe-Signature": signature_header(body, OTHER)})

    assert b"made.up" not in intake.ask("GET", "/metrics").raw


def test_there_are_no_more_time_series_than_types_that_stripe_has():
    metrics = WebhookMetrics()
    for number in range(EVENT_TYPES_MAX + 50):
        metrics.count(WebhookResult.ACCEPTED, f"type.{number}")

    lines = [line for line in metrics.text().decode().splitlines() if line.startswith("stripe_webhook_events_total{")]
    assert len(lines) == EVENT_TYPES_MAX + 1
    assert 'stripe_webhook_events_total{event_type="other",result="accepted"} 50.0' in lines


def test_no_secret_and_no_body_is_ever_logged_or_answered(database_url, caplog):
    caplog.set_level(logging.DEBUG)
    planted = f"planted{secrets.token_hex(8)}"
    body, good = signed(event("evt_1"), f"whsec_{planted}")
    with serving(database_url, stripe_webhook_secret=f"whsec_{planted}") as intake:
        fields = event().keys() - {"id", "type", "livemode", "created", "data"}
        about = {"id": planted, "object": planted, "customer": planted, "metadata": {planted: planted}}
        everywhere = event("evt_2", **dict.fromkeys(fields, planted), data={"object": about, planted: planted})
        answers = [
            intake.post(body, good),
            intake.post(body, good),
            intake.post(*signed(everywhere, f"whsec_{planted}")),
            intake.post(*signed(everywhere | {"livemode": True}, f"whsec_{planted}")),
            intake.post(*signed(everywhere | {"data": planted}, f"whsec_{planted}")),
            intake.post(body_of(everywhere), {"Stripe-Signature": planted, "Authorization": planted, planted: planted}),
            intake.post(body_of(everywhere), good),
            intake.post(planted.encode(), {"Content-Encoding": planted}),
            intake.ask("GET", f"/{planted}?{planted}={planted}"),
            intake.ask("GET", "/metrics"),
        ]

    assert [answer.status for answer in answers] == [202, 200, 202, 400, 400, 400, 400, 415, 404, 200]
    shown = [f"{record.getMessage()} {vars(record)} {record.exc_text}" for record in caplog.records]
    shown += [f"{answer.raw} {answer.headers}" for answer in answers]
    assert [text for text in shown if planted in text] == []
