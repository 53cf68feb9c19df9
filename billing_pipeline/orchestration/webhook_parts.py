"""Joins the webhooks' flow with the usage's, which do not know each other: who dispatches gets both from here.

Stripe's error reports about meter events arrive as webhooks and reject entries of the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.domain.outcomes import Outcome
from billing_pipeline.feed.broadcast import make_announcer
from billing_pipeline.orchestration.feed_parts import make_feed_writer
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import StripeClient
from billing_pipeline.stripe_api.error_reports import REPORT_TYPES, read_error_report
from billing_pipeline.stripe_api.objects import read_object
from billing_pipeline.usage.error_reports import write_error_report
from billing_pipeline.webhooks.dispatch import Dispatcher, ThinHandler, Write
from billing_pipeline.webhooks.feature_cache import OnChanged, make_feature_cache
from billing_pipeline.webhooks.refetch import ReadObject, refetch_due
from billing_pipeline.webhooks.worker import Step

REFETCHED_AT_ONCE = 20
HANDLED_AT_ONCE = 50
"""A batch keeps PostgreSQL busy that deliveries wait for: with 200, a hundredth of them waited 38 ms, with this 27."""


def make_dispatcher(
    connection: Connection[Any],
    client: StripeClient,
    settings: Settings,
    clock: Callable[[], datetime],
    *,
    on_changed: OnChanged | None = None,
    on_handled: Callable[[str, Outcome], None] | None = None,
) -> Dispatcher:
    """A dispatcher that also takes Stripe's error reports, and drops cached features where they changed.

    `on_changed` is what drops them, for those who make many dispatchers.
    """
    return Dispatcher(
        connection,
        clock,
        sla=timedelta(seconds=settings.billing_dispatch_sla_seconds),
        request_timeout=timedelta(seconds=settings.stripe_timeout_seconds),
        attempts_max=settings.billing_dispatch_attempts_max,
        thin_handlers=dict.fromkeys(REPORT_TYPES, _error_report_handler(client, settings)),
        on_changed=on_changed or make_cache_dropper(settings),
        on_handled=on_handled,
        feeds=settings.enable_billing_stream,
    )


def make_steps(
    client: StripeClient,
    settings: Settings,
    on_handled: Callable[[str, Outcome], None] | None = None,
    on_told: Callable[[str, str], None] = lambda event_type, result: None,
) -> dict[str, Step]:
    """What `serve` does beside taking webhooks, by name; `on_handled` is told each event's type and outcome.

    So is `on_told` of the feed's events, where there is a feed.

    The database's clock tells the time, as it does when an event is stored: whose claim has lapsed must not depend on
    the machine that asks.
    """
    read, drop = make_reader(client, settings), make_cache_dropper(settings)

    def dispatch(connection: Connection[Any]) -> int:
        clock = DatabaseClock(connection)
        dispatcher = make_dispatcher(connection, client, settings, clock, on_changed=drop, on_handled=on_handled)
        return dispatcher.run_once(limit=HANDLED_AT_ONCE).handled

    def refetch(connection: Connection[Any]) -> int:
        return refetch_due(
            connection, read, DatabaseClock(connection), limit=REFETCHED_AT_ONCE, on_changed=drop
        ).settled

    steps: dict[str, Step] = {"The dispatcher": dispatch, "The refetch": refetch}
    if settings.enable_billing_stream:
        announce = make_announcer(settings.feed_redis_url)

        def feed(connection: Connection[Any]) -> int:
            clock = DatabaseClock(connection)
            return make_feed_writer(connection, settings, clock, announce, on_told).run_once().handled

        steps["The feed"] = feed
    return steps


def make_cache_dropper(settings: Settings) -> OnChanged:
    """Drops changed organizations' features from the cache of REDIS_URL; for the dispatcher and for refetches."""
    return make_feature_cache(settings.redis_url.get_secret_value() if settings.redis_url else None).drop


def make_reader(client: StripeClient, settings: Settings) -> ReadObject:
    """Shows an object as Stripe has it now."""
    return partial(read_object, client, settings)


def _error_report_handler(client: StripeClient, settings: Settings) -> ThinHandler:
    def fetch(stripe_event_id: str) -> Write:
        report = read_error_report(client, settings, stripe_event_id)

        def write(connection: Connection[Any], now: datetime) -> None:
            write_error_report(connection, report, now=now)

        return write

    return fetch
