"""A probe means the same everywhere: one list has them all, for the command, for Dagster and for the document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import billing_pipeline
from billing_pipeline.definitions import defs
from billing_pipeline.domain.probes import PROBES, Result, fails, passes, warns, with_needs
from billing_pipeline.orchestration.dagster_probes import dagster_asks, state_by_graphql
from billing_pipeline.usage.preflight.ask import ASKS

DOCUMENT = Path(billing_pipeline.__file__).parents[1] / "docs/operations.md"


def test_every_probe_is_asked_by_one_function_and_no_other_is():
    about_dagster = dagster_asks(state_by_graphql)

    assert set(ASKS).isdisjoint(about_dagster)
    assert [*ASKS, *about_dagster] == list(PROBES)


def test_every_probe_is_a_check_of_its_asset_in_its_words():
    graph = defs.resolve_asset_graph()
    keys = {key.name: key for key in graph.asset_check_keys if key.name in PROBES}

    assert {name: key.asset_key.to_user_string() for name, key in keys.items()} == {
        probe.name: probe.asset for probe in PROBES.values()
    }
    for probe in PROBES.values():
        spec = graph.get_check_spec(keys[probe.name])
        assert not spec.blocking
        assert spec.description == f"{probe.asks}\n\nWhen it fails: {probe.cause}\n\nThen: {probe.remedy}"


def test_the_document_has_exactly_the_probes_each_with_its_anchor():
    rows = re.findall(
        r'^\| <a id="preflight-(\w+)"></a>`(\w+)` \| (.*) \| (.*) \| (.*) \|$',
        DOCUMENT.read_text(encoding="utf-8"),
        re.MULTILINE,
    )

    assert rows == [(probe.name, probe.name, probe.asks, probe.cause, probe.remedy) for probe in PROBES.values()]


@pytest.mark.parametrize("probe", PROBES.values(), ids=lambda probe: probe.name)
def test_every_probe_says_what_it_asks_why_it_fails_and_what_to_do(probe):
    assert re.fullmatch(r"[a-z_]+", probe.name)
    assert all(text.endswith(".") and "|" not in text for text in (probe.asks, probe.cause, probe.remedy))
    before = list(PROBES)[: list(PROBES).index(probe.name)]
    assert set(probe.needs) <= set(before), "what a probe needs is asked before it"


def test_what_is_needed_is_asked_too_in_order():
    assert [probe.name for probe in with_needs({"frozen"})] == ["settings", "database", "schema", "frozen"]
    assert [probe.name for probe in with_needs(set(PROBES))] == list(PROBES)


def test_only_a_failure_is_in_the_way_unless_it_says_otherwise():
    assert fails("x").is_in_the_way
    assert not fails("x", blocks=False).is_in_the_way
    assert not warns("x").is_in_the_way
    assert warns("x", blocks=True).is_in_the_way
    assert not passes("x").is_in_the_way
    assert passes("x").result is Result.PASS
