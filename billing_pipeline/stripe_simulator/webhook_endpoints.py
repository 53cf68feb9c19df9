"""Webhook endpoints: where events are sent, which ones, and the secrets that sign them.

A secret is shown once, in the answer that made it.  Rolling it is done in Stripe's dashboard, here by the simulator's
own `POST /_control/webhook_endpoints/{id}/roll_secret`; the old secret signs for up to 24 hours more, beside the new.
Sources: Stripe's API reference, "Webhook endpoints"; its guide "Receive Stripe events", on rolling secrets.
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from billing_pipeline.stripe_simulator.calls import Call, Write, deleted, silent
from billing_pipeline.stripe_simulator.display import displayed
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import checked, flag, integer, sequence, string_map, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, invalid, no_such

ROLL_SECONDS_MAX = 24 * 3_600


def create_endpoint(state: State, call: Call) -> Write:
    """POST /v1/webhook_endpoints; a plain http address is taken too, for this machine's own"""
    optional = {"api_version": text(), "description": text(), "metadata": string_map}
    given = checked(call.params, {"url": text(), "enabled_events": sequence(text())}, optional)
    refuse_url(given["url"])
    endpoint = {
        "id": state.new_id("webhook_endpoint", "we"),
        "object": "webhook_endpoint",
        "api_version": given.get("api_version"),
        "application": None,
        "created": call.epoch,
        "description": given.get("description"),
        "enabled_events": given["enabled_events"],
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "status": "enabled",
        "url": given["url"],
        "_payload": "snapshot",
        "_secrets": [{"number": 1, "expires_at": None}],
    }
    return Write((_with_secret(endpoint),))


def refuse_url(url: str) -> None:
    """Raises `Refusal` for what is no address of HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise invalid("Invalid URL: An explicit scheme (such as https) must be provided.", "url")


def retrieve_endpoint(state: State, call: Call) -> Body:
    """GET /v1/webhook_endpoints/{id}"""
    checked(call.params)
    return displayed("webhook_endpoint", _own(state, call))


def list_endpoints(state: State, call: Call) -> Body:
    """GET /v1/webhook_endpoints"""
    given = checked(call.params, optional=PAGING)
    own = (body for body in state.newest_first("webhook_endpoint") if body["object"] == "webhook_endpoint")
    shown = (displayed("webhook_endpoint", body) for body in own)
    return page(shown, given, url="/v1/webhook_endpoints", what="webhook endpoint")


def update_endpoint(state: State, call: Call) -> Write:
    """POST /v1/webhook_endpoints/{id}"""
    optional = {"disabled": flag, "enabled_events": sequence(text()), "metadata": string_map, "url": text()}
    given = checked(call.params, optional=optional)
    endpoint = _own(state, call)
    if "url" in given:
        refuse_url(given["url"])
    if "disabled" in given:
        given["status"] = "disabled" if given.pop("disabled") else "enabled"
    return Write((silent("webhook_endpoint", {**endpoint, **given}),))


def delete_endpoint(state: State, call: Call) -> Write:
    """DELETE /v1/webhook_endpoints/{id}; what was not delivered is not tried again"""
    checked(call.params)
    return Write((deleted("webhook_endpoint", "webhook_endpoint", _own(state, call)["id"]),))


def roll_secret(state: State, call: Call) -> Write:
    """POST /_control/webhook_endpoints/{id}/roll_secret; the old secret is good for `expires_in` seconds more"""
    given = checked(call.params, optional={"expires_in": integer(0, ROLL_SECONDS_MAX)})
    endpoint = _living(state, call)
    expires_at = call.epoch + given.get("expires_in", 0)
    kept = [
        {**secret, "expires_at": min(secret["expires_at"] or expires_at, expires_at)}
        for secret in endpoint["_secrets"]
        if secret["expires_at"] is None or secret["expires_at"] > call.epoch
    ]
    number = max(secret["number"] for secret in endpoint["_secrets"]) + 1
    return Write((_with_secret({**endpoint, "_secrets": [{"number": number, "expires_at": None}, *kept]}),))


def _with_secret(endpoint: Body) -> Record:
    answer = {**displayed("webhook_endpoint", endpoint), "secret": secret_of(endpoint["id"], endpoint["_secrets"][0])}
    return {**silent("webhook_endpoint", endpoint), "answer": answer}


def secret_of(endpoint: str, secret: Body) -> str:
    """A secret follows from its endpoint and its number, so the state keeps none."""
    text = f"{endpoint}/{secret['number']}"
    return f"whsec_{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def secrets_at(endpoint: Body, epoch: int) -> list[str]:
    """The secrets that sign at `epoch`, the newest first."""
    return [
        secret_of(endpoint["id"], secret)
        for secret in endpoint["_secrets"]
        if secret["expires_at"] is None or epoch < secret["expires_at"]
    ]


def _own(state: State, call: Call) -> Body:
    endpoint = _living(state, call)
    if endpoint["object"] != "webhook_endpoint":
        raise no_such("webhook endpoint", call.target)
    return endpoint


def _living(state: State, call: Call) -> Body:
    endpoint = state.live("webhook_endpoint", call.target)
    if endpoint is None:
        raise no_such("webhook endpoint", call.target)
    return endpoint
