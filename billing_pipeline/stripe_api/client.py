"""Builds the SDK's client from the settings, and turns its errors into ours, once.

Used by every other module here.  The messages made here carry Stripe's words and request id, never a key or a body.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

import stripe

from billing_pipeline.domain.redaction import mask
from billing_pipeline.errors import StripeRefused, StripeUnavailable
from billing_pipeline.settings import Settings

stripe.enable_telemetry = False
# At DEBUG the SDK logs whole request bodies.
logging.getLogger("stripe").setLevel(logging.WARNING)

StripeClient = stripe.StripeClient
"""For callers to name the type; what they may do with it is hand it to this package's functions."""

AUTH_ERRORS = (stripe.AuthenticationError, stripe.PermissionError)


def make_client(
    settings: Settings, http_client: stripe.HTTPClient | None = None, *, key: str | None = None
) -> stripe.StripeClient:
    """A client with our key (or a session's) and addresses; it never retries by itself."""
    return stripe.StripeClient(
        key or settings.stripe_key,
        base_addresses=settings.stripe_base_addresses,  # type: ignore[arg-type] # a TypedDict of the same two keys
        max_network_retries=0,
        http_client=http_client or stripe.RequestsClient(timeout=settings.stripe_timeout_seconds),
    )


@dataclass(frozen=True, slots=True)
class Account:
    """The account a key belongs to, and what time it is at Stripe."""

    account_id: str
    stripe_time: datetime | None


def read_account(client: stripe.StripeClient, settings: Settings) -> Account:
    """The account the key belongs to.  Raises `StripeUnavailable` or `StripeRefused`."""
    with translated_errors(settings):
        account = client.v1.accounts.retrieve_current()
    headers = account.last_response.headers if account.last_response else {}
    date = headers.get("Date")
    return Account(account.id, parsedate_to_datetime(date) if date else None)


@contextmanager
def translated_errors(settings: Settings) -> Iterator[None]:
    """Raise ours for the SDK's: `StripeUnavailable` where trying later may help, `StripeRefused` where not."""
    try:
        yield
    except AUTH_ERRORS as exc:
        key = mask(settings.stripe_key)
        raise StripeRefused(
            f"Stripe refuses the key {key}: {stripe_words(exc)}. Check STRIPE_SECRET_KEY and its scopes."
        ) from None
    except stripe.APIConnectionError:
        where = settings.stripe_base_addresses.get("api", "api.stripe.com")
        hint = " Start it with `make up`, or set STRIPE_SECRET_KEY." if settings.uses_simulator else ""
        raise StripeUnavailable(f"Stripe does not answer at {where}; nothing was changed.{hint}") from None
    except (stripe.RateLimitError, stripe.APIError) as exc:
        raise StripeUnavailable(f"Stripe cannot serve the request now: {stripe_words(exc)}. Try again later.") from None
    except stripe.StripeError as exc:
        raise StripeRefused(f"Stripe refused: {stripe_words(exc)}.") from None


def is_stripes_own(exc: stripe.StripeError) -> bool:
    """Whether an error answer is Stripe's: it has a request id and Stripe's error object."""
    error = exc.json_body.get("error") if isinstance(exc.json_body, dict) else None
    return exc.request_id is not None and isinstance(error, dict) and bool(error.get("type") or error.get("code"))


def stripe_words(exc: stripe.StripeError) -> str:
    """Stripe's own message, if its answer had one, with the request id.

    Only the parsed message is used: the SDK's text holds the whole body when an answer is malformed.
    """
    error = exc.json_body.get("error") if isinstance(exc.json_body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    text = str(message) if message else f"HTTP {exc.http_status}"
    return f"{text.rstrip('.')} (request {exc.request_id})" if exc.request_id else text.rstrip(".")
