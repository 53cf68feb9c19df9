"""Makes the schedules of both flows, all of one shape: in UTC, one run a tick, off until somebody turns it on.

A tick that Dagster evaluates twice asks for the same run, because the run's key is the tick's time.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg


def utc_schedule(
    job: Any,
    *,
    name: str,
    cron: str,
    description: str,
    tags: Callable[[], Mapping[str, str]] = dict,
    run_config: dg.RunConfig | None = None,
) -> dg.ScheduleDefinition:
    """A schedule of a job; `cron` is read in UTC, and `tags` are asked for at each tick."""

    @dg.schedule(job=job, name=name, cron_schedule=cron, execution_timezone="UTC", description=description)
    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat(), tags=tags(), run_config=run_config)

    return tick
