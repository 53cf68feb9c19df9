"""`smoke-org` bills one organization for real in test mode, nobody else, and proves it."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline.usage.lease import acquire
from billing_pipeline_tests.builders import billable_event, insert_events, map_customer
from billing_pipeline_tests.cli.command import billing_pipeline, live_against
from billing_pipeline_tests.fix_flow import counted_by_stripe, live_settings

pytestmark = pytest.mark.slow
AT = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def customers(tmp_path, database_url, connection, simulator):
    """Acme used 7 units and globex 9, three hours ago; both have customers."""
    settings = live_settings(database_url, simulator, tmp_path)
    client = simulator.client()
    set_up_catalogue(client, settings, load_catalogue(settings))
    made = create_customers(client, settings, ["acme", "globex"])
    for organization_id, customer in made.items():
        map_customer(connection, organization_id, customer)
    for organization_id, units in (("acme", 7), ("globex", 9)):
        insert_events(
            connection, billable_event(organization_id=organization_id, quantity=Decimal(units), occurred_at=AT)
        )
    return made


@pytest.fixture
def stack(tmp_path, database_url, simulator, customers):
    return live_against(simulator, folder=tmp_path, database_url=database_url)


def steps(out):
    return {
        line.split()[1]: line.split()[0] for line in out.splitlines() if line[:4] in {"pass", "warn", "fail", "skip"}
    }


def test_one_organization_is_billed_and_proved_and_nobody_else(stack, customers, simulator, connection):
    code, out, err = billing_pipeline(
        "smoke-org", "--org-id", "acme", "--require-enabled", "--validate-contract", "--fail-closed", **stack
    )

    assert (code, err) == (0, ""), out
    assert set(steps(out).values()) == {"pass"}
    assert "owed 7 units, stated 7 units, shown by Stripe 7 units" in out
    assert out.endswith("\nNothing failed. Fails closed.\n")
    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", AT): 7}
    assert connection.execute("SELECT count(*) FROM ledger_entries").fetchone() == (1,)


def test_a_second_smoke_bills_nothing_more_and_the_flush_bills_the_others(stack, simulator):
    for _ in range(2):
        assert billing_pipeline("smoke-org", "--org-id", "acme", **stack)[0] == 0
    assert sum(counted_by_stripe(simulator).values()) == 7

    assert billing_pipeline("flush-now", **stack)[0] == 0
    assert sum(counted_by_stripe(simulator).values()) == 16


def test_a_live_key_is_refused_before_anything_is_done(stack, simulator, connection):
    code, out, err = billing_pipeline(
        "smoke-org", "--org-id", "acme", **stack | {"STRIPE_SECRET_KEY": "sk_live_0123456789abcdef"}
    )

    assert (code, out) == (3, "")
    assert "takes no live key" in err
    assert connection.execute("SELECT count(*) FROM usage_windows").fetchone() == (0,)
    assert simulator.journal("meter_event") == []


def test_what_fails_is_named_with_what_to_do_and_only_fail_closed_exits_1(stack, connection):
    insert_events(connection, billable_event(organization_id="acme", quantity=None, occurred_at=AT, event_id="bad"))
    connection.execute("UPDATE customer_mappings SET valid_during = '(,2020-01-01)' WHERE organization_id = 'acme'")

    code, out, _ = billing_pipeline("smoke-org", "--org-id", "acme", "--validate-contract", **stack)
    assert code == 1
    assert (steps(out)["customer"], steps(out)["contract"]) == ("fail", "fail")
    assert "create-customers`" in out
    assert "quarantine list --organization acme` says why." in out

    code, out, _ = billing_pipeline("smoke-org", "--org-id", "acme", "--skip-contract", "--no-fail-closed", **stack)
    assert code == 0
    assert (steps(out)["customer"], steps(out)["contract"]) == ("fail", "skip")
    assert out.endswith("\nSomething failed. Only reports (--no-fail-closed).\n")


@pytest.mark.parametrize(("mode", "required", "code"), [("shadow", True, 1), ("shadow", False, 0), ("off", False, 0)])
def test_a_level_below_live_is_told_and_fails_where_live_is_required(stack, simulator, mode, required, code):
    flags = ["--require-enabled"] if required else []

    found, out, _ = billing_pipeline("smoke-org", "--org-id", "acme", *flags, **stack | {"BILLING_MODE": mode})

    assert found == code
    assert steps(out)["level"] == ("fail" if required else "warn")
    assert simulator.journal("meter_event") == []


def test_an_unknown_organization_and_contradicting_flags_do_nothing(stack, connection):
    code, out, _ = billing_pipeline("smoke-org", "--org-id", "nobody", **stack)
    assert (code, steps(out)) == (1, {"level": "pass", "organization": "fail"})

    both = ["--validate-contract", "--skip-contract"]
    code, _, err = billing_pipeline("smoke-org", "--org-id", "acme", *both, **stack)
    assert code == 2
    assert "exclude each other" in err
    assert connection.execute("SELECT count(*) FROM usage_windows").fetchone() == (0,)


def test_the_period_is_told_where_it_is_asked_for(stack):
    _, out, _ = billing_pipeline("smoke-org", "--org-id", "acme", "--refresh-period", "--json", **stack)

    told = json.loads(out)
    assert told["passed"]
    [period] = [step for step in told["steps"] if step["step"] == "period"]
    assert period["result"] == "warn"
    assert "never invoiced" in period["found"]


def test_a_flush_under_way_is_no_pass(stack, connection):
    acquire(connection, lock_key="usage-flush", holder="x", ttl=timedelta(hours=1), now=datetime.now(UTC))

    code, _, err = billing_pipeline("smoke-org", "--org-id", "acme", **stack)

    assert code == 1
    assert err.startswith("error: Another flush (x) is under way")


def test_the_job_of_the_launchpad_does_the_same(stack, customers, simulator, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in stack.items():
        if name.isupper():
            monkeypatch.setenv(name, str(value))
    config = {"ops": {"bill_one_organization": {"config": {"organization_id": "acme"}}}}

    with dg.instance_for_test() as instance:
        result = defs.resolve_job_def("smoke_organization").execute_in_process(config, instance=instance)
        tags = instance.get_run_by_id(result.run_id).tags

    assert result.success
    assert tags["organization_id"] == "acme"
    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", AT): 7}


@pytest.mark.parametrize("arguments", [[], ["--org-id"]])
def test_the_script_wants_an_organization(arguments):
    ended = subprocess.run([SCRIPTS / "run_billing_smoke_org.sh", *arguments], capture_output=True, text=True)

    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: ")


def test_the_scripts_run_their_command_with_further_options():
    for script, arguments in (
        ("run_billing_smoke_org.sh", ["123", "--help"]),
        ("run_billing_hourly.sh", ["--help"]),
    ):
        ended = subprocess.run([SCRIPTS / script, *arguments], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert "Example: billing-pipeline" in " ".join(ended.stdout.split())
