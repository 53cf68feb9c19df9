"""The one account a journal belongs to.

The account is made by the first start on an empty journal; a new journal is a new account, so a ledger bound
to the old one notices.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from billing_pipeline.stripe_simulator.calls import Call, created
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body


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
