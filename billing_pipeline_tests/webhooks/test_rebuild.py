"""Every projection can be made anew from what was stored, and a row that is not what was stored is found."""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.database.connection import connect
from billing_pipeline.database.projection_tables import PROJECTIONS
from billing_pipeline.errors import EventUnreadable, Refused
from billing_pipeline.webhooks import dispatch
from billing_pipeline.webhooks import rebuild as rebuild_module
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.rebuild import rebuild
from billing_pipeline.webhooks.refetch import refetch_due
from billing_pipeline.webhooks.replay import named_events, replay
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.webhooks.events import event, invoice, store, subscription
from billing_pipeline_tests.webhooks.test_convergence import NOW, TIE, Stripe, at, facts, handled, state

pytestmark = pytest.mark.slow


def clock():
    return NOW + timedelta(hours=2)


def found(report):
    return {(one.table_name, one.object_id, one.kind, one.columns) for one in report.differences}


def shadows(connection):
    return connection.execute("SELECT count(*) FROM pg_namespace WHERE nspname ~ 'rebuild'").fetchone()[0]


@given(st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_rebuild_of_any_history_equals_what_is_live(connection, data):
    history = data.draw(st.lists(facts(), min_size=1, max_size=10))
    handled(connection, history, data.draw(st.lists(st.integers(1, 4), max_size=3)))
    before = state(connection)

    report = rebuild(connection, clock)

    assert found(report) == set()
    assert (report.differ, report.replayed.unreadable, report.put_right) == (0, (), None)
    assert state(connection) == before
    assert shadows(connection) == 0


def test_what_stripe_answered_is_part_of_the_rebuild(connection):
    handled(connection, TIE, [])
    refetch_due(connection, Stripe(subscription(status="past_due"), at(60)).read, lambda: NOW)

    report = rebuild(connection, clock)

    assert (report.differ, report.replayed.events, report.replayed.answers) == (0, 2, 1)
    connection.execute(
        "INSERT INTO object_snapshots (object_id, object_kind, read_at, reason, payload) "
        "SELECT object_id, object_kind, read_at - interval '1 s', reason, payload || '{\"status\": \"unpaid\"}' "
        "FROM object_snapshots"
    )
    # An older answer that is stored later changes nothing.
    assert rebuild(connection, clock).differ == 0
    connection.execute("UPDATE object_snapshots SET read_at = read_at - interval '1 day'")
    assert {one.table_name for one in rebuild(connection, clock).differences} == {"subscriptions"}


def test_a_corrupted_row_is_named_and_put_right(connection):
    handled(
        connection, [event("customer.subscription.created", subscription()), event("invoice.created", invoice())], []
    )
    before = state(connection)
    connection.execute("UPDATE subscriptions SET status = 'canceled', is_active = false, version_at = now() + '1 year'")
    connection.execute("UPDATE invoices SET amount_due = 1")
    connection.execute("UPDATE entitlements SET active = false")

    report = rebuild(connection, clock)

    assert found(report) == {
        ("subscriptions", "sub_1", "differs", ("is_active", "status", "version_at")),
        ("invoices", "in_1", "differs", ("amount_due",)),
        ("entitlements", "acme saas", "differs", ("active",)),
    }
    assert state(connection) != before
    applied = rebuild(connection, clock, apply=True)
    assert (applied.put_right, applied.organizations) == (2, ("acme",))
    assert state(connection) == before
    assert rebuild(connection, clock, apply=True).put_right is None


def test_a_lost_row_comes_back_and_one_from_nowhere_goes(connection):
    handled(connection, [event("customer.subscription.created", subscription())], [])
    before = state(connection)
    connection.execute("CREATE TEMP TABLE stray AS SELECT * FROM subscriptions")
    connection.execute("DELETE FROM subscriptions")
    connection.execute("DELETE FROM entitlements")
    connection.execute("DELETE FROM customer_organizations")
    connection.execute(
        "UPDATE stray SET stripe_subscription_id = 'sub_x', stripe_customer_id = 'cus_x', source = 'evt_x'"
    )
    connection.execute("INSERT INTO subscriptions SELECT * FROM stray")
    connection.execute("INSERT INTO customer_organizations VALUES ('cus_x', 'ghost')")
    connection.execute("INSERT INTO entitlements VALUES ('ghost', 'saas', true, 'subscription', 'sub_x', now())")

    report = rebuild(connection, clock, apply=True)

    assert found(report) == {
        ("subscriptions", "sub_1", "only_rebuilt", ()),
        ("subscriptions", "sub_x", "only_live", ()),
        ("customer_organizations", "cus_1", "only_rebuilt", ()),
        ("customer_organizations", "cus_x", "only_live", ()),
        ("entitlements", "acme saas", "only_rebuilt", ()),
        ("entitlements", "ghost saas", "only_live", ()),
    }
    assert state(connection) == before
    assert connection.execute("SELECT active FROM entitlements WHERE organization_id = 'ghost'").fetchall() == [
        (False,)
    ]


def test_rows_whose_payloads_are_gone_are_kept(connection):
    handled(
        connection, [event("customer.subscription.created", subscription()), event("invoice.created", invoice())], []
    )
    before = state(connection)
    connection.execute("UPDATE stripe_events SET payload = NULL WHERE event_type = 'customer.subscription.created'")

    report = rebuild(connection, clock, apply=True)

    assert (report.differ, report.payloads_gone, report.taken_over) == (0, 1, 1)
    assert state(connection) == before


def test_rows_that_stripe_showed_and_whose_answers_are_gone_are_kept(connection):
    handled(connection, TIE, [])
    refetch_due(connection, Stripe(subscription(status="past_due"), at(60)).read, lambda: NOW)
    other_kind = "INSERT INTO object_snapshots (object_id, object_kind, read_at, reason, payload) "
    connection.execute(other_kind + "SELECT object_id, 'invoice', read_at, reason, NULL FROM object_snapshots")
    connection.execute("UPDATE stripe_events SET payload = NULL")
    before = state(connection)
    assert rebuild(connection, clock).taken_over == 0

    connection.execute("UPDATE object_snapshots SET payload = NULL")
    report = rebuild(connection, clock, apply=True)

    assert (report.differ, report.payloads_gone, report.taken_over, report.replayed.answers) == (0, 4, 1, 0)
    assert state(connection) == before


def test_an_event_that_is_not_handled_yet_is_no_difference(connection):
    handled(connection, [event("customer.subscription.created", subscription())], [])
    later = event("customer.subscription.updated", subscription(status="past_due"), at=9)
    broken = event("customer.subscription.updated", subscription(id="sub_2", status=7))
    store(connection, [broken], now=NOW)
    Dispatcher(connection, lambda: NOW).run_once()
    store(connection, [later], now=NOW)

    assert rebuild(connection, clock).differ == 0


def test_an_object_of_nobodys_is_no_difference_and_a_mapping_nobody_decided_on_is(connection):
    handled(connection, [event("customer.subscription.created", subscription(metadata={}))], [])
    assert connection.execute("SELECT processing_outcome FROM stripe_events").fetchone() == ("failed",)
    assert rebuild(connection, clock).differ == 0

    map_customer(connection, "acme", "cus_1")

    assert {one.table_name for one in rebuild(connection, clock).differences} == {
        "customer_organizations",
        "entitlements",
    }
    rebuild(connection, clock, apply=True)
    assert connection.execute("SELECT organization_id, active FROM entitlements").fetchall() == [("acme", True)]


def test_an_event_that_is_replayed_counts_as_handled(connection):
    handled(connection, [event("customer.subscription.created", subscription())], [])
    connection.execute("UPDATE stripe_events SET processing_outcome = 'received', processed_at = NULL")

    assert rebuild(connection, clock).differ == 0


def test_what_is_handled_between_the_comparison_and_the_swap_is_not_lost(connection, database_url, monkeypatch):
    from billing_pipeline.database import shadow

    handled(connection, [event("customer.subscription.created", subscription())], [])
    connection.execute("UPDATE subscriptions SET status = 'paused', version_at = '2099-01-01'")
    stop = shadow.stop_writers

    def meanwhile(_connection):
        later = event("customer.subscription.updated", subscription(status="past_due"), at=9)
        with connect(database_url) as other:
            store(other, [later], now=clock())
            Dispatcher(other, clock).run_once()
        stop(_connection)

    monkeypatch.setattr(shadow, "stop_writers", meanwhile)
    rebuild(connection, clock, apply=True)

    assert connection.execute("SELECT status FROM subscriptions").fetchall() == [("past_due",)]


def test_events_handled_during_the_rebuild_are_no_difference(connection, database_url):
    handled(connection, [event("customer.subscription.created", subscription())], [])

    def meanwhile(_events):
        with connect(database_url) as other:
            store(other, [event("customer.subscription.updated", subscription(status="past_due"), at=9)], now=NOW)
            assert Dispatcher(other, lambda: NOW).run_once().processed == 1

    assert rebuild(connection, clock, progress=meanwhile).differ == 0
    assert connection.execute("SELECT status FROM subscriptions").fetchall() == [("past_due",)]


def test_a_rebuild_that_died_leaves_nothing_and_two_at_once_are_refused(connection, database_url):
    handled(connection, [event("customer.subscription.created", subscription())], [])

    def dies(_events):
        with connect(database_url) as other, pytest.raises(Refused, match="Another rebuild"):
            rebuild(other, clock)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild(connection, clock, progress=dies)

    assert shadows(connection) == 0
    assert rebuild(connection, clock).differ == 0


def test_a_customer_that_a_checkout_no_longer_names_is_nobodys_in_either(connection):
    session = {"id": "cs_1", "object": "checkout.session", "mode": "subscription", "status": "complete"}
    session |= {"payment_status": "paid", "client_reference_id": "acme"}
    first, then = (event("checkout.session.completed", {**session, "customer": f"cus_{n}"}, at=n) for n in (1, 2))
    handled(connection, [first, then], [1, 1])

    assert rebuild(connection, clock).differ == 0
    assert connection.execute("SELECT stripe_customer_id FROM customer_organizations").fetchall() == [("cus_2",)]


def test_what_can_no_longer_be_read_is_named_and_forbids_a_swap(connection):
    handled(connection, [event("customer.subscription.created", subscription())], [])
    connection.execute("""UPDATE stripe_events SET payload = jsonb_set(payload, '{data,object,status}', '7')""")

    report = rebuild(connection, clock)

    assert report.replayed.unreadable == ("evt_0",)
    assert ("subscriptions", "sub_1", "only_live", ()) in found(report)

    with pytest.raises(Refused, match=r"1 stored events or answers .* evt_0"):
        rebuild(connection, clock, apply=True)
    assert connection.execute("SELECT count(*) FROM subscriptions").fetchone() == (1,)


KINDS = {
    "stripe_customers": ("customer.updated", {"id": "cus_1", "object": "customer"}),
    "subscriptions": ("customer.subscription.created", subscription()),
    "invoices": ("invoice.created", invoice()),
    "checkout_sessions": (
        "checkout.session.completed",
        {"id": "cs_1", "object": "checkout.session", "mode": "payment", "status": "complete", "payment_status": "paid"},
    ),
    "feature_summaries": (
        "entitlements.active_entitlement_summary.updated",
        {"customer": "cus_1", "object": "entitlements.active_entitlement_summary", "entitlements": {"data": []}},
    ),
}


def replay_in_a_version_that_cannot(connection, monkeypatch):
    """Every event that has a row is replayed and fails; the row stays."""

    def cannot(*_args):
        raise EventUnreadable("this version cannot read it")

    monkeypatch.setattr(dispatch, "understood", cannot)
    [end] = replay(Dispatcher(connection, clock), named_events(connection, ["evt_0"]))
    monkeypatch.undo()
    assert end.processing_outcome == "failed"


@pytest.mark.parametrize("table", [table.name for table in PROJECTIONS])
def test_a_row_whose_event_was_replayed_and_failed_is_not_dropped(connection, monkeypatch, table):
    handled(connection, [event(*KINDS[table])], [])
    replay_in_a_version_that_cannot(connection, monkeypatch)
    before = state(connection)

    def cannot(*_args):
        raise EventUnreadable("nor can the rebuild")

    monkeypatch.setattr(rebuild_module, "understood", cannot)
    assert rebuild(connection, clock).replayed.unreadable == ("evt_0",)
    with pytest.raises(Refused, match=r"1 stored events or answers .* evt_0"):
        rebuild(connection, clock, apply=True)

    assert state(connection) == before
    assert connection.execute(f"SELECT source FROM {table}").fetchall() == [("evt_0",)]


def test_an_event_that_failed_when_it_was_replayed_and_can_be_read_makes_its_row(connection, monkeypatch):
    handled(connection, [event("customer.subscription.created", subscription())], [])
    replay_in_a_version_that_cannot(connection, monkeypatch)

    report = rebuild(connection, clock, apply=True)

    assert (report.differ, report.replayed.events, report.put_right) == (0, 1, None)
