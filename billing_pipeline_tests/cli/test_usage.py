"""What the commands of the usage flow tell a person: which level applies, what waits, and what to do next."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from typer.main import get_command

from billing_pipeline.cli.hints import as_typed
from billing_pipeline.cli.main import app
from billing_pipeline.database.connection import connect
from billing_pipeline.usage.gate import bind
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.fix_simulator import RunningSimulator


@pytest.fixture
def stack(tmp_path, database_url, simulator: RunningSimulator):
    """Where to run a command, and the settings that lead it to this test's database and simulator."""
    return {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "STRIPE_API_BASE": simulator.url,
        "STRIPE_SECRET_KEY": simulator.key,
    }


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ENABLE_BILLING": "false"}, "ENABLE_BILLING is false"),
        ({"BILLING_MODE": "off"}, "BILLING_MODE is off"),
        ({"STRIPE_SECRET_KEY": "sk_test_0123456789"}, "a Stripe key is set, and ENABLE_BILLING is not true"),
    ],
)
def test_a_flush_while_billing_is_off_says_so_and_starts_nothing(tmp_path, settings, reason):
    code, out, err = billing_pipeline("flush-now", folder=tmp_path, BILLING_STATE_DIR="state", **settings)

    assert (code, err) == (0, "")
    assert out == f"Billing is off ({reason}): nothing was computed, nothing was sent.\n"
    assert not (tmp_path / "state").exists()


def test_a_flush_says_what_is_owed_and_that_shadow_sends_nothing(stack, connection):
    at = datetime.now(UTC) - timedelta(hours=3)
    insert_events(connection, billable_event(organization_id="acme", quantity=7, occurred_at=at))
    code, out, err = billing_pipeline("stripe-setup", **stack)
    assert code == 0, err

    code, out, err = billing_pipeline("flush-now", **stack, ENABLE_BILLING="true", BILLING_MODE="shadow")
    assert code == 0, err
    assert "Billing is in shadow mode: computed and recorded, nothing sent." in out
    assert "7 units wait, because organizations have no Stripe customer: acme." in out
    assert "billing-pipeline create-customers`" in out


def test_a_flush_of_an_existing_table_says_which_indexes_it_lacks(stack, connection):
    connection.execute(
        "CREATE TABLE public.events (id uuid PRIMARY KEY, account_id int, kind text, amount int, at timestamptz);"
        "INSERT INTO public.events VALUES (gen_random_uuid(), 7, 'prompt_tokens', 5, now() - interval '3 hours')"
    )
    columns = (
        "event_id=id, organization_id=account_id, event_type=kind, quantity=amount, occurred_at=at, recorded_at=at"
    )
    source = {"BILLING_SOURCE_RELATION": "public.events", "BILLING_SOURCE_COLUMNS": columns}
    assert billing_pipeline("stripe-setup", **stack)[0] == 0

    code, out, err = billing_pipeline("flush-now", **stack, **source, ENABLE_BILLING="true", BILLING_MODE="shadow")

    assert code == 0, err
    assert "Contract:  1 rows read, faults: source_index_missing 1\n" in out
    assert 'source_index_missing: occurred_at: CREATE INDEX CONCURRENTLY ON "public"."events" ("at")\n' in out
    assert "5 units wait, because organizations have no Stripe customer: 7." in out


def test_the_ledgers_status_needs_no_stripe_and_no_flush_before_it(tmp_path, database_url):
    where = {"folder": tmp_path, "DATABASE_URL": database_url, "STRIPE_API_BASE": "http://127.0.0.1:1"}
    code, out, err = billing_pipeline("ledger", "status", **where)
    assert (code, err) == (0, "")
    assert "Account          none yet" in out

    with connect(database_url) as connection:
        bind(connection, stripe_account="acct_1", livemode=False, now=datetime.now(UTC))
    code, out, err = billing_pipeline("ledger", "freeze", "--by", "Ada", "--reason", "a drill", **where)
    assert (code, err) == (0, "")
    assert "FROZEN since" in (out := billing_pipeline("ledger", "status", **where)[1])
    assert "a drill (by Ada)" in out
    assert out.count("events in quarantine") == 1


def test_a_second_freeze_tells_of_the_first(tmp_path, database_url, connection):
    bind(connection, stripe_account="acct_1", livemode=False, now=datetime.now(UTC))
    for reason in ("first", "second"):
        code, out, _ = billing_pipeline(
            "ledger", "freeze", "--by", "Ada", "--reason", reason, folder=tmp_path, DATABASE_URL=database_url
        )
        assert code == 0

    assert re.match(r"Already frozen since .* UTC: first \(by Ada\)", out)


@pytest.mark.slow
def test_an_import_needs_nothing_prepared_and_names_types_no_meter_takes(tmp_path):
    where = {"folder": tmp_path, "BILLING_STATE_DIR": "state"}
    (tmp_path / "usage.csv").write_text("event_id,organization_id,event_type,quantity,occurred_at\na,acme,tea,1,soon\n")
    assert billing_pipeline("import-events", "no.csv", **where)[0] == 2
    assert not (tmp_path / "state").exists()

    (tmp_path / "usage.csv").write_text(
        "event_id,organization_id,event_type,quantity,occurred_at\n"
        "a,acme,tea,1,2026-11-20T10:00:00Z\nb,acme,prompt_tokens,1,2026-11-20T10:00:00Z\n"
    )
    code, out, err = billing_pipeline("import-events", "usage.csv", **where)
    assert (code, out) == (0, "usage.csv: 2 events read, 2 added, 0 already there.\n")
    assert err.startswith("warning: no meter of the catalogue takes the event types tea; the next flush")


def test_no_summary_of_a_command_is_cut_off():
    def commands(group, path=()):
        for name, command in group.commands.items():
            yield (*path, name), command
            if hasattr(command, "commands"):
                yield from commands(command, (*path, name))

    cut = {path for path, command in commands(get_command(app)) if command.get_short_help_str(60).endswith("...")}
    assert cut == set()


def test_a_hint_names_the_command_as_it_can_be_typed(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", [".venv/bin/billing-pipeline"])
    assert as_typed("Run `billing-pipeline migrate`.") == "Run `.venv/bin/billing-pipeline migrate`."

    monkeypatch.setattr("sys.argv", ["pytest"])
    assert as_typed("Run `billing-pipeline migrate`.") == "Run `billing-pipeline migrate`."
