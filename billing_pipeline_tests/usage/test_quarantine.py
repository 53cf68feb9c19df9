"""Quarantine as a person works with it: what waits and what it is worth, and decisions that never hide money."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from psycopg import sql

from billing_pipeline.database import queries
from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.errors import Refused, UserError
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.contract import LOOKED_AT_LIMIT, rows_in_quarantine, validate_contract
from billing_pipeline.usage.quarantine import (
    Status,
    WaitingUnits,
    dismissed_rows,
    quarantined_event,
    waiting_rows,
    worth,
)
from billing_pipeline.usage.quarantine_decisions import dismiss, judge_again
from billing_pipeline_tests.builders import NOON, billable_event, insert_events, source_of
from billing_pipeline_tests.fix_aggregation import catalogue_of

TOKENS = '[meters.tokens]\nevent_types = ["tokens", "call"]\naggregation = "sum"\nunit_scale = "0.5"\n'
CALLS = '[meters.calls]\nevent_types = ["call"]\naggregation = "count"\nunit_scale = 10\n'
FAXES = '[meters.faxes]\nevent_types = ["fax"]\naggregation = "sum"\n'
HOUR = timedelta(hours=1)


def event(**overrides):
    return billable_event(**({"event_type": "tokens", "occurred_at": NOON} | overrides))


class Quarantine:
    """Validates and aggregates by hand on a clock of its own, and decides like a person."""

    def __init__(self, aggregator, database_url):
        self.connection, self.aggregator, self.database_url = aggregator.connection, aggregator, database_url
        aggregator.catalogue = catalogue_of(TOKENS, CALLS)

    def flush(self, since=None):
        """Validate and aggregate; an hour passes."""
        self.validate(since)
        self.aggregator(Scope.FULL if since is None else Scope.TOUCHED)
        self.aggregator.now += HOUR

    def validate(self, since=None):
        return validate_contract(
            self.connection,
            self.database_url,
            source=source_of(self.connection),
            catalogue=self.aggregator.catalogue,
            since=since,
            lookback=timedelta(days=30),
            now=self.aggregator.now,
        )

    def retry(self, *event_ids):
        return judge_again(
            self.connection,
            self.database_url,
            source=source_of(self.connection),
            catalogue=self.aggregator.catalogue,
            event_ids=event_ids,
            actor="Ada",
            now=self.aggregator.now,
        )

    def dismiss(self, *event_ids, reason="a test run of theirs"):
        return dismiss(
            self.connection,
            event_ids,
            source=source_of(self.connection),
            actor="Ada",
            reason=reason,
            now=self.aggregator.now,
        )

    def status(self, event_id):
        return quarantined_event(self.connection, event_id).status

    def waiting(self, **options):
        return waiting_rows(self.connection, now=self.aggregator.now, **({"limit": 5} | options))

    def change(self, event_id, quantity, recorded_at=None):
        """Upstream corrects a row, and says so in recorded_at unless it is careless."""
        self.connection.execute(
            "UPDATE public.billable_events SET quantity = %s, recorded_at = coalesce(%s, recorded_at) "
            "WHERE event_id = %s",
            (quantity, recorded_at, event_id),
        )


@pytest.fixture
def quarantine(aggregator, database_url):
    return Quarantine(aggregator, database_url)


def test_what_waits_is_worth_what_its_meters_would_count(quarantine):
    quarantine.flush()
    insert_events(
        quarantine.connection,
        event(event_id="a", event_type="call", quantity=Decimal("3"), organization_id=None),
        event(event_id="b", event_type="call", quantity=Decimal("NaN"), organization_id=None),
        event(event_id="c", quantity=Decimal("0.1"), organization_id=""),
        event(event_id="d", event_type="espresso", quantity=Decimal(7)),
        event(event_id="e", quantity=Decimal(-4), organization_id="globex"),
    )
    quarantine.flush()

    found = {group.reason: group for group in quarantine.waiting()}

    missing = found["organization_id_missing"]
    assert (missing.rows, missing.event_ids) == (3, ("a", "b", "c"))
    assert missing.units == (
        WaitingUnits("organization_id_missing", "calls", "calls", 2, 0, Decimal(20)),
        WaitingUnits("organization_id_missing", "tokens", "tokens", 3, 1, Decimal("1.55")),
    )
    assert found["event_type_unknown"].units == (WaitingUnits("event_type_unknown", None, None, 1, 0, Decimal(0)),)
    assert found["quantity_negative"].units == (
        WaitingUnits("quantity_negative", "tokens", "tokens", 1, 1, Decimal(0)),
    )
    [only] = quarantine.waiting(organization="globex")
    assert (only.reason, only.event_ids) == ("quantity_negative", ("e",))
    assert [group.event_ids for group in quarantine.waiting(reason="organization_id_missing", limit=1)] == [("a",)]


def test_money_is_exact_and_only_told_where_every_meter_has_one_price():
    def units(event_name, amount):
        return WaitingUnits("quantity_negative", event_name, event_name, 1, 0, Decimal(amount))

    cents = {"tokens": UnitPrice("usd", Decimal("0.000000000001")), "calls": UnitPrice("jpy", Decimal(3)), "fax": None}

    huge = 10**30 + 1
    assert worth([units("tokens", huge), units("calls", "0.5")], cents) == {
        "usd": Decimal("1000000000000000000.000000000001"),
        "jpy": Decimal("1.5"),
    }
    assert worth([units("tokens", 1), units("fax", 1)], cents) is None
    assert worth([units("tokens", 1), units("unheard", 1)], cents) is None
    assert worth([units(None, 0)], cents) is None


def test_a_retry_mends_what_is_right_by_now_and_says_why_the_rest_fails(quarantine):
    insert_events(
        quarantine.connection,
        *(event(event_id=name, quantity=None) for name in ("right", "gone", "still bad")),
        event(event_id="new fax", event_type="fax"),
        event(event_id="good"),
    )
    quarantine.flush()
    quarantine.change("right", 8)
    quarantine.change("still bad", -1)
    quarantine.connection.execute("DELETE FROM public.billable_events WHERE event_id = 'gone'")
    quarantine.aggregator.catalogue = catalogue_of(TOKENS, CALLS, FAXES)

    report = quarantine.retry()

    assert (report.counted, report.left_out, report.gone) == (1, 1, 1)
    assert report.failing == {"quantity_negative": (1, ("still bad",))}
    assert quarantine.status("right") is Status.MENDED
    # Nothing but quarantine tells that its hour changed, and the next touched flush counts it.
    quarantine.flush(since=quarantine.aggregator.now)
    assert quarantine.aggregator.targets() == {("tokens", NOON): Decimal("4")}


def test_a_retry_of_some_leaves_the_others_alone(quarantine):
    insert_events(quarantine.connection, *(event(event_id=name, quantity=None) for name in ("a", "b")))
    quarantine.flush()
    quarantine.change("a", 2)
    quarantine.change("b", 2)

    assert quarantine.retry("a").counted == 1

    assert (quarantine.status("a"), quarantine.status("b")) == (Status.MENDED, Status.WAITING)
    with pytest.raises(UserError, match=r"Never in quarantine: nobody\. Nothing was changed"):
        quarantine.retry("b", "nobody")
    assert quarantine.status("b") is Status.WAITING


def test_a_dismissed_row_waits_no_more_and_says_who_and_why(quarantine):
    insert_events(quarantine.connection, *(event(event_id=name, quantity=None) for name in ("a", "b")))
    quarantine.flush()

    assert quarantine.dismiss("a") == 1

    row = quarantined_event(quarantine.connection, "a")
    assert (row.status, row.dismissed_by, row.dismissed_reason) == (Status.DISMISSED, "Ada", "a test run of theirs")
    assert [(fault.reason, fault.samples) for fault in rows_in_quarantine(quarantine.connection)] == [
        ("quantity_missing", ("b",))
    ]
    assert ([group.event_ids for group in quarantine.waiting()], dismissed_rows(quarantine.connection)) == ([("b",)], 1)
    # A validation that sees it again as it was leaves it dismissed.
    quarantine.flush()
    assert quarantine.status("a") is Status.DISMISSED
    done = quarantine.connection.execute("SELECT action, actor, reason, details FROM ledger_operations").fetchall()
    assert done == [("dismiss", "Ada", "a test run of theirs", {"event_ids": ["a"]})]
    assert quarantine.dismiss("a") == 0


def test_a_dismissed_row_that_is_put_right_is_counted_all_the_same(quarantine):
    insert_events(quarantine.connection, event(event_id="a", quantity=None))
    quarantine.flush()
    quarantine.dismiss("a")

    quarantine.change("a", 6)
    quarantine.flush(since=quarantine.aggregator.now)

    assert quarantine.status("a") is Status.MENDED
    assert quarantine.aggregator.targets() == {("tokens", NOON): Decimal(3)}


@pytest.mark.parametrize("quantity", [-1, -2])
def test_a_dismissed_row_that_reads_otherwise_waits_again(quarantine, quantity):
    insert_events(quarantine.connection, event(event_id="a", quantity=Decimal(-3)))
    quarantine.flush()
    quarantine.dismiss("a")

    quarantine.change("a", quantity, recorded_at=quarantine.aggregator.now)
    quarantine.flush(since=quarantine.aggregator.now)

    assert quarantine.status("a") is Status.WAITING
    assert quarantined_event(quarantine.connection, "a").dismissed_by is None


def test_a_dismissed_row_that_was_right_for_a_while_waits_again(quarantine):
    insert_events(quarantine.connection, event(event_id="a", quantity=None))
    quarantine.flush()
    quarantine.dismiss("a")
    quarantine.change("a", 6)
    quarantine.flush()

    quarantine.change("a", None)
    quarantine.flush()

    assert quarantine.status("a") is Status.WAITING


def test_a_retry_undoes_a_dismissal_and_is_in_the_log(quarantine):
    insert_events(quarantine.connection, event(event_id="a", quantity=None))
    quarantine.flush()
    quarantine.dismiss("a")

    assert quarantine.retry().failing == {}
    assert quarantine.status("a") is Status.DISMISSED
    report = quarantine.retry("a")

    assert (report.undone, report.failing) == (1, {"quantity_missing": (1, ("a",))})
    assert quarantine.status("a") is Status.WAITING
    actions = quarantine.connection.execute("SELECT action FROM ledger_operations ORDER BY operation_id").fetchall()
    assert actions == [("dismiss",), ("undo_dismissal",)]


def test_only_what_was_looked_at_can_be_dismissed(quarantine):
    insert_events(quarantine.connection, *(event(event_id=name, quantity=None) for name in ("a", "b", "c")))
    quarantine.flush()
    quarantine.change("a", 5)

    with pytest.raises(Refused, match=r"the source has a otherwise by now.*quarantine retry a`"):
        quarantine.dismiss("a", "b")
    quarantine.connection.execute("DELETE FROM public.billable_events WHERE event_id = 'c'")
    with pytest.raises(Refused, match=r"the source has c otherwise"):
        quarantine.dismiss("c")
    quarantine.retry()
    with pytest.raises(Refused, match=r"a left quarantine already"):
        quarantine.dismiss("a", "b")
    with pytest.raises(UserError, match=r"Never in quarantine: nobody"):
        quarantine.dismiss("b", "nobody")
    with pytest.raises(UserError, match=r"needs a reason"):
        quarantine.dismiss("b", reason=" ")

    assert quarantine.status("b") is Status.WAITING
    assert quarantine.connection.execute("SELECT count(*) FROM ledger_operations").fetchone() == (0,)


def test_a_row_with_a_time_that_python_cannot_hold_can_be_dismissed(quarantine):
    insert_events(quarantine.connection, event(event_id="far", occurred_at="infinity", recorded_at=NOON))
    quarantine.flush()

    assert quarantine.dismiss("far") == 1


def test_a_type_that_left_the_catalogue_stays_counted_in_its_hours_and_out_of_quarantine(quarantine):
    quarantine.aggregator.catalogue = catalogue_of(TOKENS, CALLS, FAXES)
    insert_events(quarantine.connection, event(event_id="fax", event_type="fax", quantity=Decimal(2)))
    quarantine.flush()

    quarantine.aggregator.catalogue = catalogue_of(TOKENS, CALLS)
    quarantine.flush()

    assert quarantine.waiting() == []
    assert quarantine.aggregator.targets() == {("faxes", NOON): Decimal(2)}


def test_a_changed_catalogue_judges_the_whole_lookback(quarantine):
    insert_events(quarantine.connection, event(event_id="fax", event_type="fax"))
    quarantine.flush()
    assert [group.reason for group in quarantine.waiting()] == ["event_type_unknown"]

    quarantine.aggregator.catalogue = catalogue_of(TOKENS, CALLS, FAXES)
    assert quarantine.validate(since=quarantine.aggregator.now).rows_read == 1
    assert quarantine.waiting() == []
    assert quarantine.validate(since=quarantine.aggregator.now).rows_read == 0


def test_rows_that_were_not_validated_while_validation_was_off_are_validated_later(flow, bill):
    flow.validate_contract()
    flow.aggregate()
    recorded = flow.clock()
    insert_events(flow.connection, billable_event(event_id="bad", quantity=None, occurred_at=recorded))
    flow.connection.execute("UPDATE public.billable_events SET recorded_at = %s", (recorded,))
    now = flow.clock
    flow.clock = lambda: now() + 2 * HOUR
    flow.aggregate(Scope.TOUCHED)
    flow.clock = lambda: now() + 4 * HOUR

    assert flow.validate_contract(Scope.TOUCHED).quarantined == 1


def test_a_validation_that_could_not_read_the_source_has_judged_nothing(flow):
    insert_events(flow.connection, billable_event(event_id="bad", quantity=None, occurred_at=flow.clock() - HOUR))
    flow.connection.execute("ALTER TABLE public.billable_events RENAME TO away")
    flow.validate_contract()
    flow.connection.execute("ALTER TABLE public.away RENAME TO billable_events")

    assert flow.validate_contract(Scope.TOUCHED).quarantined == 1


def plan_of_hourly_mending(quarantine):
    statement = queries.statements()["mend_quarantined_events"]
    params = {
        "now": quarantine.aggregator.now,
        "recorded_since": quarantine.aggregator.now,
        # A small part of the whole, as the limit is of a million rows.
        "looked_at_limit": 500,
        "event_ids": None,
        "known_event_types": ["tokens"],
        "summed_event_types": ["tokens"],
    }
    explained = sql.SQL("EXPLAIN " + statement).format(
        **source_of(quarantine.connection).parts, property_missing=sql.SQL("false")
    )
    return "\n".join(line for (line,) in quarantine.connection.execute(explained, params).fetchall())


@pytest.mark.slow
def test_a_flush_looks_at_the_latest_of_very_many_and_a_correction_that_is_recorded_is_always_seen(quarantine):
    quarantine.flush()
    quarantine.connection.execute(
        "INSERT INTO public.billable_events "
        "SELECT 'e' || n, 'acme', 'tokens', NULL, %s, %s FROM generate_series(1, %s) n",
        (NOON, NOON, LOOKED_AT_LIMIT + 2),
    )
    quarantine.flush()
    # Two rows that nobody has seen for the longest time.
    quarantine.connection.execute(
        "UPDATE quarantined_events SET first_seen_at = first_seen_at - interval '1 day' WHERE event_id IN ('e1', 'e2')"
    )
    quarantine.change("e1", 1)
    quarantine.change("e2", 1, recorded_at=quarantine.aggregator.now)

    quarantine.connection.execute("VACUUM ANALYZE quarantined_events")
    assert "Seq Scan on quarantined_events" not in plan_of_hourly_mending(quarantine)

    quarantine.validate(since=quarantine.aggregator.now)
    assert (quarantine.status("e1"), quarantine.status("e2")) == (Status.WAITING, Status.MENDED)

    quarantine.validate()
    assert quarantine.status("e1") is Status.MENDED
