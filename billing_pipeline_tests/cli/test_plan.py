"""`plan` and `flush-now --plan`: a person sees what would be sent, and sends that or nothing."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline_tests.builders import billable_event, insert_events, map_customer
from billing_pipeline_tests.cli.command import billing_pipeline, live_against
from billing_pipeline_tests.fix_flow import counted_by_stripe, live_settings

pytestmark = pytest.mark.slow
AT = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)


@pytest.fixture
def stack(tmp_path, database_url, connection, simulator):
    """Acme and globex have customers; acme used 4,200 tokens three hours ago, at a quarter of a cent each."""
    settings = live_settings(database_url, simulator, tmp_path)
    client = simulator.client()
    set_up_catalogue(client, settings, load_catalogue(settings))
    for organization_id, customer in create_customers(client, settings, ["acme", "globex"]).items():
        map_customer(connection, organization_id, customer)
    [meter] = [m for m in client.v1.billing.meters.list().data if m.event_name == "prompt_tokens"]
    product = client.v1.products.create({"name": "tokens"})
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter.id}
    client.v1.prices.create(
        {"currency": "usd", "product": product.id, "unit_amount_decimal": "0.25", "recurring": recurring}
    )
    insert_events(connection, billable_event(organization_id="acme", quantity=4_200, occurred_at=AT))
    return live_against(simulator, folder=tmp_path, database_url=database_url)


def test_a_plan_is_shown_with_its_money_and_kept_by_the_flush(stack, simulator):
    code, out, err = billing_pipeline("plan", **stack)

    assert (code, err) == (0, "")
    assert re.search(rf"acme +prompt_tokens +{AT:%Y-%m-%d %H}h +1 +4,200 +0 +1,050 minor units of usd", out)
    assert "prompt_tokens: 1 entries, +4,200 -0 units, 1,050 minor units of usd" in out
    [plan_hash] = re.findall(r"^Plan ([0-9a-f]{16})$", out, re.MULTILINE)
    assert f"billing-pipeline flush-now --plan {plan_hash}`" in out
    assert counted_by_stripe(simulator) == {}

    code, out, err = billing_pipeline("flush-now", "--plan", plan_hash, **stack)
    assert (code, err) == (0, "")
    assert "1 cut (+4,200 -0 units)" in out
    assert sum(counted_by_stripe(simulator).values()) == 4_200

    code, out, err = billing_pipeline("plan", **stack)
    assert (code, out.startswith("Nothing new would be sent to acct_")) == (0, True)
    assert "Plan " not in out


def test_a_plan_that_no_longer_holds_is_refused_with_what_changed(stack, simulator, connection):
    told = json.loads(billing_pipeline("plan", "--json", **stack)[1])
    assert told["lines"][0]["minor_units"] == {"usd": "1050.00"}
    insert_events(connection, billable_event(organization_id="globex", quantity=5, occurred_at=AT))

    code, out, err = billing_pipeline("flush-now", "--plan", told["plan_hash"], **stack)

    assert (code, out) == (3, "")
    assert re.match(
        rf"error: The plan {told['plan_hash']} of .* UTC no longer holds: prompt_tokens 1 entries, \+4,200 -0 units "
        r"then, 2 entries, \+4,205 -0 units now\. Nothing was cut or sent\. Make a new one: `.*pipeline plan`\.\n",
        err,
    )
    assert counted_by_stripe(simulator) == {}


def test_an_unknown_plan_is_a_usage_error_and_starts_nothing(stack, connection):
    code, out, err = billing_pipeline("flush-now", "--plan", "nonsense", **stack)

    assert (code, out) == (2, "")
    assert err.startswith("error: There is no plan nonsense")
    assert connection.execute("SELECT count(*) FROM aggregations").fetchone() == (0,)


def test_a_plan_in_shadow_says_that_a_flush_would_send_nothing(stack):
    code, out, err = billing_pipeline("plan", **stack | {"BILLING_MODE": "shadow"})

    assert (code, err) == (0, "")
    assert out.endswith("Billing is not live here, so a flush would record this and send nothing (BILLING_MODE).\n")
    assert "flush-now --plan" not in out
