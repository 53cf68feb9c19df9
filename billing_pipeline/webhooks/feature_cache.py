"""Drops what product code has cached of an organization's features, once a change is committed.

The dispatcher tells it of organizations whose entitlements may have changed.  A cache is only speed: a fault here is
logged by the dispatcher and never fails an event, and cached values should lapse by themselves all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

logger = logging.getLogger(__name__)

OnChanged = Callable[[Sequence[str]], None]
"""Is told, after the commit, of organizations whose entitlements may have changed."""

KEY_PREFIX = "features:"
REDIS_SECONDS_MAX = 1
"""Events wait for the answer, so it is not waited for long."""
KEYS_AT_ONCE = 500


class FeatureCache(Protocol):
    """Forgets the features of organizations."""

    def drop(self, organization_ids: Sequence[str]) -> None: ...


class MemoryFeatureCache:
    """For one process without Redis: `entries` are what product code of the same process has cached, by key."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}

    def drop(self, organization_ids: Sequence[str]) -> None:
        """Forget the features of these organizations."""
        for key in keys_of(organization_ids):
            self.entries.pop(key, None)


class RedisFeatureCache:
    """For any number of processes: deletes the keys in Redis.  Connects by the first change, anew after a fault."""

    def __init__(self, redis_url: str) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._redis = redis.Redis.from_url(
            redis_url,
            # Once more at once, for a connection that the server has closed; the library's own pauses are seconds.
            retry=Retry(NoBackoff(), 1),
            socket_connect_timeout=REDIS_SECONDS_MAX,
            socket_timeout=REDIS_SECONDS_MAX,
            client_name="billing-pipeline",
        )

    def drop(self, organization_ids: Sequence[str]) -> None:
        """Delete the keys of these organizations.  Raises what Redis or the connection says."""
        keys = keys_of(organization_ids)
        for start in range(0, len(keys), KEYS_AT_ONCE):
            self._redis.delete(*keys[start : start + KEYS_AT_ONCE])


def tell(on_changed: OnChanged | None, organization_ids: Sequence[str]) -> None:
    """Tell who caches; what that raises is logged and changes nothing, because the change itself is committed."""
    if on_changed and organization_ids:
        try:
            on_changed(organization_ids)
        except Exception as exc:
            logger.warning("Cached features could not be dropped", extra={"error_type": type(exc).__name__})


def keys_of(organization_ids: Sequence[str]) -> list[str]:
    """The keys under which product code caches the features of these organizations."""
    return [f"{KEY_PREFIX}{organization_id}" for organization_id in organization_ids]


def make_feature_cache(redis_url: str | None) -> FeatureCache:
    """Redis where there is one, else this process's memory.  Raises `ValueError` for an address that is none."""
    return MemoryFeatureCache() if redis_url is None else RedisFeatureCache(redis_url)
