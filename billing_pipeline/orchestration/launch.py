"""Launches jobs in a running Dagster, the way its UI does, and waits for them.

Used by commands; assets never launch anything.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError

from billing_pipeline.errors import BillingError, Unavailable

LOCATION = "billing_pipeline"
QUEUE_TAG = "billing/queue"
"""The tag of a flush that limits and launchers may go by; its value is STRIPE_BILLING_QUEUE."""
ORGANIZATION_TAG = "organization_id"
"""The tag of a run that is about one organization."""
POLL_SECONDS = 0.25
FINISHED = {DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED}


def launch_job(job_name: str, *, port: int, tags: dict[str, str] | None = None) -> str:
    """Put a run of the job into Dagster's queue and return its id.  Raises `Unavailable` when it is not taken."""
    with _dagster_at(port) as client:
        return client.submit_job_execution(job_name, repository_location_name=LOCATION, run_config={}, tags=tags)


def run_page(run_id: str, *, port: int) -> str:
    """Where the run is shown."""
    return f"http://127.0.0.1:{port}/runs/{run_id}"


def wait_for_run(run_id: str, *, port: int, seconds_max: int) -> None:
    """Wait until the run has succeeded.  Raises `BillingError` naming the run when it fails or takes too long."""
    deadline = time.monotonic() + seconds_max
    with _dagster_at(port) as client:
        while (status := client.get_run_status(run_id)) not in FINISHED:
            if time.monotonic() > deadline:
                raise BillingError(f"Run {run_id} is still {status.value} after {seconds_max} s; see it in the UI.")
            time.sleep(POLL_SECONDS)
    if status is not DagsterRunStatus.SUCCESS:
        raise BillingError(f"Run {run_id} ended as {status.value}; its page in the UI names the step and the reason.")


def cancel_unfinished(home: Path, tags: dict[str, str]) -> int:
    """Mark every unfinished run with these tags as canceled, and free what such runs hold; returns how many.

    For the time when no Dagster runs on `home`: nothing is stopped here, and a daemon would start what is queued.
    """
    unfinished = [status for status in DagsterRunStatus if status not in FINISHED]
    with DagsterInstance.from_config(str(home)) as instance:
        runs = instance.get_runs(RunsFilter(tags=tags, statuses=unfinished))
        for run in runs:
            instance.report_run_canceled(run, "The command that launched this run was interrupted.")
        # Otherwise a killed run's place in the pool is freed a minute after the daemon starts, and the next run waits.
        if holders := list(instance.event_log_storage.get_concurrency_run_ids()):
            for run in instance.get_runs(RunsFilter(run_ids=holders, tags=tags)):
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return len(runs)


@contextmanager
def _dagster_at(port: int) -> Iterator[DagsterGraphQLClient]:
    try:
        yield DagsterGraphQLClient("127.0.0.1", port_number=port)
    except (DagsterGraphQLClientError, OSError) as exc:
        # Only the first line: Dagster puts whole statements and stacks into the rest.
        reason = (str(exc.__cause__ or exc).splitlines() or [type(exc).__name__])[0][:200]
        raise Unavailable(f"Dagster on port {port} does not answer as it should: {reason}. Is it running?") from None
