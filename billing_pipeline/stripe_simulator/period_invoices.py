"""GET /v1/invoices, /v1/invoices/{id} and /v1/invoices/{id}/lines: what was billed and what is about to be.

A draft is shown with what its meters show now; what is final no longer changes.
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator.calls import Call
from billing_pipeline.stripe_simulator.display import displayed
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import checked, interval, one_of, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_invoices import recounted
from billing_pipeline.stripe_simulator.wire import Body, no_such

STATUSES = ("draft", "open", "paid", "uncollectible", "void")


def list_invoices(state: State, call: Call) -> Body:
    """GET /v1/invoices"""
    optional = {
        **PAGING,
        "created": interval,
        "customer": text(),
        "status": one_of(*STATUSES),
        "subscription": text(),
    }
    given = checked(call.params, optional=optional)
    created_at = given.get("created")
    invoices = [
        invoice
        for invoice in state.newest_first("invoice")
        if given.get("customer") in (None, invoice["customer"])
        and given.get("status") in (None, invoice["status"])
        and given.get("subscription") in (None, invoice["parent"]["subscription_details"]["subscription"])
        and (created_at is None or created_at(invoice["created"]))
    ]
    # Stable, so that of two made in one second the later stays first.
    newest_first = sorted(invoices, key=lambda invoice: invoice["created"], reverse=True)
    answer = page(newest_first, given, url="/v1/invoices", what="invoice")
    # Only what is on the page is counted anew.
    shown = [displayed("invoice", recounted(state, invoice, call.now)) for invoice in answer["data"]]
    return {**answer, "data": shown}


def retrieve_invoice(state: State, call: Call) -> Body:
    """GET /v1/invoices/{id}"""
    checked(call.params)
    return displayed("invoice", recounted(state, find_invoice(state, call.target), call.now))


def list_invoice_lines(state: State, call: Call) -> Body:
    """GET /v1/invoices/{id}/lines"""
    given = checked(call.params, optional=PAGING)
    invoice = recounted(state, find_invoice(state, call.target), call.now)
    return page(invoice["lines"]["data"], given, url=invoice["lines"]["url"], what="line item")


def find_invoice(state: State, id: str) -> Body:
    """The invoice named by the path.  Raises `Refusal` (404)."""
    invoice = state.live("invoice", id)
    if invoice is None:
        raise no_such("invoice", id)
    return invoice
