"""What the database itself refuses, whoever writes: the promises that no code of ours can break."""

import threading
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.errors import (
    CheckViolation,
    ExclusionViolation,
    ForeignKeyViolation,
    IntegrityConstraintViolation,
    UniqueViolation,
)

from billing_pipeline.database.connection import connect
from billing_pipeline.database.tables import entry_state
from billing_pipeline_tests.fix_postgres import fresh_database

HOUR = datetime(2026, 3, 2, 10, tzinfo=UTC)

ALLOWED = {
    ("pending", "ambiguous"),
    ("pending", "replaced"),
    ("ambiguous", "pending"),
    ("ambiguous", "accepted"),
    ("ambiguous", "confirmed"),
    ("ambiguous", "rejected"),
    ("ambiguous", "replaced"),
    ("accepted", "confirmed"),
    ("accepted", "rejected"),
    ("accepted", "replaced"),
}
PAIRS = [pair for pair in product(entry_state.enums, repeat=2) if pair[0] != pair[1]]

APPEND_ONLY = ("ledger_entries", "attempts", "evidence", "usage_windows", "seals")


def insert(connection: Connection, table: str, key: str, **values: object) -> int:
    names, holes = ", ".join(values), ", ".join(f"%({name})s" for name in values)
    row = connection.execute(f"INSERT INTO {table} ({names}) VALUES ({holes}) RETURNING {key}", values).fetchone()
    return row[0]


def add_window(connection: Connection, **overrides: object) -> int:
    values = {
        "organization_id": "org_1",
        "stripe_customer_id": "cus_1",
        "meter": "api_calls",
        "starts_at": HOUR,
        "ends_at": HOUR + timedelta(hours=1),
        "target": 5,
        "quantity": 5,
        "event_count": 5,
        "contract_version": "1",
        "meter_version": "1",
        "event_name": "api_calls",
        "cutoff_at": HOUR,
    }
    return insert(connection, "usage_windows", "window_id", **values | overrides)


def add_entry(connection: Connection, window_id: int, sequence: int = 0, **overrides: object) -> int:
    values = {
        "window_id": window_id,
        "sequence": sequence,
        "epoch": 0,
        "stripe_customer_id": "cus_1",
        "event_name": "api_calls",
        "value": 5,
        "slot_at": HOUR + timedelta(minutes=sequence),
        "identifier": f"be1_{window_id}_{sequence}",
        "state": "pending",
        "first_attempt_at": HOUR,
    }
    # Straight into a state, past the rule that an entry begins at the beginning; every other guard stays.
    connection.execute("ALTER TABLE ledger_entries DISABLE TRIGGER guard_new")
    added = insert(connection, "ledger_entries", "entry_id", **values | overrides)
    connection.execute("ALTER TABLE ledger_entries ENABLE TRIGGER guard_new")
    return added


def add_attempt(connection: Connection, entry_id: int, **overrides: object) -> int:
    values = {"entry_id": entry_id, "fence": 1, "channel": "v1"}
    return insert(connection, "attempts", "attempt_id", **values | overrides)


@pytest.fixture
def entry_id(connection):
    return add_entry(connection, add_window(connection))


@pytest.fixture(scope="module")
def shared(server_url, template):
    """One database for a whole module of rolled-back tries."""
    with fresh_database(server_url, template) as url, connect(url) as connection:
        yield connection


@pytest.mark.parametrize("beginning", [{"state": "confirmed"}, {"fence": 1}, {"first_attempt_at": HOUR}])
def test_an_entry_begins_at_the_beginning(connection, beginning):
    window_id = add_window(connection)
    columns = "window_id, sequence, epoch, stripe_customer_id, event_name, value, slot_at, identifier"
    values = f"{window_id}, 0, 0, 'cus_1', 'api_calls', 5, '{HOUR}', 'be1_new'"
    ((name, value),) = beginning.items()

    with pytest.raises(IntegrityConstraintViolation, match="may not begin"):
        connection.execute(f"INSERT INTO ledger_entries ({columns}, {name}) VALUES ({values}, '{value}')")

    connection.execute(f"INSERT INTO ledger_entries ({columns}) VALUES ({values})")


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_state_moves_only_along_the_protocol(shared, before, after):
    with shared.transaction(force_rollback=True):
        entry_id = add_entry(shared, add_window(shared), state=before)
        update = "UPDATE ledger_entries SET state = %s WHERE entry_id = %s"
        if (before, after) in ALLOWED:
            assert shared.execute(update, (after, entry_id)).rowcount == 1
        else:
            with pytest.raises(IntegrityConstraintViolation, match=f"may not go from {before} to {after}"):
                shared.execute(update, (after, entry_id))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("window_id", 999),
        ("sequence", 7),
        ("epoch", 1),
        ("stripe_customer_id", "cus_2"),
        ("event_name", "tokens"),
        ("value", 6),
        ("slot_at", HOUR + timedelta(minutes=30)),
        ("identifier", "be1_other"),
        ("created_at", HOUR),
    ],
)
def test_what_an_entry_states_is_immutable(connection, entry_id, column, value):
    with pytest.raises(IntegrityConstraintViolation, match=f"ledger entry {entry_id} is immutable"):
        connection.execute(f"UPDATE ledger_entries SET {column} = %s", (value,))


