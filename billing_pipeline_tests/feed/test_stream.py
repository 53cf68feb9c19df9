"""One organization's feed reaches its clients, all of it, once, in order, and nobody else's."""

import http.client
import json
import socket
import threading
import time
from datetime import timedelta

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.feed import hub, read
from billing_pipeline.feed.broadcast import make_announcer
from billing_pipeline.feed.read import PAGE, Beginning, FeedEnds, begin
from billing_pipeline.feed.stream import PATH
from billing_pipeline.feed.upkeep import purge_feed
from billing_pipeline_tests.feed.conftest import NOW, TOKEN, Feeding, streaming, wait_until
from billing_pipeline_tests.webhooks.events import event, invoice, subscription

pytestmark = pytest.mark.slow


def updates(count, organization="acme", first=0):
    about = subscription(
        id=f"sub_{organization}", customer=f"cus_{organization}", metadata={"organization_id": organization}
    )
    return [event("customer.subscription.updated", about, at=first + n) for n in range(count)]


@pytest.fixture
def served(database_url, redis):
    with streaming(database_url, redis.url) as running:
        yield running


@pytest.fixture
def feeding(connection, redis):
    return Feeding(connection, announce=make_announcer(redis.url))


def test_an_event_is_broadcast_to_the_clients_of_its_organization(served, feeding, redis):
    with served.open() as client:
        assert client.status == 200
        assert client.response.getheader("content-type") == "text/event-stream; charset=utf-8"
        assert client.block() == {"retry": "3000", "id": "0"}
        wait_until(lambda: redis.subscribers)
        [told] = updates(1)
        feeding.feed(told)
        message = client.block()

    payload = json.loads(message["data"])
    assert (payload["stripe_event_id"], payload["organization_id"], payload["status"]) == (told["id"], "acme", "active")
    assert redis.published == [("billing:feed:acme", message["id"])]


def test_a_wake_up_of_redis_comes_before_the_next_look_at_the_table(database_url, redis, feeding):
    with streaming(database_url, redis.url, _poll_seconds=60) as served, served.open() as client:
        client.block()
        wait_until(lambda: redis.subscribers)
        feeding.feed(*updates(1))

        assert client.ids(1) == [1]


@pytest.mark.parametrize("fault", ["deaf", "away"])
def test_without_redis_clients_still_get_everything(database_url, redis, connection, fault, caplog):
    redis.is_deaf = True
    url = redis.url if fault == "deaf" else "redis://:hunter2@127.0.0.1:1"
    feeding = Feeding(connection, announce=make_announcer(url))
    with streaming(database_url, url, _poll_seconds=0.1) as served, served.open() as client:
        client.block()
        feeding.feed(*updates(3))

        assert len(client.ids(3)) == 3
    results = {result for _, result in feeding.told}
    assert results == {"broadcasted" if fault == "deaf" else "broadcast_failed"}
    assert feeding.dispatcher.drain(events_max=1).failed == 0
    assert "hunter2" not in caplog.text


def test_a_client_goes_on_after_the_last_id_that_it_has_seen(served, feeding):
    feeding.feed(*updates(PAGE * 2 + 5))
    with served.open(last=0) as client:
        assert client.block()["id"] == "0"
        first = client.ids(PAGE + 3)
    feeding.feed(*updates(2, first=1_000))
    with served.open(last=first[-1]) as client:
        assert client.block()["id"] == str(first[-1])
        rest = client.ids(PAGE + 4)

    assert first + rest == list(range(1, PAGE * 2 + 8))


def test_who_asks_for_no_id_gets_what_comes_and_can_go_on_from_there(served, feeding):
    feeding.feed(*updates(3))
    with served.open() as client:
        assert client.block()["id"] == "3"
    feeding.feed(*updates(1, first=10))
    with served.open(query="organization_id=acme&last_event_id=3") as client:
        client.block()
        assert client.ids(1) == [4]


