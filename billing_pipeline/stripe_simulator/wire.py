"""What goes over the wire: a request, an answer, and a refusal in Stripe's error shape.

Used by every module of the simulator.
A `Refusal` is raised where a rule of Stripe forbids the request and becomes an answer in the core; it never
leaves the simulator as an exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

Body = dict[str, Any]


class Channel(StrEnum):
    """The ways in for a meter event, as the journal names them."""

    V1 = "v1"
    V2 = "v2"
    STREAM = "v2_stream"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.  Header names are in lower case; parameters are nested as their brackets or JSON say."""

    method: str
    path: str
    params: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def api(self) -> str:
        """Which of Stripe's two APIs is asked: "v1" or "v2"."""
        return "v2" if self.path.startswith("/v2/") else "v1"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer.  A `str` body is sent as it stands, a dictionary as JSON."""

    status: int
    headers: Mapping[str, str]
    body: Body | str

    def content(self) -> bytes:
        """The body as it is sent."""
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


class Refusal(Exception):
    """A request that Stripe would refuse.

    `executed` says that the endpoint had begun its work: only then is the answer kept for a repeat with the
    same Idempotency-Key (Stripe API reference, "Idempotent requests").
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        executed: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.executed = executed
        # Stripe leaves out what does not apply, it does not send null.
        optional = {"code": code, "param": param}
        error = {"type": type, "message": message} | {k: v for k, v in optional.items() if v is not None}
        self.body: Body = {"error": error}


def rfc3339(at: datetime) -> str:
    """An instant as v2 writes it, in UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def invalid(message: str, param: str, *, code: str | None = None) -> Refusal:
    """The parameters themselves are wrong; nothing was executed."""
    return Refusal(400, message, code=code, param=param)


def no_such(what: str, id: str, *, param: str | None = None) -> Refusal:
    """An object that is not there: 404 when it was named by the path, 400 when by the parameter `param`."""
    return Refusal(
        400 if param else 404,
        f"No such {what}: '{id}'",
        code="resource_missing",
        param=param or "id",
        executed=True,
    )


def forbidden(message: str, *, param: str | None = None, code: str | None = None) -> Refusal:
    """The parameters are well formed, but the state of the account forbids the request."""
    return Refusal(400, message, param=param, code=code, executed=True)
