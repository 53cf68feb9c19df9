"""A customer whose earlier hours are sealed and whose subscription ends, so that Stripe makes a draft."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.domain.seals import Period
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.seal import seal
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.webhooks.events import event, store

HOUR = timedelta(hours=1)


class Renewal:
    """An organization whose earlier hours are sealed, and whose subscription ended twenty minutes ago."""

    def __init__(self, flow, customer, simulator, subscriptions):
        self.flow, self.customer, self._client = flow, customer, simulator.client()
        self.now = flow.clock()
        self.sealed = self.now.replace(minute=0, second=0, microsecond=0) - 12 * HOUR
        self.ended = self.now.replace(microsecond=0) - timedelta(minutes=20)
        self._subscription = subscriptions.create(customer, self.ended - timedelta(days=3))
        self._subscriptions = subscriptions

    def use(self, quantity, at=None, **overrides):
        row = {"quantity": Decimal(quantity), "occurred_at": at or self.sealed, "recorded_at": self.flow.clock()}
        insert_events(self.flow.connection, billable_event(**row | overrides))

    def seal(self):
        seal(
            self.flow.connection,
            Period(self.customer, None, self.sealed, self.sealed + 4 * HOUR),
            leave_owed=False,
            closed_before=self.flow.clock() - HOUR,
            actor="Ann",
            reason="in_1 is final",
            now=self.flow.clock(),
        )

    def draft(self):
        """Stripe makes the draft of the last period, and its event is stored and handled; returns its id."""
        self._subscriptions.cancel(self._subscription, self.ended)
        [shown] = self._client.v1.invoices.list({"customer": self.customer, "status": "draft"}).data
        about = event("invoice.created", json.loads(json.dumps(shown.to_dict(), default=str)))
        about["created"] = shown.created
        store(self.flow.connection, [about], now=self.flow.clock())
        Dispatcher(self.flow.connection, self.flow.clock).run_once()
        return shown.id

    def lines(self, invoice_id):
        """Quantity and amount of the items on the invoice, as Stripe shows them."""
        lines = self._client.v1.invoices.line_items.list(invoice_id).data
        return [(line.quantity, line.amount) for line in lines if line.parent.type == "invoice_item_details"]

    def states(self):
        rows = self.flow.connection.execute("SELECT state, units FROM invoice_adjustments ORDER BY adjustment_id")
        return [(state, int(units)) for state, units in rows]

    def finalize(self, invoice_id):
        self._client.v1.invoices.finalize_invoice(invoice_id)

    def found(self):
        report = reconcile(self.flow.connection, settings=self.flow.settings, now=self.flow.clock())
        return {str(difference.kind): difference.units for difference in report.differences}


@pytest.fixture
def renewal(flow, bill, simulator, subscriptions):
    """Ten units of an hour that is sealed, and three that came after it."""
    (customer,) = bill("acme").values()
    renewal = Renewal(flow, customer, simulator, subscriptions)
    renewal.use(10)
    flush(flow)
    renewal.seal()
    renewal.use(3)
    return renewal