def test_commits_that_race_lose_and_repeat_nothing_for_a_client_that_comes_again_and_again(
    served, feeding, database_url
):
    """Two connections handle and write at once, and a client leaves and resumes all the while."""
    feeding.feed(*updates(1))
    events = [event("invoice.updated", invoice(id=f"in_{n}", customer="cus_acme"), at=n) for n in range(120)]

    def race(part):
        with connect(database_url) as own:
            racing = Feeding(own, announce=feeding.announce)
            for start in range(0, len(part), 5):
                racing.handle(*part[start : start + 5])
                racing.writer.run_once(limit=3)
            while own.execute("SELECT count(*) FROM feed_candidates").fetchone() != (0,):
                racing.writer.run_once(limit=3)

    racers = [threading.Thread(target=race, args=(events[n::2],)) for n in range(2)]
    for racer in racers:
        racer.start()
    seen, last = [], 1
    while len(seen) < len(events):
        with served.open(last=last) as client:
            assert client.block()["id"] == str(last)
            for _ in range(min(7, len(events) - len(seen))):
                message = client.block()
                last = int(message["id"])
                seen.append(json.loads(message["data"])["stripe_event_id"])
    for racer in racers:
        racer.join()

    assert sorted(seen) == sorted(one["id"] for one in events)
    assert [row[1] for row in feeding.rows()][1:] == seen


def test_organizations_never_see_each_others_events(served, feeding):
    with served.open("acme", last=0) as acme, served.open("beta", last=0) as beta, served.open("*", last=0) as nobody:
        for client in (acme, beta, nobody):
            client.block()
        mixed = [one for pair in zip(updates(20), updates(20, "beta"), strict=True) for one in pair]
        feeding.feed(*mixed)
        of_acme = [json.loads(acme.block()["data"])["organization_id"] for _ in range(20)]
        of_beta = [json.loads(beta.block()["data"])["organization_id"] for _ in range(20)]
        served.stream.end()
        ends = [client.block() for client in (acme, beta, nobody)]

    assert (set(of_acme), set(of_beta)) == ({"acme"}, {"beta"})
    assert ends == [{}, {}, {}]


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_without_the_token_there_is_no_stream(served, token):
    with served.open(token=token) as client:
        assert client.status == 401
        told = json.loads(client.response.read())

    assert told["code"] == "unauthorized"
    assert TOKEN not in json.dumps(told)


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"query": ""}, 422, "organization_missing"),
        ({"query": "organization_id="}, 422, "organization_missing"),
        ({"query": "organization_id=acme&organization_id=beta"}, 422, "organization_missing"),
        ({"query": "organization_id=%00"}, 422, "organization_missing"),
        ({"last": "latest"}, 400, "last_event_id_invalid"),
        ({"last": "-1"}, 400, "last_event_id_invalid"),
        ({"last": "9" * 30}, 400, "last_event_id_invalid"),
    ],
)
def test_what_cannot_be_served_says_why(served, asked, status, code):
    with served.open(**asked) as client:
        assert (client.status, json.loads(client.response.read())["code"]) == (status, code)


def test_only_reading_is_served(served):
    with served.open(method="HEAD") as client:
        assert client.status == 405
    with served.open(method="POST") as client:
        assert client.status == 405


@pytest.mark.parametrize(
    ("settings", "redis_url", "code"),
    [
        ({"enable_billing_stream": False}, "redis://127.0.0.1:1", "stream_disabled"),
        ({}, None, "stream_backend_missing"),
        ({"billing_access_token": None}, "redis://127.0.0.1:1", "stream_token_missing"),
    ],
)
def test_where_there_can_be_no_stream_it_is_503_with_the_reason(database_url, settings, redis_url, code):
    with streaming(database_url, redis_url, settings=settings) as served, served.open() as client:
        assert (client.status, json.loads(client.response.read())["code"]) == (503, code)
        assert served.intake.deliver("evt_1").status == 202


def test_a_redis_of_its_own_comes_before_the_common_one(database_url, redis, feeding):
    own = {"billing_events_redis_url": redis.url}
    with (
        streaming(database_url, "redis://127.0.0.1:1", settings=own, _poll_seconds=60) as served,
        served.open() as client,
    ):
        client.block()
        wait_until(lambda: redis.subscribers)
        feeding.feed(*updates(1))
        assert client.ids(1) == [1]


