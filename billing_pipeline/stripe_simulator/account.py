"""The one account a journal belongs to, and who may speak for it.

The account is made by the first start on an empty journal; a new journal is a new account, so a ledger bound
to the old one notices.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from datetime import datetime

from billing_pipeline.stripe_simulator.calls import Call, created
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, Refusal

LIVE_KEYS = ("sk_live_", "rk_live_")


def new_account(now: datetime) -> Record:
    """The record that opens a journal; the id follows from the moment alone."""
    digest = hashlib.blake2b(now.isoformat().encode(), digest_size=8).hexdigest()
    account = {
        "id": f"acct_{digest}",
        "object": "account",
        "business_profile": {"name": "Stripe simulator"},
        "charges_enabled": True,
        "country": "US",
        "created": int(now.timestamp()),
        "default_currency": "usd",
        "details_submitted": True,
        "livemode": False,
        "metadata": {},
        "payouts_enabled": True,
        "settings": {"dashboard": {"display_name": "Stripe simulator", "timezone": "Etc/UTC"}},
        "type": "standard",
    }
    return created("account", account)


def retrieve_account(state: State, call: Call) -> Body:
    """GET /v1/account"""
    account = state.find("account", state.account_id())
    assert account is not None, "the core opens every journal with an account"
    return account


def authenticate(headers: Mapping[str, str]) -> None:
    """Accept any `sk_test_` key, as bearer token or as the user name of Basic authentication.

    Raises `Refusal` (401) for anything else; the message never repeats the key.
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
    if not key.startswith("sk_test_") or key == "sk_test_":
        raise Refusal(401, "Invalid API Key provided. The simulator takes any key that begins with sk_test_.")


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
