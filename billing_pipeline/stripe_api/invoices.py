"""Reads one line of an invoice: which customer, meter and period it bills, and how many units.

Stripe has no address for a line alone, only a list of an invoice's lines, so both ids are needed.
Both shapes are read: since API version 2025-03-31 the price is in `pricing`, before it was on the line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import stripe

from billing_pipeline.errors import StripeRefused, UserError
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors

PAGE_SIZE = 100  # Stripe's maximum; inside an invoice it shows ten
LINES_NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """A metered line in Stripe units; [starts_at, ends_at) is the line's own period, not the invoice's.

    `is_final` is False for a draft, whose quantities still change.
    """

    invoice_id: str
    line_id: str
    stripe_customer_id: str
    meter_id: str
    quantity: Decimal
    amount: Decimal
    currency: str
    starts_at: datetime
    ends_at: datetime
    is_final: bool
    finalized_at: datetime | None


def read_invoice_line(
    client: stripe.StripeClient, settings: Settings, invoice_id: str, line_id: str | None
) -> InvoiceLine:
    """The line as Stripe has it now; without `line_id` the invoice's only one.

    Raises `UserError` for an invoice or a line that is not there or bills no meter, `StripeUnavailable` and
    `StripeRefused`.
    """
    with translated_errors(settings):
        try:
            invoice = client.v1.invoices.retrieve(invoice_id).to_dict()
            found = client.v1.invoices.line_items.list(invoice_id, {"limit": PAGE_SIZE}).auto_paging_iter()
            lines = [line.to_dict() for line in found]
        except stripe.InvalidRequestError as exc:
            if exc.http_status != 404:
                raise
            raise UserError(f"Stripe has no invoice {invoice_id} in this account and mode.") from None
        line = _line_of(invoice_id, lines, line_id)
        price = price_of(line)
        if price is not None and meter_of(price) is None and "recurring" not in price:
            price = client.v1.prices.retrieve(price["id"]).to_dict()
    return parse_invoice_line(invoice, line, price)


def parse_invoice_line(
    invoice: Mapping[str, Any], line: Mapping[str, Any], price: Mapping[str, Any] | None
) -> InvoiceLine:
    """The line in our words, from Stripe's bodies of either shape.  Raises `UserError` for one that bills no meter."""
    meter_id = meter_of(price) if price else None
    if meter_id is None:
        raise UserError(f"The line {line['id']} bills no meter, so no usage is behind it.")
    # The whole number is cut off, the decimal one is exact; it came with API version 2026-03-25.
    quantity = line.get("quantity_decimal") or line.get("quantity") or 0
    finalized_at = (invoice.get("status_transitions") or {}).get("finalized_at")
    return InvoiceLine(
        invoice_id=invoice["id"],
        line_id=line["id"],
        stripe_customer_id=_id(invoice["customer"]),
        meter_id=meter_id,
        quantity=Decimal(str(quantity)),
        amount=Decimal(line["amount"]),
        currency=line["currency"],
        starts_at=datetime.fromtimestamp(line["period"]["start"], UTC),
        ends_at=datetime.fromtimestamp(line["period"]["end"], UTC),
        is_final=invoice.get("status") != "draft",
        finalized_at=None if finalized_at is None else datetime.fromtimestamp(finalized_at, UTC),
    )


def price_of(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """The line's price, with whatever the line says of it: its id at least."""
    if old := line.get("price") or line.get("plan"):
        return dict(old)
    price = ((line.get("pricing") or {}).get("price_details") or {}).get("price")
    return {"id": price} if isinstance(price, str) else dict(price) if price else None


def meter_of(price: Mapping[str, Any]) -> str | None:
    """Stripe's id of the meter that a price bills; None for one of a fixed quantity."""
    # A plan, in the old shape, has the meter on itself.
    meter = (price.get("recurring") or {}).get("meter") or price.get("meter")
    return None if meter is None else _id(meter)


def _line_of(invoice_id: str, lines: list[dict[str, Any]], line_id: str | None) -> dict[str, Any]:
    if line_id is None and len(lines) == 1:
        return lines[0]
    if found := [line for line in lines if line["id"] == line_id]:
        return found[0]
    if not lines:
        raise UserError(f"The invoice {invoice_id} has no lines.")
    named = ", ".join(f"{invoice_id}/{line['id']}" for line in lines[:LINES_NAMED_MAX])
    more = f" and {len(lines) - LINES_NAMED_MAX} more" if len(lines) > LINES_NAMED_MAX else ""
    wrong = f"The invoice {invoice_id} has no line {line_id}" if line_id else f"The invoice {invoice_id} has many lines"
    raise UserError(f"{wrong}; there are {named}{more}.")


def _id(reference: Any) -> str:
    if isinstance(reference, str):
        return reference
    if isinstance(reference, Mapping) and isinstance(reference.get("id"), str):
        return str(reference["id"])
    raise StripeRefused("Stripe's invoice names no customer or meter where one must be; nothing is concluded from it.")
