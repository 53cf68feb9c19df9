"""Brakes before money: what each holds, that a release sends exactly it, and that a mended source needs no release.

The judge adds up the source's rows in the test, and the simulator's journal; nothing of the code under test.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from statistics import median_low

import pytest

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.errors import LedgerFrozen, UserError
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage import gate
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.hold import (
    Chosen,
    held_units,
    held_windows,
    release_all,
    release_windows,
    waiting_behind_holds,
)
from billing_pipeline.usage.rebill import Decision, rebill
from billing_pipeline_tests.builders import billable_event, insert_events, map_customer
from billing_pipeline_tests.fix_flow import counted_by_stripe

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
TOKENS = '[meters.tokens]\nevent_types = ["tokens"]\naggregation = "sum"\n'


@pytest.fixture
def company(flow, bill, simulator):
    return Company(flow, bill, simulator)


class Company:
    """Some organizations, their rows as the test knows them, and what Stripe has counted for each."""

    def __init__(self, flow, bill, simulator):
        self.flow, self.bill, self.simulator = flow, bill, simulator
        self.this_hour = flow.clock().replace(minute=0, second=0, microsecond=0)
        self.owners = {}
        self.rows = {}
        self.catalogue(TOKENS)

    def catalogue(self, text):
        self.flow.catalogue = parse_catalogue(text, origin="test")
        set_up_catalogue(self.flow.stripe, self.flow.settings, self.flow.catalogue)
        for name in ("meters_at_stripe", "summaries"):
            self.flow.__dict__.pop(name, None)

    def settings(self, **changed):
        self.flow.settings = self.flow.settings.model_copy(update=changed)

    def organizations(self, *names):
        self.owners |= {customer: name for name, customer in self.bill(*names).items()}

    def use(self, organization, hours_ago, quantity, **fields):
        row = {
            "organization_id": organization,
            "event_type": "tokens",
            "quantity": Decimal(quantity),
            "occurred_at": self.this_hour - hours_ago * HOUR,
            "recorded_at": self.flow.clock(),
        }
        event = billable_event(**(row | fields))
        self.rows[event["event_id"]] = event
        insert_events(self.flow.connection, event)
        return event["event_id"]

    def use_each_hour(self, organization, hours, quantity):
        return [self.use(organization, hours_ago, quantity) for hours_ago in hours]

    def change(self, event_id, quantity):
        self.rows[event_id]["quantity"] = Decimal(quantity)
        self.flow.connection.execute(
            "UPDATE public.billable_events SET quantity = %s, recorded_at = now() WHERE event_id = %s",
            (quantity, event_id),
        )

    def lose(self, *event_ids):
        """Rows are gone from the source; returns them."""
        self.flow.connection.execute("DELETE FROM public.billable_events WHERE event_id = ANY (%s)", (list(event_ids),))
        return [self.rows.pop(event_id) for event_id in event_ids]

    def restore(self, rows):
        insert_events(self.flow.connection, *rows)
        self.rows |= {row["event_id"]: row for row in rows}

    def flush(self, times=1, scope=Scope.FULL):
        for _ in range(times):
            report = flush(self.flow, scope=scope)
            broken = violations(
                self.flow.connection,
                settings=self.flow.settings,
                mark=self.flow.mark.read().attempt_id,
                now=self.flow.clock(),
            )
            assert broken == []
        return report

    def used(self):
        """By organization, what the rows say."""
        units = dict.fromkeys(self.owners.values(), Decimal(0))
        for row in self.rows.values():
            units[row["organization_id"]] += row["quantity"]
        return units

    def billed(self):
        """By organization, what Stripe has counted."""
        units = dict.fromkeys(self.owners.values(), 0)
        for (customer, _, _), value in counted_by_stripe(self.simulator).items():
            units[self.owners[customer]] += value
        return units

    def held(self):
        return [(one.reason, one.windows, one.added, one.taken_back) for one in held_units(self.flow.connection)]

    def differences(self):
        report = reconcile(self.flow.connection, settings=self.flow.settings, now=self.flow.clock())
        return {str(found.kind) for found in report.differences}

    def release(self, reason=None):
        chosen = Chosen(reason=reason or held_units(self.flow.connection)[0].reason)
        return release_all(
            self.flow.connection, chosen, actor="Ann", reason="asked the customer", now=self.flow.clock()
        )


# An hour far above the usual one.


def test_an_hour_of_more_than_a_hundred_times_the_usual_one_waits_and_is_sent_once_released(company):
    company.organizations("acme", "globex")
    company.use_each_hour("acme", range(10, 40), 10)
    company.use_each_hour("globex", range(10, 40), 10)
    company.flush()
    assert company.billed() == company.used() == {"acme": 300, "globex": 300}

    company.use("globex", 5, 1_000)
    company.use("acme", 5, 1_001)
    report = company.flush(scope=Scope.TOUCHED)
    assert dict(report.cut.held) == {"far_more_than_the_usual_hour": 1}
    assert company.billed() == {"acme": 300, "globex": 1_300}
    assert company.differences() == {"held"}
    (held,) = held_windows(company.flow.connection, limit=5)
    assert (held.organization_id, held.units) == ("acme", 1_001)
    assert held.detail == "the hour has 1,001 units, more than 100 times 10, the median of 30 hours"
    assert company.flush().cut.held == {}, "told once, when it is new"

    (released,) = company.release()
    assert (released.windows, released.added, released.taken_back) == (1, 1_001, 0)
    company.flush()
    assert company.billed() == company.used() == {"acme": 1_301, "globex": 1_300}

    company.use("acme", 5, 1)
    company.flush()
    assert company.billed()["acme"] == 1_301, "no further than was released"
    company.release()
    company.flush()
    assert company.billed() == company.used()


def test_a_mended_hour_is_billed_without_a_release(company):
    company.organizations("acme")
    company.use_each_hour("acme", range(10, 40), 10)
    company.flush()
    wrong = company.use("acme", 5, 7_000_000)
    company.flush()
    assert company.held() == [("far_more_than_the_usual_hour", 1, 7_000_000, 0)]

    company.change(wrong, 7)
    company.flush(scope=Scope.TOUCHED)

    assert company.held() == []
    assert company.billed() == company.used() == {"acme": 307}


def test_an_hour_that_is_gone_is_on_hold_no_more(company):
    company.organizations("acme")
    company.use_each_hour("acme", range(10, 40), 10)
    wrong = company.use("acme", 5, 9_999)
    company.flush()
    assert company.held() == [("far_more_than_the_usual_hour", 1, 9_999, 0)]

    company.lose(wrong)
    company.flush()

    assert company.held() == []
    assert company.billed() == company.used()


@pytest.mark.parametrize(("hours", "held"), [(22, 0), (23, 1)])
def test_nothing_is_judged_before_an_organization_has_a_day_of_hours(company, hours, held):
    company.organizations("acme")
    company.use_each_hour("acme", range(10, 10 + hours), 1)
    company.use("acme", 5, 10_000)

    assert company.flush().cut.windows_held == held


@pytest.mark.parametrize(
    ("keys", "setting", "held"), [("", 0, 0), ("hour_factor = 5", 0, 1), ("hour_factor = 0", 3, 0)]
)
def test_a_meter_may_have_another_factor(company, keys, setting, held):
    company.catalogue(TOKENS + keys)
    company.settings(billing_brake_hour_factor=setting)
    company.organizations("acme")
    company.use_each_hour("acme", range(10, 40), 2)
    company.use("acme", 5, 11)

    assert company.flush().cut.windows_held == held


def test_the_usual_hour_is_the_median_of_28_days_exactly_and_of_one_definition(company):
    company.catalogue(TOKENS + 'unit_scale = "0.001"\n')
    company.organizations("acme", "globex")
    quantities = {hours_ago: Decimal(hours_ago * 7919 % 101) + Decimal("0.000000000001") for hours_ago in range(1, 28)}
    for hours_ago, quantity in quantities.items():
        company.use("acme", hours_ago, quantity)
    # Two rows are one hour; what is older than 28 days, or of the hour under way, is none.
    company.use("acme", 3, 1)
    quantities[3] += 1
    company.use("globex", 28 * 24, 5)
    company.use("globex", 28 * 24 + 1, 500, recorded_at=company.this_hour - 27 * 24 * HOUR)
    company.use("globex", 0, 7_000)

    company.flush()

    found = company.flow.connection.execute(
        "SELECT organization_id, hours, median FROM usual_hours ORDER BY organization_id"
    ).fetchall()
    assert found == [
        ("acme", 27, median_low(quantities.values()) * Decimal("0.001")),
        ("globex", 1, Decimal("0.005")),
    ]

    # Another unit: to it, the hours of before are no measure.
    company.catalogue(TOKENS + 'unit_scale = "2"\n')
    company.flow.aggregate(Scope.FULL)
    assert company.flow.connection.execute("SELECT count(*) FROM usual_hours").fetchone() == (0,)


def test_the_first_hour_of_a_period_is_not_unusual_for_adding_the_whole_level(company, subscriptions):
    """Five thousand seats, hour by hour; when a period begins, its first hour adds all of them."""
    company.catalogue('[meters.tokens]\nevent_types = ["tokens"]\naggregation = "max"\n')
    company.organizations("acme")
    (customer,) = company.owners
    subscriptions.create(customer, company.this_hour - 100 * HOUR, "tokens")
    for hours_ago in range(10, 60):
        company.use("acme", hours_ago, 5_000 + 60 - hours_ago)
    company.flush()
    subscriptions.create(customer, company.this_hour - 6 * HOUR, "tokens")

    company.use("acme", 5, 5_060)
    report = company.flush()

    assert report.cut.held == {}
    assert sum(company.billed().values()) == 5_050 + 5_060
    company.use("acme", 4, 5_060 * 100)
    assert company.flush().cut.windows_held == 1


# What one flush may add.


def test_a_flush_that_would_add_more_than_flush_max_adds_nothing_of_the_meter(company):
    other = '[meters.calls]\nevent_types = ["calls"]\naggregation = "sum"\n'
    company.catalogue(TOKENS + "flush_max = 1000\n" + other)
    company.organizations("acme", "globex")
    company.use("acme", 9, 400)
    company.use("globex", 9, 600)
    company.flush()
    assert company.billed() == {"acme": 400, "globex": 600}

    company.use("acme", 5, 1)
    company.use("globex", 5, 1_000)
    company.use("acme", 5, 5_000, event_type="calls")
    report = company.flush()
    assert dict(report.cut.held) == {"more_than_the_meters_flush_max": 2}
    assert company.billed() == {"acme": 5_400, "globex": 600}, "the other meter goes on"
    assert held_windows(company.flow.connection, limit=1)[0].detail == (
        "one flush would add 1,001 units, flush_max is 1,000"
    )

    # The next hour is a flush of its own, and more of what is held is held.
    company.use("acme", 4, 1_000)
    company.use("acme", 5, 1)
    company.flush()
    assert company.billed() == {"acme": 6_400, "globex": 600}
    assert company.held() == [("more_than_the_meters_flush_max", 2, 1_002, 0)]

    (released,) = company.release()
    assert (released.windows, released.organizations, released.added) == (2, 2, 1_002)
    company.use("globex", 3, 1_000)
    company.flush()
    assert company.billed() == company.used(), "what is released is not counted again"


def test_what_another_brake_holds_does_not_use_up_the_flush(company):
    company.catalogue(TOKENS + "flush_max = 1000\nhour_max = 900\n")
    company.organizations("acme", "globex", "initech")
    company.use_each_hour("initech", range(10, 40), 1)
    company.flush()
    company.use("acme", 5, 901)
    company.use("initech", 5, 899)
    company.use("globex", 5, 900)

    report = company.flush()

    assert dict(report.cut.held) == {"more_than_the_meters_hour_max": 1, "far_more_than_the_usual_hour": 1}
    assert company.billed() == {"acme": 0, "globex": 900, "initech": 30}


def test_a_flush_of_many_batches_is_one_flush(company, monkeypatch):
    for module in ("brakes", "cut"):
        monkeypatch.setattr(f"billing_pipeline.usage.{module}.BATCH_SIZE", 3)
    company.catalogue(TOKENS + "flush_max = 100\n")
    company.organizations("acme")
    company.use_each_hour("acme", range(5, 25), 5)
    assert company.flush().cut.entries == 20
    rows = company.lose(*company.rows)
    assert company.flush(2).cut.entries == 0
    assert company.held() == [("too_much_taken_back_at_once", 20, 0, 100)]
    company.restore(rows)
    company.flush()
    assert company.held() == []

    company.use_each_hour("acme", range(5, 25), 6)
    company.flush()
    assert company.held() == [("more_than_the_meters_flush_max", 20, 120, 0)]
    assert company.billed() == {"acme": 100}


# What is taken back.


@pytest.fixture
def billed(company):
    """Four organizations with twelve hours each, billed and confirmed."""
    company.organizations("acme", "globex", "initech", "umbrella")
    for organization in company.used():
        company.use_each_hour(organization, range(5, 17), 10)
    company.flush(2)
    assert company.billed() == company.used()
    return company


def test_a_truncated_source_is_not_credited_and_heals_when_it_is_back(billed):
    before = billed.billed()
    rows = billed.lose(*billed.rows)
    billed.use("acme", 4, 7)

    report = billed.flush()
    assert dict(report.cut.held) == {"too_much_taken_back_at_once": 48}
    assert report.cut.windows_behind_holds == 1
    assert billed.flush().cut.held == {}
    assert billed.billed() == before
    assert billed.differences() == {"held", "waiting"}
    assert billed.held() == [("too_much_taken_back_at_once", 48, 0, 480)]
    (waiting,) = waiting_behind_holds(billed.flow.connection, closed_before=billed.flow.clock())
    assert (waiting.windows, waiting.units) == (1, 7)

    # Half of it comes back: still held is what is still gone, and what was lost and is more by now goes on.
    billed.restore(rows[:24])
    billed.flush()
    assert billed.held() == [("too_much_taken_back_at_once", 24, 0, 240)]
    assert billed.billed() == before | {"acme": 127}
    billed.restore(rows[24:])
    billed.flush()
    assert billed.held() == []
    assert billed.billed() == billed.used()
    assert billed.differences() == set()


def test_what_is_meant_to_be_gone_is_credited_once_released_and_exactly(billed):
    gone = [event_id for event_id, row in billed.rows.items() if row["organization_id"] in ("acme", "globex")]
    billed.lose(*gone)
    billed.flush()
    assert billed.held() == [("too_much_taken_back_at_once", 24, 0, 240)]

    (released,) = billed.release()
    assert (released.windows, released.organizations, released.added, released.taken_back) == (24, 2, 0, 240)
    report = billed.flush()

    assert (report.cut.units_taken_back, report.cut.windows_held) == (240, 0)
    assert billed.billed() == billed.used()
    assert billed.differences() == set()


def test_a_release_is_used_up_when_the_usage_is_back(billed):
    rows = billed.lose(*billed.rows)
    billed.flush()
    billed.release()
    billed.flush(2)
    assert billed.billed() == billed.used() == dict.fromkeys(billed.used(), 0)
    billed.restore(rows)
    billed.flush(2)
    assert billed.billed() == billed.used()

    billed.lose(*billed.rows)
    billed.flush()

    assert billed.held() == [("too_much_taken_back_at_once", 48, 0, 480)]


@pytest.mark.parametrize(("windows", "held"), [(9, 0), (10, 1)])
def test_a_fifth_of_the_windows_may_be_taken_back(billed, windows, held):
    """Forty-eight windows: a fifth are nine and a half."""
    billed.lose(*list(billed.rows)[:windows])

    assert (billed.flush().cut.windows_held > 0) == held


def test_a_large_part_of_the_units_is_too_much_whatever_part_of_the_windows_it_is(company):
    company.organizations("acme", "globex")
    company.settings(billing_brake_hour_factor=0)
    company.use_each_hour("acme", range(5, 105), 1)
    large = company.use_each_hour("globex", range(5, 15), 100)
    company.flush(2)

    company.lose(*large)

    assert company.flush().cut.windows_held == 10


def test_corrections_of_hours_are_taken_back_at_once(billed):
    for event_id in list(billed.rows)[:9]:
        billed.change(event_id, 3)

    assert billed.flush(scope=Scope.TOUCHED).cut.units_taken_back == 63
    assert billed.billed() == billed.used()


def test_a_setting_of_a_hundred_percent_is_no_brake(billed):
    billed.settings(billing_brake_taken_back_percent=100)
    billed.lose(*billed.rows)

    assert billed.flush().cut.units_taken_back == 480
    assert billed.billed() == billed.used()


def test_sealed_windows_are_no_part_of_what_can_be_taken_back(billed):
    """Of eight days, seven are sealed: a fifth of the rest is too much, although it is little of all."""
    ids = billed.use_each_hour("acme", range(100, 200), 10)
    billed.flush(2)
    (customer,) = (customer for customer, name in billed.owners.items() if name == "acme")
    from billing_pipeline.domain.seals import Period
    from billing_pipeline.usage.seal import seal

    period = Period(customer, None, billed.this_hour - 200 * HOUR, billed.this_hour - 90 * HOUR)
    now = billed.flow.clock()
    seal(billed.flow.connection, period, leave_owed=False, closed_before=now, actor="Ann", reason="final", now=now)
    assert len(ids) == 100

    billed.lose(*list(billed.rows)[:10])

    assert billed.flush().cut.windows_held == 10


# Usage that moves is not taken back.


def test_rows_that_move_to_another_hour_are_never_billed_twice(billed):
    """The source corrects its time zone: every row an hour later.  What is taken back waits, so what is added does."""
    before = billed.billed()
    for number, row in enumerate(billed.rows.values()):
        row["quantity"] = Decimal(number % 7 + 1)
    for event_id, row in billed.rows.items():
        billed.change(event_id, row["quantity"])
    billed.flow.connection.execute("UPDATE public.billable_events SET occurred_at = occurred_at + interval '1 hour'")

    billed.flush(2)
    assert {reason for reason, *_ in billed.held()} == {"too_much_taken_back_at_once"}
    assert all(billed.billed()[name] <= before[name] for name in before)

    billed.release()
    billed.flush(3)
    assert billed.billed() == billed.used()
    assert billed.held() == []


def test_organizations_given_to_other_customers_are_not_stopped_half_way(billed):
    names = list(billed.used())
    customers = create_customers(billed.flow.stripe, billed.flow.settings, [f"{name}-2" for name in names])
    billed.flow.connection.execute("DELETE FROM customer_mappings")
    for name in names:
        map_customer(billed.flow.connection, name, customers[f"{name}-2"])
    new = {customers[f"{name}-2"]: name for name in names}
    old, billed.owners = billed.owners, new | billed.owners

    report = billed.flush()

    assert report.cut.held == {}
    assert billed.billed() == billed.used()
    by_customer = dict.fromkeys(billed.owners, 0)
    for (customer, _, _), value in counted_by_stripe(billed.simulator).items():
        by_customer[customer] += value
    assert by_customer == dict.fromkeys(old, 0) | dict.fromkeys(new, 120)


def test_a_lost_mapping_is_no_reason_to_credit_everybody(billed):
    billed.flow.connection.execute("DELETE FROM customer_mappings")

    assert dict(billed.flush().cut.held) == {"too_much_taken_back_at_once": 48}
    assert billed.billed() == billed.used()

    for customer, name in billed.owners.items():
        map_customer(billed.flow.connection, name, customer)
    billed.flush()
    assert billed.held() == []
    assert billed.billed() == billed.used()


def test_held_usage_that_turns_up_at_another_customer_is_moved_without_a_release(billed):
    rows = billed.lose(*billed.rows)
    billed.flush()
    names = list(billed.used())
    customers = create_customers(billed.flow.stripe, billed.flow.settings, [f"{name}-2" for name in names])
    billed.flow.connection.execute("DELETE FROM customer_mappings")
    for name in names:
        map_customer(billed.flow.connection, name, customers[f"{name}-2"])
    billed.owners |= {customers[f"{name}-2"]: name for name in names}

    billed.restore(rows)
    billed.flush(2)

    assert billed.held() == []
    assert billed.billed() == billed.used()


def test_period_edges_found_late_move_what_lies_behind_them(billed, subscriptions):
    for customer in billed.owners:
        for hours_ago in range(5, 17, 2):
            subscriptions.create(customer, billed.this_hour - hours_ago * HOUR + 20 * MINUTE, "tokens")

    report = billed.flush()

    assert report.cut.held == {}
    billed.flush(2)
    assert billed.billed() == billed.used()
    assert billed.differences() == set()


def test_a_rebill_that_takes_back_is_held_and_told(company):
    company.catalogue(TOKENS + "unit_scale = 4\n")
    company.organizations("acme")
    company.use_each_hour("acme", range(5, 35), 10)
    company.flush(2)
    company.catalogue(TOKENS + "unit_scale = 2\n")

    def count_anew(decision=None):
        return rebill(
            company.flow.connection,
            source=company.flow.read_source(),
            catalogue=company.flow.catalogue,
            meter="tokens",
            since=company.this_hour - 40 * HOUR,
            overlap=15 * MINUTE,
            clock=company.flow.clock,
            decision=decision,
        )

    count_anew(Decision("Ann", "the price list changed", count_anew().difference))
    report = company.flush()
    assert dict(report.cut.held) == {"too_much_taken_back_at_once": 30}
    assert company.billed() == {"acme": 1_200}

    company.release()
    company.flush()
    assert company.billed() == {"acme": 600}
    assert company.differences() == set()


def test_a_rebill_that_multiplies_every_hour_is_not_unusual(company):
    company.organizations("acme")
    company.use_each_hour("acme", range(5, 35), 10)
    company.flush(2)
    company.catalogue(TOKENS + "unit_scale = 5000\n")

    def count_anew(decision=None):
        return rebill(
            company.flow.connection,
            source=company.flow.read_source(),
            catalogue=company.flow.catalogue,
            meter="tokens",
            since=company.this_hour - 40 * HOUR,
            overlap=15 * MINUTE,
            clock=company.flow.clock,
            decision=decision,
        )

    count_anew(Decision("Ann", "the price list changed", count_anew().difference))

    assert company.flush().cut.held == {}
    assert company.billed() == {"acme": 30 * 10 * 5_000}


@pytest.mark.parametrize("aggregation", ["max", "last"])
def test_a_level_that_late_rows_reach_earlier_is_moved_and_not_held(company, subscriptions, aggregation):
    company.catalogue(f'[meters.tokens]\nevent_types = ["tokens"]\naggregation = "{aggregation}"\n')
    company.organizations("acme")
    subscriptions.create(*company.owners, company.this_hour - 100 * HOUR, "tokens")
    for hours_ago in range(5, 45):
        company.use("acme", hours_ago, 1_000 - 10 * hours_ago)
    company.flush(2)
    assert company.billed() == {"acme": 950}

    for hours_ago in range(5, 45):
        at = company.this_hour - hours_ago * HOUR + MINUTE
        company.use("acme", hours_ago, 1_000 - 10 * hours_ago + 5, occurred_at=at)
    report = company.flush()

    assert (report.cut.held, report.cut.windows_behind_holds) == ({}, 0)
    company.flush(2)
    assert company.billed() == {"acme": 955}


def test_a_gauge_that_falls_is_taken_back_at_once_and_one_without_rows_is_not(company, subscriptions):
    company.catalogue('[meters.tokens]\nevent_types = ["tokens"]\naggregation = "last"\n')
    company.organizations("acme")
    subscriptions.create(*company.owners, company.this_hour - 100 * HOUR, "tokens")
    for hours_ago in range(10, 40):
        company.use("acme", hours_ago, 1_000 - 10 * hours_ago)
    company.flush(2)
    assert company.billed() == {"acme": 900}

    company.use("acme", 5, 700)
    company.flush()
    assert company.held() == []
    assert company.billed() == {"acme": 700}

    company.lose(*company.rows)
    assert company.flush().cut.windows_held > 0
    assert company.billed() == {"acme": 700}


# What was on hold for other reasons.


def test_a_refused_amount_that_nobody_owes_any_more_is_on_hold_no_more(company):
    company.organizations("acme")
    wrong = company.use("acme", 5, 10)
    company.flow.validate_contract()
    company.flow.aggregate()
    company.flow.cut()
    company.flow.connection.execute(
        "UPDATE ledger_entries SET state = 'ambiguous', first_attempt_at = now(), last_attempt_at = now()"
    )
    company.flow.connection.execute("UPDATE ledger_entries SET state = 'rejected', hold_reason = 'rejected_by_stripe'")
    company.flow.connection.execute("UPDATE usage_windows SET cut_due = true")
    assert company.held() == [("rejected_by_stripe", 1, 10, 0)]

    company.lose(wrong)
    flush(company.flow, scope=Scope.FULL)

    assert company.held() == []
    assert company.billed() == {"acme": 0}


def test_an_amount_too_large_for_stripe_is_billed_once_it_is_mended(company):
    company.settings(billing_brake_hour_factor=0)
    company.organizations("acme")
    company.use("acme", 5, 999_999_999_999_999)
    other = company.use("acme", 5, 999_999_999_999_999)
    company.flush()
    assert company.held() == [("more_digits_than_stripe_accepts", 1, 1_999_999_999_999_998, 0)]
    assert company.flush().cut.held == {}

    company.lose(other)
    company.flush()

    assert company.held() == []
    assert company.billed() == company.used()


# Releasing.


def test_a_release_is_all_or_nothing_and_in_the_operator_log(billed):
    billed.lose(*billed.rows)
    billed.flush()
    first, second, *_ = held_windows(billed.flow.connection, limit=5)
    log = {"actor": "Ann", "reason": "meant", "now": billed.flow.clock()}

    with pytest.raises(UserError, match="not on hold are the windows 999"):
        release_windows(billed.flow.connection, [first.window_id, 999], **log)
    with pytest.raises(UserError, match="no such window is on hold"):
        release_all(billed.flow.connection, Chosen("too_much_taken_back_at_once", "nobody"), **log)
    with pytest.raises(UserError, match="a reason and a name"):
        release_windows(billed.flow.connection, [first.window_id], **(log | {"reason": " "}))
    assert billed.held()[0][1] == 48

    release_windows(billed.flow.connection, [second.window_id, first.window_id, first.window_id], **log)
    release_all(billed.flow.connection, Chosen("too_much_taken_back_at_once", "umbrella", "tokens"), **log)

    assert billed.held()[0][1] == 48 - 2 - 12
    rows = billed.flow.connection.execute("SELECT action, actor, reason, details FROM ledger_operations").fetchall()
    assert [row[:3] for row in rows] == [("release_hold", "Ann", "meant")] * 2
    assert rows[0][3]["window_ids"] == sorted([first.window_id, second.window_id])
    assert rows[0][3]["meters"] == {"tokens": {"windows": 2, "added": "0", "taken_back": "20"}}
    assert rows[1][3]["all_of"] == {
        "reason": "too_much_taken_back_at_once",
        "organization": "umbrella",
        "meter": "tokens",
    }


def test_what_is_released_goes_while_the_rest_of_the_meter_is_braked(billed):
    billed.lose(*billed.rows)
    billed.flush()
    chosen = Chosen(str(HoldReason.TAKEN_BACK), "acme")
    release_all(billed.flow.connection, chosen, actor="Ann", reason="left us", now=billed.flow.clock())

    report = billed.flush()

    assert report.cut.units_taken_back == 120
    assert billed.billed() == {"acme": 0, "globex": 120, "initech": 120, "umbrella": 120}


def test_nothing_is_released_while_the_ledger_is_frozen_and_listing_goes_on(billed):
    billed.lose(*billed.rows)
    billed.flush()
    gate.freeze(billed.flow.connection, "a drill", now=billed.flow.clock())

    with pytest.raises(LedgerFrozen, match="nothing was released"):
        billed.release()

    assert billed.held() == [("too_much_taken_back_at_once", 48, 0, 480)]
