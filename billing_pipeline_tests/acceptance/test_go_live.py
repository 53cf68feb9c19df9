"""docs/go-live.md can be walked through as it stands, from the settings to a plan that was sent and proved."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.fix_flow import counted_by_stripe

TEXT = (Path(__file__).parents[2] / "docs" / "go-live.md").read_text(encoding="utf-8")
AT = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
USED = {"acme": 7, "globex": 9}
EVERYTHING = 16


def steps() -> list[tuple[str, str]]:
    """The settings and commands of the page, in its order: ("set", "NAME=value") or ("run", "config show")."""
    found = []
    for language, block in re.findall(r"^```(sh|console)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            found.append(("set", line) if language == "sh" else ("run", line.removeprefix("$ billing-pipeline ")))
    return found


@pytest.mark.slow
def test_the_walk_from_settings_to_a_plan_that_was_sent_and_proved(tmp_path, database_url, connection, simulator):
    for organization_id, units in USED.items():
        event = billable_event(organization_id=organization_id, quantity=Decimal(units), occurred_at=AT)
        insert_events(connection, event)
    # Of the place where the walk is taken; everything else is set by the page.
    place = {"DATABASE_URL": database_url, "STRIPE_SECRET_KEY": simulator.key}
    settings = {"STRIPE_API_BASE": simulator.url, "BILLING_STATE_DIR": "state", "DAGSTER_PORT": "1"}
    outputs: dict[str, str] = {}
    counted: dict[str, int] = {}
    for kind, text in steps():
        if kind == "set":
            name, _, value = text.partition("=")
            settings[name] = place.get(name, value)
            continue
        arguments = text.replace("2026-11-20T13", f"{AT:%Y-%m-%dT%H}")
        if "HASH" in arguments:
            arguments = arguments.replace("HASH", re.search(r"^Plan (\w+)$", outputs["plan"], re.MULTILINE)[1])
        code, out, err = billing_pipeline(*shlex.split(arguments), folder=tmp_path, **settings)
        assert code == 0, f"{arguments}: {out}{err}"
        outputs[text.split(" --")[0]] = out
        counted[text.split(" --")[0]] = sum(counted_by_stripe(simulator).values())

    # Nothing left before step 6, one organization in it, everybody in step 8: the simulator's journal says so.
    sent_by = {name: units for name, units in counted.items() if name not in ("reconcile", "preflight", "flush-now")}
    assert sent_by == {
        "config show": 0,
        "migrate": 0,
        "stripe-setup": 0,
        "create-customers": 0,
        "validate-contract": 0,
        "smoke-org": USED["acme"],
        "explain": USED["acme"],
        "plan": USED["acme"],
        "ledger status": EVERYTHING,
    }
    assert "Stripe shows 7" in outputs["explain"]
    assert re.search(rf"globex +prompt_tokens .* {USED['globex']} ", outputs["plan"])
    assert "fail  " not in outputs["preflight"]


def test_the_page_sends_nothing_before_the_step_that_says_so():
    live = steps().index(("set", "BILLING_MODE=live"))

    assert [text for kind, text in steps()[:live] if kind == "run" and text.startswith("flush-now")] == ["flush-now"]
    assert ("set", "ENABLE_BILLING=true") in steps()[:live]
