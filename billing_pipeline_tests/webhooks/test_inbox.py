"""Each webhook event is stored once, whole, with its work, whatever it holds and however often it comes."""

import hashlib
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.errors import DeliveryRefused
from billing_pipeline.webhooks.deliveries import found_delivery, read_delivery
from billing_pipeline.webhooks.inbox import Origin, Result, Stored, count_signature_failures, store
from billing_pipeline_tests.signing import NOW, body_of, event, realistic_event

SHARED = Path(__file__).parents[3] / "shared"
SLA = timedelta(minutes=5)


def delivered(*args, **fields):
    return read_delivery(body_of(event(*args, **fields)), "whsec_…ests")


def keep(connection, *deliveries, origin=Origin.WEBHOOK):
    return store(connection, deliveries, origin=origin, stuck_after=SLA)


def kinds(results):
    return [stored.result for stored in results]


def one(connection, question, *values):
    return connection.execute(question, values).fetchone()


def finish(connection, event_id, outcome="processed"):
    """As the dispatcher does at an event's end."""
    connection.execute("DELETE FROM event_dispatches WHERE stripe_event_id = %s", (event_id,))
    if outcome == "parked":
        fail(connection, event_id, outcome)
    else:
        connection.execute(
            "UPDATE stripe_events SET processing_outcome = %s, processed_at = now() WHERE stripe_event_id = %s",
            (outcome, event_id),
        )


def fail(connection, event_id, outcome="failed"):
    connection.execute(
        "UPDATE stripe_events SET processing_outcome = %s, failed_at = now(), error_class = 'KeyError', "
        "processing_error = 'told' WHERE stripe_event_id = %s",
        (outcome, event_id),
    )
    connection.execute(
        "UPDATE event_dispatches SET due_at = now() + interval '10 min', attempts = 3 WHERE stripe_event_id = %s",
        (event_id,),
    )


def test_an_event_is_stored_with_its_bytes_and_everything_around_it(connection):
    body = body_of(event("evt_a", "invoice.paid"))

    assert keep(connection, read_delivery(body, "whsec_…ests")) == [Stored(Result.ACCEPTED)]

    row = one(
        connection,
        "SELECT event_type, payload_style, api_version, livemode, stripe_account, object_id, object_key, tenant_hint, "
        "raw_body, body_digest, payload, origin, matched_secret, processing_outcome, attempts FROM stripe_events",
    )
    assert row[:8] == ("invoice.paid", "snapshot", "2026-10-28.endive", False, None, "sub_a", "sub_a", "acme")
    assert row[8:] == (
        body,
        hashlib.sha256(body).digest(),
        json.loads(body),
        "webhook",
        "whsec_…ests",
        "received",
        0,
    )
    assert one(connection, "SELECT extract(epoch FROM created_at) FROM stripe_events") == (1_763_640_000,)
    assert one(
        connection, "SELECT stripe_event_id, object_key, due_at <= now(), claimed_at, attempts FROM event_dispatches"
    ) == ("evt_a", "sub_a", True, None, 0)


def test_an_event_of_an_unknown_type_is_stored_too(connection):
    keep(connection, delivered("evt_a", "charge.some_day"))

    assert one(connection, "SELECT event_type FROM stripe_events") == ("charge.some_day",)


def samples():
    """Events as Stripe delivers them; where the folder is there, so are they."""
    if not SHARED.exists():
        why = f"{SHARED} is not there: Stripe's sample events are kept beside it"
        return [pytest.param(None, marks=pytest.mark.skip(why))]
    # Neither a list of names nor what the API answers about a thin event is ever delivered.
    found = [
        pytest.param(sample, id=sample.stem)
        for sample in sorted((SHARED / "stripe").glob("*_events/*.json"))
        if not sample.stem.startswith("_") and ".fetched" not in sample.stem
    ]
    assert found, f"{SHARED} holds no sample events"
    return found


@pytest.mark.parametrize("sample", samples())
def test_every_sample_of_stripes_is_stored_exactly(connection, sample):
    body = sample.read_bytes()

    assert kinds(keep(connection, read_delivery(body, "m"))) == [Result.ACCEPTED]
    assert one(connection, "SELECT raw_body, payload FROM stripe_events") == (body, json.loads(body))


def test_a_batch_says_of_each_delivery_what_it_was_in_their_order(connection):
    keep(connection, delivered("evt_b"))

    results = keep(connection, delivered("evt_c"), delivered("evt_b"), delivered("evt_c"), delivered("evt_a"))

    assert kinds(results) == [Result.ACCEPTED, Result.DUPLICATE, Result.DUPLICATE, Result.ACCEPTED]
    assert one(connection, "SELECT count(*) FROM stripe_events") == (3,)
    assert one(connection, "SELECT count(*) FROM event_dispatches") == (3,)


