"""The workspace opens by the `saas` entitlement alone, and who lacks it is told where to go."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import pytest

from billing_pipeline.domain.access import Access, Decision, decide_access
from billing_pipeline.errors import StripeRefused, StripeUnavailable
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.checkout import open_checkout
from billing_pipeline.webhooks import questions
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.fix_simulator import client_without_sockets, make_core
from billing_pipeline_tests.webhooks.conftest import serving
from billing_pipeline_tests.webhooks.events import event, store, subscription

TOKEN = "a-token-of-the-web-app-0123456789"
BOOKING = "https://calendar.test/demo"
UPGRADE = {"saas_upgrade_price_id": "price_1", "saas_upgrade_return_url": "https://app.test/billing"}
NOW = datetime(2026, 9, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("entitled", "booking_url", "decision"),
    [
        (True, BOOKING, Access(Decision.WORKSPACE, None, False)),
        (False, BOOKING, Access(Decision.BOOKING, BOOKING, True)),
        (False, None, Access(Decision.DENIED, None, True)),
    ],
)
def test_the_decision_at_the_door(entitled, booking_url, decision):
    assert decide_access(entitled=entitled, booking_url=booking_url, can_upgrade=True) == decision


@pytest.fixture
def door(database_url):
    with serving(database_url, billing_access_token=TOKEN, saas_workspace_booking_url=BOOKING) as running:
        yield running


def ask(intake, path, method="GET", token=TOKEN):
    return intake.ask(method, f"/v1/orgs/{path}", headers={"Authorization": f"Bearer {token}"})


def handle(connection, *events):
    store(connection, events, now=NOW)
    Dispatcher(connection, lambda: NOW).drain(events_max=100)


@pytest.mark.slow
def test_who_has_no_entitlement_is_sent_to_book_a_time(door):
    answer = ask(door, "acme/access")
    assert (answer.status, answer.document) == (
        200,
        {"organization_id": "acme", "decision": "booking", "url": BOOKING, "can_upgrade": False},
    )
    assert answer.headers["cache-control"] == "no-store"

    redirected = ask(door, "acme/access?redirect=true")
    assert (redirected.status, redirected.headers["location"]) == (302, BOOKING)


@pytest.mark.slow
def test_a_subscription_opens_the_workspace_and_its_end_closes_it(connection, door):
    handle(connection, event("customer.subscription.created", subscription()))
    assert ask(door, "acme/access").document["decision"] == "workspace"
    assert ask(door, "acme/entitlements").document == {
        "organization_id": "acme",
        "entitlements": {"saas": {"active": True, "changed_at": NOW.isoformat()}},
    }

    handle(connection, event("customer.subscription.deleted", subscription(status="canceled"), at=1))
    assert ask(door, "acme/access").document["decision"] == "booking"


@pytest.mark.slow
def test_a_paid_checkout_opens_the_workspace_without_a_deploy_and_an_unpaid_one_does_not(connection, door):
    session = {
        "id": "cs_1",
        "object": "checkout.session",
        "mode": "subscription",
        "status": "complete",
        "payment_status": "unpaid",
        "client_reference_id": "acme",
        "customer": "cus_1",
        "subscription": "sub_1",
    }
    handle(connection, event("checkout.session.completed", session))
    assert ask(door, "acme/access").document["decision"] == "booking"

    paid = {**session, "payment_status": "paid"}
    handle(connection, event("checkout.session.async_payment_succeeded", paid, at=60))
    assert ask(door, "acme/access").document["decision"] == "workspace"

    # From now on its subscription decides.
    handle(connection, event("customer.subscription.updated", subscription(status="unpaid"), at=90))
    assert ask(door, "acme/access").document["decision"] == "booking"


@pytest.mark.slow
def test_no_other_feature_and_no_other_event_opens_the_workspace(connection, door):
    handle(connection, event("customer.subscription.created", subscription(status="incomplete")))
    summary = {
        "object": "entitlements.active_entitlement_summary",
        "customer": "cus_1",
        "entitlements": {"data": [{"lookup_key": "saas"}, {"lookup_key": "sso"}], "has_more": False},
    }
    handle(connection, event("entitlements.active_entitlement_summary.updated", summary))

    assert ask(door, "acme/access").document["decision"] == "booking"
    active = ask(door, "acme/entitlements").document["entitlements"]
    assert (active["saas"]["active"], active["sso"]["active"]) == (False, True)


@pytest.mark.slow
@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "\u00e9" * 30])
def test_nobody_learns_anything_without_the_token(door, token):
    answer = door.ask("GET", "/v1/orgs/acme/access", headers={"Authorization": f"Bearer {token}".encode()})

    assert answer.status == 401
    assert TOKEN.encode() not in answer.raw


@pytest.mark.slow
def test_a_question_that_takes_long_holds_up_no_delivery_and_ends_with_503(connection, door, monkeypatch):
    monkeypatch.setattr(questions, "ANSWER_SECONDS", 2)
    with connection.transaction(), ThreadPoolExecutor(8) as pool:
        connection.execute("LOCK TABLE entitlements IN ACCESS EXCLUSIVE MODE")
        slow = [pool.submit(ask, door, "acme/access") for _ in range(8)]
        time.sleep(0.3)
        began = time.monotonic()
        assert door.deliver("evt_1").status == 202
        assert time.monotonic() - began < 1.5
        assert {(answer.result().status, answer.result().headers["retry-after"]) for answer in slow} == {(503, "5")}
        assert time.monotonic() - began < 6

    deadline = time.monotonic() + 10
    while ask(door, "acme/access").status != 200:
        assert time.monotonic() < deadline


@pytest.mark.slow
def test_without_a_token_there_are_no_such_routes(intake):
    assert ask(intake, "acme/access").status == 404


@pytest.mark.slow
@pytest.mark.parametrize("organization", ["%00", "a%0ab", "x" * 256])
def test_what_no_organization_is_called_is_refused(door, organization):
    assert ask(door, f"{organization}/access").status == 422


@pytest.mark.slow
def test_an_organization_upgrades_by_itself_where_that_is_switched_on(connection, database_url):
    core = make_core(lambda: datetime.now(UTC))
    client = client_without_sockets(core)
    product = client.v1.products.create({"name": "Seats"})
    price = client.v1.prices.create(
        {"currency": "usd", "product": product.id, "unit_amount": 900, "recurring": {"interval": "month"}}
    )
    customer = client.v1.customers.create()
    map_customer(connection, "acme", customer.id)
    opened = partial(_open, client, price.id)

    with serving(database_url, billing_access_token=TOKEN, open_checkout=opened, **UPGRADE) as running:
        assert ask(running, "acme/access").document["can_upgrade"] is True
        answer = ask(running, "acme/checkout", "POST")
        session = client.v1.checkout.sessions.list().data[0]
        assert (answer.status, answer.document) == (201, {"organization_id": "acme", "url": session.url})
        assert (session.client_reference_id, session.customer) == ("acme", customer.id)

        core.handle("POST", f"/_control/checkout/sessions/{session.id}/complete", key="sk_test_1")
        handle(connection, *(entry.body(1) for entry in core.state.events.since(0)))
        assert ask(running, "acme/access").document["decision"] == "workspace"
        assert ask(running, "acme/checkout", "POST").status == 409


@pytest.mark.slow
def test_no_organization_buys_as_a_customer_that_was_handed_to_another(connection, database_url):
    asked = []

    def opened(organization_id, customer_id):
        asked.append((organization_id, customer_id))
        return "https://checkout.test"

    map_customer(connection, "acme", "cus_x", "(,2026-01-01)")
    map_customer(connection, "beta", "cus_x", "[2026-01-01,)")
    with serving(database_url, billing_access_token=TOKEN, open_checkout=opened, **UPGRADE) as running:
        ask(running, "acme/checkout", "POST")
        ask(running, "beta/checkout", "POST")

    assert asked == [("acme", None), ("beta", "cus_x")]


def _open(client, price_id, organization_id, customer_id):
    return open_checkout(
        client,
        load_settings(),
        organization_id=organization_id,
        customer_id=customer_id,
        price_id=price_id,
        return_url=UPGRADE["saas_upgrade_return_url"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status"), [(StripeUnavailable("Stripe does not answer."), 503), (StripeRefused("No such price."), 502)]
)
def test_an_upgrade_that_stripe_does_not_open_says_so(database_url, fault, status):
    def fails(_organization_id, _customer_id):
        raise fault

    with serving(database_url, billing_access_token=TOKEN, open_checkout=fails, **UPGRADE) as running:
        assert ask(running, "acme/checkout", "POST").status == status


def test_the_settings_of_an_upgrade_come_together_and_a_token_is_long():
    from billing_pipeline.errors import SettingsError

    with pytest.raises(SettingsError, match="set together"):
        load_settings(saas_upgrade_price_id="price_1")
    with pytest.raises(SettingsError, match="BILLING_ACCESS_TOKEN"):
        load_settings(billing_access_token="short")
    with pytest.raises(SettingsError, match="https"):
        load_settings(saas_workspace_booking_url="ftp://calendar.test")
    assert load_settings().saas_workspace_booking_url is None
