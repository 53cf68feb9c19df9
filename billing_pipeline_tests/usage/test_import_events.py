"""A usage file is imported whole, exactly and once."""

import csv
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from billing_pipeline.database.connection import connect
from billing_pipeline.errors import ImportRefused
from billing_pipeline.usage.import_events import ImportResult, import_events
from billing_pipeline.usage.import_mapping import EventRule, ImportMapping

AZURE_TRACE = Path(__file__).parents[3] / "shared/usage/AzureLLMInferenceTrace_conv.csv"
AZURE = ImportMapping(
    time_column="TIMESTAMP",
    timezone="UTC",
    id_prefix="azure",
    row_modulo=7,
    events=(
        EventRule(event_type="prompt_tokens", quantity_column="ContextTokens"),
        EventRule(event_type="generated_tokens", quantity_column="GeneratedTokens"),
    ),
)
HEADER = "event_id,organization_id,event_type,quantity,occurred_at"
ROWS = (
    "a,acme,tokens,1.50,2026-11-20T10:00:00Z",
    "b,acme,tokens,2,2026-11-20T11:00:00+01:00",
    "c,globex,tokens,3,2026-11-20T12:00:00.123456Z",
)


def write(folder: Path, *rows: str, header: str = HEADER, name: str = "usage.csv") -> Path:
    file = folder / name
    file.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return file


def load(connection, file, mapping=None, *, shift_to_end_at=None, skip_conflicts=False, progress=lambda rows: None):
    return import_events(
        connection,
        file,
        mapping or ImportMapping(),
        relation="public.billable_events",
        shift_to_end_at=shift_to_end_at,
        skip_conflicts=skip_conflicts,
        progress=progress,
    )


def stored(connection, columns="event_id, organization_id, event_type, quantity, occurred_at"):
    return connection.execute(f"SELECT {columns} FROM public.billable_events ORDER BY event_id").fetchall()


