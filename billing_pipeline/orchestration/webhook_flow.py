"""The webhooks' flow over one connection, for Dagster and the command: everything it does beside taking deliveries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.database.connection import connect
from billing_pipeline.database.primary import require_primary
from billing_pipeline.database.schema_version import require_current_schema
from billing_pipeline.orchestration.webhook_parts import make_cache_dropper, make_dispatcher, make_reader
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import StripeClient, make_client
from billing_pipeline.stripe_api.error_reports import REPORT_TYPES
from billing_pipeline.stripe_api.events import KEPT, event_pages, stripe_now, thin_event_pages
from billing_pipeline.stripe_api.listings import all_objects
from billing_pipeline.webhooks.dispatch import Dispatcher, DispatchReport
from billing_pipeline.webhooks.entitle import EntitlementsReport, decide_all
from billing_pipeline.webhooks.feature_cache import OnChanged
from billing_pipeline.webhooks.rebuild import RebuildReport, rebuild
from billing_pipeline.webhooks.refetch import RefetchReport, refetch_due
from billing_pipeline.webhooks.reread import RereadReport, reread
from billing_pipeline.webhooks.sweep import SweepReport, sweep

EVENTS_MAX = 20_000
REFETCHES_MAX = 500
"""At once; more waits for the next time."""
RECENT_INVOICES = timedelta(days=90)
"""Finished ones that are older than that no longer change."""


@dataclass(frozen=True, slots=True)
class WebhookFlow:
    """The webhooks' flow over one connection; the database's clock tells the time.

    `drop_cached` drops changed organizations' features from the cache.
    """

    connection: Connection[Any]
    settings: Settings
    stripe: StripeClient
    clock: Callable[[], datetime]
    drop_cached: OnChanged

    @property
    def sla(self) -> timedelta:
        """How long a claimed event may take."""
        return timedelta(seconds=self.settings.billing_dispatch_sla_seconds)

    @property
    def dispatcher(self) -> Dispatcher:
        """One that also takes Stripe's error reports, and tells the cache of features."""
        return make_dispatcher(self.connection, self.stripe, self.settings, self.clock, on_changed=self.drop_cached)

    def sweep(
        self, since: datetime | None = None, progress: Callable[[SweepReport], None] = lambda report: None
    ) -> SweepReport:
        """Find what Stripe lists and never delivered."""
        return sweep(
            self.connection,
            [
                partial(event_pages, self.stripe, self.settings),
                partial(thin_event_pages, self.stripe, self.settings, REPORT_TYPES),
            ],
            stripe_now=stripe_now(self.stripe, self.settings),
            kept=KEPT,
            stuck_after=self.sla,
            clock=self.clock,
            since=since,
            progress=progress,
        )

    def reread(self, progress: Callable[[str, int], None] = lambda kind, objects: None) -> RereadReport:
        """Bring what is kept to what Stripe shows now, whatever its events told."""
        recent = stripe_now(self.stripe, self.settings) - RECENT_INVOICES
        return reread(
            self.connection,
            partial(all_objects, self.stripe, self.settings, recent_since=recent),
            make_reader(self.stripe, self.settings),
            self.clock,
            progress=progress,
            on_changed=self.drop_cached,
        )

    def dispatch(self) -> tuple[DispatchReport, RefetchReport]:
        """Handle what is due, then ask Stripe what events could not decide."""
        handled = self.dispatcher.drain(events_max=EVENTS_MAX)
        reader = make_reader(self.stripe, self.settings)
        asked = refetch_due(self.connection, reader, self.clock, limit=REFETCHES_MAX, on_changed=self.drop_cached)
        return handled, asked

    def decide_all(self) -> EntitlementsReport:
        """Decide everybody's entitlements anew."""
        return decide_all(self.connection, self.clock, on_changed=self.drop_cached)

    def rebuild(self, *, apply: bool = False, progress: Callable[[int], None] = lambda events: None) -> RebuildReport:
        """Make the projections anew and compare; with `apply` put right what differs."""
        return rebuild(self.connection, self.clock, apply=apply, progress=progress, on_changed=self.drop_cached)


@contextmanager
def open_webhook_flow(settings: Settings, database_url: str) -> Iterator[WebhookFlow]:
    """A flow over a connection of its own.

    Raises `UserError` for a database with another version's schema, and `DatabaseUnavailable`.
    """
    with connect(database_url) as connection:
        require_primary(connection, database_url)
        require_current_schema(connection)
        client, clock = make_client(settings), DatabaseClock(connection)
        yield WebhookFlow(connection, settings, client, clock, make_cache_dropper(settings))
