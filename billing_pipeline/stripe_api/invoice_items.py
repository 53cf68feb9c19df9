"""Puts an invoice item on a draft, and finds it there again by the name it was given.

The name is in the item's metadata, because Stripe forgets idempotency keys after a day.  Amounts are minor units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import stripe

from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import is_stripes_own, stripe_words, translated_errors
from billing_pipeline.stripe_api.invoices import PAGE_SIZE, meter_of, price_of
from billing_pipeline.stripe_api.prices import unit_price_of

GONE = 404
NAME = "billing_pipeline_adjustment"


@dataclass(frozen=True, slots=True)
class Draft:
    """An invoice as it is now; `prices` by event name: what a unit costs on it, None where that is not one number."""

    is_draft: bool
    billing_reason: str
    prices: Mapping[str, UnitPrice | None]


@dataclass(frozen=True, slots=True)
class NewItem:
    """What an item bills: `units` at `price` each; below zero it gives back."""

    identifier: str
    invoice_id: str
    stripe_customer_id: str
    organization_id: str
    meter: str
    units: Decimal
    price: UnitPrice
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class Item:
    """An item on an invoice, by Stripe's id, and the units that it says it bills."""

    item_id: str
    units: Decimal


@dataclass(frozen=True, slots=True)
class ItemRefused:
    """Stripe did not execute the request, in its own words."""

    words: str


def read_draft(
    client: stripe.StripeClient, settings: Settings, invoice_id: str, event_names: Mapping[str, str]
) -> Draft:
    """The invoice as Stripe has it now, one that is gone as no draft; `event_names` by Stripe's meter id.

    Raises `StripeUnavailable` and `StripeRefused`.
    """
    prices: dict[str, UnitPrice | None] = {}
    with translated_errors(settings):
        try:
            invoice = client.v1.invoices.retrieve(invoice_id)
        except stripe.InvalidRequestError as exc:
            if exc.http_status != GONE or not is_stripes_own(exc):
                raise
            return Draft(False, "", {})
        lines = client.v1.invoices.line_items.list(invoice_id, {"limit": PAGE_SIZE}).auto_paging_iter()
        ids = sorted({of_line["id"] for line in lines if (of_line := price_of(line.to_dict()))})
        for price_id in ids:
            price = client.v1.prices.retrieve(price_id)
            event_name = event_names.get(meter_of(price.to_dict()) or "")
            if event_name is not None:
                # Two prices of one meter: which of them late usage would have had cannot be told.
                prices[event_name] = None if event_name in prices else unit_price_of(price)
    return Draft(invoice.status == "draft", invoice.billing_reason or "", prices)


class StripeInvoiceItems:
    """The invoice items of one account."""

    def __init__(self, client: stripe.StripeClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    def find(self, invoice_id: str, identifier: str) -> Item | None:
        """The item of this name on the invoice, if there is one.  Raises `StripeUnavailable` and `StripeRefused`."""
        with translated_errors(self._settings):
            found = self._client.v1.invoice_items.list({"invoice": invoice_id, "limit": PAGE_SIZE})
            for item in found.auto_paging_iter():
                metadata: dict[str, str] = item.metadata.to_dict() if item.metadata else {}
                if metadata.get(NAME) == identifier:
                    return Item(item.id, Decimal(metadata["units"]))
        return None

    def create(self, new: NewItem) -> Item | ItemRefused:
        """Ask for the item; a repetition within a day is answered with the same item.

        Raises `StripeUnavailable` where it is not known whether Stripe made it, and `StripeRefused` for our key.
        """
        sign = 1 if new.units > 0 else -1
        with translated_errors(self._settings):
            try:
                made = self._client.v1.invoice_items.create(
                    {
                        "customer": new.stripe_customer_id,
                        "invoice": new.invoice_id,
                        "currency": new.price.currency,
                        "quantity": int(abs(new.units)),
                        "unit_amount_decimal": new.price.minor_units * sign,
                        "description": _description(new),
                        "period": {"start": int(new.starts_at.timestamp()), "end": int(new.ends_at.timestamp())},
                        "metadata": {
                            NAME: new.identifier,
                            "organization_id": new.organization_id,
                            "meter": new.meter,
                            "units": f"{new.units:f}",
                        },
                    },
                    {"idempotency_key": new.identifier},
                )
            except stripe.InvalidRequestError as exc:
                if is_stripes_own(exc):
                    return ItemRefused(stripe_words(exc))
                raise StripeUnavailable("Something before Stripe refused the invoice item; try again later.") from None
        return Item(made.id, new.units)


def _description(new: NewItem) -> str:
    what = "found" if new.units > 0 else "taken back"
    return f"{new.meter}: usage of {new.starts_at:%Y-%m-%d} to {new.ends_at:%Y-%m-%d}, {what} after its invoice"
