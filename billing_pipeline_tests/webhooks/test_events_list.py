"""The inbox is found through: by outcome, type, handler and organization, page by page, each event once."""

from datetime import UTC, datetime, timedelta

import pytest
from psycopg.sql import SQL

from billing_pipeline.database import queries
from billing_pipeline.domain.outcomes import HandlerName, Outcome
from billing_pipeline.errors import UserError
from billing_pipeline.webhooks import events_list
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.events_list import KINDS, Choice, list_events
from billing_pipeline.webhooks.events_show import annotate_event, show_event
from billing_pipeline.webhooks.handlers import HANDLERS
from billing_pipeline_tests.webhooks.events import event, invoice, store, subscription

pytestmark = pytest.mark.slow
NOW = datetime(2026, 9, 22, tzinfo=UTC)


def ids(page):
    return [found.stripe_event_id for found in page.events]


@pytest.fixture
def inbox(connection):
    """A subscription, two invoices, a customer, a thin event, an unreadable one and one that is ignored."""
    events = [
        event("customer.subscription.created", subscription(), id="evt_sub"),
        event("invoice.created", invoice(), id="evt_inv1"),
        event("invoice.created", invoice(id="in_2", customer="cus_2", parent=None), id="evt_inv2"),
        event("customer.created", {"id": "cus_1", "object": "customer"}, id="evt_cus"),
        event("customer.subscription.updated", subscription(id="sub_7", status=7), id="evt_broken"),
        event("charge.succeeded", {"id": "ch_1", "object": "charge"}, id="evt_charge"),
        {
            "id": "evt_thin",
            "object": "v2.core.event",
            "created": "2026-09-21T13:00:00.123Z",
            "livemode": False,
            "type": "v1.invoice.paid",
            "related_object": {"id": "in_1", "type": "invoice"},
        },
    ]
    for number, one in enumerate(events):
        store(connection, [one], now=NOW + timedelta(minutes=number))
    Dispatcher(connection, lambda: NOW + timedelta(hours=1)).drain(events_max=100)
    return connection


def test_the_newest_come_first_with_how_they_stand(inbox):
    page = list_events(inbox, Choice(), limit=10)

    assert ids(page) == ["evt_thin", "evt_charge", "evt_broken", "evt_cus", "evt_inv2", "evt_inv1", "evt_sub"]
    assert page.more == 0
    broken = page.events[2]
    assert (broken.processing_outcome, broken.error_class, broken.attempts) == ("failed", "unreadable", 1)
    assert broken.due_at == NOW + timedelta(hours=1, seconds=30)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_show_every_event_once_also_where_many_came_at_once(inbox, limit):
    inbox.execute("UPDATE stripe_events SET received_at = %s WHERE stripe_event_id <> 'evt_thin'", [NOW])
    seen, after, left = [], None, None
    while left != 0:
        page = list_events(inbox, Choice(), limit=limit, after=after)
        left, after = page.more, page.events[-1].stripe_event_id
        seen += ids(page)
        assert len(seen) + left == 7

    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == 7


def test_more_than_anybody_reads_is_not_counted_to_the_end(inbox, monkeypatch):
    monkeypatch.setattr(events_list, "COUNTED_MAX", 3)

    assert list_events(inbox, Choice(), limit=1).more == 4


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(outcomes=[Outcome.FAILED]), {"evt_broken"}),
        (Choice(outcomes=[Outcome.FAILED, Outcome.IGNORED]), {"evt_broken", "evt_charge"}),
        (Choice(event_type="invoice.created"), {"evt_inv1", "evt_inv2"}),
        (Choice(handler=HandlerName.SUBSCRIPTION), {"evt_sub", "evt_broken"}),
        (Choice(handler=HandlerName.CUSTOMER), {"evt_cus"}),
        (Choice(handler=HandlerName.INVOICE), {"evt_inv1", "evt_inv2"}),
        (Choice(handler=HandlerName.THIN), {"evt_thin"}),
        (Choice(handler=HandlerName.FEATURES), set()),
        (Choice(handler=HandlerName.CHECKOUT, outcomes=[Outcome.PROCESSED]), set()),
        (Choice(organization_id="acme"), {"evt_sub", "evt_broken", "evt_inv1", "evt_cus", "evt_thin"}),
        (Choice(organization_id="nobody"), set()),
    ],
    ids=[
        "failed",
        "two outcomes",
        "type",
        "subscription",
        "customer",
        "invoice",
        "thin",
        "features",
        "checkout",
        "acme",
        "x",
    ],
)
def test_each_filter_leaves_out_what_it_says(inbox, choice, expected):
    assert set(ids(list_events(inbox, choice, limit=100))) == expected


