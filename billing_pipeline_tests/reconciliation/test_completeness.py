"""Every row of the source is in one place: counted, in quarantine, left out by the catalogue, or not judged yet.

The judge is plain Python over the rows that were generated; it shares nothing with the rules it judges.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.database.connection import connect
from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.reconciliation.completeness import account_for_rows
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.aggregate import Scope, aggregate
from billing_pipeline.usage.contract import validate_contract
from billing_pipeline_tests.builders import billable_event, copy_events, insert_events, source_of
from billing_pipeline_tests.fix_postgres import fresh_database

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FIRST = datetime(2026, 3, 10, 12, 20, tzinfo=UTC)
"""The first flush; the catalogue changes before the second, two hours later, and takes effect at 15:00."""
SECOND = FIRST + 2 * HOUR
THIRD = SECOND + 2 * HOUR
CHANGED_AT = datetime(2026, 3, 10, 15, tzinfo=UTC)
BILLING_START = datetime(2026, 2, 20, tzinfo=UTC)
OVERLAP = 15 * MINUTE

BEFORE = parse_catalogue(
    """
    ignored_event_types = ["login", "ping"]
    [meters.tokens]
    event_types = ["tokens", "call"]
    aggregation = "sum"
    [meters.requests]
    event_types = ["call", "request"]
    aggregation = "count"
    [meters.faxes]
    event_types = ["fax"]
    aggregation = "sum"
    [meters.pages]
    event_types = ["page"]
    aggregation = "sum"
    """,
    origin="before",
)
AFTER = parse_catalogue(
    """
    ignored_event_types = ["login"]
    [meters.tokens]
    event_types = ["tokens", "call"]
    aggregation = "sum"
    [meters.requests]
    event_types = ["call", "request"]
    aggregation = "count"
    [meters.images]
    event_types = ["image"]
    aggregation = "sum"
    [meters.pages]
    event_types = ["page"]
    aggregation = "count"
    """,
    origin="after: faxes and pings are gone, images are new, pages are counted instead of summed",
)
METERS = {
    "tokens": {"tokens"},
    "call": {"tokens", "requests"},
    "request": {"requests"},
    "fax": {"faxes"},
    "image": {"images"},
    "page": {"pages"},
}


def meters_of(row) -> set[str]:
    """The judge's catalogue: who counts a row in its hour."""
    kind, at = row["event_type"], row["occurred_at"]
    if at is None or at < BILLING_START:
        return set()
    if (kind == "fax" and at >= CHANGED_AT) or (kind == "image" and at < CHANGED_AT):
        return set()
    return METERS.get(kind, set())


def sums_quantity(row) -> bool:
    in_sum = {"tokens", "call", "fax", "image"} | ({"page"} if (row["occurred_at"] or FIRST) < CHANGED_AT else set())
    return bool(meters_of(row)) and row["event_type"] in in_sum


def breaks_the_contract(row) -> bool:
    quantity, occurred, recorded = row["quantity"], row["occurred_at"], row["recorded_at"]
    return (
        not row["organization_id"]
        or not row["event_type"]
        or (quantity is None and sums_quantity(row))
        or (quantity is not None and (not quantity.is_finite() or quantity < 0 or quantity >= 10**15))
        or occurred is None
        or recorded is None
        or not -5 * MINUTE <= recorded - occurred <= 35 * DAY
        or (row["event_type"] not in {"tokens", "call", "request", "image", "page", "login"} and not meters_of(row))
    )


def place(row) -> str:
    """Where the judge says that a row of the first two flushes is, at the third."""
    oldest = THIRD.replace(minute=0) - 35 * DAY
    if not row["event_id"]:
        return "without_event_id"
    if breaks_the_contract(row):
        return "dismissed" if row["event_id"].endswith("7") else "waiting"
    if row["occurred_at"] < oldest + HOUR:
        return "outside_reach"
    if meters_of(row):
        return "counted"
    if row["occurred_at"] < BILLING_START:
        return "before_billing_start"
    return "ignored_event_type" if row["event_type"] == "login" else "no_meter_in_its_hour"


