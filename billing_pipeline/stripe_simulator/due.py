"""The next moment of every object that changes by the clock alone: a period's end, a draft's end, a retry.

Fed from the journal by `state`; the core asks before every request, so nothing needs to run in the background.
"""

from __future__ import annotations

import heapq

from billing_pipeline.stripe_simulator.wire import Body

TRIAL_NOTICE_SECONDS = 3 * 86_400
"""How long before a trial's end Stripe tells of it."""
INCOMPLETE_SECONDS = 23 * 3_600
"""How long a subscription may wait for its first payment."""

NEVER = 1 << 62


class DueMoments:
    """A heap of (moment, number, kind, id).  An entry counts only while its object still says the same moment."""

    def __init__(self) -> None:
        self.next_at = NEVER
        self._moments: dict[tuple[str, str], int] = {}
        self._heap: list[tuple[int, int, str, str]] = []
        self._numbers = 0

    def note(self, kind: str, body: Body) -> None:
        """Take an object's next moment into account."""
        moment = next_moment(kind, body)
        key = (kind, body["id"])
        if self._moments.get(key, NEVER) == moment:
            return
        self._moments[key] = moment
        if moment != NEVER:
            self._numbers += 1
            heapq.heappush(self._heap, (moment, self._numbers, kind, body["id"]))
        self._settle()

    def first(self) -> tuple[int, str, str]:
        """The earliest moment (epoch seconds), and the kind and id of what is due then; ask `next_at` first."""
        moment, _, kind, id = self._heap[0]
        return moment, kind, id

    def moment_of(self, kind: str, id: str) -> int:
        """When this object is next due."""
        return self._moments.get((kind, id), NEVER)

    def _settle(self) -> None:
        while self._heap and self._moments[self._heap[0][2:]] != self._heap[0][0]:
            heapq.heappop(self._heap)
        self.next_at = self._heap[0][0] if self._heap else NEVER


def next_moment(kind: str, body: Body) -> int:
    """When the object next changes by itself, in epoch seconds."""
    if body.get("deleted"):
        return NEVER
    match kind:
        case "subscription":
            return _of_subscription(body)
        case "invoice":
            wanted = "automatically_finalizes_at" if body["status"] == "draft" else "next_payment_attempt"
            return int(body.get(wanted) or NEVER)
        case "checkout_session" if body["status"] == "open":
            return int(body["expires_at"])
    return NEVER


def trial_ends_soon(body: Body, epoch: int) -> bool:
    """Whether it is time to tell of the end of a subscription's trial, and nobody has yet."""
    untold = body["status"] == "trialing" and body["_trial_told"] != body["trial_end"]
    return bool(untold and epoch >= body["trial_end"] - TRIAL_NOTICE_SECONDS)


def _of_subscription(body: Body) -> int:
    if body["status"] in ("canceled", "incomplete_expired"):
        return NEVER
    if body["status"] == "incomplete":
        return int(body["created"]) + INCOMPLETE_SECONDS
    moments = [item["current_period_end"] for item in body["items"]["data"]]
    moments += [body["cancel_at"], (body["pause_collection"] or {}).get("resumes_at")]
    if body["status"] == "trialing" and body["_trial_told"] != body["trial_end"]:
        moments.append(body["trial_end"] - TRIAL_NOTICE_SECONDS)
    return min(int(moment) for moment in moments if moment is not None)
