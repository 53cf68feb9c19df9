"""Stripe's list objects: newest first, a cursor, `has_more`.

Last step of every list endpoint, so that all of them page alike (Stripe API reference, "Pagination").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from billing_pipeline.stripe_simulator.parameters import Check, integer, text
from billing_pipeline.stripe_simulator.wire import Body, invalid, no_such

LIMIT_DEFAULT = 10
PAGING: dict[str, Check] = {"limit": integer(1, 100), "starting_after": text(), "ending_before": text()}
"""The parameters `page` understands; every list endpoint names them."""


def page(newest_first: Iterable[Body], params: dict[str, Any], *, url: str, what: str) -> Body:
    """The page that `limit`, `starting_after` and `ending_before` ask for.

    `ending_before` gives the items next to the cursor, still newest first.
    Raises `Refusal` for both cursors at once, or for one that is not in the list.
    """
    bodies, limit = list(newest_first), params.get("limit", LIMIT_DEFAULT)
    after, before = params.get("starting_after"), params.get("ending_before")
    if after and before:
        raise invalid("You may only specify one of these parameters: starting_after, ending_before.", "ending_before")
    if after:
        bodies = bodies[_position(bodies, after, "starting_after", what) + 1 :]
    elif before:
        bodies = bodies[: _position(bodies, before, "ending_before", what)]
    shown = bodies[-limit:] if before else bodies[:limit]
    return {"object": "list", "url": url, "has_more": len(shown) < len(bodies), "data": shown}


def _position(bodies: list[Body], id: str, param: str, what: str) -> int:
    for position, body in enumerate(bodies):
        if body["id"] == id:
            return position
    raise no_such(what, id, param=param)
