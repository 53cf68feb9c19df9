"""`billing-pipeline serve` starts only where a delivery could be stored, and loses none that it has answered."""

import contextlib
import http.client
import json
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from billing_pipeline.cli.handler_process import NICENESS
from billing_pipeline.cli.log import _together
from billing_pipeline.database.connection import connect
from billing_pipeline_tests.cli.command import billing_pipeline, start
from billing_pipeline_tests.cli.test_up import free_port
from billing_pipeline_tests.feed.conftest import Client, wait_until
from billing_pipeline_tests.feed.tiny_redis import TinyRedis
from billing_pipeline_tests.signing import SECRET, signed
from billing_pipeline_tests.tcp_server import running_tcp_server
from billing_pipeline_tests.webhooks.conftest import Intake
from billing_pipeline_tests.webhooks.events import event as stripe_event
from billing_pipeline_tests.webhooks.events import subscription

EVENTS = 300
CLIENTS = 8


@pytest.fixture
def settings(tmp_path, database_url):
    return {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_INTAKE_PORT": free_port(),
        "STRIPE_WEBHOOK_SECRET": SECRET,
    }


@pytest.fixture
def served(settings):
    """A running `serve` and where it answers."""
    process = start("serve", **settings)
    line = process.stdout.readline()
    assert line == f"Webhook intake on http://127.0.0.1:{settings['BILLING_INTAKE_PORT']}/webhooks/stripe\n", (
        process.communicate()
    )
    intake = Intake(f"http://127.0.0.1:{settings['BILLING_INTAKE_PORT']}")
    deadline = time.monotonic() + 30
    while not answers(intake):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process, intake
    process.kill()
    process.communicate()


def answers(intake):
    try:
        return intake.ask("GET", "/readyz").status == 200
    except OSError:
        return False


def stored(database_url):
    with connect(database_url) as connection:
        return {row[0] for row in connection.execute("SELECT stripe_event_id FROM stripe_events")}


def deliver_until_it_ends(intake, client, acknowledged):
    """Deliver one event after the other; what is answered 202 is noted, and the end of the server ends it."""
    for number in range(EVENTS):
        try:
            answer = intake.deliver(f"evt_{client}_{number}")
        except (OSError, http.client.HTTPException):
            return
        if answer.status == 202:
            acknowledged.append(f"evt_{client}_{number}")


@pytest.mark.slow
@pytest.mark.parametrize("after", [20, 150])
def test_g03_sigkill_under_load_loses_no_acknowledged_event(settings, served, after):
    process, intake = served
    acknowledged: list[str] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(deliver_until_it_ends, intake, client, acknowledged) for client in range(CLIENTS)]
        while len(acknowledged) < after:
            assert process.poll() is None
            assert not all(client.done() for client in clients)
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        for client in clients:
            client.result()

    assert len(acknowledged) >= after
    assert set(acknowledged) - stored(settings["DATABASE_URL"]) == set()


@pytest.mark.slow
def test_sigterm_under_load_answers_who_waits_and_ends_well(settings, served):
    process, intake = served
    with connect(settings["DATABASE_URL"]) as connection, ThreadPoolExecutor(20) as pool:
        with connection.transaction():
            connection.execute("LOCK TABLE stripe_events IN SHARE ROW EXCLUSIVE MODE")
            answers = [pool.submit(intake.deliver, f"evt_{number}") for number in range(20)]
            time.sleep(1)
            process.terminate()
            time.sleep(1)
        statuses = Counter(answer.result().status for answer in answers)
    out, err = process.communicate(timeout=30)

    assert statuses == {202: 20}
    assert (process.returncode, out) == (0, "")
    assert err.count(" INFO Stripe webhook accepted and queued stripe_event_id=evt_") == 20
    assert len(stored(settings["DATABASE_URL"])) == 20


@pytest.mark.slow
def test_a_log_that_nobody_reads_holds_up_no_delivery_and_no_end(settings, served):
    process, intake = served
    deliveries = 65_536 // 100  # a pipe holds 64 kB, and a line has more than 100 bytes

    assert {intake.deliver(f"evt_{number}").status for number in range(deliveries)} == {202}
    process.terminate()

    assert process.wait(timeout=30) == 0
    assert len(stored(settings["DATABASE_URL"])) == deliveries


