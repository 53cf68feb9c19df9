"""Whether a delivery is Stripe's: the check of its `Stripe-Signature` header, before anything of its body is read.

The header is `t=<unix seconds>,v1=<hex>[,v1=<hex>...]`; each v1 is the HMAC-SHA256 of "<t>.<body>" with one secret, and
while a secret is rolled there is one for each.  Other schemes count for nothing.
Stripe's SDK takes any time in the future; here a captured request can be replayed neither late nor early.
https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from billing_pipeline.domain.redaction import mask
from billing_pipeline.errors import DeliveryRefused

TOLERANCE = timedelta(seconds=300)
"""Stripe's own default, in both directions here."""

SIGNATURES_MAX = 16
"""Stripe sends one for each active secret; more are not compared."""

_UNIX_SECONDS = re.compile(r"[0-9]{1,11}", re.ASCII)
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def verify_signature(raw_body: bytes, header: str | None, secrets: Sequence[str], *, now: datetime) -> str:
    """The secret that signed these bytes, masked; the first of `secrets` where several did.

    Raises `DeliveryRefused` with the reason missing_signature, invalid_signature or stale_signature; the last only for
    a signature that is right, so that a wrong clock is told apart from a wrong secret.
    """
    if not header:
        raise DeliveryRefused("missing_signature", "The request has no Stripe-Signature header.")
    signed_at, signatures = _read(header)
    message = b"%b.%b" % (signed_at.encode("ascii"), raw_body)
    for secret in secrets:
        expected = hmac.digest(secret.encode(), message, "sha256").hex()
        # All are compared, and each in constant time: how long it takes says nothing about a digit.
        if sum(hmac.compare_digest(expected, signature) for signature in signatures):
            break
    else:
        raise DeliveryRefused("invalid_signature", "No active secret made any of the request's signatures.")
    if abs(now - datetime.fromtimestamp(int(signed_at), UTC)) > TOLERANCE:
        raise DeliveryRefused("stale_signature", "The request was signed more than 300 seconds from now.")
    return mask(secret)


def _read(header: str) -> tuple[str, list[str]]:
    """The time as it was signed, and every v1 signature that can be one."""
    parts = [part.partition("=") for part in header.split(",")]
    times = [value for scheme, _, value in parts if scheme == "t"]
    signatures = [value for scheme, _, value in parts if scheme == "v1" and _HEX_DIGEST.fullmatch(value)]
    if len(times) != 1 or not _UNIX_SECONDS.fullmatch(times[0]) or not signatures:
        raise DeliveryRefused("invalid_signature", "The Stripe-Signature header has no time or no v1 signature.")
    return times[0], signatures[:SIGNATURES_MAX]
