"""Idempotency-Key: the first executed answer is kept and repeated, 24 hours in v1 and 30 days in v2.

Consulted before a POST is executed.
The rules are Stripe's (API reference, "Idempotent requests"; API v2 overview).  In v1 errors of an executed
request are repeated too; in v2 only success is, and a failed request is executed again.
A key sent again with another request is an `idempotency_error`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing_pipeline.stripe_simulator.answers import answer_body
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.wire import Body, Refusal, Request, invalid

KEPT_V1 = timedelta(hours=24)
KEPT_V2 = timedelta(days=30)
KEY_LENGTH_MAX = 255


@dataclass(frozen=True, slots=True)
class SavedAnswer:
    """The last record that the first executed request with a key wrote, from which its answer follows."""

    record: Record
    received_at: datetime

    @property
    def status(self) -> int:
        """The HTTP status of the first answer."""
        return int(self.record.get("status", 200))

    @property
    def body(self) -> Body:
        """The body of the first answer."""
        return answer_body(self.record)


class SavedAnswers:
    """The answers by key, oldest first, each kept for the same time."""

    def __init__(self, kept: timedelta) -> None:
        self._kept = kept
        self._by_key: dict[str, SavedAnswer] = {}

    def add(self, record: Record, received_at: datetime) -> None:
        """Keep the answer that a journal record stands for."""
        self._prune(received_at)
        # Re-inserted, not overwritten in place, so that the order stays that of age.
        self._by_key.pop(record["idempotency_key"], None)
        self._by_key[record["idempotency_key"]] = SavedAnswer(record, received_at)

    def find(self, key: str, fingerprint: str, now: datetime) -> SavedAnswer | None:
        """The answer to repeat, if any.  Raises `Refusal` when the key belongs to another request."""
        saved = self._by_key.get(key)
        if saved is None or now - saved.received_at >= self._kept:
            return None
        if saved.record["fingerprint"] != fingerprint:
            raise Refusal(
                400,
                "Keys for idempotent requests can only be used with the same endpoint and parameters they were "
                "first used with. Use another Idempotency-Key for a different request.",
                type="idempotency_error",
            )
        return saved

    def _prune(self, now: datetime) -> None:
        while self._by_key:
            oldest = next(iter(self._by_key))
            if now - self._by_key[oldest].received_at < self._kept:
                return
            del self._by_key[oldest]


def key_of(request: Request) -> str | None:
    """The request's key; only POST has one.  Raises `Refusal` when it is longer than Stripe allows."""
    key = request.headers.get("idempotency-key")
    if request.method != "POST" or not key:
        return None
    if len(key) > KEY_LENGTH_MAX:
        raise invalid(f"Idempotency-Key must be at most {KEY_LENGTH_MAX} characters", "Idempotency-Key")
    return key


def fingerprint_of(request: Request) -> str:
    """What must be equal for two requests to be the same: method, path and parameters, in any order."""
    canonical = json.dumps([request.method, request.path, request.params], sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
