"""The meter event stream through the official SDK: sessions, batches, and what becomes of each event."""

from __future__ import annotations

from datetime import timedelta

import pytest
import stripe

from billing_pipeline.stripe_simulator.journal import FileJournal
from billing_pipeline_tests.fix_simulator import client_without_sockets, make_core, streaming
from billing_pipeline_tests.stripe_simulator.conftest import make_account

DAY = 86_400
REPORT = "v1.billing.meter.error_report_triggered"


def service(account, token):
    return client_without_sockets(account.core, token).v2.billing.meter_event_stream


def stamp(account, seconds=0):
    return (account.clock() + timedelta(seconds=seconds)).isoformat()


def test_session_has_the_shape_of_stripe_and_lives_15_minutes(account):
    session = account.client.v2.billing.meter_event_session.create()

    assert session.object == "v2.billing.meter_event_session"
    assert (session.created, session.expires_at) == ("2026-06-15T12:00:30.000Z", "2026-06-15T12:15:30.000Z")
    assert session.livemode is False
    assert session.authentication_token not in str(account.journal())


def test_streamed_events_are_counted_once_each(account):
    account.stream(
        account.event("2", identifier="a", timestamp=stamp(account)),
        account.event("0.5", identifier="b", timestamp=stamp(account, -3600)),
    )

    assert account.total() == 2.5
    records = account.journal("meter_event")
    assert [(r["identifier"], r["value"], r["channel"]) for r in records] == [
        ("a", "2", "v2_stream"),
        ("b", "0.5", "v2_stream"),
    ]
    assert [r["timestamp"] for r in records] == [account.now, account.now - 3600]


def test_events_without_identifier_and_timestamp_get_their_own(account):
    account.stream(account.event(), account.event())
    first, second = account.journal("meter_event")

    assert first["identifier"] != second["identifier"]
    assert first["timestamp"] == account.now


def test_many_sessions_are_alive_at_once_and_expire_each_in_its_time(account):
    tokens = []
    for _ in range(2):
        tokens.append(account.client.v2.billing.meter_event_session.create().authentication_token)
        account.clock.advance(minutes=5)
    account.clock.advance(seconds=299)
    for token in tokens:
        service(account, token).create({"events": [account.event()]})
    account.clock.advance(seconds=1)
    with pytest.raises(stripe.TemporarySessionExpiredError) as caught:
        service(account, tokens[0]).create({"events": [account.event()]})
    service(account, tokens[1]).create({"events": [account.event()]})

    assert (caught.value.http_status, caught.value.code) == (401, "billing_meter_event_session_expired")
    assert len(account.journal("meter_event")) == 3


@pytest.mark.parametrize("token", ["sk_test_x", "mes_token_unknown"])
def test_stream_takes_no_key_and_no_unknown_token(account, token):
    with pytest.raises(stripe.TemporarySessionExpiredError):
        service(account, token).create({"events": [account.event()]})

    assert account.journal("meter_event") == []


def test_session_token_opens_nothing_but_the_stream(account):
    token = account.client.v2.billing.meter_event_session.create().authentication_token
    with pytest.raises(stripe.AuthenticationError):
        client_without_sockets(account.core, token).v1.customers.list()


def test_batch_holds_1_to_100_events(account):
    account.stream(*(account.event() for _ in range(100)))
    for events in ([], [account.event() for _ in range(101)]):
        with pytest.raises(stripe.InvalidRequestError, match="1 to 100 items"):
            account.stream(*events)

    assert len(account.journal("meter_event")) == 100


@pytest.mark.parametrize(
    "malformed",
    [
        {"event_name": None},
        {"event_name": "x" * 101},
        {"payload": "text"},
        {"payload": ""},
        {"payload": {"stripe_customer_id": "c", "value": 1}},
        {"identifier": "x" * 101},
        {"timestamp": 1781524800},
        {"timestamp": "2026-06-15 12:00:00"},
        {"timestamp": "2026-06-31T12:00:00Z"},
        {"timestamp": "2026-06-15T12:00:00"},
        {"colour": "red"},
    ],
)
def test_malformed_event_refuses_the_whole_batch_at_once(account, malformed):
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.stream(account.event(), account.event(**malformed))

    assert caught.value.param.startswith("events[1][")
    assert account.journal("meter_event") == []


REJECTIONS = {
    "no_meter": {"event_name": "unknown"},
    "meter_event_customer_not_found": {"payload": {"stripe_customer_id": "cus_x", "value": "1"}},
    "meter_event_no_customer_defined": {"payload": {"value": "1"}},
    "meter_event_value_not_found": {"payload": {"stripe_customer_id": "CUSTOMER"}},
    "meter_event_invalid_value": {"payload": {"stripe_customer_id": "CUSTOMER", "value": "1e3"}},
    "meter_event_value_too_many_digits": {"payload": {"stripe_customer_id": "CUSTOMER", "value": "1234567890123456"}},
    "timestamp_too_far_in_past": {"timestamp": -35 * DAY - 1},
    "timestamp_in_future": {"timestamp": 301},
}


def rejected_event(account, code, identifier="bad"):
    given = dict(REJECTIONS[code])
    if "timestamp" in given:
        given["timestamp"] = stamp(account, given["timestamp"])
    if "payload" in given:
        given["payload"] = {k: account.customer if v == "CUSTOMER" else v for k, v in given["payload"].items()}
    return account.event(identifier=identifier, **given)


