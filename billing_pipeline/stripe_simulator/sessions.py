"""The tokens of the meter event stream, and who holds one that is still alive.

A token follows from its session's id, so the journal remembers every session and holds no token.
Fed from the journal by `state`; asked before a stream request is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

from billing_pipeline.stripe_simulator.wire import Body, Refusal


class StreamSessions:
    """When each session's token expires, by token."""

    def __init__(self) -> None:
        self._expires_at: dict[str, datetime] = {}

    def add(self, session: Body) -> None:
        self._expires_at[token_of(session)] = datetime.fromisoformat(session["expires_at"])

    def authenticate(self, headers: Mapping[str, str], now: datetime) -> None:
        """Accept a bearer token that is alive.  Raises `Refusal` (401) for any other, an API key included."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        expires_at = self._expires_at.get(token.strip())
        if scheme.lower() != "bearer" or expires_at is None or now >= expires_at:
            raise session_expired()


def session_expired() -> Refusal:
    """What a token gets that no living session has."""
    return Refusal(
        401,
        "The meter event session is unknown or has expired. Create a new one and send the same events again.",
        type="temporary_session_expired",
        code="billing_meter_event_session_expired",
    )


def token_of(session: Body) -> str:
    """The token of a session; nobody but its holder needs it written down."""
    return f"mes_token_{hashlib.blake2b(session['id'].encode(), digest_size=24).hexdigest()}"
