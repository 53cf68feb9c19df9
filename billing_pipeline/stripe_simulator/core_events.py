"""GET /v2/core/events: the error reports of the stream, as thin events.

A report is listed once its validation window has closed and for 30 days, newest first.
The list leaves out `data`, as the pushed notification does; fetching one event by its id gives all of it.
Sources: Stripe's API v2 reference, "Events"; the event classes of its SDK; its OpenAPI specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from operator import ge, gt, le, lt
from typing import Any
from urllib.parse import urlencode

from billing_pipeline.stripe_simulator.calls import Call
from billing_pipeline.stripe_simulator.error_reports import ErrorReport
from billing_pipeline.stripe_simulator.parameters import checked, group, instant, integer, sequence, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, Refusal, invalid, rfc3339

KEPT = timedelta(days=30)
TYPES_MAX = 20
LIMIT_DEFAULT = 20

_COMPARISONS = {"gt": gt, "gte": ge, "lt": lt, "lte": le}
_FILTERS = {
    "created": group(optional=dict.fromkeys(_COMPARISONS, instant)),
    "limit": integer(1, 100),
    "object_id": text(),
    "page": text(),
    "types": sequence(text()),
}


def list_core_events(state: State, call: Call) -> Body:
    """The closed reports that every filter lets through; `next_page_url` repeats the filters."""
    given = checked(call.params, optional=_FILTERS)
    if len(given.get("types", ())) > TYPES_MAX:
        raise invalid(f"types can have at most {TYPES_MAX} items.", "types")
    after = _position(given["page"]) if "page" in given else None
    wanted = sorted(
        (r for r in state.error_reports.all() if _is_listed(r, call.now) and _matches(r, given)),
        key=_sort_key,
        reverse=True,
    )
    left = [report for report in wanted if after is None or _sort_key(report) < after]
    shown = left[: given.get("limit", LIMIT_DEFAULT)]
    more = len(shown) < len(left)
    return {
        "data": [notification(report) for report in shown],
        "next_page_url": _next_page_url(call.params, shown[-1]) if more else None,
        "previous_page_url": None,
    }


def retrieve_core_event(state: State, call: Call) -> Body:
    """GET /v2/core/events/{id}, with its `data`"""
    checked(call.params)
    report = state.error_reports.find(call.target)
    if report is None or not _is_listed(report, call.now):
        raise Refusal(404, f"No such event: '{call.target}'", code="not_found")
    return {**notification(report), "data": _data(report)}


def _is_listed(report: ErrorReport, now: datetime) -> bool:
    return report.end <= now <= report.end + KEPT


def _matches(report: ErrorReport, given: Mapping[str, Any]) -> bool:
    return (
        report.type in given.get("types", (report.type,))
        and given.get("object_id", report.meter) == report.meter
        and all(_COMPARISONS[name](report.end, bound) for name, bound in given.get("created", {}).items())
    )


def _sort_key(report: ErrorReport) -> tuple[int, str]:
    return int(report.end.timestamp()), report.id


def _position(page: str) -> tuple[int, str]:
    # The place in the order, not the event itself, so that a page stays valid when its last event has aged out.
    created, _, id = page.partition(".")
    if not created.isdecimal() or not id:
        raise invalid("Invalid page: follow next_page_url as it was given.", "page")
    return int(created), id


def _next_page_url(params: Mapping[str, Any], last: ErrorReport) -> str:
    flat: list[tuple[str, str]] = []
    for name, value in params.items():
        if isinstance(value, dict):
            flat += [(f"{name}[{key}]", str(inner)) for key, inner in value.items()]
        elif name != "page":
            flat.append((name, str(value)))
    created, id = _sort_key(last)
    return f"/v2/core/events?{urlencode([*flat, ('page', f'{created}.{id}')])}"


def notification(report: ErrorReport) -> Body:
    """What is listed and pushed of a report: which it is, without its `data`."""
    event: Body = {
        "id": report.id,
        "object": "v2.core.event",
        "context": None,
        "created": rfc3339(report.end),
        "livemode": False,
        "reason": None,
        "type": report.type,
    }
    if report.meter is not None:
        event["related_object"] = {
            "id": report.meter,
            "type": "billing.meter",
            "url": f"/v1/billing/meters/{report.meter}",
        }
    return event


def _data(report: ErrorReport) -> Body:
    total = sum(tally.count for tally in report.tallies.values())
    return {
        "developer_message_summary": f"There {'is 1 invalid event' if total == 1 else f'are {total} invalid events'}",
        "reason": {
            "error_count": total,
            "error_types": [
                {
                    "code": code,
                    "error_count": tally.count,
                    "sample_errors": [
                        {"error_message": message, "request": {"identifier": identifier}}
                        for identifier, message in tally.samples
                    ],
                }
                for code, tally in sorted(report.tallies.items())
            ],
        },
        "validation_start": rfc3339(report.start),
        "validation_end": rfc3339(report.end),
    }