@pytest.mark.parametrize("outcome", ["processed", "ignored"])
def test_a_repetition_of_a_finished_event_changes_nothing(connection, outcome):
    keep(connection, delivered())
    finish(connection, "evt_1", outcome)

    assert keep(connection, delivered()) == [Stored(Result.DUPLICATE, outcome)]
    assert one(connection, "SELECT count(*) FROM event_dispatches") == (0,)


def test_a_repetition_of_an_event_that_waits_or_is_being_handled_changes_nothing(connection):
    keep(connection, delivered("evt_1"), delivered("evt_2"))
    connection.execute("UPDATE event_dispatches SET claimed_at = now(), fence = 7 WHERE stripe_event_id = 'evt_2'")

    assert keep(connection, delivered("evt_1"), delivered("evt_2")) == [Stored(Result.DUPLICATE, "received")] * 2
    assert one(connection, "SELECT max(fence), count(claimed_at) FROM event_dispatches") == (7, 1)


def test_a_repetition_of_a_failed_event_makes_it_due_now(connection):
    keep(connection, delivered())
    fail(connection, "evt_1")

    assert keep(connection, delivered()) == [Stored(Result.REQUEUED, "failed")]
    assert one(connection, "SELECT due_at <= now(), attempts FROM event_dispatches") == (True, 3)
    assert one(connection, "SELECT processing_outcome, processing_error FROM stripe_events") == ("failed", "told")


def test_a_repetition_of_a_parked_event_gives_it_new_tries(connection):
    keep(connection, delivered())
    finish(connection, "evt_1", "parked")

    assert keep(connection, delivered()) == [Stored(Result.REQUEUED, "parked")]
    assert one(connection, "SELECT due_at <= now(), attempts FROM event_dispatches") == (True, 0)
    assert one(connection, "SELECT processing_outcome FROM stripe_events") == ("received",)


@pytest.mark.parametrize(("minutes", "result"), [(4, Result.DUPLICATE), (6, Result.REQUEUED)])
def test_a_repetition_takes_an_event_from_a_worker_that_has_it_too_long(connection, minutes, result):
    keep(connection, delivered())
    connection.execute(
        "UPDATE event_dispatches SET fence = 7, claimed_at = now() - make_interval(mins => %s)", [minutes]
    )

    assert kinds(keep(connection, delivered())) == [result]
    taken = result is Result.REQUEUED
    assert one(connection, "SELECT fence, claimed_at IS NULL FROM event_dispatches") == (7 + taken, taken)


def test_a_repetition_does_not_wait_for_the_transaction_that_handles_the_event(connection, database_url):
    keep(connection, delivered())
    fail(connection, "evt_1")
    with connect(database_url) as worker, worker.transaction():
        worker.execute("SELECT FROM event_dispatches FOR UPDATE")
        worker.execute("SELECT FROM stripe_events FOR UPDATE")
        connection.execute("SET lock_timeout = '2s'")

        assert kinds(keep(connection, delivered())) == [Result.DUPLICATE]


def test_what_the_sweep_finds_is_stored_once_and_puts_nothing_back(connection):
    found = found_delivery(event("evt_1"))

    assert kinds(keep(connection, found, origin=Origin.SWEEP)) == [Result.ACCEPTED]
    assert one(connection, "SELECT raw_body, body_digest, matched_secret, origin, payload FROM stripe_events") == (
        None,
        None,
        None,
        "sweep",
        event("evt_1"),
    )
    finish(connection, "evt_1", "parked")
    assert keep(connection, found, origin=Origin.SWEEP) == [Stored(Result.DUPLICATE, "parked")]
    assert one(connection, "SELECT count(*) FROM event_dispatches") == (0,)
    assert one(connection, "SELECT count(*) FROM delivery_counts") == (0,)
    assert keep(connection, delivered("evt_1")) == [Stored(Result.REQUEUED, "parked")]


def test_another_body_under_the_same_id_is_told_and_the_first_is_kept(connection):
    first, other = delivered(created=1_763_640_000), delivered(created=1_763_640_001)

    results = keep(connection, first, other, first)

    assert [stored.other_body for stored in results] == [False, True, False]
    assert [stored.other_body for stored in keep(connection, first)] == [False]
    assert one(connection, "SELECT raw_body FROM stripe_events") == (first.raw_body,)