def test_every_value_arrives_exactly(connection, tmp_path):
    result = load(connection, write(tmp_path, *ROWS))

    assert result == ImportResult(read=3, added=3, already_there=0, conflicts=0, conflict_ids=())
    assert stored(connection) == [
        ("a", "acme", "tokens", Decimal("1.50"), datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("b", "acme", "tokens", Decimal(2), datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("c", "globex", "tokens", Decimal(3), datetime(2026, 11, 20, 12, 0, 0, 123456, UTC)),
    ]


def test_a_second_import_adds_nothing(connection, tmp_path):
    file = write(tmp_path, *ROWS)
    load(connection, file)
    before = stored(connection, "*")

    assert load(connection, file) == ImportResult(read=3, added=0, already_there=3, conflicts=0, conflict_ids=())
    assert stored(connection, "*") == before


def test_a_repeat_within_the_file_counts_once(connection, tmp_path):
    # The same moment and the same amount, written differently.
    result = load(connection, write(tmp_path, *ROWS, "a,acme,tokens,1.5,2026-11-20T11:00:00+01:00"))

    assert (result.added, result.already_there, result.conflicts) == (3, 1, 0)


@pytest.mark.parametrize(
    "changed",
    [
        "a,globex,tokens,1.50,2026-11-20T10:00:00Z",
        "a,acme,requests,1.50,2026-11-20T10:00:00Z",
        "a,acme,tokens,1.51,2026-11-20T10:00:00Z",
        "a,acme,tokens,1.50,2026-11-20T10:00:00.000001Z",
        "a,acme,tokens,,2026-11-20T10:00:00Z",
    ],
)
def test_a_known_id_with_other_contents_stops_the_import(connection, tmp_path, changed):
    load(connection, write(tmp_path, ROWS[0]))
    before = stored(connection, "*")
    file = write(tmp_path, changed, ROWS[1])

    with pytest.raises(ImportRefused, match=r"1 of 2 events contradict .* first a; correct .* Nothing was imported"):
        load(connection, file)
    assert stored(connection, "*") == before

    result = load(connection, file, skip_conflicts=True)
    assert result == ImportResult(read=2, added=1, already_there=0, conflicts=1, conflict_ids=("a",))
    assert [row[0] for row in stored(connection)] == ["a", "b"]
    assert stored(connection, "*")[0] == before[0]


def test_properties_are_part_of_the_contents(connection, tmp_path):
    header = HEADER + ",properties"
    load(connection, write(tmp_path, ROWS[0] + ',"{""model"": ""small"", ""n"": 1}"', header=header))

    same = load(connection, write(tmp_path, ROWS[0] + ',"{""n"":1.0,""model"":""small""}"', header=header))
    assert same.already_there == 1
    with pytest.raises(ImportRefused, match="contradict"):
        load(connection, write(tmp_path, ROWS[0] + ',"{""model"": ""large"", ""n"": 1}"', header=header))


def test_a_file_that_contradicts_itself_imports_none_of_the_contradiction(connection, tmp_path):
    file = write(tmp_path, *ROWS, "a,acme,tokens,9,2026-11-20T10:00:00Z", ROWS[1])

    with pytest.raises(ImportRefused, match="2 of 5 events contradict"):
        load(connection, file)
    assert stored(connection) == []

    result = load(connection, file, skip_conflicts=True)
    assert result == ImportResult(read=5, added=2, already_there=1, conflicts=2, conflict_ids=("a",))
    assert [row[0] for row in stored(connection)] == ["b", "c"]


def test_of_a_contradiction_the_known_half_is_already_there(connection, tmp_path):
    load(connection, write(tmp_path, ROWS[0]))

    result = load(connection, write(tmp_path, ROWS[0], "a,acme,tokens,9,2026-11-20T10:00:00Z"), skip_conflicts=True)
    assert result == ImportResult(read=2, added=0, already_there=1, conflicts=1, conflict_ids=("a",))


def test_the_first_ten_conflicts_are_named_and_all_are_counted(connection, tmp_path):
    rows = [f"id-{number:02d},acme,tokens,{{}},2026-11-20T10:00:00Z" for number in range(25)]
    load(connection, write(tmp_path, *(row.format(1) for row in rows)))

    result = load(connection, write(tmp_path, *(row.format(2) for row in rows)), skip_conflicts=True)
    assert result.conflicts == 25
    assert result.conflict_ids == tuple(f"id-{number:02d}" for number in range(10))


def test_another_writer_with_the_same_id_does_not_make_it_count_twice(connection, database_url, tmp_path):
    file = write(tmp_path, *ROWS)
    with connect(database_url) as other, connect(database_url) as watcher, ThreadPoolExecutor(1) as pool:
        with other.transaction():
            load(other, file)
            racing = pool.submit(load, connection, file)
            waits = f"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = {connection.info.backend_pid}"
            while not watcher.execute(waits).fetchone()[0]:
                assert not racing.done()
        result = racing.result(timeout=30)

    assert (result.added, result.already_there) == (0, 3)
    assert len(stored(connection)) == 3


def test_recorded_at_is_the_moment_after_reading_even_when_times_are_shifted(connection, database_url, tmp_path):
    read_at = []
    with connect(database_url) as other:

        def clock(rows=0):
            read_at.append(other.execute("SELECT clock_timestamp()").fetchone()[0])

        load(connection, write(tmp_path, *ROWS), shift_to_end_at=datetime(2020, 1, 1, tzinfo=UTC), progress=clock)
        clock()

    assert all(read_at[0] <= recorded_at <= read_at[1] for (recorded_at,) in stored(connection, "recorded_at"))


def test_shifted_times_end_exactly_where_asked_and_keep_their_distances(connection, tmp_path):
    end = datetime(2026, 11, 21, 6, 0, 0, 1, UTC)
    load(connection, write(tmp_path, *ROWS), shift_to_end_at=end)

    distance = timedelta(hours=2, microseconds=123456)
    assert [at for (at,) in stored(connection, "occurred_at")] == [end - distance, end - distance, end]


def test_derived_ids_name_the_row_and_change_with_the_file(connection, tmp_path):
    mapping = ImportMapping(id_prefix="{fingerprint}", events=(EventRule(event_type="requests"),))
    first = load(connection, write(tmp_path, *ROWS), mapping)
    again = load(connection, write(tmp_path, *ROWS, name="renamed.csv"), mapping)
    other = load(connection, write(tmp_path, *ROWS[:2]), mapping)

    assert (first.added, again.added, other.added) == (3, 0, 2)
    ids = [event_id for (event_id,) in stored(connection, "event_id")]
    assert sorted(event_id.rpartition(":")[2] for event_id in ids) == ["1", "1", "2", "2", "3"]
    assert {quantity for (quantity,) in stored(connection, "quantity")} == {Decimal(1)}


def test_named_columns_become_properties(connection, tmp_path):
    awkward = 'say "hi", \\ back\tslash\n'
    file = tmp_path / "usage.csv"
    with file.open("w", newline="", encoding="utf-8") as target:
        csv.writer(target).writerows([[*HEADER.split(","), "note", "region"], [*ROWS[0].split(","), awkward, ""]])
    load(connection, file, ImportMapping(properties=("note", "region")))

    assert stored(connection, "properties") == [({"note": awkward, "region": None},)]


def test_what_the_contract_will_quarantine_is_loaded(connection, tmp_path):
    rows = ["n,acme,tokens,-1,2026-11-20T10:00:00Z", "f,acme,no such type,1,2999-01-01T00:00:00Z", "e,,,,"]
    assert load(connection, write(tmp_path, *rows)).added == 3
    assert stored(connection)[0] == ("e", None, None, None, None)


def test_times_without_an_offset_are_read_in_the_zone_that_was_named(connection, tmp_path):
    file = write(tmp_path, "a,acme,tokens,1,2026-07-01 12:00:00", "b,acme,tokens,1,2026-07-01T12:00:00Z")
    load(connection, file, ImportMapping(timezone="Europe/Berlin"))

    hours = [at.astimezone(UTC).hour for (at,) in stored(connection, "occurred_at")]
    assert hours == [10, 12]


def test_digits_below_a_microsecond_are_cut_off_not_rounded(connection, tmp_path):
    load(connection, write(tmp_path, "a,acme,tokens,1,2026-11-20T10:00:00.9999999Z"))

    assert stored(connection, "occurred_at") == [(datetime(2026, 11, 20, 10, 0, 0, 999999, UTC),)]


@pytest.mark.parametrize("time_type", [pa.timestamp("ns", "UTC"), pa.timestamp("ms", "Europe/Berlin")])
def test_parquet_and_csv_of_the_same_usage_are_the_same(connection, tmp_path, time_type):
    finer = int(datetime(2026, 11, 20, 10, tzinfo=UTC).timestamp()) * 10**9 + 999
    table = pa.table(
        {
            "event_id": pa.array(["a", "b"]).dictionary_encode(),
            "organization_id": ["acme", "acme"],
            "event_type": pa.array(["tokens", "tokens"], pa.large_string()),
            "quantity": pa.array([Decimal("0.000000000001"), Decimal("123456.5")], pa.decimal128(30, 12)),
            "occurred_at": pa.array([finer, finer], pa.timestamp("ns", "UTC")).cast(time_type, safe=False),
        }
    )
    parquet.write_table(table, tmp_path / "usage.parquet")
    file = write(
        tmp_path,
        "a,acme,tokens,0.000000000001,2026-11-20T10:00:00Z",
        "b,acme,tokens,123456.5,2026-11-20T10:00:00Z",
    )

    assert load(connection, tmp_path / "usage.parquet").added == 2
    assert load(connection, file).already_there == 2


def test_a_file_of_many_batches_keeps_every_row_and_reports_each(connection, tmp_path):
    rows = [f"azure-{number},org,tokens,{number},2026-11-20T10:00:00Z" for number in range(60_000)]
    seen: list[int] = []
    result = load(connection, write(tmp_path, *rows), progress=seen.append)

    assert result.added == 60_000
    assert len(seen) > 1
    assert sum(seen) == 60_000
    total = connection.execute("SELECT sum(quantity) FROM public.billable_events").fetchone()[0]
    assert total == sum(range(60_000))


@pytest.mark.skipif(
    not AZURE_TRACE.parents[1].exists(), reason="the folder shared/ with the trace is not beside this project"
)
def test_sums_of_a_production_trace_equal_an_independent_count(connection):
    expected: Counter[tuple[str, str, str]] = Counter()
    with AZURE_TRACE.open(newline="") as source:
        for number, row in enumerate(csv.DictReader(source)):
            hour = row["TIMESTAMP"][:13]
            organization = f"org-{number % 7 + 1:04d}"
            expected[organization, "prompt_tokens", hour] += Decimal(row["ContextTokens"])
            expected[organization, "generated_tokens", hour] += Decimal(row["GeneratedTokens"])

    result = load(connection, AZURE_TRACE, AZURE)
    found = connection.execute(
        "SELECT organization_id, event_type, to_char(occurred_at, 'YYYY-MM-DD HH24'), sum(quantity)"
        " FROM public.billable_events GROUP BY 1, 2, 3"
    ).fetchall()
    assert {tuple(key): total for *key, total in found} == expected
    assert result.added == 2 * 19_366
    first = connection.execute(
        "SELECT occurred_at FROM public.billable_events WHERE event_id = 'azure:1:prompt_tokens'"
    )
    assert first.fetchone()[0] == datetime(2023, 11, 16, 18, 15, 46, 680590, UTC)
    assert load(connection, AZURE_TRACE, AZURE).already_there == 2 * 19_366


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
QUANTITY = st.decimals(-(10**15) + 1, 10**15 - 1, places=12) | st.decimals(0, 10**6, places=3)
TIME = st.datetimes(
    datetime(1970, 1, 2),
    datetime(2100, 1, 1),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
EVENTS = st.lists(st.tuples(TEXT, TEXT, TEXT, QUANTITY, TIME, TEXT), max_size=8, unique_by=lambda event: event[0])


@given(events=EVENTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_usage_survives_the_way_through_a_file(connection, tmp_path, events):
    connection.execute("TRUNCATE public.billable_events")
    file = tmp_path / "usage.csv"
    with file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        writer.writerow([*HEADER.split(","), "note"])
        writer.writerows([*head, format(quantity, "f"), at.isoformat(), note] for *head, quantity, at, note in events)
    result = load(connection, file, ImportMapping(properties=("note",)))

    assert result.added == len(events)
    found = stored(connection, "event_id, organization_id, event_type, quantity, occurred_at, properties::text")
    known = {row[0]: (*row[1:-1], json.loads(row[-1])) for row in found}
    assert known == {head[0]: (*head[1:], {"note": note}) for *head, note in events}