def test_a_silent_stream_says_that_it_is_still_there(database_url, redis):
    with streaming(database_url, redis.url, heartbeat=0.05) as served, served.open() as client:
        client.block()
        beats = [client.response.readline() for _ in range(6)]

    assert beats == [b": still here\n", b"\n"] * 3


def test_a_stop_ends_streams_at_once(database_url, redis):
    with streaming(database_url, redis.url) as served, served.open() as client:
        client.block()
        began = time.monotonic()
        served.stream.end()
        assert client.block() == {}
        assert time.monotonic() - began < 2
        with served.open() as another:
            assert (another.status, json.loads(another.response.read())["code"]) == (503, "stream_full")


def test_a_client_that_leaves_leaves_nothing_behind(served):
    with served.open(), served.open(), served.open("beta"):
        wait_until(lambda: served.stream._hub.streams == 3)

    wait_until(lambda: served.stream._hub.streams == 0)
    assert dict(served.stream._hub._seats) == {}


def until_closed(connection):
    connection.settimeout(10)
    try:
        while part := connection.recv(1 << 20):
            yield part
    except ConnectionResetError:
        pass


def test_a_client_that_takes_nothing_is_cut_off_and_holds_up_nobody(database_url, redis, feeding, caplog):
    about = subscription(metadata={"organization_id": "acme"}, customer="cus_1")
    feeding.feed(event("customer.subscription.updated", about))
    big = invoice()
    big["lines"]["data"] *= 100
    feeding.feed(*(event("invoice.updated", {**big, "id": f"in_{n}"}, at=n) for n in range(PAGE * 4)))
    with streaming(database_url, redis.url, send_seconds=0.5) as served, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.connect(served.intake.address)
        slow.sendall(
            f"GET {PATH}?organization_id=acme&last_event_id=0 HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        wait_until(lambda: served.stream._hub.streams == 1)
        with served.open(last=0) as client:
            client.block()
            assert client.ids(PAGE * 4 + 1)[-1] == PAGE * 4 + 1
        wait_until(lambda: served.stream._hub.streams == 0)
        received = b"".join(until_closed(slow))

    # What the socket's buffers hold arrives; what would come after it does not.
    assert received.count(b"\nid: ") < PAGE * 4
    assert "its client is too slow" in caplog.text


def test_many_idle_clients_cost_one_question_for_all_of_them(database_url, redis, feeding, connection):
    asked = []
    with streaming(database_url, redis.url, _poll_seconds=0.1) as served:
        served.intake.deliver("evt_1")
        clients = [served.open(f"org-{n % 40}") for n in range(120)]
        for client in clients:
            client.__enter__().block()
        # Those that were woken once go back to sleep.
        feeding.feed(*updates(1, "org-0"))
        time.sleep(0.5)
        ask = served.stream._hub._ask

        def counted(question):
            asked.append(question.func.__name__)
            return ask(question)

        served.stream._hub._ask = counted
        time.sleep(1)
        backends = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()[0]
        for client in clients:
            client.__exit__(None, None, None)

    assert set(asked) == {"heads_of"}
    assert 2 <= len(asked) <= 11
    assert backends == 2, "the intake's, and one for all streams"


def test_too_many_streams_are_refused_and_the_intake_goes_on(served, monkeypatch):
    monkeypatch.setattr(hub, "STREAMS_MAX", 3)
    monkeypatch.setattr(hub, "STREAMS_OF_ORGANIZATION_MAX", 2)
    with served.open() as one, served.open() as two:
        assert {one.status, two.status} == {200}
        with served.open() as third:
            assert (third.status, json.loads(third.response.read())["code"]) == (429, "organization_full")
        with served.open("beta") as third:
            assert third.status == 200
            with served.open("gamma") as fourth:
                assert (fourth.status, json.loads(fourth.response.read())["code"]) == (503, "stream_full")
                assert int(fourth.response.getheader("retry-after")) > 0
        assert served.intake.deliver("evt_1").status == 202


def test_who_was_away_for_longer_than_the_feed_is_kept_is_told_so(served, feeding):
    feeding.feed(*updates(5))
    feeding.now += timedelta(days=31)
    feeding.feed(*updates(2, first=100))
    purge_feed(feeding.connection, fed_before=NOW + timedelta(days=1))
    with served.open(last=2) as client:
        assert client.block()["id"] == "2"
        gap = client.block()
        assert (gap["event"], json.loads(gap["data"])) == ("gap", {"last_seen": 2, "resumed_after": 2})
        assert client.ids(2) == [6, 7]


def test_who_comes_from_another_life_of_the_database_is_told_so_and_misses_nothing_new(served, feeding):
    feeding.feed(*updates(2))
    with served.open(last=900) as client:
        assert client.block()["id"] == "2"
        assert client.block()["event"] == "gap"
        feeding.feed(*updates(1, first=50))
        assert client.ids(1) == [3]


@pytest.mark.parametrize(
    ("last_seen", "ends", "expected"),
    [
        (None, FeedEnds(7, 3, 9), Beginning(7)),
        (None, FeedEnds(0, 0, 0), Beginning(0)),
        (0, FeedEnds(7, 3, 9), Beginning(0)),
        (2, FeedEnds(7, 3, 9), Beginning(2)),
        (1, FeedEnds(7, 3, 9), Beginning(1, has_gap=True)),
        (9, FeedEnds(7, 3, 9), Beginning(9)),
        (10, FeedEnds(7, 3, 9), Beginning(7, has_gap=True)),
        (1, FeedEnds(0, 0, 0), Beginning(0, has_gap=True)),
    ],
)
def test_where_a_reader_begins(last_seen, ends, expected):
    assert begin(last_seen, ends) == expected


def test_a_database_that_is_away_ends_streams_which_then_come_again(served, feeding, connection, caplog):
    feeding.feed(*updates(1))
    with served.open(last=0) as client:
        client.block()
        assert client.ids(1) == [1]
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with served.open(last=1) as client:
        assert client.status == 200
        client.block()
        feeding.feed(*updates(1, first=9))
        assert client.ids(1) == [2]


def test_a_read_that_fails_is_no_traceback_and_no_end_of_the_process(served, feeding, monkeypatch, caplog):
    def broken(*_args, **_kwargs):
        raise ValueError("whsec_of_a_customer")

    feeding.feed(*updates(1))
    monkeypatch.setattr(hub, "rows_after", broken)
    with served.open(last=0) as client:
        client.block()
        assert client.block() == {}

    assert "A billing stream ended: ValueError" in caplog.text
    assert "whsec" not in caplog.text
    assert served.intake.ask("GET", "/healthz").status == 200


def test_the_connection_of_http_is_one_that_goes_on(served):
    """A refusal leaves the connection usable, as a proxy's pool expects."""
    connection = http.client.HTTPConnection(*served.intake.address, timeout=10)
    for _ in range(2):
        connection.request("GET", f"{PATH}?organization_id=acme")
        response = connection.getresponse()
        assert response.status == 401
        response.read()
    connection.close()


def test_a_database_that_does_not_answer_is_503_before_anything_is_sent(served, monkeypatch):
    def away(_question):
        raise DatabaseUnavailable("PostgreSQL does not answer.")

    monkeypatch.setattr(served.stream._hub._connection, "run", away)
    with served.open() as client:
        assert (client.status, json.loads(client.response.read())["code"]) == (503, "database")


def test_a_look_at_the_table_that_fails_is_followed_by_another(database_url, redis, feeding, monkeypatch, caplog):
    redis.is_deaf = True
    looks = []

    def heads(connection, organizations):
        looks.append(organizations)
        if len(looks) < 3:
            raise ValueError("whsec_of_a_customer")
        return read.heads_of(connection, organizations)

    monkeypatch.setattr(hub, "heads_of", heads)
    with streaming(database_url, redis.url, _poll_seconds=0.05) as served, served.open() as client:
        client.block()
        feeding.feed(*updates(1))
        assert client.ids(1) == [1]

    assert "The feed could not be read: ValueError" in caplog.text
    assert "whsec" not in caplog.text
