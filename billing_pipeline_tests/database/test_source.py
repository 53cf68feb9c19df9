"""A table of the team's own is read under our names and types, by its own indexes and without a copy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg.sql import SQL, Literal

from billing_pipeline.database.queries import part, statements
from billing_pipeline.usage.source_contract import holds_an_event_once
from billing_pipeline_tests.builders import source_of

COLUMNS = "event_id=id, organization_id=account, event_type=kind, quantity=amount, occurred_at=at, recorded_at=written"
NOW = datetime.now(UTC)
PARTS = {
    "since": Literal(NOW - timedelta(hours=1)),
    "recorded_since": Literal(NOW - timedelta(hours=1)),
    "occurred_since": Literal("infinity"),
    "reach_start": Literal(NOW - timedelta(days=35)),
    "reach_end": Literal(NOW + timedelta(hours=2)),
    "property_missing": SQL("false"),
}
PARAMS = {
    "now": NOW,
    "since": NOW - timedelta(hours=1),
    "until": NOW,
    "recorded_since": NOW - timedelta(hours=1),
    "looked_at_limit": 100,
    "event_ids": None,
    "summed_event_types": ["a"],
    "known_event_types": ["a"],
}
IDS = {
    "text": "'e' || g",
    "varchar(40)": "'e' || g",
    "uuid": "md5(g::text)::uuid",
    "integer": "g",
    "bigint": "9100000000000000000 + g",
    "character(12)": "'e' || g",
}


def make_events(connection, id_type="text"):
    connection.execute(
        f"""
        CREATE TYPE public."Kind of use" AS ENUM ('a', 'b');
        CREATE TABLE public.events (id {id_type} PRIMARY KEY, account integer, kind public."Kind of use",
                                    amount bigint, at timestamptz, written timestamptz);
        INSERT INTO public.events
        SELECT {IDS[id_type]}, g % 7, 'a', g, at, at
          FROM generate_series(1, 20000) g, LATERAL (SELECT now() - g * interval '3 minutes' AS at) ago;
        CREATE INDEX ON public.events (at);
        CREATE INDEX ON public.events (written);
        INSERT INTO quarantined_events (event_id, reason, contract_version, mended_at)
        SELECT id::text, 'quantity_missing', '1', CASE WHEN amount % 2 = 0 THEN now() END
          FROM public.events WHERE amount <= 10;
        INSERT INTO quarantined_events (event_id, reason, contract_version)
        VALUES ('no such id', 'quantity_missing', '1'), ('99999999999999999999', 'quantity_missing', '1');
        ANALYZE"""
    )


def plan(connection, name, source):
    """The nodes of a statement of ours that read the team's table, from the planner's own choice."""
    text = SQL(statements()[name]) if name in statements() else part(name)
    statement = SQL("EXPLAIN (FORMAT JSON) {}").format(text.format(**source.parts | PARTS))
    has_values = "%(" in statement.as_string(connection)
    found = connection.execute(statement, PARAMS if has_values else None).fetchone()[0]
    nodes, scans = [found[0]["Plan"]], []
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node.get("Relation Name") == "events" or str(node.get("Index Name", "")).startswith("events_"):
            scans.append((node["Node Type"], node.get("Index Name"), node.get("Index Cond")))
    return sorted(scans, key=str)


def test_a_source_with_our_names_and_types_stays_the_plain_relation(connection):
    assert source_of(connection).sql.as_string(connection) == '"public"."billable_events"'
    same = source_of(connection, columns="event_id=event_id")
    assert same.sql.as_string(connection) == '"public"."billable_events"'


def test_another_table_is_renamed_and_cast_where_it_must_be(connection):
    make_events(connection)

    assert source_of(connection, "public.events", COLUMNS).sql.as_string(connection) == (
        '(SELECT "id" AS "event_id", "account"::text AS "organization_id", "kind"::text AS "event_type", '
        '"amount"::numeric AS "quantity", "at" AS "occurred_at", "written" AS "recorded_at", '
        'NULL::jsonb AS "properties" FROM "public"."events")'
    )


@pytest.mark.parametrize("id_type", IDS)
def test_every_question_of_a_flush_is_answered_by_the_tables_own_indexes(connection, id_type):
    make_events(connection, id_type)
    source = source_of(connection, "public.events", COLUMNS)

    for name in ("mend_quarantined_events", "find_touched_hours", "rows_recorded_since", "source_has_rows_between"):
        scans = plan(connection, name, source)
        assert scans, name
        assert "Seq Scan" not in [node for node, *_ in scans], (name, scans)
    assert {index for _, index, _ in plan(connection, "mend_quarantined_events", source)} == {
        "events_pkey",
        "events_written_idx",
    }
    assert {index for _, index, _ in plan(connection, "find_touched_hours", source)} >= {
        "events_pkey",
        "events_written_idx",
    }
    assert holds_an_event_once(connection, source)


@pytest.mark.parametrize("other", ["'0' || event_id", "event_id || ' '", "upper(event_id) || '.0'"])
@pytest.mark.parametrize("id_type", IDS)
def test_an_id_that_is_only_like_one_of_theirs_finds_nothing_and_breaks_nothing(connection, id_type, other):
    make_events(connection, id_type)
    connection.execute(f"UPDATE quarantined_events SET event_id = {other}")
    join = SQL("SELECT count(*) FROM quarantined_events q JOIN {source} s ON {same_event}")

    source = source_of(connection, "public.events", COLUMNS)
    assert connection.execute(join.format(**source.parts)).fetchone() == (0,)


@pytest.mark.parametrize("id_type", IDS)
def test_an_id_of_ours_finds_its_row_whatever_type_it_has_there(connection, id_type):
    make_events(connection, id_type)
    source = source_of(connection, "public.events", COLUMNS)
    join = SQL("SELECT count(*), count(DISTINCT s.event_id) FROM quarantined_events q JOIN {source} s ON {same_event}")

    assert connection.execute(join.format(**source.parts)).fetchone() == (10, 10)


def test_an_enum_as_the_id_is_proved_unique_too(connection):
    connection.execute(
        "CREATE TYPE public.\"My ids\" AS ENUM ('a', 'b');"
        'CREATE TABLE public.few (event_id public."My ids" PRIMARY KEY, organization_id text, event_type text,'
        " quantity numeric, occurred_at timestamptz, recorded_at timestamptz)"
    )
    assert holds_an_event_once(connection, source_of(connection, "public.few"))
    connection.execute("ALTER TABLE public.few DROP CONSTRAINT few_pkey")
    assert not holds_an_event_once(connection, source_of(connection, "public.few"))
