"""Keys with a mode: restricted to scopes, expired, rolled, and all of that in the middle of a run."""

from __future__ import annotations

from datetime import timedelta

import pytest
import stripe

from billing_pipeline.stripe_simulator.keys import KeyMode
from billing_pipeline_tests.fix_simulator import client_without_sockets
from billing_pipeline_tests.stripe_simulator.conftest import NOON, make_account

WRITER, READER, OLD, NEW = "rk_test_writer", "rk_test_reader", "sk_test_old", "sk_test_new"


@pytest.fixture
def account():
    rolled_at = NOON + timedelta(hours=1)
    modes = {
        WRITER: KeyMode(scopes=frozenset({"meter_events_write"})),
        READER: KeyMode(scopes=frozenset({"meters_read", "customers_read", "events_read", "account_read"})),
        OLD: KeyMode(expires_at=rolled_at),
        NEW: KeyMode(starts_at=rolled_at),
        "sk_live_x": KeyMode(),
    }
    return make_account(keys=modes)


def client(account, key):
    return client_without_sockets(account.core, key)


def span(account):
    return {"customer": account.customer, "start_time": account.now // 60 * 60, "end_time": account.now // 60 * 60 + 60}


CALLS = {
    "meter_events_write": [
        lambda c, a: c.v1.billing.meter_events.create(a.event()),
        lambda c, a: c.v2.billing.meter_events.create(a.event()),
        lambda c, a: c.v2.billing.meter_event_session.create(),
    ],
    "meters_read": [
        lambda c, a: c.v1.billing.meters.list(),
        lambda c, a: c.v1.billing.meters.event_summaries.list(a.meter, span(a)),
    ],
    "customers_read": [lambda c, a: c.v1.customers.retrieve(a.customer)],
    "events_read": [lambda c, a: c.v2.core.events.list()],
    "account_read": [lambda c, a: c.v1.accounts.retrieve_current()],
    "customers_write": [lambda c, a: c.v1.customers.create({})],
    "meters_write": [lambda c, a: c.v1.billing.meters.deactivate(a.meter)],
}


@pytest.mark.parametrize("key", [WRITER, READER])
@pytest.mark.parametrize("scope", CALLS)
def test_restricted_key_opens_its_scopes_only(account, key, scope):
    for call in CALLS[scope]:
        if scope in account.core.keys[key].scopes:
            assert call(client(account, key), account) is not None
        else:
            before = account.journal()
            with pytest.raises(stripe.PermissionError, match=f"'{scope}' permission") as caught:
                call(client(account, key), account)
            assert caught.value.http_status == 403
            assert key not in str(caught.value)
            assert account.journal() == before


def test_key_expires_in_the_middle_of_a_run_and_its_successor_takes_over(account):
    client(account, OLD).v1.billing.meter_events.create(account.event())
    with pytest.raises(stripe.AuthenticationError, match="Invalid API Key"):
        client(account, NEW).v1.customers.list()
    account.clock.advance(seconds=3599)
    client(account, OLD).v1.billing.meter_events.create(account.event())
    account.clock.advance(seconds=1)
    with pytest.raises(stripe.AuthenticationError) as caught:
        client(account, OLD).v1.billing.meter_events.create(account.event())
    client(account, NEW).v1.billing.meter_events.create(account.event())

    assert (caught.value.http_status, caught.value.error.code) == (401, "api_key_expired")
    assert OLD not in str(caught.value)
    assert len(account.journal("meter_event")) == 3


def test_live_key_is_refused_whatever_its_mode(account):
    with pytest.raises(stripe.AuthenticationError, match="never takes live keys"):
        client(account, "sk_live_x").v1.customers.list()


def test_restricted_key_without_a_mode_is_unknown(account):
    with pytest.raises(stripe.AuthenticationError, match="Invalid API Key"):
        client(account, "rk_test_other").v1.customers.list()


def test_session_outlives_the_key_that_made_it(account):
    account.clock.advance(minutes=59)
    token = client(account, OLD).v2.billing.meter_event_session.create().authentication_token
    account.clock.advance(minutes=2)
    client(account, token).v2.billing.meter_event_stream.create({"events": [account.event()]})

    assert len(account.journal("meter_event")) == 1
