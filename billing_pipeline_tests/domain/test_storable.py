"""What jsonb cannot hold is replaced, and not one character more."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.types.json import Json

from billing_pipeline.domain.storable import storable

ANY_TEXT = st.text(st.characters(categories=["Cs", "L", "Cc"]) | st.sampled_from('\\u0"/'), max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r'"a\u0000b"', r'"a\ufffdb"'),
        (r'"\\u0000"', r'"\\u0000"'),
        (r'"\\\u0000"', r'"\\\ufffd"'),
        (r'"\ud83d\ude00"', r'"\ud83d\ude00"'),
        (r'"\uD83D"', r'"\ufffd"'),
        (r'"\ude00\ud83d"', r'"\ufffd\ufffd"'),
        (r'"\ud83d\ud83d\ude00"', r'"\ufffd\ud83d\ude00"'),
        (r'"\ud83d\\ude00"', r'"\ufffd\\ude00"'),
        (r'{"a\u0000":1.10e400}', r'{"a\ufffd":1.10e400}'),
    ],
)
def test_only_what_cannot_be_stored_is_replaced(text, expected):
    assert storable(text) == expected


@given(ANY_TEXT)
@example("\ud83d\ud83d\ude00")
def test_any_string_comes_out_as_one_that_text_can_hold(value):
    mended = json.loads(storable(json.dumps({"key": value})))["key"]

    assert "\0" not in mended
    mended.encode()


@given(st.text(max_size=20))
def test_what_can_be_stored_is_left_alone(value):
    if "\0" not in value:
        assert storable(json.dumps(value)) == json.dumps(value)


def test_postgresql_takes_what_comes_out(connection):
    value = "".join(map(chr, [*range(32), *range(0xD7F0, 0xE010), 0x1F600]))
    text = storable(json.dumps({value: [value]}))

    assert connection.execute("SELECT %s::jsonb", (Json(None, dumps=lambda _: text),)).fetchone()
