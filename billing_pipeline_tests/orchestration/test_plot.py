"""A picture fits where Dagster shows it at once, is well-formed, and its bars are the numbers."""

import re
from decimal import Decimal
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.orchestration.plot import MARKDOWN_MAX, Bar, picture, short

SVG = "{http://www.w3.org/2000/svg}"
quantities = st.decimals(-(10**18), 10**18, places=12)


def drawing(markdown):
    """The SVG inside the Markdown, as a browser reads it."""
    return ElementTree.fromstring(
        unquote(re.fullmatch(r"!\[\]\(<data:image/svg\+xml,([^<>\n]*)>\)", markdown.value)[1])
    )


def heights(markdown):
    """Of the bars in pixels, from left to right."""
    bars = next(drawing(markdown).iter(f"{SVG}path")).attrib["d"]
    return [int(height or 0) for height in re.findall(r"(?:v-(\d+))?m\d+,\d+", bars)]


def texts(markdown):
    return [text.text for text in drawing(markdown).iter(f"{SVG}text")]


@given(st.lists(quantities, min_size=1, max_size=48))
def test_every_picture_is_well_formed_shown_at_once_and_shows_each_bar(found):
    shown = picture("quantity per UTC day: most 12.3M, last 12.3M", [Bar(quantity) for quantity in found])

    assert len(shown.value) < MARKDOWN_MAX
    assert max(heights(shown)) <= 64
    assert [height > 0 for height in heights(shown)] == [quantity > 0 for quantity in found]


def test_the_heights_are_the_shares():
    assert heights(picture("units", [Bar(Decimal(n)) for n in (0, 1, 25, 50, 100, -3)])) == [0, 1, 16, 32, 64, 0]


def test_nothing_at_all_is_a_line():
    assert heights(picture("units", [Bar(Decimal(0))] * 3)) == [0, 0, 0]


@given(st.lists(st.tuples(quantities, st.sampled_from(["", "20 h-3 d", "Nov 21 00:00"])), min_size=1, max_size=6))
def test_no_text_leaves_the_picture(found):
    shown = picture("units", [Bar(quantity, label, short(abs(quantity))) for quantity, label in found])

    _, *labels = drawing(shown).iter(f"{SVG}text")
    assert len(labels) == sum(1 + bool(label) for _, label in found)
    for label in labels:
        # A letter of eleven points is about six pixels wide.
        half = 3 * len(label.text)
        assert half <= int(label.attrib["x"]) <= 340 - half
        assert 11 < int(label.attrib["y"]) < 104


def test_signs_of_markup_are_only_text():
    assert texts(picture("a < b & c > d", [Bar(Decimal(1), below="<i>")])) == ["a < b & c > d", "<i>"]


@pytest.mark.parametrize(
    ("quantity", "said"),
    [
        ("0", "0"),
        ("0.000123456", "0.000123"),
        ("999", "999"),
        ("999.4", "999"),
        ("14.5", "14.5"),
        ("20", "20"),
        ("1000", "1k"),
        ("12345", "12.3k"),
        ("-12345678", "-12.3M"),
        ("999999999", "1,000M"),
        ("12345678901234567", "12,346T"),
    ],
)
def test_sizes_are_said_in_three_digits(quantity, said):
    assert short(Decimal(quantity)) == said
