"""`sweep-events` and `rebuild-projections` say what they found, and exit as scripts want it."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.webhooks.events import event, store, subscription

pytestmark = pytest.mark.slow
DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
NOW = datetime(2026, 9, 22, tzinfo=UTC)


@pytest.fixture
def stack(tmp_path, database_url, simulator):
    return {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "STRIPE_API_BASE": simulator.url,
        "STRIPE_SECRET_KEY": simulator.key,
    }


def shown(command):
    """What docs/operations.md shows of a command."""
    text = DOCUMENT.read_text(encoding="utf-8")
    [output] = re.findall(rf"^```text\n\$ billing-pipeline {command}\n((?:.*\n)*?)```", text, re.MULTILINE)
    return output


def without_times(text):
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text).strip()


def test_the_document_shows_what_a_sweep_prints(stack, simulator):
    for _ in range(3):
        simulator.client().v1.customers.create()
    simulator.clock.advance(minutes=2)

    code, out, err = billing_pipeline("sweep-events", **stack)

    assert (code, err) == (0, "")
    assert without_times(out) == without_times(shown("sweep-events"))
    code, out, _ = billing_pipeline("sweep-events", "--objects", "--json", **stack)
    told = json.loads(out)
    assert (code, told["listed"], told["missing"], told["gap_from"]) == (0, 3, {}, None)
    assert told["objects"]["read"]["customer"] == told["objects"]["changed"]["customer"] == 3


def test_a_gap_is_told_until_the_objects_were_read(stack, simulator):
    simulator.client().v1.customers.create()
    billing_pipeline("sweep-events", **stack)
    simulator.clock.advance(days=40)

    _, found, _ = billing_pipeline("sweep-events", **stack)
    _, still, _ = billing_pipeline("sweep-events", **stack)
    _, closed, _ = billing_pipeline("sweep-events", "--objects", **stack)
    _, after, _ = billing_pipeline("sweep-events", **stack)

    for out in (found, still):
        assert out.rstrip().endswith("Run `billing-pipeline sweep-events --objects`, which makes up for it.")
    assert closed.rstrip().endswith("The objects that were read now make up for it.")
    assert "nobody had swept" not in after


def test_a_sweep_from_no_time_is_refused_in_a_sentence(stack):
    code, out, err = billing_pipeline("sweep-events", "--since", "yesterday", **stack)

    assert (code, out) == (2, "")
    assert err.startswith("error: --since yesterday is not a time with an offset")


def test_the_document_shows_what_a_rebuild_prints_and_it_exits_1_until_all_is_right(stack, connection):
    subscriptions = [subscription(id=f"sub_{n}", metadata={"organization_id": f"org_{n}"}) for n in (1, 2)]
    store(connection, [event("customer.subscription.created", one) for one in subscriptions], now=NOW)
    Dispatcher(connection, lambda: NOW + timedelta(minutes=1)).run_once()
    connection.execute("UPDATE subscriptions SET status = 'unpaid', plan = 'x' WHERE stripe_subscription_id = 'sub_1'")
    connection.execute("DELETE FROM subscriptions WHERE stripe_subscription_id = 'sub_2'")

    for arguments, expected in ((["--apply"], 0), ([], 0)):
        if arguments:
            code, out, err = billing_pipeline("rebuild-projections", **stack)
            assert (code, err) == (1, "")
            assert out.strip() == shown("rebuild-projections").strip()
        code, out, _ = billing_pipeline("rebuild-projections", *arguments, "--json", **stack)
        assert code == expected
        told = json.loads(out)
        assert told["put_right"] == (2 if arguments else None)
        assert told["differ"] == (2 if arguments else 0)
