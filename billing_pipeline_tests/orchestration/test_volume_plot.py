"""The picture of a meter's days is small enough to be shown at once, and says the numbers it draws."""

from __future__ import annotations

import base64
import re
from datetime import timedelta
from decimal import Decimal
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.volume import MeterVolume, Volume
from billing_pipeline.orchestration.volume_plot import METERS_MAX, volume_page, volume_plots
from billing_pipeline_tests.builders import NOON

SHOWN_AT_ONCE_MAX = 1_000
"""Characters of Markdown above which Dagster's UI wants a click first."""
quantities = st.decimals(0, 10**18, places=12)


def meter_of(quantities, meter="tokens"):
    days = tuple(
        Volume(NOON + timedelta(days=number), Decimal(quantity), 1) for number, quantity in enumerate(quantities)
    )
    return MeterVolume(meter, days, Volume(NOON))


def picture(markdown):
    return ElementTree.fromstring(base64.b64decode(re.fullmatch(r"!\[[^\]]+\]\(.*base64,(.*)\)", markdown)[1]))


def bars(markdown):
    """Heights in pixels, oldest first."""
    before, last = (path.attrib["d"] for path in picture(markdown).iter("{http://www.w3.org/2000/svg}path"))
    return [int(height or 0) for height in re.findall(r"(?:v-(\d+))?m\d+ \d+", before)] + [int(last.split("v-")[1])]


@given(st.lists(quantities, min_size=1, max_size=40))
def test_every_picture_is_well_formed_small_and_shows_each_day(days):
    [plot] = volume_plots([meter_of(days)]).values()

    assert len(plot.value) < SHOWN_AT_ONCE_MAX
    shown = days[-28:]
    heights = bars(plot.value)
    assert (len(heights), max(heights) <= 60) == (28, True)
    assert [height > 0 for height in heights[28 - len(shown) :]] == [day > 0 for day in shown]


def test_the_heights_are_the_shares():
    [plot] = volume_plots([meter_of([0, 1, 25, 50, 100])]).values()

    assert bars(plot.value)[-6:] == [0, 0, 1, 15, 30, 60]
    assert "Mar 10 to Mar 14: last 100, most 100" in "".join(picture(plot.value).itertext())


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