def test_a_fence_never_goes_back(connection, entry_id):
    connection.execute("UPDATE ledger_entries SET fence = 2")

    with pytest.raises(IntegrityConstraintViolation, match=f"stale fence 1 on ledger entry {entry_id}"):
        connection.execute("UPDATE ledger_entries SET fence = 1")


def test_the_first_attempt_cannot_be_moved(connection, entry_id):
    with pytest.raises(IntegrityConstraintViolation, match=r"first attempt .* cannot be moved"):
        connection.execute("UPDATE ledger_entries SET first_attempt_at = first_attempt_at + interval '1 hour'")
    with pytest.raises(IntegrityConstraintViolation, match=r"first attempt .* cannot be moved"):
        connection.execute("UPDATE ledger_entries SET first_attempt_at = NULL")


def test_the_first_attempt_is_forgotten_only_when_nothing_was_executed(connection, entry_id):
    connection.execute("UPDATE ledger_entries SET state = 'ambiguous'")
    connection.execute("UPDATE ledger_entries SET state = 'pending', first_attempt_at = NULL")

    assert connection.execute("SELECT first_attempt_at FROM ledger_entries").fetchone() == (None,)


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_nothing_is_deleted_from_the_ledger(connection, entry_id, table, statement):
    with pytest.raises(IntegrityConstraintViolation, match="is refused: it is append-only"):
        connection.execute(statement.format(table))


def test_an_attempts_outcome_is_written_once(connection, entry_id):
    attempt_id = add_attempt(connection, entry_id)
    connection.execute("UPDATE attempts SET outcome = 'unknown', finished_at = now()")

    with pytest.raises(IntegrityConstraintViolation, match=f"attempt {attempt_id} is append-only"):
        connection.execute("UPDATE attempts SET outcome = 'ok'")


def test_an_attempt_is_of_an_entry_of_the_ledger(connection, entry_id):
    with pytest.raises(ForeignKeyViolation, match="not in the ledger"):
        add_attempt(connection, entry_id + 1)


@pytest.mark.parametrize("change", ["fence = 2", "channel = 'v2_stream'", "started_at = now()"])
def test_an_attempt_stays_the_attempt_it_was(connection, entry_id, change):
    add_attempt(connection, entry_id)

    with pytest.raises(IntegrityConstraintViolation, match="is append-only"):
        connection.execute(f"UPDATE attempts SET {change}")


def test_evidence_is_never_changed(connection, entry_id):
    insert(
        connection,
        "evidence",
        "evidence_id",
        entry_id=entry_id,
        kind="summary_present",
        observed=5,
        granularity="minute",
    )

    with pytest.raises(IntegrityConstraintViolation, match="UPDATE on evidence is refused"):
        connection.execute("UPDATE evidence SET observed = 6")


@pytest.mark.parametrize(("first", "second"), [*product(["pending", "ambiguous"], repeat=2)])
def test_a_window_has_one_open_entry(connection, first, second):
    window_id = add_window(connection)
    add_entry(connection, window_id, 0, state=first)

    with pytest.raises(UniqueViolation, match="open_entries_one_per_window"):
        add_entry(connection, window_id, 1, state=second)


def test_a_settled_entry_makes_room_for_the_next(connection):
    window_id = add_window(connection)
    for sequence, state in enumerate(("accepted", "confirmed", "adopted", "rejected", "replaced", "pending")):
        add_entry(connection, window_id, sequence, state=state)


