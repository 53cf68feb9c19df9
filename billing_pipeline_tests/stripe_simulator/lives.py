"""An account with prices of both kinds, and its events as a reader of `GET /v1/events` sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import stripe

from billing_pipeline_tests.stripe_simulator.conftest import Account, make_account

NEVER_PAYS = {"invoice_settings": {"default_payment_method": "pm_card_chargeCustomerFail"}}
PAYS = {"invoice_settings": {"default_payment_method": "pm_card_visa"}}


@dataclass(frozen=True)
class Shop:
    """An account that sells seats (10.00 in advance) and metered calls (0.25 cents each)."""

    account: Account
    seats: str
    calls: str

    @property
    def client(self) -> Any:
        return self.account.client.v1

    def advance(self, **duration: float) -> None:
        self.account.clock.advance(**duration)

    def subscribe(self, *prices: str, **params: Any) -> stripe.Subscription:
        items: Any = [{"price": price} for price in prices or (self.seats, self.calls)]
        customer = params.pop("customer", self.account.customer)
        return self.client.subscriptions.create({"customer": customer, "items": items, **params})

    def price(self, **params: Any) -> str:
        product = self.client.products.create({"name": "x"}).id
        recurring = {"interval": "month", **params.pop("recurring", {})}
        return self.client.prices.create(
            {"currency": "usd", "product": product, "unit_amount": 1000, "recurring": recurring, **params}
        ).id

    def events(self, **params: Any) -> list[dict[str, Any]]:
        """The events, oldest first, as plain bodies."""
        listed = self.client.events.list({"limit": 100, **params}).auto_paging_iter()
        return [event.to_dict() for event in listed][::-1]

    def told(self, **params: Any) -> list[str]:
        return [event["type"] for event in self.events(**params)]

    def mark(self) -> int:
        """How many events there are by now, those of more than 30 days ago among them."""
        self.account.core.deliver_due()
        return len(self.account.core.state.events)

    def told_since(self, mark: int) -> list[str]:
        self.account.core.deliver_due()
        return [event.type for event in self.account.core.state.events.since(mark)]


def make_shop(**options: Any) -> Shop:
    account = make_account(**options)
    shop = Shop(account, "", "")
    metered = {"usage_type": "metered", "meter": account.meter}
    calls = account.client.v1.products.create({"name": "calls"}).id
    recurring: Any = {"interval": "month", **metered}
    price = account.client.v1.prices.create(
        {"currency": "usd", "product": calls, "unit_amount_decimal": "0.25", "recurring": recurring}
    )
    return Shop(account, shop.price(), price.id)
