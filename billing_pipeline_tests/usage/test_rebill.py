"""A changed catalogue never bills old hours anew by itself; `rebill` does, previewed and decided by a person."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.domain.seals import Period
from billing_pipeline.errors import UserError
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.rebill import Decision, rebill
from billing_pipeline.usage.seal import seal
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe

HOUR = timedelta(hours=1)
BEFORE = '[meters.tokens]\nevent_types = ["prompt"]\naggregation = "sum"\n'


@pytest.fixture
def company(flow, bill, simulator):
    """Two organizations, six hours of usage each, flushed by the first catalogue."""
    return Company(flow, bill("acme", "globex"), simulator)


class Company:
    def __init__(self, flow, customers, simulator):
        self.flow, self.customers, self.simulator = flow, customers, simulator
        # The hour before it has closed and is due, also in the first minutes of an hour.
        self.this_hour = (flow.clock() - HOUR / 2).replace(minute=0, second=0, microsecond=0)
        self.since = self.this_hour - 4 * HOUR
        self.catalogue(BEFORE)
        self.events = [
            billable_event(
                organization_id=organization_id,
                event_type=event_type,
                quantity=Decimal(10 * hour + number),
                occurred_at=self.this_hour - hour * HOUR + timedelta(minutes=number),
                properties={"model": "large" if number % 2 else "small"},
            )
            for organization_id in self.customers
            for hour in range(1, 7)
            for number, event_type in enumerate(("prompt", "prompt", "answer"))
        ]
        insert_events(flow.connection, *self.events)
        self.flush()

    def catalogue(self, text):
        self.flow.catalogue = parse_catalogue(text, origin="test")
        set_up_catalogue(self.flow.stripe, self.flow.settings, self.flow.catalogue)
        # Read once a flow; a person's next command is a flow of its own.
        for name in ("meters_at_stripe", "summaries"):
            self.flow.__dict__.pop(name, None)

    def flush(self):
        flush(self.flow, scope=Scope.FULL)
        # What is taken back waits until what was billed is confirmed.
        flush(self.flow, scope=Scope.FULL)

    def rebill(self, decision=None, since=None, meter="tokens"):
        return rebill(
            self.flow.connection,
            source=self.flow.read_source(),
            catalogue=self.flow.catalogue,
            meter=meter,
            since=since or self.since,
            overlap=timedelta(minutes=15),
            clock=self.flow.clock,
            decision=decision,
        )

    def apply(self):
        difference = self.rebill().difference
        return self.rebill(Decision("Ann", "the price list changed", difference))

    def counted(self):
        totals = Counter()
        for (customer, _, hour), units in counted_by_stripe(self.simulator).items():
            totals[customer, hour] += units
        return {cell: units for cell, units in totals.items() if units}

    def sums(self, value):
        """What `value` says of each event, added up by customer and hour, without a line of the code under test."""
        totals = Counter()
        for event in self.events:
            hour = event["occurred_at"].replace(minute=0)
            totals[self.customers[event["organization_id"]], hour] += value(event, hour)
        return {cell: units for cell, units in totals.items() if units}

    def tables(self):
        windows = "SELECT * FROM usage_windows ORDER BY window_id"
        versions = "SELECT * FROM meter_versions ORDER BY meter, valid_from"
        return [
            self.flow.connection.execute(statement).fetchall()
            for statement in (windows, versions, "SELECT * FROM aggregations", "SELECT * FROM ledger_operations")
        ]


def of_prompts(event, _):
    return int(event["quantity"]) if event["event_type"] == "prompt" else 0


CHANGES = {
    "a factor": (
        BEFORE + "unit_scale = 3\n",
        lambda event, is_new: of_prompts(event, None) * (3 if is_new else 1),
    ),
    "another type": (
        BEFORE.replace('"prompt"', '"prompt", "answer"'),
        lambda event, is_new: int(event["quantity"]) if is_new else of_prompts(event, None),
    ),
    "a filter": (
        BEFORE + 'filter = { model = "large" }\n',
        lambda event, is_new: of_prompts(event, None) * (not is_new or event["properties"]["model"] == "large"),
    ),
    "counted": (
        BEFORE.replace("sum", "count"),
        lambda event, is_new: (event["event_type"] == "prompt") if is_new else of_prompts(event, None),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_old_hours_are_billed_by_the_new_definition_only_after_a_person_said_so(company, change):
    text, value = CHANGES[change]
    assert company.counted() == company.sums(of_prompts)

    company.catalogue(text)
    company.flush()
    assert company.counted() == company.sums(of_prompts), "a changed catalogue leaves old hours alone"

    report = company.apply()
    company.flush()

    truth = company.sums(lambda event, hour: value(event, hour >= company.since))
    assert company.counted() == truth
    assert report.difference == sum(truth.values()) - sum(company.sums(of_prompts).values())


def test_a_preview_changes_nothing(company):
    company.catalogue(BEFORE + "unit_scale = 3\n")
    company.flush()
    before = company.tables()

    report = company.rebill()

    assert company.tables() == before
    # Of each of four hours 20 h + 1 is counted once, and would be three times.
    assert [(row.organization_id, row.difference) for row in report.organizations] == [("acme", 408), ("globex", 408)]
    assert (report.difference, report.sealed) == (816, 0)


def test_a_meter_for_a_type_that_was_unknown_bills_what_waited(company):
    company.catalogue(BEFORE + '[meters.answers]\nevent_types = ["answer"]\naggregation = "sum"\n')
    company.flush()
    assert company.counted() == company.sums(of_prompts)

    difference = company.rebill(meter="answers").difference
    company.rebill(Decision("Ann", "a new product", difference), meter="answers")
    company.flush()

    truth = company.sums(
        lambda event, hour: (
            of_prompts(event, hour)
            + (int(event["quantity"]) if event["event_type"] == "answer" and hour >= company.since else 0)
        )
    )
    assert company.counted() == truth


def test_a_sum_becomes_the_highest_of_the_period(company):
    company.catalogue(BEFORE.replace("sum", "max"))
    company.flush()
    earliest = company.this_hour - 6 * HOUR

    difference = company.rebill(since=earliest).difference
    company.rebill(Decision("Ann", "billed by the peak", difference), since=earliest)
    company.flush()

    highest = Counter()
    for event in company.events:
        month = event["occurred_at"].replace(day=1, hour=0, minute=0)
        cell = company.customers[event["organization_id"]], month
        highest[cell] = max(highest[cell], of_prompts(event, None))
    counted = Counter()
    for (customer, hour), units in company.counted().items():
        counted[customer, hour.replace(day=1, hour=0)] += units
    assert counted == highest


def test_what_is_sealed_is_owed_and_not_sent(company):
    company.catalogue(BEFORE + "unit_scale = 3\n")
    company.flush()
    final = Period(company.customers["acme"], None, company.since, company.this_hour)
    decided = {"leave_owed": False, "actor": "Ann", "reason": "final"}
    seal(company.flow.connection, final, closed_before=company.this_hour, now=company.flow.clock(), **decided)

    report = company.apply()
    company.flush()

    assert report.sealed == 408
    truth = company.sums(
        lambda event, hour: (
            of_prompts(event, hour) * (3 if hour >= company.since and event["organization_id"] == "globex" else 1)
        )
    )
    assert company.counted() == truth


def test_who_decided_is_written_down(company):
    company.catalogue(BEFORE + "unit_scale = 3\n")
    company.apply()

    statement = "SELECT actor, reason, details->>'difference', details->>'meter' FROM ledger_operations"
    assert company.flow.connection.execute(statement + " WHERE action = 'rebill'").fetchall() == [
        ("Ann", "the price list changed", "816", "tokens")
    ]


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        (BEFORE, {}, "is counted by today's definition already"),
        (BEFORE + "unit_scale = 3\n", {"meter": "toke"}, "The catalogue has no meter toke; it has tokens"),
        (BEFORE + "unit_scale = 3\n", {"minutes": 1}, "is not a full hour"),
        (BEFORE + "unit_scale = 3\n", {"days": -40}, "Stripe takes no usage of before"),
        (BEFORE + 'event_name = "other"\n', {}, "Some of these hours were sent to tokens, not to other"),
    ],
)
def test_what_cannot_be_counted_anew_is_refused_and_changes_nothing(company, text, given, words):
    company.catalogue(text)
    before = company.tables()
    since = company.since + timedelta(days=given.get("days", 0), minutes=given.get("minutes", 0))

    with pytest.raises(UserError, match=words):
        company.rebill(since=since, meter=given.get("meter", "tokens"))

    assert company.tables() == before


def test_nothing_is_billed_of_before_billing_began(company):
    company.catalogue(BEFORE + "unit_scale = 3\n")
    company.flow.connection.execute("UPDATE meter_versions SET valid_from = %s", (company.since,))

    with pytest.raises(UserError, match="Nothing is billed of before"):
        company.rebill(since=company.since - HOUR)


def test_what_is_no_longer_the_difference_that_was_shown_is_refused(company):
    company.catalogue(BEFORE + "unit_scale = 3\n")
    shown = company.rebill().difference
    late = billable_event(organization_id="acme", event_type="prompt", quantity=Decimal(5), occurred_at=company.since)
    insert_events(company.flow.connection, late)
    before = company.tables()

    with pytest.raises(UserError, match=r"The difference is \+831 units by now, not \+816"):
        company.rebill(Decision("Ann", "x", shown))

    assert company.tables() == before
