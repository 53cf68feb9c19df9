"""docs/operations.md brings events to a laptop and to a server by commands that fit the intake."""

from pathlib import Path

from billing_pipeline.settings import Settings
from billing_pipeline.webhooks.receive import PATH

GUIDE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
PORT = Settings.model_fields["billing_intake_port"].default


def test_a_laptop_gets_events_of_stripe_where_the_intake_listens():
    laptop = GUIDE.partition("### On a laptop")[2].partition("\n### ")[0]

    assert f"stripe listen --forward-to http://localhost:{PORT}{PATH}" in laptop
    assert "stripe trigger customer.subscription.updated" in laptop
    assert "--override subscription:customer=cus_" in laptop
    assert '--override "subscription:metadata[organization_id]=' in laptop
    assert "stripe listen --print-secret" in laptop
    assert "STRIPE_WEBHOOK_SECRET" in laptop
    assert "docs.stripe.com/stripe-cli" in laptop
    assert "psql" in laptop


def test_a_server_is_reached_where_an_unsigned_request_is_refused():
    assert f"curl -i -X POST https://billing.example.com{PATH}" in GUIDE.partition("### In front of it")[2]
    assert "Invalid signature:" in GUIDE
    assert "Webhook not received:" in GUIDE
    assert "Database error:" in GUIDE
