"""How commands speak: the next step as this person can type it here, amounts with all their digits, who types.

Messages name the command `billing-pipeline`, which a shell finds only once its environment is active; elsewhere the
path that was typed takes its place.
"""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from pathlib import Path

from billing_pipeline.domain.amounts import amount

__all__ = ["amount", "as_typed", "own_name"]

NAME = "billing-pipeline"


def as_typed(text: str) -> str:
    """The text with every `billing-pipeline ...` in backticks as it can be run from here."""
    typed = sys.argv[0]
    if Path(typed).name != NAME or shutil.which(NAME) is not None:
        return text
    return text.replace(f"`{NAME} ", f"`{typed} ")


def own_name() -> str:
    """Who types this, for the operator log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # a container's user may have no name
