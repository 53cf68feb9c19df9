"""The stream request carries its own body; everything else about it is the SDK's."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.client import make_client
from billing_pipeline.stripe_api.http import JsonBodyClient, MeterHttpClient

EVENTS = {
    "events": [
        {
            "event_name": "prompt_tokens",
            "payload": {"stripe_customer_id": f"cus_{n}", "value": str(n)},
            "identifier": f"entry-{n} \u00e9&=[]",
            "timestamp": datetime(2026, 6, 1, n, tzinfo=UTC).isoformat(),
        }
        for n in range(3)
    ]
}


class Wire(MeterHttpClient):
    """Keeps what would be sent, and answers as the stream does."""

    def __init__(self):
        super().__init__(10)
        self.sent = []

    async def request_async(self, method, url, headers, post_data=None):
        # The SDK makes up a new key for every request; this sender's identifiers are what deduplicates.
        kept = {name: value for name, value in headers.items() if name != "Idempotency-Key"}
        self.sent.append((method, url, kept, json.loads(post_data), set(headers) - set(kept)))
        return b"{}", 200, {"Request-Id": "req_1"}


def test_the_stream_request_is_the_one_the_sdk_would_send():
    settings, wire = load_settings(stripe_secret_key=None), Wire()

    async def send():
        prepared = make_client(settings, JsonBodyClient(wire, EVENTS), key="token")
        await prepared.raw_request_async("post", "/v2/billing/meter_event_stream", base="meter_events")
        own_method = make_client(settings, wire, key="token")
        await own_method.v2.billing.meter_event_stream.create_async(EVENTS)

    asyncio.run(send())

    prepared, by_the_sdk = wire.sent
    assert prepared == by_the_sdk
    assert prepared[3] == EVENTS
