"""What can go wrong between a client and Stripe, one fault per API call.

The plan is a pure function of the call's number and the request, so a run repeats itself.
Used by `core`, which executes the call never, once, twice or later as the kind says; the faces only have to carry
the answer: nothing, half of it, or slowly.

    kind                executed        the client sees
    lose_request        no              the connection closes
    error_500_before    no              500
    rate_limited_429    no              429
    conflict_409        no              409
    html_200            no              200 with a page of something that stands before Stripe
    key_expired_401     no              401 for the key
    session_expired_401 no              401 for the stream's session
    lose_answer         once            the connection closes
    error_500_after     once            500, in v1 again for the same Idempotency-Key
    truncated_json      once            200 with half of the JSON
    reset_mid_body      once            200, then the connection closes within the body
    slow_drip           once            the answer, spread over `delay`
    wrong_mode          once            the answer, with livemode true
    async_silent_drop   not counted     the answer of an accepted meter event
    duplicated_delivery twice           the first answer
    late_delivery       after `delay`   the connection closes at once
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.keys import key_expired
from billing_pipeline.stripe_simulator.rate_limits import too_many_requests
from billing_pipeline.stripe_simulator.sessions import session_expired
from billing_pipeline.stripe_simulator.wire import Answer, Body, Refusal, Request


class FaultKind(StrEnum):
    """The kinds, as in the table above."""

    LOSE_REQUEST = "lose_request"
    ERROR_500_BEFORE = "error_500_before"
    RATE_LIMITED_429 = "rate_limited_429"
    CONFLICT_409 = "conflict_409"
    HTML_200 = "html_200"
    KEY_EXPIRED_401 = "key_expired_401"
    SESSION_EXPIRED_401 = "session_expired_401"
    LOSE_ANSWER = "lose_answer"
    ERROR_500_AFTER = "error_500_after"
    TRUNCATED_JSON = "truncated_json"
    RESET_MID_BODY = "reset_mid_body"
    SLOW_DRIP = "slow_drip"
    WRONG_MODE = "wrong_mode"
    ASYNC_SILENT_DROP = "async_silent_drop"
    DUPLICATED_DELIVERY = "duplicated_delivery"
    LATE_DELIVERY = "late_delivery"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `delay` is for the kinds that name it, by the clock for the call and in real time for the answer."""

    kind: FaultKind
    delay: timedelta = timedelta(0)


FaultPlan = Callable[[int, Request], Fault | None]
"""Takes the number of the API call, from 0 since the start, and the request."""


class ConnectionLost(ConnectionError):
    """What a caller without HTTP gets where a client's connection would have closed: nobody knows what was done."""


class Faults:
    """Asks the plan once per API call, and counts what was really applied, by kind."""

    def __init__(self, plan: FaultPlan | None) -> None:
        self._plan = plan
        self.calls = 0
        self.applied: Counter[FaultKind] = Counter()

    def next(self, request: Request) -> Fault | None:
        """The fault of this call, if the plan has one."""
        number, self.calls = self.calls, self.calls + 1
        return None if self._plan is None else self._plan(number, request)


_INTERNAL: Body = {"error": {"type": "api_error", "message": "An unknown error occurred."}}
_PAGE = "<html><body><h1>Please log in to this network</h1></body></html>\n"

NOT_EXECUTED = frozenset(
    {
        FaultKind.LOSE_REQUEST,
        FaultKind.ERROR_500_BEFORE,
        FaultKind.RATE_LIMITED_429,
        FaultKind.CONFLICT_409,
        FaultKind.HTML_200,
        FaultKind.KEY_EXPIRED_401,
        FaultKind.SESSION_EXPIRED_401,
    }
)


def answer_instead(kind: FaultKind) -> Answer | None:
    """What the client gets of a call that is not executed; None when it gets nothing."""
    match kind:
        case FaultKind.ERROR_500_BEFORE:
            return Answer(500, {}, _INTERNAL)
        case FaultKind.RATE_LIMITED_429:
            return _refused(too_many_requests())
        case FaultKind.CONFLICT_409:
            return _refused(Refusal(409, "This request conflicts with another one that is being processed."))
        case FaultKind.KEY_EXPIRED_401:
            return _refused(key_expired())
        case FaultKind.SESSION_EXPIRED_401:
            return _refused(session_expired())
        case FaultKind.HTML_200:
            return Answer(200, {"Content-Type": "text/html"}, _PAGE)
    return None


def _refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, refusal.headers, refusal.body)


def spoiled_records(records: list[Record], kind: FaultKind, api: str) -> list[Record]:
    """The records of an executed call as the fault leaves them."""
    match kind:
        case FaultKind.ASYNC_SILENT_DROP:
            return [{**r, "kind": "meter_event_lost"} if r["kind"] == "meter_event" else r for r in records]
        case FaultKind.ERROR_500_AFTER if api == "v1":
            # v1 repeats even a 500 once the endpoint has begun (API reference, "Idempotent requests").
            return [*records[:-1], {**records[-1], "status": 500, "answer": _INTERNAL}]
        case FaultKind.ERROR_500_AFTER:
            # v2 keeps no answer to a failed request, so a repeat is executed again.
            return [{name: r[name] for name in r if name != "idempotency_key"} for r in records]
    return records


def spoiled_answer(answer: Answer, kind: FaultKind) -> Answer | None:
    """What the client gets of a call that was executed; None when it gets nothing."""
    match kind:
        case FaultKind.LOSE_ANSWER:
            return None
        case FaultKind.ERROR_500_AFTER:
            return Answer(500, {}, _INTERNAL)
        case FaultKind.TRUNCATED_JSON:
            text = answer.content().decode()
            return replace(answer, body=text[: len(text) // 2])
        case FaultKind.WRONG_MODE if isinstance(answer.body, dict):
            return replace(answer, body=_live(answer.body))
    return answer


def _live(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: name == "livemode" or _live(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_live(inner) for inner in value]
    return value
