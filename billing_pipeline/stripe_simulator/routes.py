"""Which endpoint answers which method and path, and which scope a restricted key needs for it.

This is the part of Stripe's API that the simulator knows; a path it does not find is refused, never guessed.
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator import (
    account,
    adjustments,
    catalogue,
    checkout,
    core_events,
    customers,
    entitlements,
    event_destinations,
    events,
    invoice_actions,
    invoice_items,
    invoices,
    meter_events,
    meters,
    period_invoices,
    stream,
    subscription_changes,
    subscriptions,
    summaries,
    webhook_endpoints,
)
from billing_pipeline.stripe_simulator.calls import Endpoint
from billing_pipeline.stripe_simulator.wire import Refusal

ENDPOINTS: dict[tuple[str, str], Endpoint] = {
    ("GET", "/v1/account"): account.retrieve_account,
    ("POST", "/v1/products"): catalogue.create_product,
    ("GET", "/v1/products"): catalogue.list_products,
    ("GET", "/v1/products/{id}"): catalogue.retrieve_product,
    ("POST", "/v1/prices"): catalogue.create_price,
    ("GET", "/v1/prices"): catalogue.list_prices,
    ("GET", "/v1/prices/{id}"): catalogue.retrieve_price,
    ("POST", "/v1/billing/meters"): meters.create_meter,
    ("GET", "/v1/billing/meters"): meters.list_meters,
    ("GET", "/v1/billing/meters/{id}"): meters.retrieve_meter,
    ("POST", "/v1/billing/meters/{id}"): meters.update_meter,
    ("POST", "/v1/billing/meters/{id}/deactivate"): meters.deactivate_meter,
    ("POST", "/v1/billing/meters/{id}/reactivate"): meters.reactivate_meter,
    ("GET", "/v1/billing/meters/{id}/event_summaries"): summaries.list_summaries,
    ("POST", "/v1/billing/meter_events"): meter_events.create_meter_event,
    ("POST", "/v1/billing/meter_event_adjustments"): adjustments.create_adjustment,
    ("POST", "/v2/billing/meter_events"): meter_events.create_meter_event_v2,
    ("POST", "/v2/billing/meter_event_session"): stream.create_session,
    ("POST", stream.STREAM_PATH): stream.create_stream,
    ("GET", "/v2/core/events"): core_events.list_core_events,
    ("GET", "/v2/core/events/{id}"): core_events.retrieve_core_event,
    ("POST", "/v1/checkout/sessions"): checkout.create_session,
    ("GET", "/v1/checkout/sessions"): checkout.list_sessions,
    ("GET", "/v1/checkout/sessions/{id}"): checkout.retrieve_session,
    ("POST", "/v1/checkout/sessions/{id}/expire"): checkout.expire_session,
    ("POST", "/_control/checkout/sessions/{id}/complete"): checkout.complete_session,
    ("POST", "/_control/checkout/sessions/{id}/expire"): checkout.expire_session,
    ("POST", "/v1/entitlements/features"): entitlements.create_feature,
    ("GET", "/v1/entitlements/features"): entitlements.list_features,
    ("GET", "/v1/entitlements/features/{id}"): entitlements.retrieve_feature,
    ("POST", "/v1/entitlements/features/{id}"): entitlements.update_feature,
    ("GET", "/v1/entitlements/active_entitlements"): entitlements.list_active_entitlements,
    ("POST", "/v1/products/{id}/features"): entitlements.attach_feature,
    ("GET", "/v1/products/{id}/features"): entitlements.list_attachments,
    ("DELETE", "/v1/products/{id}/features/{id}"): entitlements.detach_feature,
    ("GET", "/v1/events"): events.list_events,
    ("GET", "/v1/events/{id}"): events.retrieve_event,
    ("POST", "/v1/webhook_endpoints"): webhook_endpoints.create_endpoint,
    ("GET", "/v1/webhook_endpoints"): webhook_endpoints.list_endpoints,
    ("GET", "/v1/webhook_endpoints/{id}"): webhook_endpoints.retrieve_endpoint,
    ("POST", "/v1/webhook_endpoints/{id}"): webhook_endpoints.update_endpoint,
    ("DELETE", "/v1/webhook_endpoints/{id}"): webhook_endpoints.delete_endpoint,
    ("POST", "/_control/webhook_endpoints/{id}/roll_secret"): webhook_endpoints.roll_secret,
    ("POST", "/v2/core/event_destinations"): event_destinations.create_destination,
    ("GET", "/v2/core/event_destinations"): event_destinations.list_destinations,
    ("GET", "/v2/core/event_destinations/{id}"): event_destinations.retrieve_destination,
    ("POST", "/v2/core/event_destinations/{id}/disable"): event_destinations.disable_destination,
    ("POST", "/v2/core/event_destinations/{id}/enable"): event_destinations.enable_destination,
    ("DELETE", "/v2/core/event_destinations/{id}"): event_destinations.delete_destination,
    ("POST", "/v1/customers"): customers.create_customer,
    ("GET", "/v1/customers"): customers.list_customers,
    ("GET", "/v1/customers/{id}"): customers.retrieve_customer,
    ("POST", "/v1/customers/{id}"): customers.update_customer,
    ("DELETE", "/v1/customers/{id}"): customers.delete_customer,
    ("POST", "/v1/subscriptions"): subscriptions.create_subscription,
    ("GET", "/v1/subscriptions"): subscriptions.list_subscriptions,
    ("GET", "/v1/subscriptions/{id}"): subscriptions.retrieve_subscription,
    ("POST", "/v1/subscriptions/{id}"): subscription_changes.update_subscription,
    ("DELETE", "/v1/subscriptions/{id}"): subscription_changes.cancel_subscription,
    ("GET", "/v1/subscription_items"): subscriptions.list_subscription_items,
    ("POST", "/v1/invoices/create_preview"): invoices.preview_invoice,
    ("POST", "/v1/invoiceitems"): invoice_items.create_invoice_item,
    ("GET", "/v1/invoiceitems"): invoice_items.list_invoice_items,
    ("POST", "/v1/invoices"): invoice_actions.create_invoice,
    ("POST", "/v1/invoices/{id}"): invoice_actions.update_invoice,
    ("DELETE", "/v1/invoices/{id}"): invoice_actions.delete_draft,
    ("POST", "/v1/invoices/{id}/finalize"): invoice_actions.finalize_invoice,
    ("POST", "/v1/invoices/{id}/pay"): invoice_actions.pay_invoice,
    ("POST", "/v1/invoices/{id}/void"): invoice_actions.void_invoice,
    ("POST", "/v1/invoices/{id}/mark_uncollectible"): invoice_actions.mark_uncollectible,
    ("GET", "/v1/invoices"): period_invoices.list_invoices,
    ("GET", "/v1/invoices/{id}"): period_invoices.retrieve_invoice,
    ("GET", "/v1/invoices/{id}/lines"): period_invoices.list_invoice_lines,
}


def find_endpoint(method: str, path: str) -> tuple[Endpoint, str]:
    """The endpoint, and the id in the path ("" when there is none).  Raises `Refusal` (404)."""
    exact = ENDPOINTS.get((method, path))
    if exact is not None:
        return exact, ""
    parts = path.split("/")
    # The id is the last part, or the one before an action such as /deactivate.
    for position in (len(parts) - 1, len(parts) - 2):
        template = "/".join((*parts[:position], "{id}", *parts[position + 1 :]))
        endpoint = ENDPOINTS.get((method, template))
        if endpoint is not None and parts[position]:
            return endpoint, parts[position]
    if len(parts) > 3:
        # One id within another: the last says which, the first is implied.
        template = "/".join((*parts[:-3], "{id}", parts[-2], "{id}"))
        if (method, template) in ENDPOINTS and parts[-1]:
            return ENDPOINTS[method, template], parts[-1]
    raise Refusal(
        404,
        f"Unrecognized request URL ({method}: {path}). The simulator answers a part of Stripe's API only.",
    )


# A session is a means of sending meter events, and a cancellation takes one back: one scope for all of them.
_RESOURCES = {
    "account": "account",
    "checkout": "checkout_sessions",
    "customers": "customers",
    "entitlements": "entitlements",
    "event_destinations": "webhook_endpoints",
    "events": "events",
    "invoiceitems": "invoices",
    "invoices": "invoices",
    "meter_event_adjustments": "meter_events",
    "meter_event_session": "meter_events",
    "meter_events": "meter_events",
    "meters": "meters",
    "prices": "prices",
    "products": "products",
    "subscription_items": "subscriptions",
    "subscriptions": "subscriptions",
    "webhook_endpoints": "webhook_endpoints",
}


def scope_of(method: str, path: str) -> str:
    """The scope a restricted key needs, such as `meters_read` for a meter and for its summaries."""
    resource = next((_RESOURCES[part] for part in path.split("/") if part in _RESOURCES), "unknown")
    return f"{resource}_{'read' if method == 'GET' else 'write'}"
