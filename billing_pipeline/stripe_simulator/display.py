"""What Stripe shows of an object: the first page of the lists inside it, and nothing that only the simulator keeps.

Last step of every answer and of every event, so that both show the same.
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator.wire import Body

SHOWN_MAX = 10
"""Of a list inside an object; the rest is paged at the list's own `url`."""

_LISTS = {"entitlement_summary": "entitlements", "invoice": "lines", "subscription": "items"}


def displayed(kind: str, body: Body) -> Body:
    """The object as an answer holds it.  A name that begins with an underscore is the simulator's own."""
    shown = {name: value for name, value in body.items() if not name.startswith("_")}
    if kind == "entitlement_summary":
        # Stripe's has no id; the simulator keeps it under the customer's.
        del shown["id"]
    inside = body.get(_LISTS.get(kind, ""))
    if inside is not None:
        data = inside["data"]
        shown[_LISTS[kind]] = {**inside, "data": data[:SHOWN_MAX], "has_more": len(data) > SHOWN_MAX}
    return shown
