"""The probe about the live billing feed: whether what its switch asks for is there."""

from __future__ import annotations

from billing_pipeline.domain.probes import Finding, fails, passes, warns
from billing_pipeline.usage.preflight.site import Site

REDIS_SECONDS_MAX = 5


def billing_stream(site: Site) -> Finding:
    """What is missing is a failure, though no flush needs it; a Redis that is away only makes the feed slower."""
    found = site.settings
    if not found.enable_billing_stream:
        return passes("off")
    if found.feed_redis_url is None:
        return fails("on, and neither BILLING_EVENTS_REDIS_URL nor REDIS_URL is set, so every stream is answered 503")
    if found.billing_access_token is None:
        return fails("on, and BILLING_ACCESS_TOKEN is not set, so every stream is answered 503")
    if fault := _fault_of(found.feed_redis_url):
        return warns(f"on, and Redis does not answer ({fault}), so clients hear of events seconds later")
    return passes("on; Redis answers")


def _fault_of(redis_url: str) -> str | None:
    # Not the library's own words: they may hold the address with its password.
    import redis

    seconds = REDIS_SECONDS_MAX
    try:
        with redis.Redis.from_url(redis_url, socket_connect_timeout=seconds, socket_timeout=seconds) as client:
            client.ping()
    except Exception as exc:
        return type(exc).__name__
    return None
