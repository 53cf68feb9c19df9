"""Table D, what comes back: whatever Stripe or the network answers, an entry counts once.

The rows are those of the failure model: D1 to D9, D11, D13, D14 and D18; D10, D12, D15, D16 and D20 are in
`test_d_time.py`, D17 and D19 in `test_d_wrong_stripe.py`.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.entries import DuplicateWithoutAttempt, EntryState, Outcome, state_after
from billing_pipeline.errors import LedgerFrozen, StripeRefused
from billing_pipeline.stripe_api.client import make_client
from billing_pipeline.stripe_simulator.faults import Fault, FaultKind
from billing_pipeline.stripe_simulator.keys import KeyMode
from billing_pipeline_tests.fix_proxy import Mishap, unlucky_proxy
from billing_pipeline_tests.fix_simulator import KEY
from billing_pipeline_tests.fix_trial import METER, V1_ONLY, V2_ONLY, running_trial

AGAIN = {"minutes": 11}
"""Longer than an entry waits for its next attempt."""
HANG = Fault(FaultKind.SLOW_DRIP, timedelta(seconds=3))


@pytest.mark.parametrize(
    ("fault", "executed"),
    [(FaultKind.LOSE_REQUEST, False), (FaultKind.LOSE_ANSWER, True), (FaultKind.RESET_MID_BODY, True), (HANG, True)],
    ids=["request_lost", "answer_lost", "reset", "timeout"],
)
def test_d01_a_request_without_an_answer_is_unknown_and_counts_once(trial, fault, executed):
    entry = trial.entry(10)
    trial.weather.faults = [fault]

    assert trial.send().unknown == 1
    assert (trial.states(), trial.outcomes()) == (["ambiguous"], ["unknown"])
    assert trial.counted() == ({entry: 10} if executed else {})
    trial.pass_time(**AGAIN)
    trial.send()

    assert trial.states() == ["accepted"]
    assert trial.counted() == {entry: 10}


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9", "http://no-such-host.invalid", "https://{host}"], ids=["refused", "dns", "tls"]
)
def test_d01_without_a_connection_nothing_was_executed_and_no_clock_starts(trial, address):
    trial.entry(10)
    host = trial.simulator.url.removeprefix("http://")

    assert trial.send(stripe_api_base=address.format(host=host)).not_executed == 1

    assert (trial.states(), trial.outcomes()) == (["pending"], ["not_executed"])
    assert trial.rows("SELECT first_attempt_at FROM ledger_entries") == [(None,)]


@V1_ONLY
@pytest.mark.parametrize("mishap", [Mishap.LOSE_REQUEST, Mishap.LOSE_ANSWER, Mishap.CUT_ANSWER, Mishap.SERVER_ERROR])
def test_d01_a_proxy_that_loses_things_makes_no_unit_count_twice(trial, mishap):
    entry = trial.entry(10)
    with unlucky_proxy(trial.simulator.url) as proxy:
        proxy.mishaps = [mishap]
        trial.send(stripe_api_base=proxy.url)
        trial.pass_time(**AGAIN)
        trial.send(stripe_api_base=proxy.url)

    assert trial.outcomes() == ["unknown", "ok" if mishap is Mishap.LOSE_REQUEST else "duplicate"]
    assert trial.states() == ["accepted"]
    assert trial.counted() == {entry: 10}


@pytest.mark.parametrize("fault", [FaultKind.ERROR_500_BEFORE, FaultKind.ERROR_500_AFTER])
def test_d02_a_500_is_unknown_and_its_cached_copy_is_not_asked_for_again(trial, fault):
    entry = trial.entry(10)
    trial.weather.faults = [fault]

    assert trial.send().unknown == 1
    trial.pass_time(**AGAIN)
    trial.send()

    assert trial.states() == ["accepted"], "a second attempt under the first one's key would get its 500 again"
    assert trial.counted() == {entry: 10}


def test_d03_a_429_executed_nothing_and_is_tried_again_by_us_alone(trial):
    entry = trial.entry(10)
    trial.weather.faults = [FaultKind.RATE_LIMITED_429]

    assert trial.send().not_executed == 1
    assert trial.states() == ["pending"]
    assert trial.rows("SELECT first_attempt_at FROM ledger_entries") == [(None,)]
    assert len(trial.weather.sent) == 1
    trial.pass_time(**AGAIN)
    trial.send()

    assert trial.counted() == {entry: 10}


@V1_ONLY
def test_d04_one_request_at_a_time_goes_out_per_customer_and_meter(connection, database_url, tmp_path, channel):
    slow = timedelta(milliseconds=10)
    with running_trial(connection, database_url, tmp_path, channel, processing=slow) as trial:
        trial.bill("globex")
        for organization_id in ("acme", "globex"):
            for hours_before in range(12):
                trial.use(1, hours_before=hours_before, organization_id=organization_id)
        assert trial.cut() == 24

        assert trial.send(stripe_max_concurrency=16).accepted == 24

        assert set(trial.outcomes()) == {"ok"}, "Stripe refuses the second of two calls under way together"


@V1_ONLY
def test_d04_a_lock_that_somebody_else_holds_only_delays(trial):
    entry = trial.entry(10)
    trial.weather.faults = [FaultKind.CONFLICT_409]
    trial.send()
    assert trial.states() == ["ambiguous"]

    trial.pass_time(**AGAIN)
    trial.send()

    assert trial.counted() == {entry: 10}


@V1_ONLY
def test_d05_a_key_that_expires_within_a_batch_stops_it_and_rejects_nothing(trial):
    for hours_before in range(6):
        trial.use(1, hours_before=hours_before)
    trial.cut()

    def expire(number):
        if number == 3:
            trial.simulator.core.keys[KEY] = KeyMode(expires_at=trial.time() - timedelta(seconds=1))

    trial.weather.before_send = expire
    with pytest.raises(StripeRefused, match="mend the key"):
        trial.send(stripe_max_concurrency=1)

    assert sorted(trial.states()) == ["accepted"] * 2 + ["pending"] * 4
    assert len(trial.weather.sent) == 3, "nothing is sent after the first refusal"
    trial.weather.before_send = lambda number: None
    trial.pass_time(**AGAIN)
    trial.send(stripe_secret_key="sk_test_successor")
    assert trial.states() == ["accepted"] * 6
    del trial.simulator.core.keys[KEY]
    assert sorted(trial.counted().values()) == [1] * 6


@pytest.mark.parametrize("mode", [KeyMode(scopes=frozenset({"meters_read"})), KeyMode(expires_at=None)])
def test_d05_a_restricted_or_rolled_key_changes_no_entry(trial, mode):
    trial.entry(10)
    if mode.scopes is None:
        mode = KeyMode(expires_at=trial.time() - timedelta(seconds=1))
    trial.simulator.core.keys[KEY] = mode

    with pytest.raises(StripeRefused) as refusal:
        trial.send()

    assert KEY not in str(refusal.value)
    assert (trial.states(), trial.outcomes()) == (["pending"], ["not_executed"])
    del trial.simulator.core.keys[KEY]
    trial.pass_time(**AGAIN)
    trial.send()
    assert list(trial.counted().values()) == [10]


@V1_ONLY
def test_d06_a_duplicate_of_our_own_open_attempt_is_success(trial):
    entry = trial.entry(10)
    trial.weather.faults = [FaultKind.LOSE_ANSWER]
    trial.send()
    trial.pass_time(**AGAIN)

    assert trial.send().duplicates == 1

    assert (trial.states(), trial.outcomes()) == (["accepted"], ["unknown", "duplicate"])
    assert trial.counted() == {entry: 10}


def write_under(trial, identifier, units):
    """Somebody else sends an event under an identifier of ours."""
    trial.simulator.client().v1.billing.meter_events.create(
        {
            "event_name": METER,
            "identifier": identifier,
            "timestamp": int(trial.closed.timestamp()),
            "payload": {"stripe_customer_id": trial.customer, "value": str(units)},
        }
    )


def identifier_of(trial):
    return trial.rows("SELECT identifier FROM ledger_entries")[0][0]


@V1_ONLY
def test_d07_a_duplicate_of_something_never_sent_freezes_the_ledger(trial):
    entry = trial.entry(10)
    write_under(trial, identifier_of(trial), 1)

    with pytest.raises(LedgerFrozen, match="never sent"):
        trial.send()

    with pytest.raises(LedgerFrozen, match="Nothing was sent"):
        trial.flow.submit()
    assert trial.states() == ["ambiguous"]
    assert trial.counted() == {entry: 1}


@V2_ONLY
def test_d07_the_stream_tells_of_no_duplicate_so_the_summary_freezes_the_ledger(trial):
    entry = trial.entry(10)
    write_under(trial, identifier_of(trial), 1)
    trial.send()

    with pytest.raises(LedgerFrozen, match="shows 1 units"):
        trial.flow.confirm()

    assert trial.states() == ["accepted"]
    assert trial.counted() == {entry: 1}


def delete_customer(trial):
    trial.flow.stripe.v1.customers.delete(trial.customer)


def archive_meter(trial):
    trial.flow.stripe.v1.billing.meters.deactivate(trial.flow.meters_at_stripe[METER].meter_id)


def replace_meter(trial, **keys):
    """Another meter takes the event name over, and reads other keys of the payload."""
    archive_meter(trial)
    trial.flow.stripe.v1.billing.meters.create(
        {"display_name": "another", "event_name": METER, "default_aggregation": {"formula": "sum"}} | keys
    )


def rename_value_key(trial):
    replace_meter(trial, value_settings={"event_payload_key": "tokens"})


def rename_customer_key(trial):
    replace_meter(trial, customer_mapping={"type": "by_id", "event_payload_key": "account"})


@pytest.mark.parametrize("cause", [delete_customer, archive_meter, rename_value_key, rename_customer_key])
def test_d08_what_stripe_refuses_is_rejected_owed_and_waits_for_a_person(trial, cause):
    trial.entry(10)
    cause(trial)

    trial.send()
    # The stream accepts first and reports later.
    trial.pass_time(seconds=30)
    trial.flow.apply_error_reports()

    assert trial.states() == ["rejected"]
    assert trial.rows("SELECT hold_reason FROM ledger_entries") == [("rejected_by_stripe",)]
    assert trial.counted() == {}
    trial.pass_time(**AGAIN)
    assert trial.flow.cut().entries == 0, "a refused amount waits for a person, or it would be refused for ever"
    assert trial.send().attempts == 0
    owed = "SELECT target, cut_due FROM usage_windows"
    assert trial.rows(owed) == [(10, True)]


@V1_ONLY
@pytest.mark.parametrize("stripes_clock", [timedelta(days=36), timedelta(hours=-5)], ids=["too_old", "in_the_future"])
def test_d08_a_time_that_stripe_refuses_is_rejected_and_owed(trial, stripes_clock):
    trial.entry(10)
    trial.time.advance(seconds=stripes_clock.total_seconds())

    assert trial.send().rejected == 1

    assert trial.states() == ["rejected"]
    assert trial.rows("SELECT target, cut_due FROM usage_windows") == [(10, True)]
    assert trial.counted() == {}


@V1_ONLY
def test_d09_a_refusal_after_an_unknown_attempt_decides_nothing(trial):
    entry = trial.entry(10)
    trial.weather.faults = [FaultKind.LOSE_ANSWER]
    trial.send()
    delete_customer(trial)
    trial.pass_time(**AGAIN)

    assert trial.send().rejected == 1

    assert trial.outcomes() == ["unknown", "rejected"]
    assert trial.states() == ["ambiguous"], "the first attempt may have counted, and here it did"
    assert trial.counted() == {entry: 10}


# What an attempt came to, and whether Stripe may have executed it.
ATTEMPTS = st.sampled_from(
    [
        (Outcome.OK, True),
        (Outcome.NOT_EXECUTED, False),
        (Outcome.REJECTED, False),
        (Outcome.UNKNOWN, True),
        (Outcome.UNKNOWN, False),
    ]
)


@given(attempts=st.lists(ATTEMPTS, min_size=1, max_size=12))
def test_d09_no_sequence_of_answers_rejects_or_frees_what_may_have_counted(attempts):
    counted, unknown, state = False, False, EntryState.PENDING
    for answer, executed in attempts:
        # Stripe holds the identifier of what it counted, so a second execution is a duplicate.
        outcome = Outcome.DUPLICATE if counted and answer is Outcome.OK else answer
        try:
            state = state_after(outcome, earlier_unknown=unknown)
        except DuplicateWithoutAttempt:
            pytest.fail("a duplicate of our own attempt was taken for somebody else's")
        unknown |= outcome is not Outcome.NOT_EXECUTED
        counted |= executed
        if state in (EntryState.ACCEPTED, EntryState.REJECTED):
            break

    if counted:
        assert state not in (EntryState.REJECTED, EntryState.PENDING)
    if state is EntryState.ACCEPTED:
        assert counted


def test_d11_the_sdk_neither_retries_nor_tells_of_us(settings):
    assert make_client(settings)._requestor._options.max_network_retries == 0
    fresh = "import billing_pipeline.stripe_api.client, stripe; print(stripe.enable_telemetry)"
    assert subprocess.check_output([sys.executable, "-c", fresh], text=True) == "False\n"


@pytest.mark.parametrize(
    "fault",
    [
        FaultKind.LOSE_REQUEST,
        FaultKind.LOSE_ANSWER,
        FaultKind.ERROR_500_BEFORE,
        FaultKind.ERROR_500_AFTER,
        FaultKind.RATE_LIMITED_429,
        FaultKind.CONFLICT_409,
        FaultKind.TRUNCATED_JSON,
    ],
)
def test_d11_every_request_is_an_attempt_in_the_ledger(trial, fault):
    trial.entry(10)
    trial.weather.faults = [fault]

    trial.send()

    assert len(trial.weather.sent) == len(trial.outcomes()) == 1
    assert not any("telemetry" in name for name in trial.weather.sent[0].headers)


@V2_ONLY
@pytest.mark.parametrize("fault", [FaultKind.LOSE_REQUEST, FaultKind.LOSE_ANSWER, FaultKind.ERROR_500_AFTER])
def test_d13_a_batch_whose_answer_is_lost_is_ambiguous_entry_by_entry_and_counts_once(trial, fault):
    for hours_before in range(120):
        trial.use(1 + hours_before, hours_before=hours_before)
    trial.cut()
    trial.weather.faults = [fault]

    report = trial.send()

    assert (report.unknown, report.accepted) == (100, 20)
    assert trial.states() == ["ambiguous"] * 100 + ["accepted"] * 20
    trial.pass_time(**AGAIN)
    assert trial.send().accepted == 100
    assert trial.states() == ["accepted"] * 120
    assert sorted(trial.counted().values()) == list(range(1, 121))
    trial.prove()
    assert set(trial.states()) == {"confirmed"}
    trial.require_invariants()


@V2_ONLY
def test_d14_a_report_that_samples_one_of_fifty_rejects_one_and_summaries_decide_the_rest(trial):
    """Stripe accepts a batch, refuses all of it later, and names one: nothing is lost and nothing counts twice."""
    for hours_before in range(50):
        trial.use(1 + hours_before, hours_before=hours_before)
    trial.cut()
    archive_meter(trial)
    assert trial.send().accepted == 50
    trial.flow.stripe.v1.billing.meters.reactivate(trial.flow.meters_at_stripe[METER].meter_id)
    trial.pass_time(seconds=30)

    read = trial.flow.apply_error_reports()

    assert (read.reports, read.errors, read.entries_rejected) == (1, 50, 1)
    paths = [request.path for request in trial.weather.requests if request.path.startswith("/v2/core/events")]
    assert len(paths) == 2, "the thin event is listed, then fetched whole"
    assert trial.flow.apply_error_reports().entries_rejected == 0, "reading it again changes nothing"
    trial.flow.confirm()
    assert sorted(trial.states()) == ["accepted"] * 49 + ["rejected"], "absence from a report proves nothing"

    # Every hour a flush: a canary goes out, its time passes, and only then does absence count.
    trial.flow.submit()
    trial.pass_time(hours=9, minutes=1)
    trial.prove()
    assert sorted(trial.states()) == ["rejected"] + ["replaced"] * 49
    assert trial.flow.cut().entries == 49
    trial.flow.submit()
    trial.prove()

    (rejected,) = trial.rows("SELECT value FROM ledger_entries WHERE state = 'rejected'")[0]
    assert sorted([*trial.counted().values(), rejected]) == list(range(1, 51)), "one waits for a person, as owed"
    assert sorted(set(trial.states())) == ["confirmed", "rejected", "replaced"]
    trial.require_invariants()


ECHO = (
    '{"object":"billing.meter_event","created":1,"event_name":"%s","identifier":"%s","livemode":%s,'
    '"payload":{},"timestamp":1}'
)
FOREIGN = {
    "html": "<html></html>",
    "nothing": "",
    "null": "null",
    "a_list": "[]",
    "a_text": '"ok"',
    "another_json": '{"status":"login required"}',
    "half_a_json": '{"object":"billing.meter_ev',
    "another_identifier": ECHO % (METER, "be1_t_another", "false"),
    "another_meter": ECHO % ("another", "{identifier}", "false"),
    "live_mode": ECHO % (METER, "{identifier}", "true"),
}


@pytest.mark.parametrize(
    ("body", "executed"),
    [(FOREIGN["html"], False)] + [(body, True) for body in FOREIGN.values()],
    ids=["not_executed", *FOREIGN],
)
def test_d18_a_200_that_is_not_stripes_echo_proves_nothing(trial, body, executed):
    entry = trial.entry(10)
    content = body.replace("{identifier}", identifier_of(trial)).encode()
    page = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(content), content)
    with unlucky_proxy(trial.simulator.url) as proxy:
        proxy.page = page
        # The stream's session is asked for first.
        spoiled = Mishap.REPLACED_ANSWER if executed else Mishap.FOREIGN_ANSWER
        proxy.mishaps = [spoiled] if trial.settings.stripe_meter_sink == "v1" else [Mishap.NONE, spoiled]
        report = trial.send(stripe_api_base=proxy.url)

    assert (report.unknown, trial.states()) == (1, ["ambiguous"])
    trial.pass_time(**AGAIN)
    trial.send()
    assert trial.states() == ["accepted"]
    assert trial.counted() == {entry: 10}


@V1_ONLY
def test_d18_a_redirect_is_not_followed(trial):
    entry = trial.entry(10)
    page = b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with unlucky_proxy(trial.simulator.url) as proxy:
        proxy.page, proxy.mishaps = page, [Mishap.FOREIGN_ANSWER]
        trial.send(stripe_api_base=proxy.url)

    assert trial.states() == ["ambiguous"]
    trial.pass_time(**AGAIN)
    trial.send()
    assert trial.counted() == {entry: 10}
