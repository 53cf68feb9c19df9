"""The journal: a restart forgets nothing, a torn write does no harm, and a person can read what was counted."""

from __future__ import annotations

import errno
import json
import os
from datetime import timedelta
from decimal import Decimal

import pytest
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline.errors import UserError
from billing_pipeline.stripe_simulator.journal import FileJournal
from billing_pipeline_tests.fix_simulator import KEY, SimulatorClock, client_without_sockets, make_core
from billing_pipeline_tests.stripe_simulator.conftest import NOON, make_account

EVERYTHING = ["/v1/account", "/v1/products", "/v1/prices", "/v1/customers", "/v1/billing/meters", "/v1/subscriptions"]


def everything(core):
    """All that can be read from a simulator, without the headers that differ by request."""
    return [core.handle("GET", path, key=KEY).body for path in [*EVERYTHING, "/_journal", "/_journal/meter_events"]]


def fill(account):
    client = account.client.v1
    product = client.products.create({"name": "API"})
    price = client.prices.create(
        {
            "currency": "usd",
            "product": product.id,
            "unit_amount": 5,
            "recurring": {"interval": "month", "usage_type": "metered", "meter": account.meter},
        }
    )
    client.subscriptions.create({"customer": account.customer, "items": [{"price": price.id}]})
    client.customers.delete(client.customers.create({}).id)
    account.send("2.5", identifier="a", options={"idempotency_key": "k"})


def test_restart_forgets_nothing(tmp_path):
    journal = FileJournal(tmp_path / "journal")
    account = make_account(journal=journal)
    fill(account)
    before = everything(account.core)
    journal.close()
    again = make_core(account.clock, FileJournal(tmp_path / "journal"))
    client = client_without_sockets(again)
    payload = {"stripe_customer_id": account.customer, "value": "2.5"}
    same = {"event_name": "api_calls", "payload": payload, "identifier": "a"}

    assert everything(again) == before
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier a"):
        client.v1.billing.meter_events.create(same)
    replayed = client.v1.billing.meter_events.create(same, {"idempotency_key": "k"})
    assert replayed.last_response.headers["idempotent-replayed"] == "true"
    assert client.v1.customers.create({}).id not in str(before)
    again.journal.close()


def test_lag_is_not_decided_again_at_a_restart(tmp_path):
    journal = FileJournal(tmp_path / "journal")
    account = make_account(journal=journal, lag=timedelta(hours=1))
    account.send(timestamp=account.now)
    journal.close()
    again = make_core(account.clock, FileJournal(tmp_path / "journal"))
    minute = account.now // 60 * 60
    params = {"customer": account.customer, "start_time": str(minute), "end_time": str(minute + 60)}
    path = f"/v1/billing/meters/{account.meter}/event_summaries"

    assert again.handle("GET", path, params, key=KEY).body["data"] == []
    account.clock.advance(hours=1)
    assert len(again.handle("GET", path, params, key=KEY).body["data"]) == 1
    again.journal.close()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400))