quantities = st.sampled_from([None, Decimal(3), Decimal("0.25"), Decimal(-1), Decimal("NaN"), Decimal(10**15)])
lags = st.one_of(
    st.sampled_from([-6 * MINUTE, -5 * MINUTE, MINUTE, MINUTE, 3 * HOUR, 2 * DAY, 20 * DAY, 35 * DAY, 36 * DAY, None]),
    st.timedeltas(-5 * MINUTE, 35 * DAY),
)
rows = st.fixed_dictionaries(
    {
        "organization_id": st.sampled_from(["acme", "acme", "globex", "globex", "", None]),
        "event_type": st.sampled_from([*METERS, *METERS, "page", "fax", "login", "ping", "espresso", "", None]),
        "quantity": quantities,
        "lag": lags,
        "minutes": st.integers(0, 100),
        "is_named": st.sampled_from([True] * 9 + [False]),
    }
)


def made(batch, name, recorded_from):
    """The batch as rows of the source, recorded within 100 minutes from then on."""
    for number, row in enumerate(batch):
        recorded_at = recorded_from + row["minutes"] * MINUTE
        yield billable_event(
            event_id=f"{name}-{number}" if row["is_named"] else None,
            organization_id=row["organization_id"],
            event_type=row["event_type"],
            quantity=row["quantity"],
            occurred_at=None if row["lag"] is None else recorded_at - row["lag"],
            recorded_at=recorded_at,
        )


@pytest.fixture
def company(connection, database_url, tmp_path):
    return Company(connection, database_url, load_settings(database_url=database_url, billing_state_dir=tmp_path))


class Company:
    """Validates and aggregates at given instants, as a flush does."""

    def __init__(self, connection, database_url, settings):
        self.connection, self.database_url, self.settings = connection, database_url, settings
        # A source whose rows may lack their names, and holds each name once all the same.
        connection.execute("ALTER TABLE public.billable_events DROP CONSTRAINT billable_events_pkey")
        connection.execute("ALTER TABLE public.billable_events ALTER event_id DROP NOT NULL")
        connection.execute("CREATE UNIQUE INDEX ON public.billable_events (event_id)")

    def validate(self, at, *, since=None, catalogue=BEFORE):
        validate_contract(
            self.connection,
            self.database_url,
            source=source_of(self.connection),
            catalogue=catalogue,
            since=since,
            lookback=30 * DAY,
            now=at,
        )

    def aggregate(self, at, *, scope=Scope.FULL, catalogue=BEFORE):
        aggregate(
            self.connection,
            source=source_of(self.connection),
            catalogue=catalogue,
            start_at=BILLING_START,
            overlap=OVERLAP,
            clock=lambda: at,
            scope=scope,
        )

    def account(self, at=THIRD):
        return account_for_rows(self.connection, settings=self.settings, now=at)

    def windows(self):
        found = self.connection.execute(
            "SELECT organization_id, meter, starts_at, event_count FROM usage_windows WHERE event_count > 0"
        ).fetchall()
        return {(organization, meter, hour): count for organization, meter, hour, count in found}

    def dismiss_every_seventh(self):
        self.connection.execute(
            "UPDATE quarantined_events SET dismissed_at = %s, dismissed_by = 'Ada', dismissed_reason = 'a test' "
            "WHERE event_id LIKE '%%7'",
            (SECOND,),
        )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.lists(rows, min_size=30, max_size=60),
    second=st.lists(rows, min_size=30, max_size=60),
    third=st.lists(rows, max_size=10),
)
def test_every_row_is_in_exactly_one_place(server_url, template, tmp_path, first, second, third):
    with fresh_database(server_url, template) as url, connect(url) as connection:
        check_places(
            Company(connection, url, load_settings(database_url=url, billing_state_dir=tmp_path)), first, second, third
        )


def check_places(company, first, second, third):
    old = list(made(first, "first", FIRST - 2 * HOUR))
    copy_events(company.connection, old)
    company.validate(FIRST)
    company.aggregate(FIRST)

    late = list(made(second, "second", FIRST))
    copy_events(company.connection, late)
    company.validate(SECOND, since=FIRST - OVERLAP, catalogue=AFTER)
    company.aggregate(SECOND, scope=Scope.TOUCHED, catalogue=AFTER)
    company.dismiss_every_seventh()

    judged = [*old, *late]
    expected = Counter(place(row) for row in judged)
    windows = Counter(
        (row["organization_id"], meter, row["occurred_at"].replace(minute=0, second=0, microsecond=0))
        for row in judged
        if not breaks_the_contract(row) and row["event_id"] and row["occurred_at"] >= THIRD.replace(minute=0) - 35 * DAY
        for meter in meters_of(row)
    )
    quarantined = {row["event_id"] for row in judged if place(row) in ("waiting", "dismissed")}
    found = company.account(SECOND)
    assert found.findings == ()
    assert sum(found.rows.values()) == len(judged)

    new = list(made(third, "third", SECOND))
    copy_events(company.connection, new)
    # What the catalogue leaves out is left out before any flush has seen it.
    expected += Counter(
        "not_judged_yet" if place(row) in ("counted", "waiting", "dismissed") else place(row) for row in new
    )

    found = company.account()
    assert found.findings == ()
    assert found.rows == expected
    in_reach = {key: count for key, count in company.windows().items() if key[2] >= THIRD.replace(minute=0) - 35 * DAY}
    assert in_reach == windows
    assert quarantined == {
        event_id
        for (event_id,) in company.connection.execute("SELECT event_id FROM quarantined_events WHERE mended_at IS NULL")
    }


