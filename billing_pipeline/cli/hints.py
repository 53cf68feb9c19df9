"""How the command shows itself: the next step, as this person can type it here.

Messages name the command `billing-pipeline`, which a shell finds only once its environment is active; elsewhere the
path that was typed takes its place.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

NAME = "billing-pipeline"


def as_typed(text: str) -> str:
    """The text with every `billing-pipeline ...` in backticks as it can be run from here."""
    typed = sys.argv[0]
    if Path(typed).name != NAME or shutil.which(NAME) is not None:
        return text
    return text.replace(f"`{NAME} ", f"`{typed} ")
