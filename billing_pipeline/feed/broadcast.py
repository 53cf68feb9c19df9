"""Tells readers in every process that an organization's feed has something new, over Redis pub/sub.

A message is only a wake-up with the newest feed id: Redis keeps nothing, and whoever hears nothing finds the rows in
the table by himself a moment later.  A fault here is logged and changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

Announce = Callable[[Mapping[str, int]], bool]
"""Given the newest feed id by organization, whether everybody who listens was told."""

CHANNEL_PREFIX = "billing:feed:"
REDIS_SECONDS_MAX = 1
PAUSE_SECONDS = 5.0
"""After a fault nobody waits for Redis again so soon."""


def channel_of(organization_id: str) -> str:
    """Where an organization's wake-ups are published."""
    return f"{CHANNEL_PREFIX}{organization_id}"


class RedisAnnouncer:
    """Publishes wake-ups.  Connects by the first, anew after a fault; `url` may hold a password."""

    def __init__(self, url: str, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._redis: Any = redis.Redis.from_url(
            url,
            # Once more at once, for a connection that the server has closed; the library's own pauses are seconds.
            retry=Retry(NoBackoff(), 1),
            socket_connect_timeout=REDIS_SECONDS_MAX,
            socket_timeout=REDIS_SECONDS_MAX,
            client_name="billing-pipeline",
        )
        self._pause_seconds = pause_seconds
        self._silent_until = 0.0
        self._is_away = False

    def __call__(self, heads: Mapping[str, int]) -> bool:
        """Publish the newest feed id of each organization; whether Redis took all of them."""
        if time.monotonic() < self._silent_until:
            return False
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for organization_id, feed_id in heads.items():
                    pipeline.publish(channel_of(organization_id), str(feed_id))
                pipeline.execute()
        except Exception as exc:
            self._silent_until = time.monotonic() + self._pause_seconds
            # Once for each outage; the library's own words may hold the address with its password.
            if not self._is_away:
                logger.warning("The feed's wake-ups could not be sent", extra={"error_type": type(exc).__name__})
            self._is_away = True
            return False
        self._is_away = False
        return True


def nobody_listens(heads: Mapping[str, int]) -> bool:
    """For a feed without Redis: rows are written, and nobody is woken."""
    return False


def make_announcer(redis_url: str | None) -> Announce:
    """Redis where there is one.  Raises `ValueError` for an address that is none."""
    return nobody_listens if redis_url is None else RedisAnnouncer(redis_url)
