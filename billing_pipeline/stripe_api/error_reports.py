"""Reads Stripe's error reports for meter events: thin events, fetched whole from the v2 events list.

A report counts its errors per code and names only samples of them; both shapes of a sample are read, because the
guide and the API reference differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import stripe

from billing_pipeline.domain.identifiers import identifier_of_key
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors

REPORT_TYPES = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """One report: when Stripe made it, errors by code, and the identifiers among its samples."""

    stripe_event_id: str
    created_at: datetime
    error_count: int
    codes: dict[str, int]
    identifiers: tuple[str, ...]


def error_reports(client: stripe.StripeClient, settings: Settings, *, since: datetime) -> Iterator[ErrorReport]:
    """Every report created at or after `since`, oldest last as Stripe lists them."""
    with translated_errors(settings):
        listed = client.v2.core.events.list(
            {"types": list(REPORT_TYPES), "created": {"gte": since.strftime("%Y-%m-%dT%H:%M:%SZ")}}
        )
        for event in listed.auto_paging_iter():
            yield parse_report(client.v2.core.events.retrieve(event.id).to_dict())


def read_error_report(client: stripe.StripeClient, settings: Settings, stripe_event_id: str) -> ErrorReport:
    """One report, of which a notification told us.  Raises `StripeUnavailable` or `StripeRefused`."""
    with translated_errors(settings):
        return parse_report(client.v2.core.events.retrieve(stripe_event_id).to_dict())


def parse_report(event: dict[str, Any]) -> ErrorReport:
    """A fetched event as we use it.  Unknown codes and missing samples are fine; counts may exceed samples."""
    error_types = ((event.get("data") or {}).get("reason") or {}).get("error_types") or []
    samples = [sample for kind in error_types for sample in kind.get("sample_errors") or []]
    created = event["created"]
    return ErrorReport(
        stripe_event_id=event["id"],
        created_at=created if isinstance(created, datetime) else datetime.fromisoformat(created),
        error_count=sum(int(kind.get("error_count") or 0) for kind in error_types),
        codes={str(kind.get("code")): int(kind.get("error_count") or 0) for kind in error_types},
        identifiers=tuple(name for sample in samples if (name := _identifier(sample.get("request") or {}))),
    )


def _identifier(request: dict[str, Any]) -> str | None:
    # The API reference names the identifier; the guide's older sample only the Idempotency-Key, which holds ours.
    found = request.get("identifier") or identifier_of_key(str(request.get("idempotency_key") or ""))
    return str(found) if found else None
