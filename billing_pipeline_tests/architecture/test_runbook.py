"""docs/runbook.md can be followed at 3 a.m.: its commands parse, its SQL runs, its table has every error class."""

import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from typer.main import get_command

from billing_pipeline.cli.main import app
from billing_pipeline.domain.dispatching import pause_after
from billing_pipeline.domain.outcomes import Outcome
from billing_pipeline.domain.triage import TRIAGE
from billing_pipeline.webhooks import claims, dispatch
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.events_show import annotate_event
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.fix_simulator import SimulatorClock
from billing_pipeline_tests.webhooks.events import event, store, subscription

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "runbook.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    set(re.findall(r"(?:`|\$ )billing-pipeline events ([^`\n]+)", TEXT))
    | set(re.findall(r"`make stripe-replay ARGS=\"([^`]+)\"`", TEXT))
)


def test_it_has_three_chapters_with_the_verbs_of_the_work():
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE) == ["Receiving", "Inspecting", "Replaying"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_it_parses(command):
    name, *arguments = shlex.split(command)

    get_command(app).commands["events"].commands[name].make_context(name, arguments)


def test_every_error_class_is_in_the_table_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", TEXT.partition("### By error class")[2], re.MULTILINE)
    sources = [Path(module.__file__).read_text(encoding="utf-8") for module in (dispatch, claims)]
    raised = {name for source in sources for name in re.findall(r'Failure\(\s*"(\w+)"', source)}

    assert {name: (cause, remedy) for name, cause, remedy in rows} == {
        name: (triage.cause, triage.remedy) for name, triage in TRIAGE.items()
    }
    assert raised | {"stripe_unavailable", "stripe"} == set(TRIAGE)


def test_every_outcome_is_explained():
    first_table = TEXT.partition("## Receiving")[0]

    assert set(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", first_table, re.MULTILINE)) == set(Outcome)


@pytest.mark.slow
def test_its_sql_runs_as_it_is_typed_by_somebody_without_our_search_path(database_url):
    blocks = re.findall(r"^```sql\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3

    for block in blocks:
        with psycopg.connect(database_url) as connection:
            for statement in filter(None, map(str.strip, block.split(";"))):
                connection.execute(sql.SQL(statement))


@pytest.mark.slow
def test_its_incident_goes_as_it_shows(tmp_path, database_url, connection):
    """The parked and the failed event of chapter two, noted, looked at and replayed."""
    stack = {"folder": tmp_path, "DATABASE_URL": database_url, "BILLING_STATE_DIR": "state", "LOGNAME": "ada"}
    now = datetime.now(UTC)
    clock = SimulatorClock(now - timedelta(hours=2, seconds=30))
    broken = subscription(id="sub_3", status=7)
    store(connection, [event("customer.subscription.updated", broken, id="evt_1Qy2xy")], now=clock())
    for attempt in range(1, 11):
        Dispatcher(connection, clock).run_once()
        clock.advance(seconds=pause_after(attempt).total_seconds())
    annotate_event(connection, "evt_1Qy2xy", "asked Stripe", actor="ada", now=now)
    clock = SimulatorClock(now - timedelta(minutes=2, seconds=32))
    nobodys = subscription(id="sub_2", customer="cus_2", metadata={})
    store(connection, [event("customer.subscription.created", nobodys, id="evt_1Qy6ab")], now=clock())
    for attempt in (1, 2, 3):
        Dispatcher(connection, clock).run_once()
        clock.advance(seconds=pause_after(attempt).total_seconds())
    shown = dict(re.findall(r"^ *\$ billing-pipeline (events .+)\n((?: *[^`\s].*\n|\n)*)", TEXT, re.MULTILINE))

    def run(command, expected=0):
        code, out, _ = billing_pipeline(*shlex.split(command), **stack)
        assert code == expected
        return out

    listed = "events list --status failed --status parked"
    assert masked(run(listed)) == masked(shown[listed])
    note = 'events annotate evt_1Qy6ab --note "customer mapped by hand, INC-42"'
    assert masked(run(note)) == masked(shown[note])
    map_customer(connection, "acme", "cus_2")
    dry = "events replay --event-id evt_1Qy6ab --dry-run"
    out = run(dry)
    for line in filter(None, map(str.strip, shown[dry].splitlines())):
        assert line.removesuffix(", ...") in out
    assert "Ended well: 1 of 1 event." in run("events replay --event-id evt_1Qy6ab --yes")


def masked(text):
    """Lines without spaces between columns, and without how long ago or when."""
    lines = re.sub(r"\b\d+ (s|min|h)\b", "TIME", text).strip().splitlines()
    return [re.sub(r" {2,}", "  ", line).rstrip() for line in lines if not line.startswith("age")]
