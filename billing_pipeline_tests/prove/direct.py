"""The SDK's transport straight into a simulator in this process: everything but the sockets is real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import stripe
from multidict import CIMultiDict

from billing_pipeline.stripe_simulator.core import Exchange, SimulatedStripe
from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline.stripe_simulator.parameters import parse_form, parse_json
from billing_pipeline.stripe_simulator.wire import Refusal, Request

Answered = tuple[str, int, CIMultiDict[str]]


class DirectHTTP(stripe.HTTPClient):
    """Hands the SDK's requests to a core; a request stays in flight for one turn of the event loop."""

    name = "direct"

    def __init__(self, core: SimulatedStripe, witness: Callable[[Request], None] = lambda request: None) -> None:
        super().__init__()
        self._witness = witness
        self._core = core
        self._under_way: list[Exchange] = []

    def request(self, method: str, url: str, headers: Any, post_data: Any = None, *, _usage: Any = None) -> Answered:
        return self._finished(self.begin(method, url, headers, post_data))

    async def request_async(
        self, method: str, url: str, headers: Any, post_data: Any = None, *, _usage: Any = None
    ) -> Answered:
        exchange = self.begin(method, url, headers, post_data)
        await asyncio.sleep(0)
        return self._finished(exchange)

    def hang_up(self) -> None:
        """The caller is gone: what it had under way ends at Stripe, unheard."""
        while self._under_way:
            self._core.finish(self._under_way.pop())

    def close(self) -> None:
        """Nothing is open."""

    async def close_async(self) -> None:
        """Nothing is open."""

    def begin(self, method: str, url: str, headers: Any, post_data: Any) -> Exchange:
        parts = urlsplit(url)
        given = {name.lower(): str(value) for name, value in headers.items()}
        try:
            if method == "post":
                json_body = parts.path.startswith("/v2/")
                params = parse_json((post_data or "").encode()) if json_body else parse_form(post_data or "")
            else:
                params = parse_form(parts.query)
        except Refusal as refusal:
            return Exchange(self._core.refuse(refusal))
        request = Request(method.upper(), parts.path, params, given)
        self._witness(request)
        exchange = self._core.begin(request)
        self._under_way.append(exchange)
        return exchange

    def _finished(self, exchange: Exchange) -> Answered:
        if exchange in self._under_way:
            self._under_way.remove(exchange)
        self._core.finish(exchange)
        cut = exchange.fault is not None and exchange.fault.kind is FaultKind.RESET_MID_BODY
        if exchange.answer is None or cut:
            raise stripe.APIConnectionError("the connection closed before the answer was complete")
        answer = exchange.answer
        return answer.content().decode(), answer.status, CIMultiDict(answer.headers)
