"""The high-water mark: the highest attempt number ever sent, kept where no restore of the database can reach it.

Raised after the attempts are committed and before the first request leaves, so it never names an attempt that was
not durable.  If it is ahead of the ledger at a gate, the ledger has lost attempts, or a recovery: it was restored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from billing_pipeline.errors import IdentityMismatch, Unavailable, UserError

RAISE_TRIES_MAX = 5


@dataclass(frozen=True, slots=True)
class Mark:
    """What is stored: whose ledger, the highest attempt that may have been sent, and after how many recoveries."""

    ledger_id: str
    attempt_id: int
    epoch: int = 0


class HighWaterMark:
    """One mark at an fsspec address: a file by default, an object store past one machine."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._fs, self._path = url_to_fs(url)
        except (ImportError, ValueError) as exc:
            # What is wrong with the address may quote a key in it; what has to be installed does not.
            why = exc if isinstance(exc, ImportError) else "it is malformed, or of a kind that fsspec does not know"
            raise UserError(f"BILLING_MARK_URL ({_kind(url)}) cannot be used: {why}.") from None
        except OSError as exc:
            raise self._unavailable("reached", exc) from None

    @property
    def kind(self) -> str:
        """What keeps the mark, such as `file` or `s3`: all of the address that may be shown, for it may hold a key."""
        return _kind(self._url)

    @property
    def path(self) -> Path | None:
        """The file, where it is one of this machine."""
        return Path(self._path) if isinstance(self._fs, LocalFileSystem) else None

    def why_not_writable(self) -> str | None:
        """What will keep this process from writing the mark, as far as it shows without writing; None: nothing."""
        if self.kind == "memory":
            return "it is kept in this process, and forgotten with it"
        if self.path is None:
            return None
        if self.path.exists() and not (self.path.is_file() and os.access(self.path, os.W_OK)):
            return "it is no file that this process may write"
        # The file is replaced, so it is the folder that must be writable; folders that lack are made.
        folder = next(folder for folder in self.path.parents if folder.exists())
        return None if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) else "its folder cannot be written"

    def read(self) -> Mark | None:
        """The stored mark, or None where there is none yet.  Raises `Unavailable` when it cannot be read."""
        try:
            if not self._fs.exists(self._path):
                return None
            stored: dict[str, Any] = json.loads(self._fs.cat_file(self._path))
            return Mark(str(stored["ledger_id"]), int(stored["attempt_id"]), int(stored.get("epoch", 0)))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise self._unavailable("read", exc) from None

    def raise_to(self, mark: Mark) -> None:
        """Store `mark` unless a higher one is there.

        Raises `IdentityMismatch` when the stored mark is another ledger's, and `Unavailable` when it cannot be
        stored; nothing may be sent then.
        """
        for _ in range(RAISE_TRIES_MAX):
            with self._exclusively():
                stored = self.read()
                if stored is not None and stored.ledger_id != mark.ledger_id:
                    raise IdentityMismatch(
                        f"The high-water mark belongs to ledger {stored.ledger_id}, not to this one."
                    )
                if stored is not None and (stored.epoch, stored.attempt_id) >= (mark.epoch, mark.attempt_id):
                    return
                self._write(json.dumps(asdict(mark)).encode())
            # An object store has no lock: somebody else's lower mark may have come after ours.
        raise Unavailable(f"The high-water mark ({self.kind}) does not keep what is written; nothing is sent.")

    def replace_with(self, mark: Mark) -> None:
        """Store `mark` whatever is there: recovery's last step, when a person has looked."""
        with self._exclusively():
            self._write(json.dumps(asdict(mark)).encode())

    def _write(self, content: bytes) -> None:
        try:
            if isinstance(self._fs, LocalFileSystem):
                _write_durably(Path(self._path), content)
            else:
                self._fs.pipe_file(self._path, content)
                self._fs.invalidate_cache()
        except OSError as exc:
            raise self._unavailable("written", exc) from None

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        if not isinstance(self._fs, LocalFileSystem):
            yield
            return
        import fcntl

        path = Path(self._path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock").open("ab")
        except OSError as exc:
            raise self._unavailable("locked", exc) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _unavailable(self, verb: str, exc: Exception) -> Unavailable:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        return Unavailable(f"The high-water mark ({self.kind}) cannot be {verb}: {reason}. Nothing is sent without it.")


def _write_durably(path: Path, content: bytes) -> None:
    # Renamed into place, so that a crash leaves the old mark or the new one, never half of one.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _kind(url: str) -> str:
    return fsspec.core.split_protocol(url)[0] or "file"