@pytest.mark.slow
def test_every_delivery_is_a_line_of_the_log_and_nothing_else_is(settings, served):
    process, intake = served
    intake.deliver("evt_1")
    intake.deliver("evt_1")
    intake.post(b"{}", {})
    intake.ask("GET", "/nothing")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    fields = "stripe_event_id=evt_1 event_type=customer.subscription.updated tenant_hint=acme"
    assert (process.returncode, out) == (0, "")
    handling = ("INFO Stripe webhook processing ", "INFO Webhook processed: ")
    lines = [line.partition(" ")[2] for line in err.splitlines()]
    assert [line for line in lines if not line.startswith(handling)] == [
        f"INFO Stripe webhook accepted and queued {fields}",
        f"INFO Stripe webhook duplicate ignored {fields}",
        "ERROR Signature verification failed: missing_signature",
    ]


@pytest.mark.slow
def test_what_is_delivered_is_handled_at_once_and_counted(settings, served):
    process, intake = served
    delivered = stripe_event("customer.subscription.created", subscription())
    assert intake.post(*signed(delivered)).status == 202

    with connect(settings["DATABASE_URL"]) as connection:
        deadline = time.monotonic() + 10
        while not (gates := connection.execute("SELECT organization_id, active FROM entitlements").fetchall()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        outcome = connection.execute("SELECT processing_outcome FROM stripe_events").fetchone()
    counted = 'stripe_webhook_events_total{event_type="customer.subscription.created",result="dispatched"} 1.0'
    wait_until(lambda: counted in intake.ask("GET", "/metrics").raw.decode())
    process.terminate()
    _, err = process.communicate(timeout=30)

    assert gates == [("acme", True)]
    assert outcome == ("processed",)
    assert f"INFO Webhook processed: event_id={delivered['id']}" in err
    assert process.returncode == 0


def handler_of(process):
    """The process that handles for this `serve`, once there is one."""
    children: list[psutil.Process] = []
    wait_until(lambda: children.extend(psutil.Process(process.pid).children()) or children)
    return children[0]


@pytest.mark.slow
def test_handling_that_was_killed_begins_again_and_the_intake_takes_on(settings, served):
    process, intake = served
    first = handler_of(process)
    first.kill()
    first.wait(10)
    delivered = stripe_event("customer.subscription.created", subscription())

    assert intake.post(*signed(delivered)).status == 202
    with connect(settings["DATABASE_URL"]) as connection:
        gates = "SELECT organization_id, active FROM entitlements"
        wait_until(lambda: connection.execute(gates).fetchall() == [("acme", True)])
    process.terminate()
    _, err = process.communicate(timeout=30)

    assert "ERROR The handling of webhooks ended with exit code -9; what is stored waits" in err
    assert "Traceback" not in err
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_handling_ends_with_its_serve_and_gives_way_while_it_runs(served, number):
    process, _ = served
    handler = handler_of(process)
    wait_until(lambda: handler.nice() == NICENESS)

    process.send_signal(number)
    process.wait(30)

    assert handler.wait(10) in (0, None)


@pytest.mark.slow
def test_a_stop_for_the_whole_group_ends_handling_after_its_serve(served):
    process, _ = served
    handler = handler_of(process)
    wait_until(lambda: handler.nice() == NICENESS)

    handler.terminate()
    time.sleep(0.5)
    assert handler.is_running()
    process.terminate()
    _, err = process.communicate(timeout=30)

    assert "ended with exit code" not in err
    assert not handler.is_running()


def test_lines_that_gathered_are_written_whole_and_a_pipe_splits_none_that_fits():
    lines = ["é" * size for size in (1, 2_000, 100, 5_000, 1)]
    written = list(_together(lines))

    assert "".join(written).splitlines() == lines
    assert all(piece.endswith("\n") for piece in written)
    assert [len(piece.encode()) for piece in written] == [4_004, 201, 10_001, 3]


@pytest.mark.slow
def test_a_delivery_reaches_a_stream_and_a_stop_ends_it(settings):
    token = "a-token-of-the-web-app-0123456789"
    with contextlib.ExitStack() as stack:
        redis = TinyRedis()
        url = f"redis://127.0.0.1:{stack.enter_context(running_tcp_server(redis.handle))}"
        process = start("serve", **settings, ENABLE_BILLING_STREAM="true", REDIS_URL=url, BILLING_ACCESS_TOKEN=token)
        stack.callback(process.communicate)
        stack.callback(process.kill)
        process.stdout.readline()
        intake = Intake(f"http://127.0.0.1:{settings['BILLING_INTAKE_PORT']}")
        wait_until(lambda: answers(intake))
        connection = http.client.HTTPConnection(*intake.address, timeout=20)
        stack.callback(connection.close)
        asked = "/api/v1/billing/stream?organization_id=acme"
        connection.request("GET", asked, headers={"Authorization": f"Bearer {token}"})
        client = Client(connection.getresponse())
        assert client.block()["id"] == "0"

        delivered = stripe_event("customer.subscription.created", subscription())
        assert intake.post(*signed(delivered)).status == 202
        message = client.block()
        assert json.loads(message["data"])["stripe_event_id"] == delivered["id"]
        counted = 'stripe_webhook_events_total{event_type="customer.subscription.created",result="broadcasted"} 1.0'
        wait_until(lambda: counted in intake.ask("GET", "/metrics").raw.decode())

        began = time.monotonic()
        process.terminate()
        assert client.block() == {}
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 10

    assert process.returncode == 0
    assert redis.published == [("billing:feed:acme", message["id"])]
    assert " INFO Billing event told stripe_event_id=" in err
    assert token not in err


@pytest.mark.slow
def test_a_stream_that_lacks_something_is_told_and_the_intake_starts(settings):
    process = start("serve", **settings, ENABLE_BILLING_STREAM="true")
    intake = Intake(f"http://127.0.0.1:{settings['BILLING_INTAKE_PORT']}")
    process.stdout.readline()
    try:
        wait_until(lambda: answers(intake))
        answer = intake.ask("GET", "/api/v1/billing/stream?organization_id=acme")
        delivered = intake.deliver("evt_1").status
    finally:
        process.terminate()
        _, err = process.communicate(timeout=20)

    assert (answer.status, answer.document["code"], delivered) == (503, "stream_backend_missing", 202)
    assert " WARNING The billing stream has no Redis. Set BILLING_EVENTS_REDIS_URL or REDIS_URL. Until then " in err


def refusal(settings, **changes):
    code, out, err = billing_pipeline("serve", **settings | changes)
    assert out == ""
    assert err.startswith("error: ")
    assert SECRET not in err
    return code, err.removeprefix("error: ")


def test_without_a_secret_it_does_not_start(settings):
    code, told = refusal(settings, STRIPE_WEBHOOK_SECRET="")

    assert code == 2
    assert told.startswith("STRIPE_WEBHOOK_SECRET is not set, so no webhook could be told from a forged one.")


def test_without_a_database_it_does_not_start(settings):
    code, told = refusal(settings, DATABASE_URL="postgresql://someone@127.0.0.1:9/nowhere")

    assert code == 1
    assert told.startswith("PostgreSQL does not answer at 127.0.0.1:9/nowhere")


def test_without_migrations_it_does_not_start(settings, empty_database_url):
    code, told = refusal(settings, DATABASE_URL=empty_database_url)

    assert code == 2
    assert "billing-pipeline migrate" in told


def test_a_port_in_use_is_named(settings):
    with socket.create_server(("127.0.0.1", settings["BILLING_INTAKE_PORT"])):
        code, told = refusal(settings)

    assert code == 2
    assert told.startswith(f"Cannot listen on 127.0.0.1:{settings['BILLING_INTAKE_PORT']}: Address already in use.")


def test_an_address_that_is_not_ours_is_named(tmp_path, database_url):
    code, _, err = billing_pipeline(
        "serve",
        "--host",
        "192.0.2.1",
        folder=tmp_path,
        DATABASE_URL=database_url,
        STRIPE_WEBHOOK_SECRET=SECRET,
        BILLING_INTAKE_PORT=free_port(),
    )

    assert (code, err.startswith("error: Cannot listen on 192.0.2.1:")) == (2, True)
