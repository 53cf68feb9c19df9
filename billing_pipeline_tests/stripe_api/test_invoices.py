"""A line of an invoice is read in the shape of before API version 2025-03-31 and in the one since."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing_pipeline.errors import StripeUnavailable, UserError
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.client import make_client
from billing_pipeline.stripe_api.invoices import meter_of, parse_invoice_line, price_of, read_invoice_line
from billing_pipeline_tests.fix_flow import Subscriptions

START, END = 1_761_955_200, 1_764_547_200
INVOICE = {"id": "in_1", "customer": "cus_1", "status": "paid", "status_transitions": {"finalized_at": END + 3600}}
LINE = {"id": "il_1", "amount": 50_000, "currency": "usd", "period": {"start": START, "end": END}, "quantity": 25_000}
RECURRING = {"interval": "month", "meter": "mtr_1", "usage_type": "metered"}

SINCE = LINE | {
    "parent": {"type": "subscription_item_details", "subscription_item_details": {"subscription_item": "si_1"}},
    "pricing": {"type": "price_details", "price_details": {"price": "price_1", "product": "prod_1"}},
    "quantity_decimal": "25000.5",
}
BEFORE = LINE | {
    "type": "subscription",
    "subscription_item": "si_1",
    "price": {"id": "price_1", "recurring": RECURRING},
    "plan": {"id": "price_1", "meter": "mtr_1"},
}


def test_the_shape_since_2025_03_31_names_its_price_only():
    assert price_of(SINCE) == {"id": "price_1"}
    line = parse_invoice_line(INVOICE, SINCE, {"id": "price_1", "recurring": RECURRING})

    assert (line.stripe_customer_id, line.meter_id) == ("cus_1", "mtr_1")
    assert (line.quantity, line.amount, line.currency) == (Decimal("25000.5"), 50_000, "usd")
    assert (line.starts_at, line.ends_at) == (datetime(2025, 11, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC))
    assert line.is_final
    assert line.finalized_at == datetime(2025, 12, 1, 1, tzinfo=UTC)


def test_the_shape_of_before_has_the_whole_price():
    price = price_of(BEFORE)
    assert price is not None
    assert meter_of(price) == "mtr_1"
    line = parse_invoice_line(INVOICE | {"status": "draft", "customer": {"id": "cus_1"}}, BEFORE, price)

    assert (line.stripe_customer_id, line.meter_id, line.quantity) == ("cus_1", "mtr_1", 25_000)
    assert not line.is_final
    # A plan alone, of still older lines.
    assert meter_of(price_of(LINE | {"plan": {"id": "plan_1", "meter": "mtr_2"}})) == "mtr_2"


@pytest.mark.parametrize("price", [None, {"id": "price_1", "recurring": {"interval": "month", "meter": None}}])
def test_a_line_that_bills_no_meter_is_refused(price):
    with pytest.raises(UserError, match="il_1 bills no meter"):
        parse_invoice_line(INVOICE, LINE, price)


@pytest.fixture
def invoiced(flow, bill, simulator):
    """A period that ended two days ago with 42 units."""
    [customer] = bill("acme").values()
    now = datetime.now(UTC)
    subscriptions = Subscriptions(simulator)
    subscription = subscriptions.create(customer, now - timedelta(days=9))
    with subscriptions.at(now - timedelta(days=3)):
        simulator.client().v1.billing.meter_events.create(
            {"event_name": "prompt_tokens", "payload": {"stripe_customer_id": customer, "value": "42"}}
        )
    subscriptions.reset_anchor(subscription, now - timedelta(days=2))
    return customer


def test_a_line_is_read_again_by_its_invoice(invoiced, simulator, settings):
    [invoice, _first] = simulator.client().v1.invoices.list({"customer": invoiced}).data
    client = make_client(settings)

    line = read_invoice_line(client, settings, invoice.id, invoice.lines.data[0].id)

    [meter] = [m for m in simulator.client().v1.billing.meters.list().data if m.event_name == "prompt_tokens"]
    assert (line.stripe_customer_id, line.meter_id, line.quantity) == (invoiced, meter.id, 42)
    assert line == read_invoice_line(client, settings, invoice.id, None)


def test_what_is_not_there_is_a_sentence(invoiced, simulator, settings):
    [invoice, _first] = simulator.client().v1.invoices.list().data
    client = make_client(settings)

    with pytest.raises(UserError, match=f"has no line il_x; there are {invoice.id}/{invoice.lines.data[0].id}"):
        read_invoice_line(client, settings, invoice.id, "il_x")
    with pytest.raises(UserError, match="Stripe has no invoice in_x"):
        read_invoice_line(client, settings, "in_x", "il_x")
    away = load_settings(**settings.model_dump() | {"stripe_api_base": "http://127.0.0.1:1"})
    with pytest.raises(StripeUnavailable):
        read_invoice_line(make_client(away), away, "in_x", "il_x")
