"""Wake-ups go out after the commit, a fault of Redis fails nothing, and every effect of an event can be seen."""

import time

import pytest

from billing_pipeline.feed.broadcast import RedisAnnouncer, make_announcer, nobody_listens
from billing_pipeline.orchestration.webhook_parts import make_dispatcher, make_steps
from billing_pipeline.settings import SettingsError, load_settings
from billing_pipeline.stripe_api.client import make_client
from billing_pipeline.webhooks.metrics import RESULT_OF_OUTCOME, WebhookMetrics, WebhookResult
from billing_pipeline.webhooks.replay import named_events, replay
from billing_pipeline_tests.feed.conftest import Feeding, feed_settings
from billing_pipeline_tests.webhooks.events import event, store, subscription


def test_wake_ups_are_published_with_the_newest_id(redis):
    assert make_announcer(redis.url)({"acme": 7, "beta": 9}) is True
    assert redis.published == [("billing:feed:acme", "7"), ("billing:feed:beta", "9")]


def test_without_a_redis_nobody_is_woken():
    assert make_announcer(None) is nobody_listens
    assert nobody_listens({"acme": 7}) is False


def test_a_redis_that_is_away_costs_seconds_once_and_its_password_is_not_told(caplog):
    announce = RedisAnnouncer("redis://:hunter2@127.0.0.1:1")
    began = time.monotonic()

    assert [announce({"acme": number}) for number in range(50)] == [False] * 50
    assert time.monotonic() - began < 5
    assert caplog.text.count("The feed's wake-ups could not be sent") == 1
    assert "hunter2" not in caplog.text


def test_it_is_tried_again_after_a_pause_and_told_once(redis, caplog):
    announce = RedisAnnouncer(redis.url, pause_seconds=0.05)
    back, announce._redis = announce._redis, RedisAnnouncer("redis://127.0.0.1:1")._redis
    for _ in range(3):
        assert announce({"acme": 1}) is False
        time.sleep(0.06)
    announce._redis = back

    assert announce({"acme": 3}) is True
    assert redis.published == [("billing:feed:acme", "3")]
    assert caplog.text.count("The feed's wake-ups could not be sent") == 1


@pytest.mark.slow
def test_an_event_is_broadcast_after_it_is_persisted_and_not_before(feeding, database_url):
    from billing_pipeline.database.connection import connect

    seen = []

    def announce(heads):
        with connect(database_url) as other:
            seen.append((heads, other.execute("SELECT max(feed_id) FROM billing_event_feed").fetchone()[0]))
        return True

    feeding.announce = announce
    feeding.feed(event("customer.subscription.created", subscription()))

    assert seen == [({"acme": 1}, 1)]
    assert feeding.told == [("customer.subscription.created", "broadcasted")]


@pytest.mark.slow
def test_a_replayed_update_changes_the_row_wakes_redis_and_is_counted_and_logged(connection, settings, redis, caplog):
    """`customer.subscription.updated`: failed, mended, replayed; then the row, the wake-up, the metric and the line."""
    settings = settings.model_copy(
        update={"enable_billing_stream": True, "redis_url": load_settings(redis_url=redis.url).redis_url}
    )
    client, metrics = make_client(settings), WebhookMetrics()

    def handled(event_type, outcome):
        metrics.count(RESULT_OF_OUTCOME[outcome], event_type)

    steps = make_steps(
        client,
        settings,
        handled,
        lambda event_type, result: metrics.count(WebhookResult(result), event_type),
    )
    updated = event("customer.subscription.updated", subscription(cancel_at_period_end=True), at=60)
    # As if it had come now, so that the feed's retention does not leave it out.
    [(now,)] = connection.execute("SELECT clock_timestamp()").fetchall()
    store(connection, [event("customer.subscription.created", subscription()), updated], now=now)
    broken = {**updated, "data": {"object": subscription(status=7)}}
    set_payload(connection, broken)
    steps["The dispatcher"](connection)
    steps["The feed"](connection)
    assert outcome_and_row(connection, updated) == ("failed", False)
    assert len(redis.published) == 1

    set_payload(connection, updated)
    caplog.set_level("INFO", "billing_pipeline.milestones")
    dispatcher = make_dispatcher(connection, client, settings, lambda: now, on_handled=handled)
    [replayed] = replay(dispatcher, named_events(connection, [updated["id"]]))
    steps["The feed"](connection)

    # The row.
    assert replayed.processing_outcome == "processed"
    assert outcome_and_row(connection, updated) == ("processed", True)
    # Redis.
    [(feed_id,)] = connection.execute(
        "SELECT feed_id FROM billing_event_feed WHERE stripe_event_id = %s", [updated["id"]]
    ).fetchall()
    assert redis.published[1:] == [("billing:feed:acme", str(feed_id))]
    # Metrics.
    text = metrics.text().decode()
    for result in ("dispatch_failed", "dispatched", "broadcasted"):
        labels = f'event_type="customer.subscription.updated",result="{result}"'
        assert f"stripe_webhook_events_total{{{labels}}} 1.0" in text
    # Log lines, with what they are found by.
    assert f"Webhook processed: event_id={updated['id']}" in caplog.messages
    [line] = [record for record in caplog.records if record.message == "Billing event told"]
    assert (line.stripe_event_id, line.event_type, line.tenant_hint) == (updated["id"], updated["type"], "acme")
    assert (line.organization_id, line.feed_id, line.woken) == ("acme", feed_id, True)


def set_payload(connection, one):
    from psycopg.types.json import Jsonb

    connection.execute("UPDATE stripe_events SET payload = %s WHERE stripe_event_id = %s", [Jsonb(one), one["id"]])


def outcome_and_row(connection, one):
    return connection.execute(
        "SELECT processing_outcome, cancel_at_period_end FROM stripe_events, subscriptions WHERE stripe_event_id = %s",
        [one["id"]],
    ).fetchone()


@pytest.mark.slow
def test_what_cannot_be_told_is_a_line_with_the_same_fields(connection, caplog):
    feeding = Feeding(connection)
    bad = event("customer.subscription.updated", subscription())
    feeding.handle(bad)
    set_payload(connection, {**bad, "data": {"object": subscription(status=7)}})
    feeding.writer.run_once()

    [line] = [record for record in caplog.records if record.message == "Billing event could not be told"]
    assert (line.stripe_event_id, line.event_type, line.tenant_hint) == (bad["id"], bad["type"], "acme")
    assert feeding.told == [(bad["type"], "stream_failed")]


@pytest.mark.slow
def test_without_the_switch_nothing_feeds(settings):
    assert "The feed" not in make_steps(make_client(settings), settings)


@pytest.mark.parametrize("name", ["redis_url", "billing_events_redis_url"])
def test_an_address_that_is_none_of_redis_is_refused(name):
    with pytest.raises(SettingsError, match=f"{name.upper()}: must start with redis://"):
        load_settings(**{name: "localhost:6379"})


def test_the_stream_is_off_until_somebody_turns_it_on():
    assert load_settings().enable_billing_stream is False
    assert feed_settings(redis_url="redis://a", billing_events_redis_url="redis://b").feed_redis_url == "redis://b"
    assert feed_settings(redis_url="redis://a").feed_redis_url == "redis://a"
    assert feed_settings().feed_redis_url is None
