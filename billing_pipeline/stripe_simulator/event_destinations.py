"""Event destinations of type `webhook_endpoint`: how thin events are asked for, in v2 only.

Kept beside the v1 endpoints, whose secrets and deliveries they share; v1 does not list them.
The only thin events here are the reports of rejected meter events; a snapshot destination gets what a v1 endpoint gets.
Source: Stripe's API v2 reference, "Event Destinations".
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator.calls import Call, Write, deleted, silent
from billing_pipeline.stripe_simulator.parameters import (
    checked,
    group,
    json_list,
    json_string_map,
    one_of,
    sequence,
    text,
)
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.webhook_endpoints import refuse_url, secret_of
from billing_pipeline.stripe_simulator.wire import Body, Refusal, rfc3339

TYPES_MAX = 500
WITH_SECRET = "webhook_endpoint.signing_secret"
WITH_URL = "webhook_endpoint.url"
_INCLUDE = json_list(one_of(WITH_SECRET, WITH_URL), 2)


def create_destination(state: State, call: Call) -> Write:
    """POST /v2/core/event_destinations; the secret is in the answer when `include` asks for it"""
    required = {
        "enabled_events": json_list(text(), TYPES_MAX),
        "event_payload": one_of("snapshot", "thin"),
        "name": text(),
        "type": one_of("webhook_endpoint"),
        "webhook_endpoint": group({"url": text()}),
    }
    optional = {
        "description": text(),
        "include": _INCLUDE,
        "metadata": json_string_map,
        "snapshot_api_version": text(),
    }
    given = checked(call.params, required, optional)
    refuse_url(given["webhook_endpoint"]["url"])
    destination = {
        "id": state.new_id("webhook_endpoint", "ed_test"),
        "object": "v2.core.event_destination",
        "api_version": given.get("snapshot_api_version"),
        "created": rfc3339(call.now),
        "description": given.get("description", ""),
        "enabled_events": given["enabled_events"],
        "metadata": given.get("metadata", {}),
        "name": given["name"],
        "status": "enabled",
        "url": given["webhook_endpoint"]["url"],
        "_payload": given["event_payload"],
        "_secrets": [{"number": 1, "expires_at": None}],
        "_updated": rfc3339(call.now),
    }
    answer = _shown(destination, given.get("include", []))
    return Write(({**silent("webhook_endpoint", destination), "answer": answer},))


def retrieve_destination(state: State, call: Call) -> Body:
    """GET /v2/core/event_destinations/{id}; the secret is never shown again"""
    checked(call.params)
    return _shown(_living(state, call), [WITH_URL])


def list_destinations(state: State, call: Call) -> Body:
    """GET /v2/core/event_destinations, all on one page; addresses only where `include` asks for them"""
    given = checked(call.params, optional={"include": sequence(one_of(WITH_URL))})
    bodies = (body for body in state.newest_first("webhook_endpoint") if "name" in body)
    shown = [_shown(body, given.get("include", [])) for body in bodies]
    return {"data": shown, "next_page_url": None, "previous_page_url": None}


def disable_destination(state: State, call: Call) -> Write:
    """POST /v2/core/event_destinations/{id}/disable"""
    return _switched(state, call, "disabled")


def enable_destination(state: State, call: Call) -> Write:
    """POST /v2/core/event_destinations/{id}/enable"""
    return _switched(state, call, "enabled")


def delete_destination(state: State, call: Call) -> Write:
    """DELETE /v2/core/event_destinations/{id}"""
    checked(call.params)
    return Write((deleted("webhook_endpoint", "v2.core.event_destination", _living(state, call)["id"]),))


def _switched(state: State, call: Call, status: str) -> Write:
    checked(call.params)
    body = {**_living(state, call), "status": status, "_updated": rfc3339(call.now)}
    return Write(({**silent("webhook_endpoint", body), "answer": _shown(body, [WITH_URL])},))


def _living(state: State, call: Call) -> Body:
    body = state.live("webhook_endpoint", call.target)
    if body is None or "name" not in body:
        raise Refusal(404, f"No such event destination: '{call.target}'", code="not_found")
    return body


def _shown(body: Body, include: list[str]) -> Body:
    secret = secret_of(body["id"], body["_secrets"][0])
    same = ("id", "object", "created", "description", "enabled_events", "metadata", "name", "status")
    return {
        **{name: body[name] for name in same},
        "event_payload": body["_payload"],
        "livemode": False,
        "snapshot_api_version": body["api_version"],
        "type": "webhook_endpoint",
        "updated": body["_updated"],
        "webhook_endpoint": {
            "signing_secret": secret if WITH_SECRET in include else None,
            "url": body["url"] if WITH_URL in include else None,
        },
    }