def test_characters_that_postgresql_cannot_hold_are_replaced_in_the_payload_and_kept_in_the_body(connection):
    body = body_of(event()).replace(b'"acme"', rb'"ac\u0000me \ud83d \\u0000"')

    assert kinds(keep(connection, read_delivery(body, "m"), delivered("evt_2"))) == [Result.ACCEPTED] * 2
    kept, name = one(
        connection,
        "SELECT raw_body, payload #>> '{data,object,metadata,organization_id}' FROM stripe_events "
        "WHERE stripe_event_id = 'evt_1'",
    )
    assert kept == body
    assert name == "ac\ufffdme \ufffd \\u0000"


def test_one_poisoned_delivery_keeps_no_other_from_being_stored(connection):
    bad = read_delivery(body_of(event("evt_bad")).replace(b'"acme"', b'"acme"},"far":{"beyond numeric":1e200000'), "m")

    first, refused, last = keep(connection, delivered("evt_1"), bad, delivered("evt_2"))

    assert [first.result, last.result] == [Result.ACCEPTED] * 2
    assert isinstance(refused, DeliveryRefused)
    assert refused.reason == "invalid_payload"
    assert connection.execute("SELECT stripe_event_id FROM event_dispatches ORDER BY 1").fetchall() == [
        ("evt_1",),
        ("evt_2",),
    ]
    assert one(connection, "SELECT sum(deliveries) FROM delivery_counts") == (2,)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"\xff", b'{"id":NaN}', b"{" * 100_000, b"[" * 100_000, b'"', b"\xef\xbb\xbf{}", b'{"id":1}']
)
def test_a_signed_body_that_is_no_event_is_refused(body):
    with pytest.raises(DeliveryRefused) as refused:
        read_delivery(body, "m")

    assert refused.value.reason == "invalid_payload"


def test_deliveries_are_counted_by_type_and_result(connection):
    keep(connection, delivered("evt_1"), delivered("evt_2", "invoice.paid"), delivered("evt_1"))
    keep(connection, delivered("evt_3", "invoice.paid"))

    rows = connection.execute(
        "SELECT event_type, result, deliveries, hour_at = date_trunc('hour', now()) FROM delivery_counts ORDER BY 1, 2"
    ).fetchall()
    assert rows == [
        ("customer.subscription.updated", "accepted", 1, True),
        ("customer.subscription.updated", "duplicate", 1, True),
        ("invoice.paid", "accepted", 2, True),
    ]


def test_signature_failures_are_counted_by_minute_and_reason(connection):
    for _ in range(2):
        count_signature_failures(connection, Counter({(NOW, "invalid_signature"): 3, (NOW, "stale_signature"): 1}))
    count_signature_failures(connection, Counter())

    assert connection.execute("SELECT reason, deliveries FROM signature_failures ORDER BY 1").fetchall() == [
        ("invalid_signature", 6),
        ("stale_signature", 2),
    ]


def test_g01_batches_at_once_in_any_order_store_each_event_once(database_url):
    events = [read_delivery(body_of(realistic_event(f"evt_{number}", number)), "m") for number in range(40)]
    together = threading.Barrier(4)

    def deliver(turn):
        with connect(database_url) as connection:
            together.wait()
            shuffled = events[turn::4] + events[::-1] if turn % 2 else events[::-1] + events[turn::4]
            return kinds(keep(connection, *shuffled))

    with ThreadPoolExecutor(4) as pool:
        results = [result for batch in pool.map(deliver, range(4)) for result in batch]

    assert Counter(results) == {Result.ACCEPTED: 40, Result.DUPLICATE: 160}
    with connect(database_url) as connection:
        assert one(connection, "SELECT count(*) FROM event_dispatches") == (40,)
        assert one(connection, "SELECT sum(deliveries) FROM delivery_counts WHERE result = 'accepted'") == (40,)


def test_what_is_not_committed_is_not_stored(connection):
    connection.execute("ALTER TABLE delivery_counts ADD CONSTRAINT broken CHECK (deliveries < 0)")

    with pytest.raises(Exception, match="broken"):
        keep(connection, delivered())

    assert one(connection, "SELECT count(*) FROM stripe_events") == (0,)


COMMIT_WITNESS = """
CREATE TABLE seen_at_commit (synchronous_commit text);
CREATE FUNCTION see_commit() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS
    $$BEGIN INSERT INTO seen_at_commit VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER see_commit AFTER INSERT OR UPDATE ON delivery_counts
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION see_commit();
"""
"""What holds when a transaction that has counted deliveries is committed."""


def test_what_is_stored_survives_a_crash_whatever_the_role_says(connection, database_url):
    connection.execute(COMMIT_WITNESS)
    connection.execute("SET synchronous_commit = off")

    keep(connection, delivered("evt_1"))
    keep(connection, delivered("evt_1"))

    assert connection.execute("SELECT synchronous_commit FROM seen_at_commit").fetchall() == [("on",), ("on",)]
    assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
