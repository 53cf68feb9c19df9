"""A stand-in for Stripe's side of `submit`: a test derives from it and says what `send` answers."""

from __future__ import annotations

from typing import Self


class StandInSink:
    """A meter sink of one event a request that needs no opening or closing."""

    channel = "v1"
    batch_size = 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None
