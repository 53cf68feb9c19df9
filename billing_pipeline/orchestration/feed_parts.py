"""Joins the feed with the webhooks' flow, which do not know each other: what an event shows the handlers say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.feed.broadcast import Announce
from billing_pipeline.feed.write import FeedWriter
from billing_pipeline.settings import Settings
from billing_pipeline.webhooks.handlers import understood


def make_feed_writer(
    connection: Connection[Any],
    settings: Settings,
    clock: Callable[[], datetime],
    announce: Announce,
    on_told: Callable[[str, str], None] = lambda event_type, result: None,
) -> FeedWriter:
    """A writer of the feed that reads events as the dispatcher does."""
    kept = timedelta(days=settings.billing_feed_kept_days)
    return FeedWriter(connection, clock, understood, kept, announce, on_told)
