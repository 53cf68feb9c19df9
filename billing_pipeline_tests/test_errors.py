"""Every kind of error says where to read on, and that place exists."""

import re
from collections.abc import Iterator
from pathlib import Path

from billing_pipeline.errors import BillingError

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"


def kinds(kind: type[BillingError]) -> Iterator[type[BillingError]]:
    yield kind
    for special in kind.__subclasses__():
        yield from kinds(special)


def test_every_anchor_is_a_section_of_the_troubleshooting_page():
    headings = re.findall(r"^#+ (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    sections = {heading.lower().replace(" ", "-") for heading in headings}
    anchors = {kind.anchor for kind in kinds(BillingError)} - {""}

    assert len(anchors) >= 8
    assert anchors <= sections
