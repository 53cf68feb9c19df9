"""All five aggregations and a filter, through whole flushes: Stripe counts what the rows say, and never more."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_aggregation import catalogue_of
from billing_pipeline_tests.fix_flow import canary_of, counted_by_stripe

HOUR = timedelta(hours=1)
CATALOGUE = """
[meters.tokens]
event_types = ["call"]
aggregation = "sum"
unit_scale = "0.5"

[meters.paid_calls]
event_types = ["call"]
aggregation = "count"
filter = { tier = ["pro", "team"], trial = false }

[meters.peak_tokens]
event_types = ["call"]
aggregation = "max"

[meters.latest_tokens]
event_types = ["call"]
aggregation = "last"

[meters.users]
event_types = ["call"]
aggregation = "unique"
property = "user"
filter = { tier = "pro" }
"""


@pytest.fixture
def kinds(flow, bill, subscriptions):
    """A flow with a meter of each kind, and acme in one billing period since ten days ago."""
    flow.catalogue = catalogue_of(CATALOGUE)
    set_up_catalogue(flow.stripe, flow.settings, flow.catalogue)
    customer = bill("acme")["acme"]
    names = [meter.event_name for meter in flow.catalogue.meters]
    flow.subscription = subscriptions.create(customer, flow.clock() - timedelta(days=10), *names)
    return flow


def call(at, tokens, user, tier="pro", trial=False):
    return billable_event(
        event_type="call",
        occurred_at=at,
        quantity=Decimal(tokens),
        properties={"user": user, "tier": tier, "trial": trial},
    )


def expected(rows):
    """What these rows of one billing period are worth per meter, in plain Python."""
    quantities = [row["quantity"] for row in sorted(rows, key=lambda row: row["occurred_at"])]
    properties = [row["properties"] for row in rows]
    return {
        "tokens": int(sum(quantities) * Decimal("0.5")),
        "paid_calls": sum(found["tier"] in {"pro", "team"} and not found["trial"] for found in properties),
        "peak_tokens": int(max(quantities)),
        "latest_tokens": int(quantities[-1]),
        "users": len({found["user"] for found in properties if found["tier"] == "pro"}),
    }


def billed(simulator):
    totals = {}
    for (_, event_name, _), units in counted_by_stripe(simulator).items():
        totals[event_name] = totals.get(event_name, 0) + units
    return totals


def invoiced(flow, simulator):
    """The quantity of each line of the invoice that the period would end with."""
    client = simulator.client()
    names = {meter.id: meter.event_name for meter in client.v1.billing.meters.list().auto_paging_iter()}
    lines = client.v1.invoices.create_preview({"subscription": flow.subscription}).lines.data
    prices = [client.v1.prices.retrieve(line.pricing.price_details.price) for line in lines]
    return {names[price.recurring.meter]: line.quantity for price, line in zip(prices, lines, strict=True)}


def highest(simulator, event_name):
    """The most that Stripe ever showed of a meter, event by event."""
    total = highest = 0
    for record in simulator.journal("meter_event"):
        if record["event_name"] == event_name and record["customer"] != canary_of(simulator):
            total += int(record["value"])
            highest = max(highest, total)
    return highest


def differences(flow):
    return reconcile(flow.connection, settings=flow.settings, now=flow.clock()).differences


def test_each_kind_of_usage_is_billed_as_the_rows_say(kinds, simulator):
    noon = kinds.clock().replace(minute=0, second=0, microsecond=0) - 9 * HOUR
    rows = [
        call(noon, 10, "ann"),
        call(noon + timedelta(minutes=5), 30, "bob", tier="free"),
        call(noon + HOUR, 20, "ann", tier="team"),
        call(noon + 2 * HOUR, 24, "cy", trial=True),
    ]
    insert_events(kinds.connection, *rows)
    flush(kinds)

    assert billed(simulator) == invoiced(kinds, simulator) == expected(rows)
    assert differences(kinds) == ()

    # Late: a new peak before the old one, a user already seen earlier, and a lower latest value.
    now = kinds.clock()
    late = [call(noon - HOUR, 50, "cy"), call(noon + 3 * HOUR, 4, "dee")]
    insert_events(kinds.connection, *(row | {"recorded_at": now} for row in late))
    flush(kinds)
    flush(kinds)

    assert billed(simulator) == invoiced(kinds, simulator) == expected(rows + late)
    assert {name: highest(simulator, name) for name in ("peak_tokens", "latest_tokens", "users")} == {
        "peak_tokens": 50,
        "latest_tokens": 24,
        "users": 3,
    }
    assert differences(kinds) == ()
    assert violations(kinds.connection, settings=kinds.settings, mark=0, now=kinds.clock()) == []


def test_each_kind_of_usage_is_invoiced_as_the_corrected_rows_say(kinds, simulator):
    noon = kinds.clock().replace(minute=0, second=0, microsecond=0) - 9 * HOUR
    rows = [
        call(noon, 10, "ann"),
        call(noon + HOUR, 90, "bob"),
        call(noon + 2 * HOUR, 40, "bob", tier="team"),
        call(noon + 3 * HOUR, 70, "cy"),
    ]
    insert_events(kinds.connection, *rows)
    flush(kinds)
    assert invoiced(kinds, simulator) == expected(rows)

    # The peak was a mistake, the latest value too high, and one row is nobody's usage.
    rows[1]["quantity"], rows[3]["quantity"] = Decimal(60), Decimal(8)
    for row in (rows[1], rows[3]):
        kinds.connection.execute(
            "UPDATE public.billable_events SET quantity = %s, recorded_at = now() WHERE event_id = %s",
            (row["quantity"], row["event_id"]),
        )
    kinds.connection.execute("DELETE FROM public.billable_events WHERE event_id = %s", (rows[0]["event_id"],))
    for _ in range(3):
        # What is taken back waits until what was billed is confirmed.
        flush(kinds, scope=Scope.FULL)

    assert billed(simulator) == invoiced(kinds, simulator) == expected(rows[1:])
    assert differences(kinds) == ()
    assert violations(kinds.connection, settings=kinds.settings, mark=0, now=kinds.clock()) == []


def test_a_row_without_the_property_that_is_counted_by_waits_in_quarantine(kinds, simulator):
    noon = kinds.clock().replace(minute=0, second=0, microsecond=0) - 9 * HOUR
    anonymous = call(noon, 5, "")
    insert_events(kinds.connection, anonymous, call(noon, 7, "ann"))

    flush(kinds)

    waiting = kinds.connection.execute("SELECT event_id, reason FROM quarantined_events").fetchall()
    assert waiting == [(anonymous["event_id"], "property_missing")]
    assert billed(simulator)["tokens"] == 3
