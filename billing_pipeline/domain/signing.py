"""Signs a webhook body the way Stripe does, for a replay over HTTP: the intake then needs no second way in.

https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import hmac
from datetime import datetime


def signature_header(raw_body: bytes, secret: str, *, at: datetime) -> str:
    """The value of `Stripe-Signature` for a body that is signed at that second."""
    signed_at = int(at.timestamp())
    digest = hmac.digest(secret.encode(), b"%d.%b" % (signed_at, raw_body), "sha256")
    return f"t={signed_at},v1={digest.hex()}"
