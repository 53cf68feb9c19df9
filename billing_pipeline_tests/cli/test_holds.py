"""`billing-pipeline holds` says what waits for a person and lets it go, and docs/operations.md shows it."""

from __future__ import annotations

import json
import re
import shlex
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.usage import gate
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.fix_flow import counted_by_stripe

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d|\d+ (minutes|hours|days)")
HOUR = timedelta(hours=1)
LOG = ("--by", "Ada", "--reason", "asked the customer")


@pytest.fixture
def stack(tmp_path, database_url, simulator):
    return {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "BILLING_MARK_URL": (tmp_path / "high_water_mark.json").as_uri(),
        "STRIPE_API_BASE": simulator.url,
        "STRIPE_SECRET_KEY": simulator.key,
        "ENABLE_BILLING": "true",
        "BILLING_MODE": "live",
    }


@pytest.fixture
def holds(flow, bill, simulator):
    """Two organizations billed for 30 hours; then one has a strange hour, and the rows of a whole meter are gone.

    A prompt token costs a quarter of a cent.
    """
    client = simulator.client()
    [meter] = [m for m in client.v1.billing.meters.list().data if m.event_name == "prompt_tokens"]
    product = client.v1.products.create({"name": "prompt tokens"})
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter.id}
    client.v1.prices.create(
        {"currency": "usd", "product": product.id, "unit_amount_decimal": "0.25", "recurring": recurring}
    )
    bill("acme", "globex")
    this_hour = flow.clock().replace(minute=0, second=0, microsecond=0)
    insert_events(
        flow.connection,
        *(
            billable_event(
                organization_id=organization_id,
                event_type=event_type,
                quantity=Decimal(quantity),
                occurred_at=this_hour - number * HOUR,
            )
            for organization_id, event_type, quantity, hours in (
                ("acme", "prompt_tokens", 120, range(10, 40)),
                ("globex", "generated_tokens", 50, range(10, 22)),
            )
            for number in hours
        ),
    )
    flush(flow, scope=Scope.FULL)
    flush(flow)
    insert_events(
        flow.connection,
        billable_event(quantity=Decimal(43_200), occurred_at=this_hour - 5 * HOUR, recorded_at=flow.clock()),
        billable_event(
            organization_id="globex",
            event_type="generated_tokens",
            quantity=Decimal(70),
            occurred_at=this_hour - 5 * HOUR,
            recorded_at=flow.clock(),
        ),
    )
    flow.connection.execute(
        "DELETE FROM public.billable_events WHERE event_type = 'generated_tokens' AND quantity = 50"
    )
    flush(flow, scope=Scope.FULL)
    return flow


def masked(text):
    return [line.rstrip() for line in TIME.sub("TIME", text).strip().splitlines()]


def window_of(flow, reason):
    row = flow.connection.execute("SELECT min(window_id) FROM usage_windows WHERE hold_reason = %s", (reason,))
    return row.fetchone()[0]


def holds_left(flow):
    return flow.connection.execute("SELECT count(*) FROM usage_windows WHERE hold_reason IS NOT NULL").fetchone()[0]


def test_the_document_shows_what_the_commands_print(stack, holds, simulator):
    text = DOCUMENT.read_text(encoding="utf-8").split("## Brakes and holds")[1].split("\n## ")[0]
    shown = [
        (command, output)
        for block in re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]
    assert len(shown) == 4

    before = sum(counted_by_stripe(simulator).values())
    for command, output in shown:
        program, *arguments = shlex.split(command)
        assert program == "billing-pipeline"
        code, out, err = billing_pipeline(*arguments, **stack)
        assert (code, err) == (0, ""), command
        assert masked(out) == masked(output), command
    flush(holds)
    assert sum(counted_by_stripe(simulator).values()) == before + 43_200 - 600 + 70
    assert holds_left(holds) == 0


