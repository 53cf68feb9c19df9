"""The log of a command that cron runs: one line on stderr per event, its fields behind it as key=value.

Dagster keeps a log of its own; a shell has none, and these lines are what is looked for at 3 a.m.
`serve` writes one for every delivery, so there they gather for a moment and are written by a thread of their own.
"""

from __future__ import annotations

import json
import logging
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TextIO

MILESTONES = "billing_pipeline.milestones"
GATHER_SECONDS = 0.1
LAST_WRITE_SECONDS = 2
WRITE_MAX = select.PIPE_BUF
GATHERED_MAX = 50_000
"""Lines that are kept while nobody takes them; then the oldest go, because deliveries are worth more."""

_NO_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Lines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _NO_FIELDS}
        return " ".join([super().format(record), *(f"{name}={_value(value)}" for name, value in fields.items())])


class _Gathering(logging.Handler):
    """Writes what has gathered, in its order, from another thread; what is logged last is written when Python ends.

    Each write gives the interpreter away, and a thread that computes keeps it for up to `sys.getswitchinterval()`;
    a delivery must not wait for that.  A pipe that nobody reads holds up nothing.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=GATHERED_MAX)
        self._writing = threading.Lock()
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def flush(self) -> None:
        # Where nobody reads, the end does not wait for ever either.
        if not self._writing.acquire(timeout=LAST_WRITE_SECONDS):
            return
        try:
            for lines in _together([self._lines.popleft() for _ in range(len(self._lines))]):
                self._stream.write(lines)
                self._stream.flush()
        except (OSError, ValueError):
            pass  # whoever read the log has gone
        finally:
            self._writing.release()

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(GATHER_SECONDS)
            self.flush()


def _together(lines: list[str]) -> Iterator[str]:
    """Whole lines in few writes, each no longer than a pipe takes in one piece, so that two processes never mix them.

    Only a line that is longer by itself, which none of ours is, could be mixed.
    """
    gathered, size = "", 0
    for line in lines:
        more = len(line.encode(errors="replace")) + 1
        if gathered and size + more > WRITE_MAX:
            yield gathered
            gathered, size = "", 0
        gathered, size = gathered + line + "\n", size + more
    if gathered:
        yield gathered


def log_to_stderr(*, milestones: bool, gathering: bool = False) -> None:
    """Warnings with their fields, and the milestones of a flush where wanted, until the process ends.

    With `gathering`, a tenth of a second later, and without making who logs wait.
    """
    handler = _Gathering(sys.stderr) if gathering else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.getLogger("billing_pipeline").addHandler(handler)
    logging.getLogger(MILESTONES).setLevel(logging.INFO if milestones else logging.WARNING)


def _value(value: object) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) and " " not in value else json.dumps(value, default=str)
