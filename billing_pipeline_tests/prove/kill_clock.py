"""One clock for a simulator and for processes that come and go: the machine's time, moved on by a number in a file.

The kills pass hours by it in no time.  A worker maps the file, so its clock goes on while it runs, or is stopped.
"""

from __future__ import annotations

import mmap
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

_NUMBER = struct.Struct("<q")
_MICROSECOND = timedelta(microseconds=1)


class MovedClock:
    """The machine's time plus a shift that all who map the same file share; it never goes back."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_NUMBER.pack(0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _NUMBER.size)

    @property
    def shift(self) -> timedelta:
        """How far ahead of the machine's time."""
        return int(_NUMBER.unpack_from(self._map)[0]) * _MICROSECOND

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def pass_time(self, duration: timedelta) -> None:
        """Go on, for everybody."""
        _NUMBER.pack_into(self._map, 0, (self.shift + duration) // _MICROSECOND)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
