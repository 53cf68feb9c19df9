"""A draft is closed by one run, soon after Stripe has made it."""

import json

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.orchestration.close_periods import invoices_to_close
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline_tests.cli.command import billing_pipeline, live_against


@pytest.fixture
def environment(settings, monkeypatch):
    """A run reads its settings from the environment, as a worker of its own would."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("BILLING_STATE_DIR", str(settings.billing_state_dir))
    monkeypatch.setenv("STRIPE_SECRET_KEY", settings.stripe_key)
    monkeypatch.setenv("STRIPE_API_BASE", settings.stripe_api_base)
    monkeypatch.setenv("ENABLE_BILLING", "true")
    monkeypatch.setenv("BILLING_MODE", "live")
    return monkeypatch


def tick():
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_sensor_context(instance=instance, resources={"billing": BillingResource()}) as context,
    ):
        return invoices_to_close(context)


def run():
    return defs.resolve_job_def("close_periods").execute_in_process()


def told(result):
    (event,) = result.asset_materializations_for_node("invoice_adjustments")
    return {name: value.value for name, value in event.metadata.items()}


@pytest.mark.slow
def test_a_draft_is_closed_by_one_run(renewal, environment):
    assert isinstance(tick(), dg.SkipReason)
    invoice_id = renewal.draft()
    first, second = tick(), tick()
    assert first.run_key.split(":")[0] == second.run_key.split(":")[0]

    found = told(run())

    assert (found["skipped"], found["invoices_closed"], found["items_applied"]) == (False, 1, 1)
    assert [row.data["state"] for row in found["latest"].records] == ["applied"]
    assert renewal.lines(invoice_id) == [(3, 3)]
    assert isinstance(tick(), dg.SkipReason)


@pytest.mark.slow
def test_beside_a_flush_the_run_ends_well_and_the_draft_gets_another(renewal, environment):
    invoice_id = renewal.draft()
    renewal.flow.take_lease()

    assert told(run())["skipped"] is True
    assert renewal.lines(invoice_id) == []
    assert isinstance(tick(), dg.RunRequest)


@pytest.mark.slow
def test_an_item_in_doubt_is_in_the_ledgers_status_and_launches_a_run(renewal, environment, database_url, tmp_path):
    invoice_id = renewal.draft()
    run()
    renewal.flow.connection.execute(
        "UPDATE invoice_adjustments SET state = 'ambiguous', stripe_invoice_item_id = NULL, last_error = 'no answer'"
    )

    out = billing_pipeline("ledger", "status", folder=tmp_path, DATABASE_URL=database_url)[1]

    assert "Invoice items in doubt; `billing-pipeline close-periods` looks for them at Stripe:" in out
    assert f"3 units of acme prompt_tokens on {invoice_id}, since " in out
    assert ": no answer" in out
    assert isinstance(tick(), dg.RunRequest)
    run()
    assert renewal.states() == [("applied", 3)]
    assert isinstance(tick(), dg.SkipReason)


@pytest.mark.slow
def test_while_billing_is_not_live_no_run_is_launched(renewal, environment):
    renewal.draft()
    environment.setenv("BILLING_MODE", "shadow")

    assert isinstance(tick(), dg.SkipReason)


@pytest.mark.slow
def test_a_person_closes_from_a_shell(renewal, simulator, database_url, tmp_path):
    where = live_against(simulator, folder=tmp_path, database_url=database_url)
    where |= {"BILLING_STATE_DIR": str(renewal.flow.settings.billing_state_dir)}
    code, out, err = billing_pipeline("close-periods", **where)
    assert (code, out) == (0, "No draft waits to be closed.\n"), err
    invoice_id = renewal.draft()

    code, out, err = billing_pipeline("close-periods", **where)

    assert code == 0, err
    assert out.splitlines()[0] == "Drafts closed: 1. Invoice items: 1 applied, 0 refused, 0 in doubt."
    assert f"  {invoice_id} of {renewal.customer}" in out
    assert "3 units of acme prompt_tokens" in out
    assert "Stripe invoice.created billing adjustments applied" in err
    assert json.loads(billing_pipeline("close-periods", "--json", **where)[1])["closed"] == []
    out = billing_pipeline("explain", "--org", "acme", "--at", f"{renewal.sealed:%Y-%m-%dT%H}Z", **where)[1]
    assert "Stated 10 units; Stripe shows 10; 3 more after the seal: ii_" in " ".join(out.split())
    assert "nothing is owed" in out
