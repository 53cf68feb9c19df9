"""GET /v1/invoices, /v1/invoices/{id} and /v1/invoices/{id}/lines: what ended billing periods were billed.

An invoice is a view of its subscription and of the meter events that were visible when it became final, an hour after
its period; before that it is a draft and still counts.  Only metered lines: nothing here charges in advance.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from billing_pipeline.stripe_simulator.billing_periods import months_of, period_at
from billing_pipeline.stripe_simulator.calls import Call
from billing_pipeline.stripe_simulator.invoices import invoice_line
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import checked, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscriptions import subscriptions_of
from billing_pipeline.stripe_simulator.wire import Body, no_such

GRACE_SECONDS = 3_600
"""Stripe's default time between a draft and its final invoice."""
LINES_SHOWN_MAX = 10
"""Of the list inside an invoice; the rest is paged at /v1/invoices/{id}/lines."""


def list_invoices(state: State, call: Call) -> Body:
    """GET /v1/invoices"""
    given = checked(call.params, optional={**PAGING, "customer": text(), "subscription": text()})
    invoices = (
        invoice
        for invoice in _invoices(state, call, given.get("customer"))
        if given.get("subscription") in (None, invoice["parent"]["subscription_details"]["subscription"])
    )
    newest_first = sorted(invoices, key=lambda invoice: invoice["created"], reverse=True)
    return page(newest_first, given, url="/v1/invoices", what="invoice")


def retrieve_invoice(state: State, call: Call) -> Body:
    """GET /v1/invoices/{id}"""
    checked(call.params)
    return _find(state, call)


def list_invoice_lines(state: State, call: Call) -> Body:
    """GET /v1/invoices/{id}/lines"""
    given = checked(call.params, optional=PAGING)
    invoice = _find(state, call, shown_max=None)
    return page(invoice["lines"]["data"], given, url=invoice["lines"]["url"], what="line item")


def _find(state: State, call: Call, *, shown_max: int | None = LINES_SHOWN_MAX) -> Body:
    for invoice in _invoices(state, call, None, shown_max=shown_max):
        if invoice["id"] == call.target:
            return invoice
    raise no_such("invoice", call.target)


def _invoices(
    state: State, call: Call, customer: str | None, *, shown_max: int | None = LINES_SHOWN_MAX
) -> Iterator[Body]:
    for subscription in subscriptions_of(state, customer):
        for start, end in _ended_periods(subscription, call.epoch):
            yield _invoice(state, call, subscription, start, end, shown_max)


def _ended_periods(subscription: Body, epoch: int) -> Iterator[tuple[int, int]]:
    """Counted from the anchor of now: what lay before it is one period."""
    months = months_of(subscription["items"]["data"][0]["price"])
    last = subscription["ended_at"]
    start = subscription["created"]
    while True:
        start, end = period_at(subscription["created"], subscription["billing_cycle_anchor"], months, start)
        end = end if last is None else min(end, last)
        if end > epoch or end <= start:
            return
        yield start, end
        if end == last:
            return
        start = end


def _invoice(state: State, call: Call, subscription: Body, start: int, end: int, shown_max: int | None) -> Body:
    id = f"in_{state.digest('invoice', subscription['id'], start, end)}"
    final = end + GRACE_SECONDS
    is_final = call.epoch >= final
    counted_at = datetime.fromtimestamp(final, UTC) if is_final else call.now
    items = [item for item in subscription["items"]["data"] if "quantity" not in item]
    periods = {"current_period_start": start, "current_period_end": end}
    lines = [invoice_line(state, counted_at, id, subscription, {**item, **periods}) for item in items]
    total = sum(line["amount"] for line in lines)
    return {
        "id": id,
        "object": "invoice",
        "amount_due": total,
        "billing_reason": "subscription_cycle",
        "created": end,
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "lines": {
            "object": "list",
            "data": lines[:shown_max],
            "has_more": shown_max is not None and len(lines) > shown_max,
            "url": f"/v1/invoices/{id}/lines",
        },
        "livemode": False,
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": subscription["id"]}},
        "period_end": end,
        "period_start": start,
        "status": "open" if is_final else "draft",
        "status_transitions": {"finalized_at": final if is_final else None},
        "subtotal": total,
        "total": total,
    }
