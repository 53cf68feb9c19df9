"""What may be shown of a secret, and what is no secret yet.

The settings refuse what somebody copied and forgot to fill in; everything that names a key to a person masks it here.
"""

from __future__ import annotations

import re

SECRET_PREFIXES = ("sk_test_", "sk_live_", "rk_test_", "rk_live_", "whsec_")

_PLACEHOLDER = re.compile(
    r"your[_\- ]|change[_\- ]?me|replace[_\- ]?(me|with)|placeholder|example|dummy|<|>|\.\.\.|…|x{4,}|\*{3,}",
    re.IGNORECASE,
)


def mask(secret: str) -> str:
    """Show which secret is meant: its type prefix and last four characters, nothing under 12 characters."""
    if len(secret) < 12:
        return "***"
    prefix = next((prefix for prefix in SECRET_PREFIXES if secret.startswith(prefix)), "")
    return f"{prefix}…{secret[-4:]}"


def is_placeholder(secret: str) -> bool:
    """Whether a key is only the form of one, such as sk_test_your_project_key, sk_test_... or a prefix alone."""
    return _PLACEHOLDER.search(secret) is not None or secret in SECRET_PREFIXES