@pytest.fixture
def flushed(company):
    """Two rows of one hour are counted, one of them by two meters; one breaks the contract."""
    insert_events(
        company.connection,
        billable_event(event_id="good", event_type="tokens", occurred_at=FIRST - 3 * HOUR),
        billable_event(event_id="two meters", event_type="call", occurred_at=FIRST - 3 * HOUR),
        billable_event(event_id="bad", event_type="tokens", quantity=None, occurred_at=FIRST - 3 * HOUR),
    )
    company.validate(FIRST)
    company.aggregate(FIRST)
    return company


def faults(company, at=FIRST):
    found = violations(company.connection, settings=company.settings, mark=0, now=at, invariants=("v13_completeness",))
    return {violation.detail.partition(":")[0] for violation in found}


def test_a_row_that_two_meters_count_is_one_row(flushed):
    assert flushed.account(FIRST).rows == {"counted": 2, "waiting": 1}
    assert faults(flushed) == set()


def test_a_bad_row_that_is_in_no_place_is_found(flushed):
    flushed.connection.execute("DELETE FROM quarantined_events")

    assert faults(flushed) == {"not_quarantined"}


def test_a_row_in_two_places_is_found(flushed):
    flushed.connection.execute(
        "INSERT INTO quarantined_events (event_id, reason, contract_version, organization_id, event_type, quantity, "
        "occurred_at) SELECT event_id, 'quantity_negative', '1', organization_id, event_type, quantity::text, "
        "occurred_at FROM public.billable_events WHERE event_id = 'good'"
    )

    assert faults(flushed) == {"counted_and_quarantined"}


def test_a_row_that_one_of_its_meters_does_not_count_is_found(flushed):
    flushed.connection.execute("UPDATE usage_windows SET event_count = 0 WHERE meter = 'requests'")

    assert faults(flushed) == {"not_counted"}


def test_a_deleted_row_is_told_and_is_no_fault(flushed):
    flushed.connection.execute("DELETE FROM public.billable_events WHERE event_id = 'good'")

    assert [(finding.place, finding.rows) for finding in flushed.account(FIRST).findings] == [("gone_since_counted", 1)]
    assert faults(flushed) == set()


def test_what_aggregation_has_seen_and_validation_has_not_is_not_judged_yet(flushed):
    at = FIRST + 10 * MINUTE
    insert_events(
        flushed.connection,
        billable_event(event_id="new", event_type="tokens", occurred_at=at),
        billable_event(event_id="new and bad", event_type="tokens", quantity=None, occurred_at=at),
    )
    flushed.aggregate(at + HOUR, scope=Scope.TOUCHED)

    assert flushed.account(at + HOUR).rows == {"counted": 3, "waiting": 1, "not_judged_yet": 1}
    flushed.validate(at + HOUR, since=FIRST - OVERLAP)
    assert flushed.account(at + HOUR).rows == {"counted": 3, "waiting": 2}


def test_a_row_mended_by_hand_waits_for_the_next_flush_and_is_no_fault(flushed):
    flushed.connection.execute("UPDATE public.billable_events SET quantity = 5 WHERE event_id = 'bad'")
    assert flushed.account(FIRST).rows == {"counted": 2, "not_judged_yet": 1}

    flushed.validate(FIRST + HOUR, since=FIRST - OVERLAP)
    assert (flushed.account(FIRST + HOUR).rows, faults(flushed, FIRST + HOUR)) == (
        {"counted": 2, "not_judged_yet": 1},
        set(),
    )

    flushed.aggregate(FIRST + HOUR, scope=Scope.TOUCHED)
    assert flushed.account(FIRST + HOUR).rows == {"counted": 3}


def test_before_the_first_flush_nothing_is_judged(company):
    insert_events(company.connection, billable_event(event_type="tokens", occurred_at=FIRST - HOUR))

    assert company.account(FIRST).rows == {"not_judged_yet": 1}
