"""What the projections must say: worked out from Stripe's final objects by plain code of its own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

Body = dict[str, Any]


def instant(epoch: int | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC)


def expected(final: dict[str, dict[str, Body]]) -> dict[str, Any]:
    """Subscriptions, their items, invoices, their lines and who may use the workspace, as Stripe has them."""
    subscriptions = list(final["subscription"].values())
    invoices = list(final["invoice"].values())
    return {
        "subscriptions": {
            s["id"]: (
                s["customer"],
                s["status"],
                s["status"] in ("trialing", "active", "past_due"),
                s["cancel_at_period_end"],
                instant(s["canceled_at"]),
                instant(s["ended_at"]),
                (s.get("pause_collection") or {}).get("behavior"),
            )
            for s in subscriptions
        },
        "items": {
            item["id"]: (
                s["id"],
                item["price"]["id"],
                item.get("quantity"),
                item["price"]["recurring"]["meter"],
                instant(item["current_period_start"]),
                instant(item["current_period_end"]),
            )
            for s in subscriptions
            for item in s["items"]["data"]
        },
        "invoices": {
            i["id"]: (i["customer"], i["status"], i["total"], i["amount_paid"], i["amount_remaining"]) for i in invoices
        },
        "lines": {
            (i["id"], line["id"]): (line["amount"], line["pricing"]["price_details"]["price"], line["quantity"])
            for i in invoices
            for line in i["lines"]["data"]
        },
        "open gates": {
            s["metadata"]["tenant_id"] for s in subscriptions if s["status"] in ("trialing", "active", "past_due")
        },
        "deleted customers": {id for id, customer in final["customer"].items() if customer.get("deleted")},
    }


def found(connection: Connection[Any]) -> dict[str, Any]:
    """The same, as the projections have it."""

    def rows(statement: str, keys: int = 1) -> dict[Any, Any]:
        found = connection.execute(statement).fetchall()
        return {(row[0] if keys == 1 else row[:keys]): row[keys:] for row in found}

    return {
        "subscriptions": rows(
            "SELECT stripe_subscription_id, stripe_customer_id, status, is_active, cancel_at_period_end, canceled_at,"
            " ended_at, collection_paused FROM subscriptions"
        ),
        "items": rows(
            "SELECT subscription_item_id, stripe_subscription_id, price_id, quantity, meter_id, current_period_start,"
            " current_period_end FROM subscription_items"
        ),
        "invoices": rows(
            "SELECT stripe_invoice_id, stripe_customer_id, status, total, amount_paid, amount_remaining FROM invoices"
            " WHERE status <> 'deleted'"
        ),
        "lines": rows(
            "SELECT stripe_invoice_id, invoice_line_id, amount, price_id, quantity FROM invoice_lines"
            " WHERE invoice_status <> 'deleted'",
            keys=2,
        ),
        "open gates": {
            name
            for (name,) in connection.execute(
                "SELECT organization_id FROM entitlements WHERE feature = 'saas' AND active"
            )
        },
        "deleted customers": {
            id for (id,) in connection.execute("SELECT stripe_customer_id FROM stripe_customers WHERE deleted")
        },
    }
