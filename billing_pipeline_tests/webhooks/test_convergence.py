"""The same events in any order, any number of times, leave the same rows; ties are settled by Stripe's answer."""

import copy
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.domain.projections.projected import ObjectKind
from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.stripe_api.objects import Shown
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.refetch import RefetchReport, refetch_due
from billing_pipeline_tests.fix_simulator import SimulatorClock
from billing_pipeline_tests.webhooks.events import SECOND, event, invoice, store, subscription

pytestmark = pytest.mark.slow
NOW = datetime(2026, 9, 22, tzinfo=UTC)
TABLES = (
    "stripe_customers",
    "subscriptions",
    "invoices",
    "checkout_sessions",
    "feature_summaries",
    "customer_organizations",
    "entitlements",
)
KEPT_OF_DISPATCH = {"changed_at", "source"}
"""Of two equal contents of one second either may be the source, and the gate may have opened and closed between."""


def state(connection):
    """Everything that is kept of Stripe's objects, without what depends on when it was handled."""
    found = {}
    for table in TABLES:
        cursor = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
        names = [column.name for column in cursor.description]
        found[table] = [
            {name: value for name, value in zip(names, row, strict=True) if name not in KEPT_OF_DISPATCH}
            for row in cursor
        ]
    # What an organization had once and has no more is history: the row stays and says no.
    found["entitlements"] = [row for row in found["entitlements"] if row["active"] or row["reason"] == "subscription"]
    return found


def emptied(connection):
    connection.execute(f"TRUNCATE event_dispatches, object_refetches, {', '.join(TABLES)}")
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("DELETE FROM stripe_events")


def handled(connection, deliveries, batches):
    """Deliver events in this order, some again, in batches of these sizes, and handle them all."""
    emptied(connection)
    clock = SimulatorClock(NOW)
    dispatcher = Dispatcher(connection, clock)
    for number, one in enumerate(deliveries):
        # A repetition is another event about the same fact, because the inbox keeps each id once.
        store(connection, [{**one, "id": f"evt_{number}"}], now=NOW)
    for size in batches:
        dispatcher.run_once(limit=size)
    dispatcher.drain(events_max=1_000)
    return dispatcher


STATUSES = ("incomplete", "trialing", "active", "past_due", "unpaid", "canceled")
INVOICES = ("draft", "open", "uncollectible", "paid")


def in_older_shape(about):
    """The same object as API versions before 2025-03-31 wrote it."""
    older = copy.deepcopy(about)
    if older["object"] == "subscription":
        for item in older["items"]["data"]:
            for bound in ("current_period_start", "current_period_end"):
                older[bound] = item.pop(bound)
    if older["object"] == "invoice":
        older["subscription"] = older.pop("parent")["subscription_details"]["subscription"]
        for line in older["lines"]["data"]:
            details = line.pop("parent")["subscription_item_details"]
            pricing = line.pop("pricing")
            line |= details | {
                "price": {
                    "id": pricing["price_details"]["price"],
                    "unit_amount_decimal": pricing["unit_amount_decimal"],
                    "recurring": {"usage_type": "metered"},
                }
            }
            line.pop("quantity_decimal")
    return older


@st.composite
def facts(draw):
    """One event about one of few objects, in one of few seconds, so that ties are common."""
    at = draw(st.integers(0, 3))
    older = draw(st.booleans())
    organization = draw(st.sampled_from([{}, {"organization_id": "acme"}, {"organization_id": "beta"}]))
    customer = draw(st.sampled_from(["cus_1", "cus_2"]))
    match draw(st.sampled_from(["subscription", "invoice", "checkout", "customer", "features"])):
        case "subscription":
            number = draw(st.sampled_from("12"))
            about = subscription(
                id=f"sub_{number}",
                customer=f"cus_{number}",
                status=draw(st.sampled_from(STATUSES)),
                metadata=organization,
            )
            kind = "customer.subscription.updated"
        case "invoice":
            about = invoice(status=draw(st.sampled_from(INVOICES)), amount_due=draw(st.integers(0, 2)))
            kind = "invoice.updated"
        case "checkout":
            about = {
                "id": "cs_1",
                "object": "checkout.session",
                "mode": "subscription",
                "customer": customer,
                "subscription": draw(st.sampled_from(["sub_1", "sub_9"])),
                "status": draw(st.sampled_from(["open", "complete", "expired"])),
                "payment_status": draw(st.sampled_from(["unpaid", "paid"])),
                "client_reference_id": draw(st.sampled_from([None, "acme"])),
            }
            kind = "checkout.session.completed"
        case "customer":
            about = {"id": customer, "object": "customer", "metadata": organization}
            kind = draw(st.sampled_from(["customer.updated", "customer.deleted"]))
        case _:
            names = draw(st.sets(st.sampled_from(["saas", "sso", "audit"])))
            about = {
                "object": "entitlements.active_entitlement_summary",
                "customer": customer,
                "entitlements": {"data": [{"lookup_key": name} for name in sorted(names)], "has_more": False},
            }
            kind = "entitlements.active_entitlement_summary.updated"
    return event(kind, in_older_shape(about) if older else about, at=at)


