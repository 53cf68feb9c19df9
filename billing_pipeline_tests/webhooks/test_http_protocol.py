"""An answer leaves in one piece, and nothing of it stays behind."""

import asyncio

from billing_pipeline.webhooks.http_protocol import PIECE_BYTES_MAX, _Pieces


class Wire:
    """A transport that keeps what it was given."""

    def __init__(self):
        self.sent = []
        self.closed = False

    def write(self, data):
        assert not self.closed
        self.sent.append(data)

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


def sent(*steps):
    """What was on the wire after each step."""
    seen = []

    async def run():
        wire = Wire()
        pieces = _Pieces(wire, asyncio.get_running_loop())
        for step in steps:
            step(pieces, wire)
            seen.append(list(wire.sent))
            await asyncio.sleep(0)
            seen.append(list(wire.sent))

    asyncio.run(run())
    return seen


def write(*parts):
    return lambda pieces, _wire: [pieces.write(part) for part in parts]


def test_head_and_body_are_sent_together_and_each_answer_by_itself():
    assert sent(write(b"head ", b"body"), write(b"next")) == [
        [],
        [b"head body"],
        [b"head body"],
        [b"head body", b"next"],
    ]


def test_much_is_sent_at_once():
    much = b"x" * (PIECE_BYTES_MAX + 1)

    assert sent(write(b"head ", much, b"tail")) == [[b"head " + much], [b"head " + much, b"tail"]]


def test_a_close_sends_what_is_held_first():
    def answer_and_close(pieces, wire):
        pieces.write(b"last")
        pieces.close()
        assert wire.closed

    assert sent(answer_and_close) == [[b"last"], [b"last"]]


def test_who_has_gone_is_sent_nothing():
    def go(pieces, wire):
        pieces.write(b"late")
        wire.close()

    assert sent(go) == [[], []]
