"""Cached features go when entitlements may have changed, after the commit, and a broken cache fails no event."""

import asyncio
import time
from datetime import UTC, datetime

import pytest

from billing_pipeline.orchestration.webhook_parts import make_cache_dropper, make_dispatcher
from billing_pipeline.settings import SettingsError, load_settings
from billing_pipeline.stripe_api.client import make_client
from billing_pipeline.stripe_api.objects import Shown
from billing_pipeline.webhooks.dispatch import Dispatcher, DispatchReport
from billing_pipeline.webhooks.feature_cache import KEYS_AT_ONCE, MemoryFeatureCache, make_feature_cache
from billing_pipeline.webhooks.refetch import RefetchReport, refetch_due
from billing_pipeline_tests.tcp_server import running_tcp_server
from billing_pipeline_tests.webhooks.events import SECOND, event, invoice, store, subscription

NOW = datetime(2026, 9, 22, tzinfo=UTC)


class TinyRedis:
    """As much of Redis as DEL needs: keys in a set, commands in RESP, +OK to whatever else a client says first."""

    def __init__(self, *keys):
        self.keys = set(keys)
        self.commands = []

    async def handle(self, reader, writer):
        try:
            while head := await reader.readline():
                command = [await self._argument(reader) for _ in range(int(head[1:]))]
                writer.write(self._answer(command))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _argument(self, reader):
        length = int((await reader.readline())[1:])
        return (await reader.readexactly(length + 2))[:-2].decode()

    def _answer(self, command):
        if command[0] == "HELLO":
            return b"%1\r\n$5\r\nproto\r\n:3\r\n"
        if command[0] != "DEL":
            return b"+OK\r\n"
        self.commands.append(command)
        gone = self.keys & set(command[1:])
        self.keys -= gone
        return b":%d\r\n" % len(gone)


@pytest.fixture
def redis():
    """A Redis with the features of three organizations; `url` is its address."""
    server = TinyRedis("features:acme", "features:beta", "other:acme")
    with running_tcp_server(server.handle) as port:
        server.url = f"redis://127.0.0.1:{port}/0"
        yield server


def test_the_keys_of_changed_organizations_go_and_no_others(redis):
    cache = make_feature_cache(redis.url)
    cache.drop(["acme", "unknown"])

    assert redis.keys == {"features:beta", "other:acme"}
    assert redis.commands == [["DEL", "features:acme", "features:unknown"]]


def test_many_are_dropped_in_bounded_commands(redis):
    make_feature_cache(redis.url).drop([f"org-{n}" for n in range(KEYS_AT_ONCE + 1)])

    assert [len(command) - 1 for command in redis.commands] == [KEYS_AT_ONCE, 1]


def test_without_redis_a_process_forgets_for_itself():
    cache = make_feature_cache(None)
    assert isinstance(cache, MemoryFeatureCache)
    cache.entries |= {"features:acme": {"saas": True}, "features:beta": {"saas": True}}
    cache.drop(["acme", "unknown"])

    assert list(cache.entries) == ["features:beta"]


@pytest.mark.slow
def test_a_dispatched_change_reaches_redis(connection, settings, redis):
    settings = settings.model_copy(update={"redis_url": load_settings(redis_url=redis.url).redis_url})
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    dispatcher = make_dispatcher(connection, make_client(settings), settings, lambda: NOW)

    assert dispatcher.run_once() == DispatchReport(processed=1)
    assert redis.keys == {"features:beta", "other:acme"}


@pytest.mark.slow
def test_a_redis_that_is_away_fails_no_event_and_holds_it_up_for_seconds_at_most(connection, settings, caplog):
    settings = settings.model_copy(
        update={"redis_url": load_settings(redis_url="redis://:hunter2@127.0.0.1:1").redis_url}
    )
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    began = time.monotonic()

    report = make_dispatcher(connection, make_client(settings), settings, lambda: NOW).run_once()

    assert report == DispatchReport(processed=1)
    assert time.monotonic() - began < 5
    assert "Cached features could not be dropped" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("event_type", ["invoice.paid", "invoice.payment_succeeded"])
def test_a_renewal_drops_the_features_too(connection, event_type):
    """For every billing period: what a plan allows may follow from what was paid."""
    told = []
    dispatcher = Dispatcher(connection, lambda: NOW, on_changed=told.append)
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    dispatcher.run_once()
    paid = invoice(status="paid", billing_reason="subscription_cycle")
    store(connection, [event(event_type, paid, at=60)], now=NOW)
    dispatcher.run_once()

    assert [list(organizations) for organizations in told] == [["acme"], ["acme"]]


@pytest.mark.slow
def test_what_stripe_answered_drops_the_features_too(connection, caplog):
    told = []
    tie = [subscription(status="active"), subscription(status="active", cancel_at_period_end=True)]
    store(connection, [event("customer.subscription.updated", about, at=3) for about in tie], now=NOW)
    Dispatcher(connection, lambda: NOW).run_once()

    def on_changed(organizations):
        told.append((list(organizations), connection.info.transaction_status.name))
        raise ConnectionError("the cache is down")

    answer = Shown(subscription(status="canceled"), datetime.fromtimestamp(SECOND + 60, UTC))
    report = refetch_due(connection, lambda *_: answer, lambda: NOW, on_changed=on_changed)

    assert report == RefetchReport(settled=1)
    assert told == [(["acme"], "IDLE")]
    assert "Cached features could not be dropped" in caplog.text


def test_the_dropper_is_made_from_the_settings():
    assert make_cache_dropper(load_settings()) is not None
    with pytest.raises(SettingsError, match="REDIS_URL: must start with redis://"):
        load_settings(redis_url="localhost:6379")