def test_programs_get_every_number_as_text(stack, holds):
    code, out, err = billing_pipeline("holds", "list", "--json", "--org", "acme", **stack)

    assert (code, err) == (0, "")
    told = json.loads(out)
    [one], [window] = told["sums"], told["shown"]
    assert (one["reason"], one["windows"], one["added"]) == ("far_more_than_the_usual_hour", 1, "43200")
    assert Decimal(one["minor_units"]["usd"]) == 10_800
    assert (window["organization_id"], window["units"], window["days_left"]) == ("acme", "43200", 34)
    assert "the median of 31 hours" in window["detail"]
    assert told["waiting_behind"] == []


def test_the_list_works_without_stripe_and_says_when_there_is_nothing(stack, holds):
    away = stack | {"STRIPE_API_BASE": "http://127.0.0.1:1"}
    code, out, err = billing_pipeline("holds", "list", "--meter", "prompt_tokens", **away)
    assert (code, err) == (0, "")
    assert "+43,200 units in 1 window of 1 organization; price unknown" in out
    assert "No prices: Stripe does not answer" in out

    code, out, err = billing_pipeline("holds", "list", "--org", "nobody", **stack)
    assert (code, out, err) == (0, "Nothing is on hold.\n", "")


def test_the_list_is_cut_where_it_says_so(stack, holds):
    out = billing_pipeline("holds", "list", "--reason", "too_much_taken_back_at_once", "--limit", "2", **stack)[1]

    assert out.count("\n    window ") == 2
    assert "... and 10 more; --limit shows them" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["release", "99", *LOG], "error: Nothing was released: not on hold are the windows 99."),
        (["release", "1", *LOG], "error: Nothing was released: not on hold are the windows 1."),
        (["release", *LOG], "error: Say which: numbers of windows, or --all with --reason-code."),
        (["release", "--all", *LOG], "error: --all needs --reason-code"),
        (["release", "--org", "acme", *LOG], "error: Say which"),
        (["release", "5", "--all", "--reason-code", "rejected_by_stripe", *LOG], "error: Name windows, or choose them"),
        (["release", "5", "--meter", "prompt_tokens", *LOG], "error: Name windows, or choose them"),
        (["release", "--all", "--reason-code", "nonsense", *LOG], "error: nonsense is no reason code; there are"),
        (["release", "--all", "--reason-code", "rejected_by_stripe", *LOG], "error: Nothing was released: no such"),
        (["release", "5", "--by", "Ada"], "Missing option '--reason'"),
        (["release", "5", "--reason", "x"], "Missing option '--by'"),
        (["release", "9" * 30, *LOG], "not on hold are the windows 9999"),
        (["list", "--reason", "nonsense"], "error: nonsense is no reason code; there are"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(stack, holds, arguments, words):
    before = holds_left(holds)

    code, out, err = billing_pipeline("holds", *arguments, **stack)

    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert holds_left(holds) == before
    assert holds.connection.execute("SELECT count(*) FROM ledger_operations").fetchone() == (0,)


def test_a_frozen_ledger_lists_and_releases_nothing(stack, holds):
    gate.freeze(holds.connection, "a drill", now=holds.clock())
    window = window_of(holds, HoldReason.OVER_USUAL)

    code, out, err = billing_pipeline("holds", "release", str(window), *LOG, **stack)
    assert (code, out) == (3, "")
    assert "error: The ledger is frozen" in err
    assert "nothing was released" in err

    code, out, err = billing_pipeline("holds", "list", **stack)
    assert (code, err) == (0, "")
    assert f"window {window}: acme prompt_tokens" in out


def test_a_flush_and_the_status_say_what_is_held(stack, holds):
    insert_events(
        holds.connection,
        billable_event(quantity=Decimal(50_000), occurred_at=holds.clock() - 4 * HOUR, recorded_at=holds.clock()),
    )

    code, out, err = billing_pipeline("flush-now", **stack)
    assert (code, err) == (0, "")
    assert "Held:      1 far_more_than_the_usual_hour; `" in out
    assert "holds list` says what to do" in out
    assert "windows that wait until what is taken back may go: 1" in out

    out = billing_pipeline("ledger", "status", **stack)[1]
    assert "holds list` says what to do:" in out
    assert "50,000 units, far more than the usual hour" in out