def test_every_handler_can_be_chosen():
    assert set(KINDS.values()) == set(HANDLERS)


def test_a_page_behind_an_unknown_event_is_refused(inbox):
    with pytest.raises(UserError, match=r"Not in the inbox: evt_nowhere\. Nothing was done\."):
        list_events(inbox, Choice(), limit=1, after="evt_nowhere")


def test_few_failed_ones_among_many_are_found_by_their_index(connection):
    connection.execute(
        "INSERT INTO stripe_events (stripe_event_id, event_type, payload_style, livemode, object_key, created_at,"
        " origin, processing_outcome, processed_at)"
        " SELECT 'evt_' || n, 'charge.succeeded', 'snapshot', false, 'k', now(), 'webhook', 'ignored', now()"
        " FROM generate_series(1, 20000) n"
    )
    connection.execute("ANALYZE stripe_events")
    parts = {"chosen_events": queries.part("chosen_events")}
    params = Choice(outcomes=[Outcome.FAILED]).params() | {"after": None, "limit": 20}
    statement = queries.statements()["list_events"]
    plan = connection.execute(SQL("EXPLAIN ") + SQL(statement).format(**parts), params).fetchall()
    assert any("stripe_events_failed_idx" in line for (line,) in plan)


def test_an_event_shows_the_row_that_it_wrote_and_the_event_that_overtook_it(inbox):
    mine = show_event(inbox, "evt_sub")
    assert [(row.table_name, row.row_id, row.source) for row in mine.rows] == [("subscriptions", "sub_1", "evt_sub")]

    later = event("customer.subscription.updated", subscription(status="past_due"), at=60, id="evt_later")
    store(inbox, [later], now=NOW)
    Dispatcher(inbox, lambda: NOW + timedelta(hours=1)).drain(events_max=10)
    assert [row.source for row in show_event(inbox, "evt_sub").rows] == ["evt_later"]


def test_an_event_shows_what_failed_what_to_do_and_what_stripe_is_asked(inbox):
    broken = show_event(inbox, "evt_broken")
    assert "Install a version that reads it" in broken.to_do
    assert broken.facts["processing_outcome"] == "failed"
    assert [dict(question)["reason"] for question in show_event(inbox, "evt_thin").questions] == ["thin"]
    assert show_event(inbox, "evt_sub").to_do is None


def test_a_payload_is_shown_without_the_person(connection):
    about = {"id": "cus_1", "object": "customer", "email": "ada@example.com", "name": "Ada"}
    store(connection, [event("customer.created", about, id="evt_ada")], now=NOW)

    shown = show_event(connection, "evt_ada").facts["payload"]["data"]["object"]
    assert shown == {"id": "cus_1", "object": "customer", "email": "[redacted]", "name": "[redacted]"}


def test_notes_are_added_and_marked_and_never_changed(inbox):
    annotate_event(inbox, "evt_broken", " asked Stripe, INC-42 ", actor="Ada", now=NOW)
    annotate_event(inbox, "evt_broken", "mended", actor="Grace", now=NOW + timedelta(hours=1))

    assert [(note.actor, note.note) for note in show_event(inbox, "evt_broken").notes] == [
        ("Ada", "asked Stripe, INC-42"),
        ("Grace", "mended"),
    ]
    marked = [found.stripe_event_id for found in list_events(inbox, Choice(), limit=100).events if found.has_notes]
    assert marked == ["evt_broken"]


@pytest.mark.parametrize("note", ["", "  ", "two\nlines", "\x1b[31mred", "x" * 2001])
def test_a_note_that_is_none_is_refused(inbox, note):
    with pytest.raises(UserError, match=r"Nothing was noted\."):
        annotate_event(inbox, "evt_broken", note, actor="Ada", now=NOW)
    with pytest.raises(UserError, match="Not in the inbox"):
        annotate_event(inbox, "evt_nowhere", "right", actor="Ada", now=NOW)
