"""Stripe's answers as it wrote them, without what the SDK makes of them.

The SDK turns decimal fields into numbers that JSON does not have; what is stored or projected is Stripe's own text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import stripe

from billing_pipeline.domain.storable import storable

PAGE_SIZE = 100  # Stripe's maximum


@dataclass(frozen=True, slots=True)
class Page:
    """A page of one of Stripe's lists, with the headers of its answer."""

    bodies: list[dict[str, Any]]
    headers: Mapping[str, str]


def body_of(found: stripe.StripeObject) -> dict[str, Any]:
    """The body of the answer that this object is, without what PostgreSQL's jsonb cannot hold."""
    answer = found.last_response
    if answer is None:
        return {}
    body = json.loads(storable(answer.body))
    return body if isinstance(body, dict) else {}


def headers_of(found: stripe.StripeObject) -> Mapping[str, str]:
    """The headers of that answer."""
    return found.last_response.headers if found.last_response else {}


def pages(fetch: Callable[[Any], Any], filters: Mapping[str, Any], *, size: int = PAGE_SIZE) -> Iterator[Page]:
    """Every page of a list; `fetch` asks for one with its filters.  Raises what the SDK raises."""
    after: str | None = None
    while True:
        listed = fetch({**filters, "limit": size} | ({"starting_after": after} if after else {}))
        bodies = body_of(listed).get("data") or []
        if bodies:
            yield Page(bodies, headers_of(listed))
        if not bodies or not listed.has_more:
            return
        after = bodies[-1]["id"]
