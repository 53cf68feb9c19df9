"""Stripe's entitlements: features, the products they belong to, and what each customer is entitled to by now.

A customer has the features of the products in its subscriptions, while these are active, in trial or past due.
`entitlement_records` is asked before a write is journaled, so a summary changes together with what changes it.
Source: Stripe's guide and API reference, "Entitlements"; that past due still entitles is an assumption.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from billing_pipeline.stripe_simulator.calls import Call, Write, deleted, silent, updated
from billing_pipeline.stripe_simulator.display import displayed
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import checked, flag, string_map, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, forbidden, no_such

ENTITLING = ("active", "trialing", "past_due")
EVENT = "entitlements.active_entitlement_summary.updated"

_CHANGING = ("subscription", "product_feature")


def create_feature(state: State, call: Call) -> Write:
    """POST /v1/entitlements/features"""
    given = checked(call.params, {"lookup_key": text(80), "name": text(80)}, {"metadata": string_map})
    if any(feature["lookup_key"] == given["lookup_key"] for feature in state.newest_first("feature")):
        raise forbidden("A feature with this lookup key already exists.", param="lookup_key")
    feature = {
        "id": state.new_id("feature", "feat_test"),
        "object": "entitlements.feature",
        "active": True,
        "livemode": False,
        "lookup_key": given["lookup_key"],
        "metadata": given.get("metadata", {}),
        "name": given["name"],
    }
    return Write((silent("feature", feature),))


def update_feature(state: State, call: Call) -> Write:
    """POST /v1/entitlements/features/{id}"""
    given = checked(call.params, optional={"active": flag, "metadata": string_map, "name": text(80)})
    return Write((silent("feature", {**_feature(state, call.target), **given}),))


def retrieve_feature(state: State, call: Call) -> Body:
    """GET /v1/entitlements/features/{id}"""
    checked(call.params)
    return _feature(state, call.target)


def list_features(state: State, call: Call) -> Body:
    """GET /v1/entitlements/features"""
    given = checked(call.params, optional={**PAGING, "archived": flag, "lookup_key": text(80)})
    features = (
        feature
        for feature in state.newest_first("feature")
        if feature["active"] != given.get("archived", False)
        and given.get("lookup_key") in (None, feature["lookup_key"])
    )
    return page(features, given, url="/v1/entitlements/features", what="feature")


def attach_feature(state: State, call: Call) -> Write:
    """POST /v1/products/{id}/features"""
    given = checked(call.params, {"entitlement_feature": text()})
    if state.live("product", call.target) is None:
        raise no_such("product", call.target)
    feature = _feature(state, given["entitlement_feature"], param="entitlement_feature")
    if not feature["active"]:
        raise forbidden("An inactive feature cannot be attached to a product.", param="entitlement_feature")
    if any(a["entitlement_feature"]["id"] == feature["id"] for a in state.owned("product_feature", call.target)):
        raise forbidden("This feature is attached to the product already.", param="entitlement_feature")
    attachment = {
        "id": state.new_id("product_feature", "prodft_test"),
        "object": "product_feature",
        "entitlement_feature": feature,
        "livemode": False,
        "_product": call.target,
    }
    return Write((silent("product_feature", attachment),))


def list_attachments(state: State, call: Call) -> Body:
    """GET /v1/products/{id}/features"""
    given = checked(call.params, optional=PAGING)
    shown = (displayed("product_feature", body) for body in state.owned("product_feature", call.target))
    return page(shown, given, url=f"/v1/products/{call.target}/features", what="product feature")


def detach_feature(state: State, call: Call) -> Write:
    """DELETE /v1/products/{id}/features/{id}"""
    checked(call.params)
    if state.live("product_feature", call.target) is None:
        raise no_such("product feature", call.target)
    return Write((deleted("product_feature", "product_feature", call.target),))


def list_active_entitlements(state: State, call: Call) -> Body:
    """GET /v1/entitlements/active_entitlements"""
    given = checked(call.params, {"customer": text()}, PAGING)
    if state.find("customer", given["customer"]) is None:
        raise no_such("customer", given["customer"], param="customer")
    summary = state.find("entitlement_summary", given["customer"])
    data = [] if summary is None else summary["entitlements"]["data"]
    return page(data, given, url="/v1/entitlements/active_entitlements", what="active entitlement")


def _feature(state: State, id: str, *, param: str | None = None) -> Body:
    feature = state.find("feature", id)
    if feature is None:
        raise no_such("feature", id, param=param)
    return feature


def empty_summary(customer: str) -> Body:
    """The summary of a customer without features, under the customer's id, for Stripe's own has none."""
    url = f"/v1/entitlements/active_entitlements?customer={customer}"
    return {
        "id": customer,
        "object": "entitlements.active_entitlement_summary",
        "customer": customer,
        "entitlements": {"object": "list", "data": [], "has_more": False, "url": url},
        "livemode": False,
    }


def entitlement_records(state: State, records: Iterable[Record]) -> list[Record]:
    """The summaries that other records change, once those are applied."""
    changes: dict[str, dict[str, Body]] = {kind: {} for kind in _CHANGING}
    for record in records:
        if record["kind"] in _CHANGING:
            changes[record["kind"]][record["object"]["id"]] = record["object"]
    changed = []
    for customer in _concerned(state, changes):
        before = state.find("entitlement_summary", customer) or empty_summary(customer)
        data = list(_entitled(state, customer, changes))
        if data != before["entitlements"]["data"]:
            after = {**before, "entitlements": {**before["entitlements"], "data": data}}
            # Nobody recorded the empty one, and the event tells of it all the same.
            changed.append({**updated("entitlement_summary", after, EVENT), "before": before})
    return changed


def _concerned(state: State, changes: Mapping[str, Mapping[str, Body]]) -> list[str]:
    customers = dict.fromkeys(str(body["customer"]) for body in changes["subscription"].values())
    products = {
        (state.find("product_feature", id) or body)["_product"] for id, body in changes["product_feature"].items()
    }
    if products:
        for subscription in state.newest_first("subscription"):
            if any(item["price"]["product"] in products for item in subscription["items"]["data"]):
                customers[str(subscription["customer"])] = None
    return list(customers)


def _entitled(state: State, customer: str, changes: Mapping[str, Mapping[str, Body]]) -> Iterator[Body]:
    features: dict[str, Body] = {}
    for subscription in _after(state, "subscription", customer, "customer", changes):
        if subscription["status"] in ENTITLING:
            for item in subscription["items"]["data"]:
                for attachment in _after(state, "product_feature", item["price"]["product"], "_product", changes):
                    features[attachment["entitlement_feature"]["id"]] = attachment["entitlement_feature"]
    for id, feature in sorted(features.items()):
        yield {
            "id": f"ent_test_{state.digest('entitlement', customer, id)}",
            "object": "entitlements.active_entitlement",
            "feature": id,
            "livemode": False,
            "lookup_key": feature["lookup_key"],
        }


def _after(
    state: State, kind: str, owner: str, owner_name: str, changes: Mapping[str, Mapping[str, Body]]
) -> list[Body]:
    """An owner's objects as they are once the changes are applied."""
    bodies = {body["id"]: body for body in state.owned(kind, owner)}
    bodies |= {id: body for id, body in changes[kind].items() if id in bodies or body.get(owner_name) == owner}
    return [body for body in bodies.values() if not body.get("deleted")]
