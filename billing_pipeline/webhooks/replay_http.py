"""Delivers stored events to an intake again: the body as it came, signed anew, because Stripe's signature is too old.

For an intake that also runs the dispatcher, here or on another machine; the events' outcomes are read from the database
that both share.  What has been processed is answered `already_processed` and stays as it is.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.signing import signature_header
from billing_pipeline.errors import Unavailable, UserError
from billing_pipeline.webhooks.replay import ChosenEvent, Replayed

ANSWER_SECONDS_MAX = 30
ANSWER_BYTES_MAX = 4_096
LOOK_AGAIN_SECONDS = 0.5

REFUSED = {
    400: "Its STRIPE_WEBHOOK_SECRET does not have ours, its clock is minutes away, or it is of the other mode.",
    404: "--webhook-url does not lead to /webhooks/stripe of an intake.",
    503: "It cannot store webhooks now: `/readyz` of it says why.",
}
"""What an answer that is no success mostly means."""
REDIRECTS = (
    "It redirects, and a signed delivery follows no redirect. Give the intake's own address with --webhook-url; "
    "where that is right, a proxy or a login stands before it."
)


@dataclass(frozen=True, slots=True)
class Delivered:
    """How the intake answered a delivery: its HTTP status, and its own word or None."""

    stripe_event_id: str
    http_status: int
    status: str | None

    @property
    def is_taken(self) -> bool:
        """Whether the intake has the event."""
        return 200 <= self.http_status < 300

    @property
    def why_not(self) -> str:
        """What to look at where it has not."""
        if 300 <= self.http_status < 400:
            return REDIRECTS
        return REFUSED.get(self.http_status, "Its log says why.")


def require_address(url: str) -> None:
    """Raises `UserError` for what cannot be an intake's address, or may hold a password: events' notes keep it."""
    if "@" in url:
        raise UserError(
            "--webhook-url must not have a user or a password, nor any @: the events' notes keep it, and a note cannot "
            "be changed. Nothing was replayed."
        )
    if not url.startswith(("http://", "https://")) or any(not char.isprintable() or char == " " for char in url):
        raise UserError(f"--webhook-url {url} is no address; it is like http://127.0.0.1:8000/webhooks/stripe.")


def deliver(
    connection: Connection[Any],
    events: Sequence[ChosenEvent],
    *,
    url: str,
    secret: str,
    clock: Callable[[], datetime],
) -> Iterator[Delivered]:
    """Deliver events one after the other.  Raises `Unavailable` where no intake answers."""
    for event in events:
        stored = queries.fetch_dicts(connection, "body_of_event", {"stripe_event_id": event.stripe_event_id})[0]
        # What was swept, or is older than bodies are kept, has only its parsed form.
        body = stored["raw_body"] or json.dumps(stored["payload"], separators=(",", ":")).encode()
        http_status, status = _post(url, bytes(body), signature_header(bytes(body), secret, at=clock()))
        yield Delivered(event.stripe_event_id, http_status, status)


def outcomes(
    connection: Connection[Any],
    events: Sequence[ChosenEvent],
    *,
    clock: Callable[[], datetime],
    patience: timedelta,
    sleep: Callable[[float], None],
) -> list[Replayed]:
    """What became of events since they were chosen; those that still wait are waited for, up to `patience`."""
    give_up_at = clock() + patience
    before = {event.stripe_event_id: event.attempted_at for event in events}
    params = {"ids": list(before)}
    while True:
        found = queries.fetch(connection, "outcomes_of_events", Replayed, params)
        waiting = any(not one.ended_well and one.attempted_at == before[one.stripe_event_id] for one in found)
        if not waiting or clock() >= give_up_at:
            return found
        sleep(LOOK_AGAIN_SECONDS)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an answer: followed, it would give the signature to another host, and ask it with GET."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _post(url: str, body: bytes, signature: str) -> tuple[int, str | None]:
    request = urllib.request.Request(url, data=body, method="POST")
    request.add_header("Content-Type", "application/json")
    request.add_header("Stripe-Signature", signature)
    try:
        with _OPENER.open(request, timeout=ANSWER_SECONDS_MAX) as answer:
            return answer.status, _status(answer.read(ANSWER_BYTES_MAX))
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, _status(exc.read(ANSWER_BYTES_MAX))
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        raise Unavailable(
            f"No intake answers at {url}: {reason}. Start it with `billing-pipeline serve`, correct --webhook-url, or "
            "replay without it: --via direct."
        ) from None


def _status(body: bytes) -> str | None:
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    status = answer.get("status") if isinstance(answer, dict) else None
    return status if isinstance(status, str) else None
