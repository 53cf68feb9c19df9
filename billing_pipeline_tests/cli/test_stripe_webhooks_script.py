"""scripts/test-stripe-webhooks.sh passes with a working intake, and fails where one of its two claims does not hold."""

import subprocess
from pathlib import Path

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline_tests.cli.command import environment
from billing_pipeline_tests.signing import SECRET
from billing_pipeline_tests.tcp_server import running_tcp_server
from billing_pipeline_tests.webhooks.conftest import serving

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "scripts/test-stripe-webhooks.sh"


def run(*arguments, **settings):
    ended = subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, timeout=280, env=environment(**settings)
    )
    return ended.returncode, ended.stdout.splitlines(), ended.stderr


def test_it_needs_nothing_and_proves_both_claims():
    code, out, err = run()

    assert (code, err) == (0, "")
    assert out[0].startswith("Stripe CLI")
    assert out[1] == "Backend is running"
    assert out[-2:] == ["Webhook processed successfully", "Idempotency working"]


def test_it_tests_an_intake_that_runs_already(database_url):
    with serving(database_url) as intake:
        url = f"{intake.url}/webhooks/stripe"
        code, out, err = run(url, DATABASE_URL=database_url, STRIPE_WEBHOOK_SECRET=SECRET)
        assert (code, err, out[-1]) == (0, "", "Idempotency working")

        code, out, err = run(url, DATABASE_URL=database_url, STRIPE_WEBHOOK_SECRET="whsec_of_somebody_else")
        assert (code, out[-1]) == (1, "Backend is running")
        assert err.startswith("FAILED: the webhook was not accepted: 400")
    with connect(database_url) as connection:
        assert connection.execute("SELECT processing_outcome FROM stripe_events").fetchall() == [("processed",)]


def test_an_intake_that_says_yes_and_stores_nothing_does_not_pass(database_url):
    async def agreeable(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"status":"accepted","duplicate":false}'
        writer.write(b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    with running_tcp_server(agreeable) as port:
        code, out, err = run(
            f"http://127.0.0.1:{port}/webhooks/stripe", DATABASE_URL=database_url, STRIPE_WEBHOOK_SECRET=SECRET
        )

    assert code == 1
    assert out[-1] == "Backend is running"
    assert "Not in the inbox" in err
