"""What assets get handed: the usage flow or the webhooks', opened for the length of one step.

The resource has no configuration of its own, so no secret can reach a run's config, which the UI shows to everyone.
The run is the holder of the flush lease; Dagster ends the resource with the run, and the lease with it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from billing_pipeline.database.location import resolve_database_url
from billing_pipeline.errors import BillingError, Unavailable, told
from billing_pipeline.orchestration.webhook_flow import WebhookFlow, open_webhook_flow
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.flow import UsageFlow, open_flow
from billing_pipeline.usage.lease import LeaseHeld, current_holder, release

logger = logging.getLogger(__name__)

FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


class BillingResource(dg.ConfigurableResource[Any]):
    """Opens the usage flow with the settings of the environment."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["BillingResource"]:
        """Give the lease back when the run is over, however it ended."""
        try:
            yield self
        finally:
            if context.run is not None:
                self._give_lease_back(context.run.run_id)

    @contextmanager
    def usage_flow(self, run_id: str = "", instance: dg.DagsterInstance | None = None) -> Iterator[UsageFlow]:
        """The flow over a connection of its own; our errors become Dagster failures that say what to do."""
        with _failures():
            settings = load_settings()
            with open_flow(settings, resolve_database_url(settings), holder=_holder(run_id)) as flow:
                if instance is not None:
                    _free_lease_of_finished_run(flow, instance)
                yield flow

    @contextmanager
    def webhook_flow(self) -> Iterator[WebhookFlow]:
        """The webhooks' flow, likewise; it needs no lease, because any number of workers may dispatch."""
        with _failures():
            settings = load_settings()
            with open_webhook_flow(settings, resolve_database_url(settings)) as flow:
                yield flow

    def _give_lease_back(self, run_id: str) -> None:
        try:
            settings = load_settings()
            with open_flow(settings, resolve_database_url(settings), holder=_holder(run_id)) as flow:
                flow.give_lease_back()
        except BillingError as exc:
            # The lease ends by itself; a flush until then is skipped, and nothing is lost.
            logger.warning("the flush lease could not be given back: %s", exc)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except LeaseHeld:
        raise
    except BillingError as exc:
        # A refusal does not become a success by trying again; only an absent service may come back.
        raise dg.Failure(
            description=told(exc), metadata={"error": type(exc).__name__}, allow_retries=isinstance(exc, Unavailable)
        ) from exc


def _holder(run_id: str) -> str:
    return f"run:{run_id}"


def _free_lease_of_finished_run(flow: UsageFlow, instance: dg.DagsterInstance) -> None:
    """A run that was killed gave nothing back; Dagster knows that it is over."""
    lock_key = flow.settings.stripe_usage_flush_lock_key
    holder = current_holder(flow.connection, lock_key=lock_key, now=flow.clock())
    if holder is None or not holder.startswith("run:"):
        return
    run = instance.get_run_by_id(holder.removeprefix("run:"))
    if run is not None and run.status in FINISHED:
        release(flow.connection, lock_key=lock_key, holder=holder)
