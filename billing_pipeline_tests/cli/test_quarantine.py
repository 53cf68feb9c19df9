"""`billing-pipeline quarantine` says what waits, what it is worth and what to do, and docs/operations.md shows it."""

from __future__ import annotations

import json
import re
import shlex
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from psycopg import sql

from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d(\.\d+)?)?(\+00)?")


@pytest.fixture
def stack(tmp_path, database_url, simulator):
    """Where to run a command, and the settings that lead it to this test's database and simulator."""
    return {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "STRIPE_API_BASE": simulator.url,
        "STRIPE_SECRET_KEY": simulator.key,
    }


@pytest.fixture
def waiting(flow, simulator):
    """A flushed source with four rows in quarantine; a prompt token costs a quarter of a cent."""
    client = simulator.client()
    [meter] = [m for m in client.v1.billing.meters.list().data if m.event_name == "prompt_tokens"]
    product = client.v1.products.create({"name": "prompt tokens"})
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter.id}
    client.v1.prices.create(
        {"currency": "usd", "product": product.id, "unit_amount_decimal": "0.25", "recurring": recurring}
    )
    at = flow.clock().replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    insert_events(
        flow.connection,
        billable_event(event_id="evt-100", quantity=Decimal(5000), occurred_at=at),
        billable_event(event_id="evt-101", quantity=Decimal(700), occurred_at=at, recorded_at=at - timedelta(hours=1)),
        billable_event(event_id="evt-102", quantity=None, occurred_at=at),
        billable_event(event_id="evt-103", quantity=Decimal(1200), occurred_at=at, organization_id=""),
        billable_event(event_id="evt-104", quantity=Decimal(90), occurred_at=at, event_type="promt_tokens"),
    )
    # As a flush does, in order.
    flow.validate_contract()
    flow.aggregate()
    return flow.connection


def masked(text: str) -> list[str]:
    """Lines without times, and without the blanks that a table's last column leaves."""
    return [line.rstrip() for line in TIME.sub("TIME", text).strip().splitlines()]


def test_the_document_shows_what_the_commands_print(stack, waiting):
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = [
        (command, output)
        for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]
    assert len(shown) > 5

    for command, output in shown:
        program, *arguments = shlex.split(command)
        if program == "psql":
            waiting.execute(sql.SQL(arguments[-1]))
            continue
        assert program == "billing-pipeline"
        code, out, err = billing_pipeline(*arguments, **stack, COLUMNS=120, USER="ada", LOGNAME="ada")
        assert (code, err) == (0, ""), command
        assert masked(out) == masked(output), command


def test_the_list_works_without_stripe_and_for_programs(stack, waiting):
    away = stack | {"STRIPE_API_BASE": "http://127.0.0.1:1"}
    code, out, err = billing_pipeline("quarantine", "list", **away)
    assert (code, err) == (0, "")
    assert "money  price unknown" in out
    assert "No prices: Stripe does not answer at http://127.0.0.1:1" in out

    code, out, err = billing_pipeline("quarantine", "list", "--json", "--reason", "organization_id_missing", **stack)
    assert (code, err) == (0, "")
    [reason] = json.loads(out)["reasons"]
    assert (reason["event_ids"], reason["units"][0]["units"]) == (["evt-103"], "1200")
    assert Decimal(reason["minor_units"]["usd"]) == 300


@pytest.mark.parametrize(
    ("arguments", "expected", "words"),
    [
        (["show", "nobody"], 2, "error: Never in quarantine: nobody."),
        (["retry", "nobody"], 2, "error: Never in quarantine: nobody."),
        (["dismiss", "nobody", "--reason", "x"], 2, "error: Never in quarantine: nobody."),
        (["dismiss", "evt-102"], 2, "Missing option '--reason'"),
        (["dismiss", "evt-102", "--reason", ""], 2, "error: A dismissal needs a reason"),
        (["list", "--reason", "nonsense"], 2, "error: nonsense is no reason code"),
        (["dismiss", "evt-104", "--reason", "x"], 3, "error: Nothing was dismissed: the source has evt-104 otherwise"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_its_own_exit_code(stack, waiting, arguments, expected, words):
    waiting.execute("UPDATE public.billable_events SET event_type = 'prompt_tokens' WHERE event_id = 'evt-104'")

    code, out, err = billing_pipeline("quarantine", *arguments, **stack)

    assert (code, out) == (expected, "")
    assert words in err
    assert "Traceback" not in err


def test_reconcile_says_where_every_row_is_and_fails_for_one_in_no_place(stack, waiting):
    code, out, err = billing_pipeline("reconcile", **stack)
    assert (code, err) == (0, "")
    assert "Rows of the source within reach: 5; 1 counted, 4 waiting." in out

    waiting.execute("DELETE FROM quarantined_events WHERE event_id = 'evt-102'")
    code, out, err = billing_pipeline("reconcile", **stack)
    assert (code, err) == (1, "")
    assert "not quarantined: acme prompt_tokens" in out
    assert "flush-now --full" in out
