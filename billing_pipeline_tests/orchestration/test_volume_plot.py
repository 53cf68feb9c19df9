"""A meter's days as pictures: a few small ones, the last day on the right."""

from datetime import timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.volume import MeterVolume, Volume
from billing_pipeline.orchestration.plot import MARKDOWN_MAX
from billing_pipeline.orchestration.volume_plot import METERS_MAX, volume_page, volume_plots
from billing_pipeline_tests.builders import NOON
from billing_pipeline_tests.orchestration.test_plot import heights, texts

quantities = st.decimals(0, 10**18, places=12)


def meter_of(quantities, meter="tokens"):
    days = tuple(
        Volume(NOON + timedelta(days=number), Decimal(quantity), 1) for number, quantity in enumerate(quantities)
    )
    return MeterVolume(meter, days, Volume(NOON))


@given(st.lists(quantities, min_size=1, max_size=40))
def test_every_meter_is_shown_at_once_with_its_last_28_days(days):
    [plot] = volume_plots([meter_of(days)]).values()

    assert len(plot.value) < MARKDOWN_MAX
    shown = days[-28:]
    bars = heights(plot)
    assert len(bars) == 28
    assert [height > 0 for height in bars[28 - len(shown) :]] == [day > 0 for day in shown]


def test_the_last_day_is_on_the_right_and_named():
    [plot] = volume_plots([meter_of([0, 1, 25, 50, 100])]).values()

    assert heights(plot)[-6:] == [0, 0, 1, 16, 32, 64]
    assert texts(plot) == ["quantity per UTC day: most 100, last 100", "Mar 14"]


def test_only_so_many_meters_are_drawn_and_the_others_are_counted():
    plots = volume_plots([meter_of([1] * number, f"meter_{number:02}") for number in range(METERS_MAX + 3)])

    # Those with the most events; one has no complete day yet.
    assert list(plots)[:2] == ["daily_volume meter_14", "daily_volume meter_13"]
    assert len(plots) == METERS_MAX + 1
    assert plots["daily_volume of others"].value == "2 meters with fewer events are not drawn."


def test_a_page_of_all_meters_is_small_too():
    meters = [meter_of([10**18] * 28, f"{'m' * 62}{number:02}") for number in range(40)]

    [page] = volume_page(meters).values()
    assert page.value.count("![") == METERS_MAX
    assert len(page.value) < 16_000


def test_no_day_no_picture():
    assert volume_plots([]) == {}
    assert volume_page([]) == {}
    assert volume_plots([MeterVolume("tokens", (), Volume(NOON))]) == {}
