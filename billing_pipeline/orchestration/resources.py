"""What assets get handed: the flows, opened for the length of one step.

The resource has no configuration of its own, so no secret can reach a run's config, which the UI shows to everyone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from billing_pipeline.database.location import resolve_database_url
from billing_pipeline.errors import BillingError, Unavailable
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.flush import UsageFlow, open_flow


class BillingResource(dg.ConfigurableResource[UsageFlow]):
    """Opens the usage flow with the settings of the environment."""

    @contextmanager
    def usage_flow(self) -> Iterator[UsageFlow]:
        """The flow over a connection of its own; our errors become Dagster failures that say what to do."""
        try:
            settings = load_settings()
            with open_flow(settings, resolve_database_url(settings)) as flow:
                yield flow
        except BillingError as exc:
            # A refusal does not become a success by trying again; only an absent service may come back.
            raise dg.Failure(
                description=str(exc),
                metadata={"error": type(exc).__name__},
                allow_retries=isinstance(exc, Unavailable),
            ) from exc
