"""Old bodies go and their events stay, Stripe's answers too; what is not handled, or not old, keeps its body."""

from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.retention import OldBodies, Purged, old_bodies, purge_bodies
from billing_pipeline_tests.webhooks.events import event, store, subscription

pytestmark = pytest.mark.slow
NOW = datetime(2026, 9, 22, tzinfo=UTC)


@pytest.fixture
def inbox(connection):
    """Five old handled events, an old failed one, and a new one."""
    old = [event("charge.succeeded", {"id": "ch", "object": "charge"}, id=f"evt_old_{n}") for n in range(5)]
    failed = event("customer.subscription.updated", subscription(status=7), id="evt_failed")
    store(connection, [*old, failed], now=NOW - timedelta(days=91))
    store(connection, [event("charge.failed", {"id": "ch", "object": "charge"}, id="evt_new")], now=NOW)
    connection.execute("UPDATE stripe_events SET raw_body = 'raw', body_digest = sha256('raw')")
    Dispatcher(connection, lambda: NOW).drain(events_max=100)
    return connection


def test_bodies_of_old_handled_events_go_in_batches_and_the_rest_stays(inbox):
    before = NOW - timedelta(days=90)
    assert old_bodies(inbox, received_before=before) == OldBodies(5, 15, 0)
    progress = []

    assert purge_bodies(inbox, received_before=before, on_progress=progress.append, batch=2) == Purged(5, 0)

    assert progress == [2, 4, 5]
    kept = inbox.execute(
        "SELECT stripe_event_id, event_type, processing_outcome, body_digest IS NOT NULL, raw_body, payload IS NULL"
        " FROM stripe_events ORDER BY 1"
    ).fetchall()
    assert kept == [
        ("evt_failed", "customer.subscription.updated", "failed", True, b"raw", False),
        ("evt_new", "charge.failed", "ignored", True, b"raw", False),
        *((f"evt_old_{n}", "charge.succeeded", "ignored", True, None, True) for n in range(5)),
    ]
    assert purge_bodies(inbox, received_before=before) == Purged(0, 0)
    assert old_bodies(inbox, received_before=before) == OldBodies(0, 0, 0)


def test_what_stripe_showed_when_asked_goes_as_the_bodies_do(connection):
    """A customer's name and address are in an answer as they are in an event."""
    for days in (92, 91, 90, 0):
        connection.execute(
            "INSERT INTO object_snapshots (object_id, object_kind, read_at, reason, payload, stored_at)"
            " VALUES ('cus_1', 'customer', %(at)s, 'reread', '{\"name\": \"Ada\"}', %(at)s)",
            {"at": NOW - timedelta(days=days)},
        )
    before = NOW - timedelta(days=90)
    assert old_bodies(connection, received_before=before) == OldBodies(0, 0, 2)

    assert purge_bodies(connection, received_before=before, batch=1) == Purged(0, 2)

    kept = connection.execute("SELECT object_id, reason, payload IS NULL FROM object_snapshots ORDER BY read_at")
    assert kept.fetchall() == [("cus_1", "reread", gone) for gone in (True, True, False, False)]
    assert old_bodies(connection, received_before=before) == OldBodies(0, 0, 0)