def test_journal_cut_anywhere_keeps_every_whole_line(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "journal"
    journal = FileJournal(path)
    account = make_account(journal=journal)
    account.send("1")
    account.send("2")
    journal.close()
    whole = path.read_bytes()
    left = whole[: len(whole) - cut]
    path.write_bytes(left)
    again = make_core(SimulatorClock(still_at=NOON), FileJournal(path))
    lines = left[: left.rfind(b"\n") + 1]

    assert path.read_bytes() == lines
    assert again.state.line == lines.count(b"\n")
    again.handle("POST", "/v1/customers", key=KEY)
    assert [json.loads(line)["line"] for line in path.read_bytes().splitlines()] == list(
        range(1, lines.count(b"\n") + 2)
    )
    again.journal.close()


def test_file_of_a_person_is_refused_and_left_alone(tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("my notes, without a newline")
    with pytest.raises(UserError, match="not a journal of this simulator"):
        FileJournal(notes)

    assert notes.read_text() == "my notes, without a newline"


def test_damaged_journal_is_refused_by_name(tmp_path):
    path = tmp_path / "journal"
    journal = FileJournal(path)
    make_account(journal=journal)
    journal.close()
    path.write_bytes(path.read_bytes().replace(b'"kind"', b'"kin', 1))
    damaged = FileJournal(path)
    with pytest.raises(UserError, match=str(path)):
        make_core(journal=damaged)
    damaged.close()


@pytest.mark.parametrize("lost", [b'"kind"', b'"received_at"'])
def test_journal_line_without_its_fields_is_named(tmp_path, lost):
    path = tmp_path / "journal"
    journal = FileJournal(path)
    make_account(journal=journal)
    journal.close()
    path.write_bytes(path.read_bytes().replace(lost, b'"other"'))
    damaged = FileJournal(path)
    with pytest.raises(UserError, match="Line 1 of the journal"):
        make_core(journal=damaged)
    damaged.close()


def test_journal_with_a_line_taken_out_is_refused(tmp_path):
    path = tmp_path / "journal"
    journal = FileJournal(path)
    make_account(journal=journal)
    journal.close()
    first, _second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + third)
    damaged = FileJournal(path)
    with pytest.raises(UserError, match="Line 2 of the journal"):
        make_core(journal=damaged)
    damaged.close()


def test_journal_serves_one_simulator_at_a_time(tmp_path):
    first = FileJournal(tmp_path / "journal")
    with pytest.raises(UserError, match="in use by another simulator"):
        FileJournal(tmp_path / "journal")
    first.close()
    FileJournal(tmp_path / "journal").close()


@pytest.mark.parametrize("path", ["folder", "folder/file/journal"])
def test_journal_that_cannot_be_written_is_named(tmp_path, path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(UserError, match=f"journal {tmp_path / path} cannot be written"):
        FileJournal(tmp_path / path)


def test_full_disk_counts_nothing_and_leaves_no_half_line(tmp_path, monkeypatch, capsys):
    journal = FileJournal(tmp_path / "journal")
    account = make_account(journal=journal)
    before = (tmp_path / "journal").read_bytes()
    real_write = os.write

    def half_write(descriptor, data):
        real_write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "write", half_write)
        error = account.refused(stripe.APIError, identifier="a")

    assert error.http_status == 500
    assert (tmp_path / "journal").read_bytes() == before
    assert "No space left" in capsys.readouterr().err
    account.send(identifier="a")
    journal.close()


def test_journal_can_be_read_from_a_line_on_and_by_kind(account):
    account.send("1")
    account.send("2")
    lines = account.core.handle("GET", "/_journal", {"after": "3"}, key=KEY)
    records = [json.loads(line) for line in lines.body.splitlines()]

    assert lines.headers["Content-Type"] == "application/x-ndjson"
    assert [(r["line"], r["kind"]) for r in records] == [(4, "meter_event"), (5, "meter_event")]
    by_kind = account.core.handle("GET", "/_journal", {"kind": "customer"}, key=KEY).body.splitlines()
    assert [json.loads(line)["object"]["id"] for line in by_kind] == [account.customer]


def test_counted_sums_are_exact_and_by_the_groups_asked_for(account):
    for value in ("0.1", "0.2", "-0.05"):
        account.send(value, timestamp=account.now)
    account.send("999999999999999", timestamp=account.now - 3600)

    def sums(**params):
        return account.core.handle("GET", "/_journal/meter_events", params, key=KEY).body["data"]

    common = {"customer": account.customer, "event_name": "api_calls"}
    assert sums() == [
        {**common, "hour": "2026-06-15T11:00:00Z", "count": 1, "value": "999999999999999"},
        {**common, "hour": "2026-06-15T12:00:00Z", "count": 3, "value": "0.25"},
    ]
    assert sums(group="event_name") == [{"event_name": "api_calls", "count": 4, "value": "999999999999999.25"}]
    assert sum(Decimal(row["value"]) for row in sums(group="hour")) == Decimal("999999999999999.25")
    refused = account.core.handle("GET", "/_journal/meter_events", {"group": "colour"}, key=KEY)
    assert refused.status == 400
