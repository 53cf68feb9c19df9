"""A file that cannot be read exactly is refused in one sentence, and nothing of it is imported."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from billing_pipeline.errors import ImportRefused
from billing_pipeline.usage.import_events import import_events
from billing_pipeline.usage.import_mapping import EventRule, ImportMapping, load_mapping
from billing_pipeline_tests.usage.test_import_events import HEADER, ROWS, load, stored, write

GOOD = ROWS[0]
BAD_ROWS = {
    "z,acme,tokens,twelve,2026-11-20T10:00:00Z": r"row 2: column quantity is 'twelve', not a plain decimal",
    "z,acme,tokens,NaN,2026-11-20T10:00:00Z": "row 2: column quantity is 'NaN'",
    "z,acme,tokens,inf,2026-11-20T10:00:00Z": "row 2: column quantity is 'inf'",
    "z,acme,tokens,1e3,2026-11-20T10:00:00Z": "row 2: column quantity is '1e3'",
    'z,acme,tokens,"1,5",2026-11-20T10:00:00Z': "row 2: column quantity is '1,5'",
    "z,acme,tokens,1,yesterday": "row 2: column occurred_at is 'yesterday', not an ISO 8601 time",
    "z,acme,tokens,1,2026-02-30T00:00:00Z": "row 2: column occurred_at is '2026-02-30T00:00:00Z', not",
    "z,acme,tokens,1,2026-11-20 10:00:00": "row 2: column occurred_at is .* no offset .* --assume-timezone UTC",
    ",acme,tokens,1,2026-11-20T10:00:00Z": "row 2: column event_id is empty",
    "z,acme,tokens,1": "row 2 has 4 values where the header has 5; correct that row",
    "z,acme,tokens,1,2026-11-20T10:00:00Z,more": "row 2 has 6 values where the header has 5",
    'z,"acme,tokens,1,2026-11-20T10:00:00Z': "a quoted value is never closed",
    "z\0,acme,tokens,1,2026-11-20T10:00:00Z": "PostgreSQL refuses it",
    "z,acme,tokens,"
    + "9" * 140_000
    + ",2026-11-20T10:00:00Z": r"PostgreSQL refuses it .* value overflows numeric format \(column quantity",
}


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS.items(), ids=[str(n) for n in range(len(BAD_ROWS))])
def test_a_bad_row_is_named_and_stops_the_import(connection, tmp_path, row, sentence):
    file = write(tmp_path, GOOD, row)

    with pytest.raises(ImportRefused, match=sentence) as refusal:
        load(connection, file)
    assert str(file) in str(refusal.value)
    assert "Nothing was imported" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert stored(connection) == []


@pytest.mark.parametrize("bad", ["z,acme,tokens,x,2026-11-20T10:00:00Z", "z,acme"])
def test_the_row_is_counted_right_far_into_the_file(connection, tmp_path, bad):
    rows = [f"id-{number},acme,tokens,1,2026-11-20T10:00:00Z" for number in range(50_000)]

    with pytest.raises(ImportRefused, match=r"row 50001\b"):
        load(connection, write(tmp_path, *rows, bad))
    assert stored(connection) == []


def test_a_time_that_the_clocks_skipped_is_refused(connection, tmp_path):
    file = write(tmp_path, GOOD, "z,acme,tokens,1,2026-03-29 02:30:00")

    with pytest.raises(ImportRefused, match=r"row 2: .* that exists once in Europe/Berlin"):
        load(connection, file, ImportMapping(timezone="Europe/Berlin"))


def test_files_that_are_no_usage_files_are_named(connection, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "blank.csv").write_text("\n\n")
    (tmp_path / "latin.csv").write_bytes(f"{HEADER}\nm\xfcll,acme,tokens,1,2026-11-20T10:00:00Z\n".encode("latin-1"))
    (tmp_path / "wide.csv").write_bytes(f"{HEADER}\n{GOOD}\n".encode("utf-16"))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "usage.xlsx").write_bytes(b"PK")
    expected = {
        "missing.csv": "No such file or directory. Check the path",
        "folder.csv": "Is a directory|cannot be read",
        "empty.csv": "the file is empty",
        "blank.csv": "cannot be read: .*check how it was exported",
        "latin.csv": "save it as UTF-8",
        "wide.csv": "save it as UTF-8",
        "cut.parquet": "cannot be read: .*check how it was exported",
        "usage.xlsx": r"only \.csv and \.parquet",
    }
    for name, sentence in expected.items():
        with pytest.raises(ImportRefused, match=sentence) as refusal:
            load(connection, tmp_path / name)
        assert name in str(refusal.value)
    assert stored(connection) == []


def test_an_unknown_column_is_answered_with_those_there_are(connection, tmp_path):
    mapping = ImportMapping(time_column="when", events=(EventRule("tokens", quantity_column="amount"),))

    with pytest.raises(ImportRefused, match="no column when, amount, only event_id, organization_id, event_type"):
        load(connection, write(tmp_path, GOOD), mapping)


def test_a_column_that_occurs_twice_is_refused(connection, tmp_path):
    with pytest.raises(ImportRefused, match="column quantity occurs more than once"):
        load(connection, write(tmp_path, GOOD + ",7", header=HEADER + ",quantity"))


@pytest.mark.parametrize("text", ["{", "NaN", '"{""a"": ""\\u0000""}"'])
def test_properties_that_are_not_json_are_refused(connection, tmp_path, text):
    with pytest.raises(ImportRefused, match=r"row 1: column properties is|column properties"):
        load(connection, write(tmp_path, f"{GOOD},{text}", header=HEADER + ",properties"))
    assert stored(connection) == []


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("quantity", pa.array([0.1]), "column quantity holds double, which has no exact text"),
        ("occurred_at", pa.array([0], pa.timestamp("us")), "column occurred_at has no offset .* --assume-timezone"),
        ("occurred_at", pa.array([1_700_000_000]), "column occurred_at is '1700000000', not an ISO 8601 time"),
        ("event_id", pa.array([["a"]]), "column event_id holds list"),
    ],
)
def test_parquet_types_without_an_exact_meaning_are_refused(connection, tmp_path, column, values, sentence):
    columns = {name: pa.array([value]) for name, value in zip(HEADER.split(","), GOOD.split(","), strict=True)}
    parquet.write_table(pa.table(columns | {column: values}), tmp_path / "usage.parquet")

    with pytest.raises(ImportRefused, match=sentence):
        load(connection, tmp_path / "usage.parquet")


def test_a_missing_table_is_named(connection, tmp_path):
    with pytest.raises(ImportRefused, match=r"public\.elsewhere.* BILLING_SOURCE_RELATION"):
        import_events(
            connection,
            write(tmp_path, GOOD),
            ImportMapping(),
            relation="public.elsewhere",
            shift_to_end_at=datetime(2026, 11, 21, tzinfo=UTC),
            skip_conflicts=True,
            progress=lambda rows: None,
        )


def test_every_fault_of_a_mapping_is_told_at_once(tmp_path):
    file = tmp_path / "mapping.toml"
    file.write_text(
        'timezone = "Mars/Olympus"\nid_column = "id"\nid_prefix = "x"\nrow_modulo = 0\ncolour = "red"\n'
        '[[events]]\nevent_type = "a"\nevent_type_column = "b"\n[[events]]\nquantity_column = 5\n'
    )
    with pytest.raises(ImportRefused) as refusal:
        load_mapping(file, {"organization": "acme"})

    told = str(refusal.value)
    for fault in (
        str(file),
        "timezone: 'Mars/Olympus' is not a known time zone",
        "id_column and id_prefix exclude each other",
        "organization and row_modulo exclude each other",
        "row_modulo: Input should be greater than or equal to 1",
        "colour: ",
        "events.0: give either event_type or event_type_column",
        "events.1: give either event_type or event_type_column",
        "events.1.quantity_column: ",
        "each needs its own constant event_type",
    ):
        assert fault in told


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"time_column =", "is not TOML"),
        (b'time_column = "\xff"', "is not UTF-8"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_mapping_file_that_cannot_be_read_is_named(tmp_path: Path, content, sentence):
    file = tmp_path / "mapping.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ImportRefused, match=rf"mapping\.toml {sentence}"):
        load_mapping(file, {})


def test_an_option_replaces_the_key_of_the_file(tmp_path):
    file = tmp_path / "mapping.toml"
    file.write_text('time_column = "at"\nrow_modulo = 3\n[[events]]\nevent_type = "requests"\n')

    assert load_mapping(file, {"time_column": "when"}) == ImportMapping(
        time_column="when", row_modulo=3, events=(EventRule("requests"),)
    )
