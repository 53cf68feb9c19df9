"""Turns the text of a JSON document into one that PostgreSQL's jsonb takes, changing nothing else.

JSON may name the character U+0000 and halves of surrogate pairs, which no PostgreSQL text can hold.  Metadata is what
somebody typed, so Stripe may sign and send them; they become U+FFFD here, and the signed bytes are kept beside.
The text is mended as text: numbers keep every digit, and no second document is written.
"""

from __future__ import annotations

import re

REPLACEMENT = r"\ufffd"

# Escapes one after the other, so that an escaped backslash before a u is not taken for the start of one.
_ESCAPES = re.compile(
    r"\\(?:(?P<pair>u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?P<unstorable>u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})"
    r"|.)"
)
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def storable(json_text: str) -> str:
    """The document without what jsonb cannot hold; the same text where there is none of it."""
    if not _SUSPECT.search(json_text):
        return json_text
    return _ESCAPES.sub(lambda found: REPLACEMENT if found["unstorable"] else found[0], json_text)
