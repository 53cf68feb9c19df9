"""The journal: one JSON line per state change, only ever appended.

The core writes here before it answers, so a killed simulator loses nothing it has acknowledged; the write
reaches the kernel but is not forced to disk, for a power cut is not what tests are about.
Whoever judges what was counted reads this file, not anybody's ledger.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from billing_pipeline.errors import UserError

Record = dict[str, Any]
"""One line: `line`, `kind`, `received_at`, `request_id`, and what changed."""


# Built once: json.dumps with separators builds a new encoder for every line.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_FIRST_BYTES = b'{"line":1,'


class Journal(Protocol):
    """Keeps records in order.  Numbers start at 1 and are set by the core as `line`."""

    def append(self, records: Sequence[Record]) -> None:
        """Keep all of the records or none; raises `OSError` when they cannot be kept."""

    def read(self, after: int = 0) -> Iterator[Record]:
        """The records with a line number above `after`, oldest first."""

    def close(self) -> None:
        """Let go of the file; the journal cannot be used afterwards."""


class MemoryJournal:
    """Keeps the records in memory, for simulations that make a new Stripe per run."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self._records = list(records)

    def append(self, records: Sequence[Record]) -> None:
        self._records.extend(records)

    def read(self, after: int = 0) -> Iterator[Record]:
        return iter(self._records[after:])

    def close(self) -> None:
        """Nothing to let go of."""


class FileJournal:
    """Keeps the records in a file that one simulator at a time may use.

    A last line without its newline is the remains of a killed write: it was never acknowledged and is cut off.
    Raises `UserError` when the file cannot be written, is in use, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise self._cannot_be_written(exc) from None
        try:
            self._lock()
            self._refuse_foreign_file()
            self._size = self._cut_torn_line()
        except OSError as exc:
            os.close(self._descriptor)
            raise self._cannot_be_written(exc) from None
        except UserError:
            os.close(self._descriptor)
            raise

    def append(self, records: Sequence[Record]) -> None:
        data = "".join(f"{_encode(record)}\n" for record in records).encode()
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):
                raise OSError(f"only {written} of {len(data)} bytes fit into {self.path}")
        except OSError:
            # Half a record must not stay in front of the next one.
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written

    def read(self, after: int = 0) -> Iterator[Record]:
        with self.path.open("rb") as lines:
            for line in islice(lines, after, None):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise self._not_a_journal() from None

    def close(self) -> None:
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"The journal {self.path} is in use by another simulator. Stop that one or choose another file."
            ) from None

    def _refuse_foreign_file(self) -> None:
        # Before anything is cut off: a mistyped path must not cost a person a file.
        head = os.pread(self._descriptor, len(_FIRST_BYTES), 0)
        if head != _FIRST_BYTES[: len(head)]:
            raise self._not_a_journal()

    def _cut_torn_line(self) -> int:
        with self.path.open("rb") as lines:
            whole = sum(len(line) for line in lines if line.endswith(b"\n"))
        os.ftruncate(self._descriptor, whole)
        return whole

    def _not_a_journal(self) -> UserError:
        return UserError(f"{self.path} is not a journal of this simulator. Choose another file.")

    def _cannot_be_written(self, exc: OSError) -> UserError:
        return UserError(f"The journal {self.path} cannot be written: {exc.strerror}. Choose another file.")
