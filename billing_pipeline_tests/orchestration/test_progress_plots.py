"""What a person sees beside the counts: units per hour, by age, and the wait for the proof, or a sentence."""

from datetime import timedelta
from decimal import Decimal

import dagster as dg
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.windows import HOUR
from billing_pipeline.orchestration.plot import MARKDOWN_MAX
from billing_pipeline.orchestration.progress_plots import METERS_MAX, proof_plots, stated_plots, waiting_plots
from billing_pipeline.usage.progress import AGES, ProofHour, StatedHour
from billing_pipeline_tests.builders import NOON
from billing_pipeline_tests.orchestration.test_plot import heights, texts

NOTHING = [Decimal(0)] * len(AGES)
units = st.decimals(0, 10**18, places=0)


def stated(event_name="tokens", back=0, amount=5, entries=1):
    return StatedHour(event_name, NOON - HOUR * back, entries, entries, entries, Decimal(amount), Decimal(amount))


def test_each_meter_has_its_hours_and_a_row():
    plots = stated_plots([stated(back=47, amount=100), stated(back=1, amount=25), stated("calls")], now=NOON)

    assert list(plots) == ["by_meter", "units_per_hour tokens", "units_per_hour calls"]
    assert [record.data for record in plots["by_meter"].records] == [
        {"Stripe meter": "tokens", "entries": 2, "sent": 2, "confirmed": 2, "units": "125"},
        {"Stripe meter": "calls", "entries": 1, "sent": 1, "confirmed": 1, "units": "5"},
    ]
    bars = heights(plots["units_per_hour tokens"])
    assert (len(bars), bars[0], bars[-2], sum(bars)) == (48, 64, 16, 80)
    assert texts(plots["units_per_hour tokens"]) == [
        "units per UTC hour of use: most 100",
        "Mar 09 00:00",
        "Mar 10 00:00",
    ]


def test_only_so_many_meters_are_drawn():
    plots = stated_plots([stated(f"meter_{number:02}", entries=number + 1) for number in range(15)], now=NOON)

    assert len(plots["by_meter"].records) == METERS_MAX
    assert list(plots)[1] == "units_per_hour meter_14"
    assert plots["units_per_hour of others"].value == "3 meters with fewer entries are not shown."


def test_where_nothing_is_to_be_seen_a_sentence_says_so():
    found = stated_plots([], now=NOON) | waiting_plots(NOTHING, NOTHING) | proof_plots(NOTHING, [], now=NOON)

    assert {name: value.value for name, value in found.items()} == {
        "units_per_hour": "Nothing was stated for the last 48 hours.",
        "owed_by_age": "Nothing is owed.",
        "in_doubt_by_age": "Nothing is in doubt.",
        "not_proved_by_age": "All that Stripe accepted is proved.",
        "longest_proof_per_hour": "No proof came in the last 48 hours.",
    }


def test_ages_are_named_and_their_units_said():
    owed = waiting_plots([Decimal(number) for number in (0, 11_000, 0, 0, 0, 1_600_000)], NOTHING)["owed_by_age"]

    assert heights(owed) == [0, 1, 0, 0, 0, 64]
    assert texts(owed)[0] == "units owed, by the age of their hour"
    assert [name for name in texts(owed) if name in dict(AGES)] == list(dict(AGES))
    assert {"11k", "1.6M"} < set(texts(owed))


def test_the_wait_for_the_proof_is_told_in_a_unit_that_fits():
    for longest, told in (
        (timedelta(seconds=4), "4 s"),
        (timedelta(minutes=14, seconds=30), "14.5 min"),
        (timedelta(hours=9), "9 h"),
        (timedelta(days=3), "3 d"),
    ):
        plot = proof_plots(NOTHING, [ProofHour(NOON - HOUR, longest)], now=NOON)["longest_proof_per_hour"]
        assert texts(plot)[0] == f"wait for the proof, per UTC hour: most {told}"
        assert heights(plot)[-2] == 64


@given(st.lists(units, min_size=48, max_size=48), st.lists(units, min_size=len(AGES), max_size=len(AGES)))
def test_all_of_it_is_shown_at_once(hours, ages):
    found = [stated(back=back, amount=amount) for back, amount in enumerate(hours)]
    lags = [ProofHour(NOON - HOUR * back, timedelta(hours=back)) for back in range(48)]
    plots = stated_plots(found, now=NOON) | waiting_plots(ages, ages) | proof_plots(ages, lags, now=NOON)

    for plot in plots.values():
        assert not isinstance(plot, dg.MarkdownMetadataValue) or len(plot.value) < MARKDOWN_MAX
