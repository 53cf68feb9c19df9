"""API keys: who may speak for the account, until when, and for what.

First step of every request but the stream's, which has its own tokens (`sessions`).
Any `sk_test_` key is a full one unless a test gives it a mode; a live key is refused whatever its mode says.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from billing_pipeline.stripe_simulator.wire import Refusal

LIVE_KEYS = ("sk_live_", "rk_live_")


@dataclass(frozen=True, slots=True)
class KeyMode:
    """What one key may do.  A key is rolled by giving the old one an end and the new one a beginning.

    `scopes` are those of `routes.scope_of`, such as `meter_events_write`; None is every scope.
    """

    starts_at: datetime | None = None
    expires_at: datetime | None = None
    scopes: frozenset[str] | None = None

    def refuse_beyond(self, scope: str) -> None:
        """Raises `Refusal` (403) when the key is restricted and this scope is not among its own."""
        if self.scopes is not None and scope not in self.scopes:
            raise Refusal(
                403,
                "The provided key does not have the required permissions for this endpoint. "
                f"Having the '{scope}' permission would allow this request to continue.",
            )


FULL = KeyMode()


def authenticate(headers: Mapping[str, str], keys: Mapping[str, KeyMode], now: datetime) -> KeyMode:
    """The mode of the request's key, sent as bearer token or as the user name of Basic authentication.

    Raises `Refusal` (401) for a key that is not one, not valid now, or live; the message never repeats the key.
    """
    key = _key(headers.get("authorization", ""))
    if not key:
        raise Refusal(
            401,
            "You did not provide an API key. Send it as 'Authorization: Bearer sk_test_...' or as the user name of "
            "Basic authentication.",
        )
    if key.startswith(LIVE_KEYS):
        raise Refusal(401, "The simulator never takes live keys. Use any key that begins with sk_test_.")
    mode = keys.get(key, FULL if key.startswith("sk_test_") and key != "sk_test_" else None)
    if mode is None or (mode.starts_at is not None and now < mode.starts_at):
        raise Refusal(401, "Invalid API Key provided. The simulator takes any key that begins with sk_test_.")
    if mode.expires_at is not None and now >= mode.expires_at:
        raise key_expired()
    return mode


def key_expired() -> Refusal:
    """What a key gets after its end."""
    return Refusal(401, "Expired API Key provided. Roll over to its successor.", code="api_key_expired")


def _key(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
