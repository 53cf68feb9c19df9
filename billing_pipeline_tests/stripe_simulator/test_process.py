"""The simulator as a process: started by a person, stopped, killed, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import stripe

from billing_pipeline.stripe_simulator.server import bind
from billing_pipeline_tests.fix_simulator import KEY

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "billing_pipeline.stripe_simulator"]


@contextmanager
def process(journal, *options):
    """Start on a free port; yields the process and the SDK.  Killed at the end if it still runs."""
    command = [*COMMAND, "--port", "0", "--journal", str(journal), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            url = started.stdout.readline().split()[3].rstrip(",")
            yield started, stripe.StripeClient(KEY, base_addresses={"api": url, "meter_events": url})
        finally:
            started.kill()


def run(*options):
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=20, check=False)


def send(client, customer, identifier):
    payload = {"stripe_customer_id": customer, "value": "1"}
    return client.v1.billing.meter_events.create({"event_name": "m", "identifier": identifier, "payload": payload})


def fill(client):
    client.v1.billing.meters.create({"display_name": "M", "event_name": "m", "default_aggregation": {"formula": "sum"}})
    return client.v1.customers.create({}).id


def test_killed_simulator_has_lost_nothing_it_acknowledged(tmp_path):
    journal = tmp_path / "state" / "journal"
    with process(journal) as (started, client):
        account, customer = client.v1.accounts.retrieve_current().id, fill(client)
        for number in range(20):
            send(client, customer, f"e{number}")
        os.kill(started.pid, signal.SIGKILL)
        started.wait(5)
    with process(journal) as (_, client):
        assert client.v1.accounts.retrieve_current().id == account
        for number in range(20):
            with pytest.raises(stripe.InvalidRequestError, match=f"already exists with identifier e{number}\\."):
                send(client, customer, f"e{number}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(tmp_path, number):
    with process(tmp_path / "journal") as (started, client):
        fill(client)
        started.send_signal(number)

        assert started.wait(5) == 0
        assert started.stderr.read() == ""


def test_lag_is_set_from_the_command_line(tmp_path):
    with process(tmp_path / "journal", "--lag-seconds", "3600") as (_, client):
        customer = fill(client)
        meter = client.v1.billing.meters.list().data[0].id
        at = send(client, customer, "a").timestamp // 60 * 60
        span = {"customer": customer, "start_time": at, "end_time": at + 60}

        assert client.v1.billing.meters.event_summaries.list(meter, span).data == []


def test_port_in_use_is_one_sentence(tmp_path):
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        ended = run("--port", port, "--journal", str(tmp_path / "journal"))

    assert ended.returncode != 0
    assert ended.stderr == (
        f"The simulator cannot listen on 127.0.0.1:{port}: Address already in use. Choose another --port.\n"
    )
    assert not (tmp_path / "journal").exists()


def test_journal_that_cannot_be_written_is_one_sentence(tmp_path):
    ended = run("--port", "0", "--journal", str(tmp_path))

    assert ended.returncode != 0
    assert ended.stderr == f"The journal {tmp_path} cannot be written: Is a directory. Choose another file.\n"


def test_other_interface_is_one_sentence(tmp_path):
    ended = run("--host", "0.0.0.0", "--port", "0", "--journal", str(tmp_path / "journal"))

    assert ended.returncode != 0
    assert ended.stderr.count("\n") == 1
    assert "this machine only" in ended.stderr


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon"])
def test_lag_that_makes_no_sense_is_refused(tmp_path, seconds):
    ended = run("--journal", str(tmp_path / "journal"), f"--lag-seconds={seconds}")

    assert ended.returncode == 2
    assert "--lag-seconds" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_delay_and_limits_are_set_from_the_command_line(tmp_path):
    limits = ("--stream-delay-seconds", "3600", "--meter-event-calls-per-second", "1", "--stream-calls-per-second", "1")
    with process(tmp_path / "journal", *limits) as (_, client):
        customer = fill(client)
        meter = client.v1.billing.meters.list().data[0].id
        at = send(client, customer, "a").timestamp // 60 * 60
        with pytest.raises(stripe.RateLimitError):
            send(client, customer, "b")
        token = client.v2.billing.meter_event_session.create().authentication_token
        batch = {"events": [{"event_name": "m", "payload": {"stripe_customer_id": customer, "value": "9"}}]}
        client.v2.billing.meter_event_stream.create(batch, {"api_key": token})
        with pytest.raises(stripe.RateLimitError):
            client.v2.billing.meter_event_stream.create(batch, {"api_key": token})
        span = {"customer": customer, "start_time": at, "end_time": at + 120}

        assert [s.aggregated_value for s in client.v1.billing.meters.event_summaries.list(meter, span).data] == [1.0]