@pytest.mark.parametrize(
    ("fault", "constraint"),
    [
        ({"value": 0}, "value"),
        ({"value": 10**15}, "value"),
        ({"value": -(10**15)}, "value"),
        ({"sequence": 60}, "sequence"),
        ({"sequence": 120, "state": "adopted"}, "sequence"),
        ({"sequence": -1}, "sequence"),
        ({"identifier": "x" * 101}, "identifier"),
        ({"slot_at": HOUR + timedelta(seconds=1)}, "slot_at"),
        ({"state": "accepted", "first_attempt_at": None}, "attempted_before_outcome"),
    ],
)
def test_an_impossible_entry_is_refused(connection, fault, constraint):
    with pytest.raises(CheckViolation, match=f"ledger_entries_{constraint}_check"):
        add_entry(connection, add_window(connection), **fault)


def test_no_two_entries_share_an_identifier_or_a_minute(connection):
    window_id = add_window(connection)
    add_entry(connection, window_id, 0, state="accepted", identifier="be1_same")

    with pytest.raises(UniqueViolation, match="identifier"):
        add_entry(connection, window_id, 1, identifier="be1_same")
    with pytest.raises(UniqueViolation, match="slot"):
        add_entry(connection, window_id, 1, slot_at=HOUR)


@given(
    start=st.integers(min_value=0, max_value=3 * 3600 - 1),
    seconds=st.integers(min_value=1, max_value=2 * 3600),
)
def test_a_window_lies_within_one_utc_hour(shared, start, seconds):
    starts_at = HOUR + timedelta(seconds=start)
    fits = start // 3600 == (start + seconds - 1) // 3600
    with shared.transaction(force_rollback=True):
        # A half-hour zone: the rule must not follow the session's.
        shared.execute("SET LOCAL TimeZone = 'Asia/Kolkata'")
        try:
            with shared.transaction():
                add_window(shared, starts_at=starts_at, ends_at=starts_at + timedelta(seconds=seconds))
            refused = None
        except CheckViolation as exc:
            refused = exc.diag.constraint_name

    assert refused == (None if fits else "usage_windows_one_hour_check")


@pytest.mark.parametrize("seconds", [0, -60])
def test_a_window_ends_after_it_starts(connection, seconds):
    with pytest.raises(CheckViolation, match=r"usage_windows_(span|one_hour)_check"):
        add_window(connection, ends_at=HOUR + timedelta(seconds=seconds))


@pytest.mark.parametrize("customer", ["cus_1", None])
def test_a_window_is_counted_once_even_when_unmapped(connection, customer):
    add_window(connection, stripe_customer_id=customer)

    with pytest.raises(UniqueViolation, match="usage_windows_natural_key"):
        add_window(connection, stripe_customer_id=customer)


def map_customer(connection: Connection, organization: str, customer: str, start: int, end: int) -> None:
    connection.execute(
        "INSERT INTO customer_mappings (organization_id, stripe_customer_id, valid_during)"
        " VALUES (%s, %s, tstzrange(%s, %s))",
        (organization, customer, HOUR + timedelta(hours=start), HOUR + timedelta(hours=end)),
    )


@given(
    first=st.tuples(st.integers(0, 20), st.integers(1, 10)),
    second=st.tuples(st.integers(0, 20), st.integers(1, 10)),
    same_organization=st.booleans(),
    same_customer=st.booleans(),
)
def test_mappings_may_touch_but_never_overlap(shared, first, second, same_organization, same_customer):
    (a, a_hours), (b, b_hours) = first, second
    overlap = a < b + b_hours and b < a + a_hours
    with shared.transaction(force_rollback=True):
        map_customer(shared, "org_1", "cus_1", a, a + a_hours)
        other = ("org_1" if same_organization else "org_2", "cus_1" if same_customer else "cus_2")
        try:
            with shared.transaction():
                map_customer(shared, *other, b, b + b_hours)
            refused = False
        except ExclusionViolation:
            refused = True

    assert refused == (overlap and (same_organization or same_customer))


def test_an_empty_mapping_is_refused(connection):
    with pytest.raises(CheckViolation, match="valid_during"):
        map_customer(connection, "org_1", "cus_1", 3, 3)


def test_the_ledger_has_one_identity_and_a_freeze_has_a_time(connection):
    identity = (
        "INSERT INTO ledger_identity (ledger_id, stripe_account, livemode{})"
        " VALUES (gen_random_uuid(), 'acct_1', false{})"
    )
    with pytest.raises(CheckViolation, match="frozen_whole"):
        connection.execute(identity.format(", frozen_reason", ", 'why'"))
    connection.execute(identity.format("", ""))
    with pytest.raises(UniqueViolation, match="ledger_identity_pkey"):
        connection.execute(identity.format("", ""))


SEALED_AT = HOUR + timedelta(days=40)


