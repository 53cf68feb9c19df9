"""The asynchronous HTTP below the SDK, for the requests that carry money.

The SDK's own client follows redirects, which turns a POST into a GET of somewhere else whose refusal would read as
Stripe's, and forgets a connection whose answer broke off.  Used by the meter sinks.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Mapping
from typing import Any

import aiohttp
import stripe


class MeterHttpClient(stripe.HTTPClient):
    """One pooled session, made at the first request and closed by `close_async`."""

    name = "aiohttp"

    def __init__(self, timeout_seconds: int) -> None:
        super().__init__()
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """One request, its whole answer.  Raises `APIConnectionError` with the cause, wherever it broke off."""
        if self._session is None:
            tls = ssl.create_default_context(cafile=stripe.ca_bundle_path)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=self._timeout)
        try:
            async with self._session.request(
                method, url, headers=headers, data=post_data, allow_redirects=False
            ) as response:
                return await response.read(), response.status, response.headers
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            message = f"the request broke off: {type(exc).__name__}"
            raise stripe.APIConnectionError(message) from exc  # type: ignore[no-untyped-call]

    def sleep_async(self, secs: float) -> Awaitable[None]:
        """Asked for by the SDK between retries, of which there are none."""
        return asyncio.sleep(secs)

    async def close_async(self) -> None:
        """Close the pooled connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
