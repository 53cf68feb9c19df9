"""The three ways in and the way out, in any order: what the summaries show is an independent sum, restarts included."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline.stripe_simulator.faults import ConnectionLost, Fault, FaultKind
from billing_pipeline.stripe_simulator.journal import FileJournal
from billing_pipeline_tests.fix_simulator import KEY, SimulatorClock, make_core
from billing_pipeline_tests.stripe_simulator.conftest import NOON, make_account

HOUR = 3600
DAY = timedelta(hours=24)

identifiers = st.sampled_from(["a", "b", "c", "d"])
events = st.tuples(identifiers, st.sampled_from([0, 1, 2]), st.integers(-99, 99), st.integers(-3 * HOUR, 0))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("v1"), events),
        st.tuples(st.just("v2"), events),
        st.tuples(st.just("stream"), st.lists(events, min_size=1, max_size=5)),
        st.tuples(st.just("cancel"), identifiers),
        st.tuples(st.just("wait"), st.sampled_from([1, 3600, 12 * 3600, 86_399, 86_400])),
    ),
    max_size=25,
)


class Expected:
    """First acceptances minus cancellations, kept without a look at the simulator."""

    def __init__(self):
        self.accepted = {}
        self.sums = defaultdict(Decimal)
        self.rejected = 0

    def takes(self, now, event, hour, customer):
        """Whether this event counts; customer None does not exist."""
        identifier, _, value, _ = event
        last = self.accepted.get(identifier)
        if customer is None:
            self.rejected += 1
            return False
        if last is not None and now - last[0] < DAY:
            return False
        self.accepted[identifier] = [now, customer, hour, value, True]
        self.sums[customer, hour] += value
        return True

    def cancels(self, now, identifier):
        last = self.accepted.get(identifier)
        if last is None or not last[4] or now - last[0] >= DAY:
            return False
        last[4] = False
        self.sums[last[1], last[2]] -= last[3]
        return True


def hourly(core, meter, customers):
    end = (int(core.clock().timestamp()) // HOUR + 1) * HOUR
    span = {"start_time": str(end - 40 * 24 * HOUR), "end_time": str(end), "value_grouping_window": "hour"}
    shown = {}
    for customer in customers:
        params = {**span, "customer": customer, "limit": "100"}
        answer = core.handle("GET", f"/v1/billing/meters/{meter}/event_summaries", params, key=KEY)
        assert not answer.body["has_more"]
        shown |= {(customer, s["start_time"]): s["aggregated_value"] for s in answer.body["data"]}
    return {key: value for key, value in shown.items() if value}


@settings(max_examples=60, deadline=None)
@given(steps)
def test_summaries_are_first_acceptances_minus_cancellations_through_any_channel(plan):
    clock = SimulatorClock(still_at=NOON)
    account = make_account(clock=clock)
    core = account.core
    other = core.handle("POST", "/v1/customers", key=KEY).body["id"]
    customers, expected = [account.customer, other, None], Expected()

    def post(path, params, key=KEY):
        return core.handle("POST", path, params, key=key).status == 200

    def given_of(event, api):
        identifier, who, value, offset = event
        stamp = int(clock().timestamp()) + offset
        return {
            "event_name": "api_calls",
            "identifier": identifier,
            "payload": {"stripe_customer_id": customers[who] or "cus_x", "value": str(value)},
            "timestamp": str(stamp) if api == "v1" else datetime.fromtimestamp(stamp, UTC).isoformat(),
        }, stamp // HOUR * HOUR

    for step, detail in plan:
        if step == "wait":
            clock.advance(seconds=detail)
        elif step == "cancel":
            params = {"event_name": "api_calls", "type": "cancel", "cancel": {"identifier": detail}}
            assert post("/v1/billing/meter_event_adjustments", params) == expected.cancels(clock(), detail)
        elif step == "stream":
            batch = [given_of(event, "v2") for event in detail]
            token = core.handle("POST", "/v2/billing/meter_event_session", key=KEY).body["authentication_token"]
            assert post("/v2/billing/meter_event_stream", {"events": [given for given, _ in batch]}, token)
            for event, (_, hour) in zip(detail, batch, strict=True):
                expected.takes(clock(), event, hour, customers[event[1]])
        else:
            params, hour = given_of(detail, step)
            counts = expected.takes(clock(), detail, hour, customers[detail[1]])
            expected.rejected -= customers[detail[1]] is None
            assert post(f"/{step}/billing/meter_events", params) == counts

    shown = hourly(core, account.meter, customers[:2])
    assert shown == {key: float(value) for key, value in expected.sums.items() if value}
    assert len(account.journal("meter_event_rejected")) == expected.rejected
    again = make_core(clock, core.journal)
    assert hourly(again, account.meter, customers[:2]) == shown


def test_restart_finds_sessions_reports_and_cancellations_as_they_were(tmp_path):
    account = make_account(journal=FileJournal(tmp_path / "journal"))
    account.stream(
        account.event("3", identifier="a"), account.event("4", identifier="b"), account.event(event_name="x")
    )
    account.client.v1.billing.meter_event_adjustments.create(
        {"event_name": "api_calls", "type": "cancel", "cancel": {"identifier": "a"}}
    )
    token = account.client.v2.billing.meter_event_session.create().authentication_token
    account.clock.advance(seconds=10)

    def everything(core):
        events = core.handle("GET", "/v2/core/events", key=KEY).body["data"]
        fetched = [core.handle("GET", f"/v2/core/events/{event['id']}", key=KEY).body for event in events]
        own = [core.handle("GET", path, key=KEY).body for path in ("/_journal", "/_journal/meter_events")]
        return hourly(core, account.meter, [account.customer]), fetched, own

    before = everything(account.core)
    account.core.journal.close()
    again = make_core(account.clock, FileJournal(tmp_path / "journal"))

    assert everything(again) == before
    assert sum(before[0].values()) == 4.0
    assert len(before[1]) == 1
    batch = {"events": [account.event(identifier="a"), account.event(identifier="c")]}
    assert again.handle("POST", "/v2/billing/meter_event_stream", batch, key=token).status == 200
    kinds = [record["kind"] for record in again.journal.read(len(before[2][0].splitlines()))]
    assert kinds == ["meter_event_dropped_duplicate", "meter_event"]
    again.journal.close()


def test_journal_of_before_the_channels_is_still_read(tmp_path):
    """A record without `channel` and `api` is v1's."""
    journal = FileJournal(tmp_path / "journal")
    account = make_account(journal=journal)
    account.send("3", identifier="a", timestamp=account.now, options={"idempotency_key": "k"})
    journal.close()
    path = tmp_path / "journal"
    path.write_bytes(path.read_bytes().replace(b'"channel":"v1",', b"").replace(b',"api":"v1"', b""))
    assert b'"api"' not in path.read_bytes()
    again = make_core(account.clock, FileJournal(path))
    params = {**account.event("3", identifier="a"), "timestamp": str(account.now)}
    replay = again.handle("POST", "/v1/billing/meter_events", params, key=KEY, headers={"idempotency-key": "k"})

    assert (replay.status, replay.body["identifier"]) == (200, "a")
    assert replay.headers["Idempotent-Replayed"] == "true"
    again.journal.close()


fault_plans = st.lists(st.none() | st.sampled_from(list(FaultKind)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(fault_plans)
def test_resending_one_identifier_never_counts_twice_under_any_faults(kinds):
    clock = SimulatorClock(still_at=NOON)
    account = make_account(clock=clock)
    delays = iter(kinds)

    def plan(_number, _request):
        kind = next(delays, None)
        return None if kind is None else Fault(kind, timedelta(seconds=45))

    core = make_core(clock, account.core.journal, fault=plan)
    params = {**account.event("3", identifier="a"), "timestamp": str(account.now)}
    for _ in kinds:
        clock.advance(seconds=30)
        try:
            core.handle("POST", "/v1/billing/meter_events", params, key=KEY)
        except ConnectionLost:
            continue
    clock.advance(minutes=5)
    core.deliver_due()

    kinds_written = [record["kind"] for record in core.journal.read() if record["kind"].startswith("meter_event")]
    assert kinds_written in ([], ["meter_event"], ["meter_event_lost"])