def add_seal(connection: Connection, **overrides: object) -> int:
    operation_id = insert(
        connection,
        "ledger_operations",
        "operation_id",
        action="seal",
        actor="Ann",
        reason="invoice in_1 is final",
        done_at=SEALED_AT,
    )
    values = {
        "stripe_customer_id": "cus_1",
        "during": f"[{HOUR - timedelta(days=1)},{HOUR + timedelta(days=1)})",
        "operation_id": operation_id,
        "sealed_at": SEALED_AT,
    }
    return insert(connection, "seals", "seal_id", **values | overrides)


def seal_window(connection: Connection, sealed_at: datetime | None = SEALED_AT) -> None:
    connection.execute("UPDATE usage_windows SET sealed_at = %s", (sealed_at,))


@pytest.mark.parametrize("state", entry_state.enums)
def test_a_window_is_not_sealed_before_its_entries_are_settled(connection, state):
    add_entry(connection, add_window(connection), state=state)
    add_seal(connection)

    if state in {"pending", "ambiguous", "accepted"}:
        with pytest.raises(IntegrityConstraintViolation, match="has an entry that is not settled"):
            seal_window(connection)
    else:
        seal_window(connection)


def test_a_window_on_hold_is_not_sealed(connection):
    window_id = add_window(connection, hold_reason="no_minute_left_in_window")
    add_seal(connection)
    with pytest.raises(IntegrityConstraintViolation, match="is on hold"):
        seal_window(connection)

    connection.execute("UPDATE usage_windows SET hold_reason = NULL")
    add_entry(connection, window_id, state="rejected", hold_reason="rejected_by_stripe")
    with pytest.raises(IntegrityConstraintViolation, match="is on hold"):
        seal_window(connection)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"stripe_customer_id": "cus_2"},
        {"event_name": "tokens"},
        {"during": f"[{HOUR + timedelta(seconds=1)},{HOUR + timedelta(days=1)})"},
        {"sealed_at": SEALED_AT + timedelta(seconds=1)},
    ],
)
def test_a_window_is_sealed_only_by_a_seal_that_covers_it(connection, elsewhere):
    add_window(connection)
    add_seal(connection, **elsewhere)

    with pytest.raises(IntegrityConstraintViolation, match="no seal covers it"):
        seal_window(connection)
    with pytest.raises(IntegrityConstraintViolation, match="no seal covers it"):
        add_window(connection, organization_id="org_2", sealed_at=SEALED_AT)


@pytest.mark.parametrize("change", [None, SEALED_AT + timedelta(days=1)])
def test_a_seal_is_never_taken_off(connection, change):
    add_window(connection)
    add_seal(connection)
    add_seal(connection, sealed_at=SEALED_AT + timedelta(days=1))
    seal_window(connection)

    with pytest.raises(IntegrityConstraintViolation, match="a seal is never taken off"):
        seal_window(connection, change)
    with pytest.raises(IntegrityConstraintViolation, match="append-only"):
        connection.execute("UPDATE seals SET sealed_at = now()")


@pytest.mark.parametrize("during", ["empty", f"[{HOUR},)", f"(,{HOUR})"])
def test_a_seal_has_a_beginning_and_an_end(connection, during):
    with pytest.raises(CheckViolation, match="during"):
        add_seal(connection, during=during)


@pytest.mark.parametrize("state", ["pending", "adopted"])
def test_a_sealed_window_takes_no_new_entry(connection, state):
    window_id = add_window(connection)
    add_seal(connection)
    seal_window(connection)

    with pytest.raises(IntegrityConstraintViolation, match=f"usage window {window_id} is sealed"):
        add_entry(connection, window_id, state=state)


def test_an_entry_that_comes_while_its_window_is_being_sealed_waits_and_is_refused(connection, database_url):
    window_id = add_window(connection)
    add_seal(connection)
    refused = []

    def state_more():
        with connect(database_url) as other:
            try:
                insert(
                    other,
                    "ledger_entries",
                    "entry_id",
                    window_id=window_id,
                    sequence=0,
                    epoch=0,
                    stripe_customer_id="cus_1",
                    event_name="api_calls",
                    value=1,
                    slot_at=HOUR,
                    identifier="be1_late",
                )
            except IntegrityConstraintViolation as exc:
                refused.append(str(exc))

    with connection.transaction():
        seal_window(connection)
        thread = threading.Thread(target=state_more)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(10)

    assert len(refused) == 1
    assert f"usage window {window_id} is sealed" in refused[0]
