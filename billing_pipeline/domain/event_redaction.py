"""What a person may be shown of a webhook event's payload: its machinery, and nothing of the people in it.

Used wherever a payload is printed.  What is shown is decided from the safe side: a text is shown only where its name
is no personal one and it looks like a word, a number, a time or an id of Stripe's; all else is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from billing_pipeline.domain.envelope import ORGANIZATION_KEYS

REDACTED = "[redacted]"

PERSONAL = re.compile(
    r"name|mail|phone|mobile|address|city|line[12]|postal|zip|birth|gender|passport|fingerprint|last4|iban|tax_id|"
    r"vat|ssn|individual|person|shipping|billing_details|customer_details|collected_information|custom_|description|"
    r"descriptor|footer|memo|note|comment|message|nickname|receipt|signature|secret|token|password|url|"
    r"^(dob|ip|ip_address|state|exp_month|exp_year|tel|fax)$",
    re.IGNORECASE,
)
"""Names of what belongs to a person, or opens something to whoever holds it; whatever is below them goes too."""

NOT_PERSONAL = frozenset({"event_name", "customer_tax_exempt", "tax_exempt", "personalized"})
"""Names that only contain a personal one."""

_WORD = re.compile(r"[a-z][a-z0-9_.\-]*")
_STRIPE_ID = re.compile(r"[a-z]{2,10}(_[a-z]{2,10})*_[A-Za-z0-9_]{1,240}")
_NUMBER = re.compile(r"-?\d{1,8}(\.\d{1,12})?")
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ][0-9:.]+(Z|[+-]\d\d:\d\d)?)?")
_PATH = re.compile(r"/v\d/[a-z0-9_/]*[A-Za-z0-9_]*")
_VERSION = re.compile(r"\d{4}-\d\d-\d\d(\.[a-z]+)?")
_SHOWN = (_WORD, _STRIPE_ID, _NUMBER, _TIME, _PATH, _VERSION)
WORD_LENGTH_MAX = 80


def redacted(value: Any) -> Any:
    """The same JSON value with everything replaced that may belong to a person.  Pure; the given one is unchanged."""
    if isinstance(value, Mapping):
        return {_shown_key(str(key)): _member(str(key), member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(member) for member in value]
    return value if not isinstance(value, str) or _is_machinery(value) else REDACTED


def _member(key: str, value: Any) -> Any:
    if key == "metadata" and isinstance(value, Mapping):
        # Whatever somebody wrote; only what names the organization is ours to know.
        return {
            _shown_key(str(name)): redacted(member) if name in ORGANIZATION_KEYS else _hidden(member)
            for name, member in value.items()
        }
    if key not in NOT_PERSONAL and PERSONAL.search(key):
        return _hidden(value)
    return redacted(value)


def _hidden(value: Any) -> Any:
    # That something is not set says nothing of anybody, and is often what is looked for.
    return value if value is None or isinstance(value, bool) else REDACTED


def _shown_key(key: str) -> str:
    return key if _WORD.fullmatch(key) and len(key) <= WORD_LENGTH_MAX else REDACTED


def _is_machinery(text: str) -> bool:
    if _STRIPE_ID.fullmatch(text):
        return True
    return len(text) <= WORD_LENGTH_MAX and any(form.fullmatch(text) for form in _SHOWN)