@pytest.mark.parametrize("code", REJECTIONS)
def test_event_that_cannot_be_counted_is_accepted_and_reported_later(account, code):
    account.stream(account.event("3", identifier="good"), rejected_event(account, code))
    account.clock.advance(seconds=10)
    [listed] = account.client.v2.core.events.list().data
    [error_type] = account.client.v2.core.events.retrieve(listed.id).data.reason.error_types

    assert account.total() == 3.0
    assert (error_type.code, error_type.error_count) == (code, 1)
    assert error_type.sample_errors[0].request.identifier == "bad"
    assert [(r["identifier"], r["code"]) for r in account.journal("meter_event_rejected")] == [("bad", code)]


def test_event_for_an_archived_meter_is_reported_under_that_meter(account):
    account.client.v1.billing.meters.deactivate(account.meter)
    account.stream(account.event())
    account.clock.advance(seconds=10)
    [listed] = account.client.v2.core.events.list().data

    assert (listed.type, listed.related_object.id) == (REPORT, account.meter)
    assert [r["code"] for r in account.journal("meter_event_rejected")] == ["archived_meter"]


def test_rejected_event_leaves_its_identifier_free(account):
    account.stream(rejected_event(account, "timestamp_in_future", "again"))
    account.stream(account.event("4", identifier="again"))

    assert account.total() == 4.0


def test_duplicate_is_dropped_in_silence_within_a_batch_and_across_channels(account):
    account.send("1", identifier="v1")
    account.stream(account.event("2", identifier="s"), account.event("4", identifier="s"))
    account.stream(account.event("8", identifier="v1"))
    account.clock.advance(minutes=1)

    assert account.total() == 3.0
    assert [r["identifier"] for r in account.journal("meter_event_dropped_duplicate")] == ["s", "v1"]
    assert account.client.v2.core.events.list().data == []
    assert "already exists" in str(account.refused(identifier="s"))


def test_bad_event_with_a_taken_identifier_is_reported_for_what_is_bad(account):
    account.stream(account.event(identifier="a"), rejected_event(account, "timestamp_in_future", "a"))
    account.stream(rejected_event(account, "timestamp_in_future", "a"))

    assert [r["code"] for r in account.journal("meter_event_rejected")] == ["timestamp_in_future"] * 2


@pytest.mark.parametrize("identifier", ["\ud800", "\x00", "ü" * 100])
def test_identifier_of_any_characters_is_kept(tmp_path, identifier):
    """Half a surrogate pair cannot leave the SDK, but JSON can say it."""
    account = make_account(journal=FileJournal(tmp_path / "journal"))
    token = account.client.v2.billing.meter_event_session.create().authentication_token
    batch = {"events": [account.event(identifier=identifier)] * 2}
    answer = account.core.handle("POST", "/v2/billing/meter_event_stream", batch, key=token)

    assert (answer.status, answer.body) == (200, {})
    assert [r["identifier"] for r in account.journal("meter_event")] == [identifier]
    assert [r["identifier"] for r in account.journal("meter_event_dropped_duplicate")] == [identifier]
    account.core.journal.close()


def test_identifier_is_free_again_after_the_horizon(account):
    account.stream(account.event(identifier="a"))
    account.clock.advance(seconds=DAY)
    account.stream(account.event(identifier="a"))

    assert account.total() == 2.0


def test_boundaries_of_the_timestamp_are_those_of_v1(account):
    account.stream(
        account.event("1", timestamp=stamp(account, -35 * DAY)),
        account.event("2", timestamp=stamp(account, 300)),
    )

    assert account.total() == 3.0


def test_offset_and_fraction_of_a_timestamp_are_read_exactly(account):
    account.stream(account.event(timestamp="2026-06-15T14:00:29.999+02:00"))

    assert account.journal("meter_event")[0]["timestamp"] == account.now - 1


def test_same_key_sends_the_batch_once(account):
    stream = streaming(account.client, lambda token: client_without_sockets(account.core, token))
    for _ in range(2):
        stream.create({"events": [account.event(), account.event()]}, {"idempotency_key": "k"})

    assert len(account.journal("meter_event")) == 2


def test_delay_holds_back_the_verdict_not_the_answer():
    account = make_account(stream_delay=timedelta(seconds=60))
    account.stream(account.event("3"), rejected_event(account, "no_meter"))
    account.clock.advance(seconds=59)

    assert (account.total(), account.client.v2.core.events.list().data) == (0, [])
    account.clock.advance(seconds=1)
    assert account.total() == 3.0
    account.clock.advance(seconds=10)
    assert len(account.client.v2.core.events.list().data) == 1


def test_body_that_is_no_json_object_is_refused(account):
    token = account.client.v2.billing.meter_event_session.create().authentication_token
    client = client_without_sockets(account.core, token)
    for body in ("[" * 100_000, "[]", "nope", '{"events": 1}'):
        _, status, _ = client._requestor._client.request(
            "post",
            "http://x/v2/billing/meter_event_stream",
            {"authorization": f"Bearer {token}"},
            body,
        )
        assert status == 400


def test_sessions_survive_a_restart(account):
    token = account.client.v2.billing.meter_event_session.create().authentication_token
    again = make_core(account.clock, account.core.journal)
    client_without_sockets(again, token).v2.billing.meter_event_stream.create({"events": [account.event("5")]})

    assert account.journal("meter_event")[0]["value"] == "5"
