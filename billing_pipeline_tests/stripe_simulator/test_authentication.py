"""Who may speak to the simulator: any test key, never a live one."""

from __future__ import annotations

import base64

import pytest
import stripe

from billing_pipeline_tests.fix_simulator import SimulatorClock, client_without_sockets, make_core


def test_account_is_the_same_for_every_test_key(account):
    ids = {client_without_sockets(account.core, f"sk_test_{n}").v1.accounts.retrieve_current().id for n in "ab"}

    assert ids == {account.core.state.account_id()}


@pytest.mark.parametrize(
    "key", ["sk_live_51secret", "rk_live_51secret", "rk_test_x", "whsec_x", "sk_test_", "nonsense"]
)
def test_any_other_key_is_refused_and_never_repeated(account, key):
    before = account.journal()
    with pytest.raises(stripe.AuthenticationError) as caught:
        client_without_sockets(account.core, key).v1.customers.create({})

    assert caught.value.http_status == 401
    assert caught.value.json_body["error"]["type"] == "invalid_request_error"
    assert key == "sk_test_" or key not in str(caught.value)
    assert ("never takes live keys" in str(caught.value)) == ("_live_" in key)
    assert account.journal() == before


def test_basic_authentication_takes_the_key_as_user_name(account):
    def status(credentials):
        return account.core.handle("GET", "/v1/account", headers={"authorization": f"Basic {credentials}"}).status

    assert status(base64.b64encode(b"sk_test_x:").decode()) == 200
    assert status(base64.b64encode(b"sk_live_x:").decode()) == 401
    assert status("not base64") == 401


@pytest.mark.parametrize("path", ["/v1/account", "/v1/unknown", "/_journal", "/_journal/meter_events"])
def test_nothing_but_health_answers_without_a_key(account, path):
    assert account.core.handle("GET", path).status == 401
    assert account.core.handle("GET", "/_health").status == 200


def test_keys_reach_no_journal(account):
    client_without_sockets(account.core, "sk_test_very_private").v1.customers.create({})

    assert "very_private" not in str(account.journal())


def test_every_answer_carries_a_request_id_and_the_date_of_the_clock(account):
    answers = [
        account.core.handle("GET", "/v1/account", key="sk_test_x"),
        account.core.handle("GET", "/v1/account"),
        account.core.handle("GET", "/_health"),
    ]

    assert {answer.headers["Date"] for answer in answers} == {"Mon, 15 Jun 2026 12:00:30 GMT"}
    ids = {answer.headers["Request-Id"] for answer in answers}
    assert len(ids) == 3
    assert all(id.startswith("req_") for id in ids)


def test_another_moment_makes_another_account(account):
    later = SimulatorClock(still_at=account.clock())
    later.advance(seconds=1)

    assert make_core(later).state.account_id() != account.core.state.account_id()