@given(st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_and_repetition_change_nothing(connection, data):
    history = data.draw(st.lists(facts(), min_size=1, max_size=10))
    again = data.draw(st.lists(st.sampled_from(history), max_size=4))
    shuffled = data.draw(st.permutations([*history, *again]))
    batches = data.draw(st.lists(st.integers(1, 4), max_size=3))

    handled(connection, history, [])
    expected = state(connection)
    handled(connection, shuffled, batches)

    assert state(connection) == expected


def test_both_shapes_of_an_object_say_the_same(connection):
    about = subscription()
    today, older = (
        event("customer.subscription.updated", about),
        event("customer.subscription.updated", in_older_shape(about)),
    )
    bill = invoice(status="open")
    handled(connection, [today, event("invoice.finalized", bill)], [])
    expected = state(connection)
    handled(connection, [older, event("invoice.finalized", in_older_shape(bill))], [])

    assert state(connection) == expected


@pytest.mark.parametrize("terminal", ["paid", "void"])
def test_an_invoice_never_leaves_a_terminal_state(connection, terminal):
    end, straggler = (
        event("invoice.paid", invoice(status=terminal)),
        event("invoice.updated", invoice(status="open"), at=5),
    )
    for order in ([end, straggler], [straggler, end]):
        handled(connection, order, [1])

        assert state(connection)["invoices"][0]["status"] == terminal


class Stripe:
    """Stripe's side: one object, a clock of its own, and nothing else."""

    def __init__(self, about, as_of):
        self.about, self.as_of, self.asked = about, as_of, []

    def read(self, kind, object_id):
        self.asked.append((kind, object_id))
        if isinstance(self.about, Exception):
            raise self.about
        return Shown(self.about, self.as_of)


def at(seconds):
    return datetime.fromtimestamp(SECOND + seconds, UTC)


TIE = [
    event("customer.subscription.updated", subscription(status="active", cancel_at_period_end=True), at=3),
    event("customer.subscription.updated", subscription(status="active", cancel_at_period_end=False), at=3),
]


@pytest.mark.parametrize("order", [TIE, TIE[::-1]], ids=["one way", "the other"])
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two batches"])
def test_a_tie_is_settled_by_asking_stripe(connection, order, together):
    handled(connection, order, [] if together else [1, 1])
    stripe = Stripe(subscription(status="past_due"), at(60))

    assert refetch_due(connection, stripe.read, lambda: NOW) == RefetchReport(settled=1)

    assert stripe.asked == [(ObjectKind.SUBSCRIPTION, "sub_1")]
    assert state(connection)["subscriptions"][0]["status"] == "past_due"
    assert refetch_due(connection, stripe.read, lambda: NOW) == RefetchReport()
    assert connection.execute("SELECT object_id, reason, read_at FROM object_snapshots").fetchall() == [
        ("sub_1", "tie", at(60))
    ]


def test_two_events_that_say_the_same_are_no_tie(connection):
    paid = invoice(status="paid")
    handled(connection, [event("invoice.paid", paid), event("invoice.payment_succeeded", paid)], [])

    assert connection.execute("SELECT count(*) FROM object_refetches").fetchone() == (0,)


def test_an_answer_from_the_same_second_decides_nothing_yet(connection):
    handled(connection, TIE, [])
    stripe = Stripe(subscription(status="past_due"), at(3))

    assert refetch_due(connection, stripe.read, lambda: NOW) == RefetchReport(waiting=1)
    stripe.as_of = at(4)
    assert refetch_due(connection, stripe.read, lambda: NOW + timedelta(seconds=2)) == RefetchReport(settled=1)
    assert state(connection)["subscriptions"][0]["status"] == "past_due"


def test_a_question_waits_while_stripe_does_not_answer(connection):
    handled(connection, TIE, [])
    stripe = Stripe(StripeUnavailable("Stripe does not answer."), at(60))

    assert refetch_due(connection, stripe.read, lambda: NOW) == RefetchReport(failed=1)
    assert refetch_due(connection, stripe.read, lambda: NOW) == RefetchReport()
    stripe.about = subscription()
    assert refetch_due(connection, stripe.read, lambda: NOW + timedelta(seconds=30)) == RefetchReport(settled=1)


def test_an_answer_that_cannot_be_kept_holds_up_no_other(connection, caplog):
    handled(
        connection,
        [
            *TIE,
            *(
                {**one, "data": {"object": subscription(id="sub_2", cancel_at_period_end=bool(n))}}
                for n, one in enumerate(TIE)
            ),
        ],
        [],
    )
    assert connection.execute("SELECT count(*) FROM object_refetches").fetchone() == (2,)
    unkeepable = subscription(status="past_due", metadata={"note": "secret-of-acme \x00"})

    def read(kind, object_id):
        return Shown(unkeepable if object_id == "sub_1" else subscription(id="sub_2", status="past_due"), at(60))

    assert refetch_due(connection, read, lambda: NOW) == RefetchReport(settled=1, failed=1)
    assert refetch_due(connection, read, lambda: NOW) == RefetchReport()
    assert "secret-of-acme" not in caplog.text
    assert connection.execute("SELECT attempts FROM object_refetches").fetchone() == (1,)


def test_an_event_after_the_answer_wins_and_one_before_it_does_not(connection):
    handled(connection, TIE, [])
    refetch_due(connection, Stripe(subscription(status="past_due"), at(60)).read, lambda: NOW)
    late = event("customer.subscription.updated", subscription(status="unpaid"), at=50)
    store(connection, [late], now=NOW)
    dispatcher = Dispatcher(connection, lambda: NOW)
    dispatcher.run_once()
    assert state(connection)["subscriptions"][0]["status"] == "past_due"

    store(connection, [event("customer.subscription.updated", subscription(status="active"), at=61)], now=NOW)
    dispatcher.run_once()
    assert state(connection)["subscriptions"][0]["status"] == "active"


def test_a_list_cut_short_is_asked_for_whole(connection):
    first = invoice(lines={"data": invoice()["lines"]["data"], "has_more": True})
    handled(connection, [event("invoice.created", first)], [])
    assert state(connection)["invoices"][0]["lines_complete"] is False
    line = invoice()["lines"]["data"][0]
    whole = invoice(lines={"data": [line, {**line, "id": "il_2"}], "has_more": False})

    assert refetch_due(connection, Stripe(whole, at(60)).read, lambda: NOW) == RefetchReport(settled=1)
    assert [line["invoice_line_id"] for line in state(connection)["invoices"][0]["lines"]] == ["il_1", "il_2"]


def test_a_draft_that_stripe_no_longer_has_is_deleted(connection):
    handled(connection, [event("invoice.created", invoice()), event("invoice.updated", invoice(amount_due=1))], [])
    gone = {"id": "in_1", "object": "invoice", "deleted": True}

    assert refetch_due(connection, Stripe(gone, at(60)).read, lambda: NOW) == RefetchReport(settled=1)
    assert state(connection)["invoices"][0]["status"] == "deleted"


def test_two_workers_that_see_one_half_of_a_tie_each_notice_it(connection, database_url):
    """Between the first's write and its commit the second must wait, or neither would know of the other."""
    import threading

    from billing_pipeline.database.connection import connect
    from billing_pipeline.webhooks.claims import claim_due

    emptied(connection)
    store(connection, [{**TIE[0], "id": "evt_a"}], now=NOW)
    dispatcher = Dispatcher(connection, lambda: NOW)
    first = claim_due(connection, limit=1, sla=dispatcher.sla, now=NOW)
    store(connection, [{**TIE[1], "id": "evt_b"}], now=NOW)
    # The exclusion of one object's events only saves work; here it is got round.
    connection.execute("UPDATE event_dispatches SET claimed_at = %s, fence = 1 WHERE stripe_event_id = 'evt_b'", [NOW])
    with connect(database_url) as other:
        second = [type(first[0])("evt_b", 1)]
        thread = threading.Thread(target=Dispatcher(other, lambda: NOW).handle, args=[second])
        with connection.transaction():
            dispatcher._batch(first, {})
            thread.start()
            thread.join(timeout=0.3)
            assert thread.is_alive()
        thread.join(timeout=10)

    assert connection.execute("SELECT object_id, reason FROM object_refetches").fetchall() == [("sub_1", "tie")]
