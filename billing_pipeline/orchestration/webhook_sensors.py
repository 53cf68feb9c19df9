"""The sensor that launches replays of webhook events that `billing-pipeline serve` did not handle.

Failed ones whose next attempt is due, ones whose worker died, and ones that nobody ever took.  A run takes up to 500 of
them, because a run costs more than an event; an attempt is launched once.  The claim in the database is the lock: where
`serve` was quicker, the run does nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.webhook_jobs import REPLAY_RUNTIME, replay_config, replay_stripe_events
from billing_pipeline.webhooks.health import Waiting, to_launch

GRACE = timedelta(seconds=60)
"""How long `serve` has before a run is launched."""
RUN_EVENTS_MAX = 500
TICK_EVENTS_MAX = 2_000
"""Four runs a tick; what is left waits for the next one."""
AGAIN_AFTER = 2 * REPLAY_RUNTIME
"""A run that was launched so long ago is over, and if the attempt is still to be made it was lost."""
EVENT_TAG = "stripe_event_id"

Launched = dict[str, list[int]]
"""By event: the attempts it had when its run was launched, when that was, and how often for the same attempt."""


@dg.sensor(
    job=replay_stripe_events,
    minimum_interval_seconds=30,
    description="Launches one run for each batch of webhook events that are due and were not handled within a minute.",
)
def stripe_events_to_replay(context: dg.SensorEvaluationContext, billing: BillingResource) -> dg.SensorResult:
    """Off until somebody turns it on in the UI."""
    before = _read(context.cursor)
    with billing.webhook_flow() as flow:
        now = flow.clock()
        # Those that were launched already are among them until their runs have taken them.
        limit = TICK_EVENTS_MAX + len(before)
        waiting = to_launch(flow.connection, grace=GRACE, sla=flow.sla, now=now, limit=limit)
    launched = {one.stripe_event_id: before[one.stripe_event_id] for one in waiting if one.stripe_event_id in before}
    new = [one for one in waiting if _is_new(one, launched.get(one.stripe_event_id), now)][:TICK_EVENTS_MAX]
    for one in new:
        launched[one.stripe_event_id] = _after(one, launched.get(one.stripe_event_id), now)
    requests = [_request(batch, launched) for batch in _batches(new)]
    reason = None if requests else dg.SkipReason("Every event that is due has been handled, or its run is launched.")
    return dg.SensorResult(run_requests=requests, skip_reason=reason, cursor=json.dumps(launched))


def _is_new(one: Waiting, known: list[int] | None, now: datetime) -> bool:
    return known is None or known[0] != one.attempts or known[1] < (now - AGAIN_AFTER).timestamp()


def _after(one: Waiting, known: list[int] | None, now: datetime) -> list[int]:
    times = known[2] + 1 if known and known[0] == one.attempts else 1
    return [one.attempts, int(now.timestamp()), times]


def _request(batch: Sequence[Waiting], launched: Launched) -> dg.RunRequest:
    ids = [one.stripe_event_id for one in batch]
    names = [":".join(map(str, (event_id, launched[event_id][0], launched[event_id][2]))) for event_id in ids]
    if len(batch) == 1:
        # The first run for an attempt is named after just that.
        return dg.RunRequest(
            run_key=names[0].removesuffix(":1"), run_config=replay_config(ids), tags={EVENT_TAG: ids[0]}
        )
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]
    return dg.RunRequest(run_key=digest, run_config=replay_config(ids))


def _batches(waiting: Sequence[Waiting]) -> Iterator[Sequence[Waiting]]:
    for start in range(0, len(waiting), RUN_EVENTS_MAX):
        yield waiting[start : start + RUN_EVENTS_MAX]


def _read(cursor: str | None) -> Launched:
    found: Any = json.loads(cursor) if cursor else {}
    return dict(found)


WEBHOOK_SENSORS = [stripe_events_to_replay]
