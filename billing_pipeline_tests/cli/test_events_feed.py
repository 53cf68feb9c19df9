"""`billing-pipeline events feed` shows what an organization was told, and follows it."""

import json

import pytest

from billing_pipeline_tests.cli.command import billing_pipeline, start
from billing_pipeline_tests.feed.conftest import Feeding
from billing_pipeline_tests.webhooks.events import event, invoice, subscription

pytestmark = pytest.mark.slow


@pytest.fixture
def stack(tmp_path, database_url):
    return {"folder": tmp_path, "DATABASE_URL": database_url, "STRIPE_SECRET_KEY": "sk_test_of_the_tests"}


@pytest.fixture
def feeding(connection):
    found = Feeding(connection)
    found.feed(
        event("customer.subscription.created", subscription(), at=0),
        event("invoice.created", invoice(), at=5),
        event("invoice.paid", invoice(status="paid"), at=30),
    )
    return found


def test_the_feed_is_one_line_an_event_the_oldest_first(stack, feeding):
    code, out, err = billing_pipeline("events", "feed", "--organization", "acme", **stack)

    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["id", "at", "Stripe", "(UTC)", "type", "status", "about"],
        ["1", "2026-09-21", "14:13:20", "customer.subscription.created", "active", "sub_1"],
        ["2", "2026-09-21", "14:13:25", "invoice.created", "draft", "in_1"],
        ["3", "2026-09-21", "14:13:50", "invoice.paid", "paid", "in_1"],
    ]


def test_programs_get_payloads_after_an_id(stack, feeding):
    code, out, _ = billing_pipeline(
        "events", "feed", "--organization", "acme", "--after", "1", "--limit", "1", "--json", **stack
    )

    [line] = out.splitlines()
    assert code == 0
    assert json.loads(line) == {"feed_id": 2, "payload": feeding.payloads()[1]}


def test_an_empty_feed_says_why(stack, feeding):
    code, out, _ = billing_pipeline("events", "feed", "--organization", "beta", **stack)
    assert (code, out.splitlines()) == (
        0,
        ["Nothing was told to beta.", "The feed is off: ENABLE_BILLING_STREAM is false."],
    )


def test_it_follows_until_it_is_stopped(stack, feeding):
    process = start("events", "feed", "--organization", "acme", "--limit", "1", "--follow", **stack)
    try:
        assert process.stdout.readline().startswith("id ")
        assert process.stdout.readline().startswith("3 ")
        feeding.feed(event("invoice.voided", invoice(id="in_2", status="void"), at=60))
        assert "invoice.voided" in process.stdout.readline()
    finally:
        process.terminate()
        process.communicate()
