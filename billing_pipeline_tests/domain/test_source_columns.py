"""The mapping of the source's columns: read as it is written, and every fault of it told at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.source_columns import READ_AS, parse_source_columns, unsuitable
from billing_pipeline.errors import SettingsError
from billing_pipeline.settings import load_settings

column_names = st.text(st.characters(exclude_characters=",%", exclude_categories=("Cs", "Cc", "Z")), min_size=1)
mappings = st.dictionaries(st.sampled_from(sorted(READ_AS)), column_names)


@given(mapping=mappings, space=st.sampled_from(["", " ", "\t "]))
def test_a_mapping_is_read_as_it_is_written(mapping, space):
    text = f"{space},{space}".join(f"{ours}{space}={space}{theirs}" for ours, theirs in mapping.items())

    assert parse_source_columns(text) == mapping


def test_one_column_of_theirs_may_be_two_of_ours():
    assert parse_source_columns("occurred_at=created_at, recorded_at=created_at") == {
        "occurred_at": "created_at",
        "recorded_at": "created_at",
    }


def test_every_fault_of_the_setting_is_told_at_once():
    wrong = "event_id=id, amount=quantity, event_id=uuid, quantity=, =kind, kind, , properties=100%"

    with pytest.raises(SettingsError) as refusal:
        load_settings(billing_source_relation="events", billing_source_columns=wrong)

    told = str(refusal.value)
    assert [fault for fault in FAULTS if fault not in told] == []
    assert "BILLING_SOURCE_RELATION: must be schema.name" in told
    assert "BILLING_SOURCE_COLUMNS: " in told


FAULTS = [
    f"amount is none of our columns ({', '.join(READ_AS)})",
    "event_id is named twice",
    "quantity= is not NAME=COLUMN",
    "=kind is not NAME=COLUMN",
    "kind is not NAME=COLUMN",
    "an empty entry is not NAME=COLUMN",
    "100% has a % in its name",
]


@pytest.mark.parametrize("relation", ["events", "a.b.c", ".events", "public.", "public.100%"])
def test_a_relation_without_its_schema_is_refused(relation):
    with pytest.raises(SettingsError, match=r"must be schema\.name"):
        load_settings(billing_source_relation=relation)


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("event_id", ["text", "character varying", "character", "uuid", "smallint", "integer", "bigint"]),
        ("quantity", ["numeric", "smallint", "integer", "bigint"]),
        ("occurred_at", ["timestamp with time zone"]),
        ("properties", ["json", "jsonb"]),
    ],
)
def test_only_types_that_are_cast_exactly_are_suitable(name, exact):
    every = {
        *("text", "character varying", "character", "uuid", "smallint", "integer", "bigint", "numeric", "real"),
        *("double precision", "money", "date", "timestamp with time zone", "timestamp without time zone", "json"),
        *("jsonb", "boolean", "bytea", "interval", "citext", '"char"'),
    }

    assert {found for found in every if unsuitable(name, "theirs", found, is_enum=False) is None} == set(exact)


def test_an_enum_is_a_text_and_nothing_else():
    assert unsuitable("event_type", "kind", "mood", is_enum=True) is None
    assert unsuitable("quantity", "amount", "mood", is_enum=True) is not None


@pytest.mark.parametrize(
    ("name", "found", "remedy"),
    [
        ("quantity", "real", "round(theirs::numeric, 6) AS quantity"),
        ("quantity", "double precision", "round(theirs::numeric, 6) AS quantity"),
        ("recorded_at", "timestamp without time zone", "theirs AT TIME ZONE 'UTC' AS recorded_at"),
        ("event_id", "bytea", "a view can give theirs as text"),
    ],
)
def test_what_is_refused_says_what_to_do(name, found, remedy):
    told = unsuitable(name, "theirs", found, is_enum=False)

    assert told.startswith(f"{found}, expected {READ_AS[name]}; ")
    assert remedy in told
