"""The catalogue is read whole or refused whole, with every fault named."""

from __future__ import annotations

from decimal import Decimal

import pytest

from billing_pipeline.domain.catalogue import Aggregation, LateUsage, parse_catalogue
from billing_pipeline.errors import CatalogueError
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline.usage.meter_versions import definition

GOOD = """
ignored_event_types = ["login"]

[meters.tokens]
event_types = ["prompt", "answer"]
aggregation = "sum"
event_name = "llm_tokens"
unit_scale = "0.001"

[meters.requests]
event_types = ["prompt"]
aggregation = "count"
"""


def test_a_meter_has_its_name_as_event_name_and_a_scale_of_one_by_default():
    tokens, requests = parse_catalogue(GOOD, origin="meters.toml").meters

    assert (tokens.event_name, tokens.unit_scale, tokens.aggregation) == (
        "llm_tokens",
        Decimal("0.001"),
        Aggregation.SUM,
    )
    assert (requests.event_name, requests.unit_scale) == ("requests", Decimal(1))


def test_known_event_types_are_the_metered_and_the_ignored():
    assert parse_catalogue(GOOD, origin="meters.toml").known_event_types == {"login", "prompt", "answer"}


def test_only_summed_event_types_need_a_quantity():
    both = GOOD + '[meters.visits]\nevent_types = ["visit"]\naggregation = "count"\n'

    assert parse_catalogue(both, origin="meters.toml").summed_event_types == {"prompt", "answer"}


def test_the_version_follows_the_text():
    version = parse_catalogue(GOOD, origin="a").version

    assert version == parse_catalogue(GOOD, origin="b").version
    assert version != parse_catalogue(GOOD + "\n#", origin="a").version


def test_every_fault_is_named_at_once():
    text = """
    surprise = 1
    ignored_event_types = ["b"]
    [meters.Tokens]
    event_types = []
    aggregation = "average"
    unit_scale = 0.1
    colour = "red"
    [meters.a]
    event_types = ["a"]
    aggregation = "sum"
    event_name = "same"
    [meters.b]
    event_types = ["b"]
    aggregation = "sum"
    event_name = "same"
    """

    with pytest.raises(CatalogueError) as refusal:
        parse_catalogue(text, origin="meters.toml")

    for part in (
        "meters.toml has 8 fault(s)",
        "unknown key 'surprise'",
        "lower case letters",
        "at least one text",
        "one of sum, count, max, last, unique, not 'average'",
        "decimal in quotes",
        "unknown key 'colour'",
        "share the event_name 'same'",
        "'b' is both metered and ignored",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("ignored", "counted", "named"),
    [
        ('["b"]', '["a", "c", "a"]', "meters.m: event_types lists 'a' more than once"),
        ('["b", "b"]', '["a"]', "ignored_event_types lists 'b' more than once"),
    ],
)
def test_an_event_type_listed_twice_is_refused_because_it_would_count_twice(ignored, counted, named):
    text = f'ignored_event_types = {ignored}\n[meters.m]\nevent_types = {counted}\naggregation = "sum"'

    with pytest.raises(CatalogueError, match=r"has 1 fault") as refusal:
        parse_catalogue(text, origin="meters.toml")

    assert named in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[meters]", "not toml", 'meters = "x"', "[meters]\na = 1"])
def test_a_catalogue_without_meters_is_refused(text):
    with pytest.raises(CatalogueError, match=r"meters\.toml"):
        parse_catalogue(text, origin="meters.toml")


@pytest.mark.parametrize("scale", ["0", '"0.0"', '"-1"', "true", '"1e3"', '"NaN"', '""', "-1"])
def test_a_scale_that_is_no_positive_plain_number_is_refused(scale):
    with pytest.raises(CatalogueError, match="unit_scale"):
        parse_catalogue(f'[meters.a]\nevent_types = ["a"]\naggregation = "sum"\nunit_scale = {scale}', origin="m")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ('filter = "pro"', "filter must be a table"),
        ("filter = { tier = 0.5 }", "filter.tier must be a text"),
        ("filter = { tier = [] }", "filter.tier must be a text"),
        ("filter = { tier = { is = 1 } }", "filter.tier must be a text"),
        (f"filter = {{ a = {list(range(11))}, b = {list(range(10))} }}", "more than 100 combinations"),
        ('property = "user"', "property belongs to the aggregation unique only"),
    ],
)
def test_a_filter_that_cannot_be_matched_exactly_is_refused(keys, named):
    with pytest.raises(CatalogueError, match=named):
        parse_catalogue(f'[meters.a]\nevent_types = ["a"]\naggregation = "sum"\n{keys}', origin="m")


@pytest.mark.parametrize("keys", ["", 'property = ""', "property = 3"])
def test_unique_says_which_propertys_values_it_counts(keys):
    with pytest.raises(CatalogueError, match=r"meters\.a: unique needs property"):
        parse_catalogue(f'[meters.a]\nevent_types = ["a"]\naggregation = "unique"\n{keys}', origin="m")


def test_the_packaged_catalogue_is_good():
    assert load_catalogue(load_settings()).meters


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CatalogueError, match=r"absent\.toml cannot be read: No such file.*BILLING_METERS_FILE"):
        load_catalogue(load_settings(billing_meters_file=tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("hour_max = 0", "hour_max must be a whole number"),
        ("hour_max = true", "hour_max must be a whole number"),
        ('hour_max = "many"', "hour_max must be a whole number"),
        ("hour_factor = -1", "hour_factor must be a whole number, at least 0"),
        ("hour_factor = 1.5", "hour_factor must be a whole number"),
        ("flush_max = 0", "flush_max must be a whole number of Stripe units, at least 1"),
        ('late_usage = "forget"', "late_usage must be one of invoice_item, next_period, write_off, not 'forget'"),
        ("late_usage = 3", "late_usage must be one of"),
    ],
)
def test_a_brake_or_policy_that_means_nothing_is_refused(keys, named):
    with pytest.raises(CatalogueError, match=named):
        parse_catalogue(f'[meters.a]\nevent_types = ["a"]\naggregation = "sum"\n{keys}', origin="m")


def test_a_brake_and_a_policy_change_nothing_about_how_hours_are_counted():
    text = '[meters.a]\nevent_types = ["a"]\naggregation = "sum"\n'
    (plain,) = parse_catalogue(text, origin="m").meters
    (braked,) = parse_catalogue(
        text + 'hour_max = 9\nhour_factor = 0\nflush_max = 8\nlate_usage = "write_off"\n', origin="m"
    ).meters

    assert (plain.hour_max, plain.late_usage) == (None, LateUsage.INVOICE_ITEM)
    assert (braked.hour_max, braked.hour_factor, braked.flush_max) == (9, 0, 8)
    assert braked.late_usage is LateUsage.WRITE_OFF
    assert definition(plain) == definition(braked)
