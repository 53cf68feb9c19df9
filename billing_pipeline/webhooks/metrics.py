"""What Prometheus is told of the webhooks: how many came, what became of them, how long an answer took.

Labels come from signed deliveries and from lists of ours only, so no stranger can make a time series.
"""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from billing_pipeline.domain.outcomes import Outcome

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
EVENT_TYPES_MAX = 300
"""Stripe has about 250; what comes beyond is `other`."""

UNKNOWN = "unknown"
OTHER = "other"
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)


class WebhookResult(StrEnum):
    """Every value of the label `result`: first those of a delivery, then those of its handling."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REQUEUED = "requeued"
    MISSING_SIGNATURE = "missing_signature"
    INVALID_SIGNATURE = "invalid_signature"
    INVALID_PAYLOAD = "invalid_payload"
    DISPATCHED = "dispatched"
    DISPATCH_FAILED = "dispatch_failed"
    IGNORED = "ignored"
    BROADCASTED = "broadcasted"
    BROADCAST_FAILED = "broadcast_failed"
    STREAM_FAILED = "stream_failed"


RESULT_OF_REFUSAL = {
    "missing_signature": WebhookResult.MISSING_SIGNATURE,
    "invalid_signature": WebhookResult.INVALID_SIGNATURE,
    "stale_signature": WebhookResult.INVALID_SIGNATURE,
    "invalid_payload": WebhookResult.INVALID_PAYLOAD,
    "wrong_mode": WebhookResult.INVALID_PAYLOAD,
    "wrong_account": WebhookResult.INVALID_PAYLOAD,
}
"""By the reason of a `DeliveryRefused`; the log and `signature_failures` have the reason itself."""


RESULT_OF_OUTCOME = {
    Outcome.PROCESSED: WebhookResult.DISPATCHED,
    Outcome.IGNORED: WebhookResult.IGNORED,
    Outcome.FAILED: WebhookResult.DISPATCH_FAILED,
}
"""By what became of a stored event."""


class WebhookMetrics:
    """The counters of one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._event_types: set[str] = set()
        self._events = Counter(
            "stripe_webhook_events_total",
            "Webhook events by result.",
            ("event_type", "result"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "billing_http_request_seconds",
            "From the first byte of a request to its answer.",
            ("route", "status"),
            buckets=SECONDS,
            registry=self._registry,
        )

    def count(self, result: WebhookResult, event_type: str | None = None, times: int = 1) -> None:
        """So many more; `event_type` only where a signature has shown that it is Stripe's."""
        if event_type is None:
            event_type = UNKNOWN
        elif event_type not in self._event_types:
            if len(self._event_types) < EVENT_TYPES_MAX:
                self._event_types.add(event_type)
            else:
                event_type = OTHER
        self._events.labels(event_type, result.value).inc(times)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """How long a request took; `route` is a path of ours, never the one that was asked for."""
        self._seconds.labels(route, status).observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)
