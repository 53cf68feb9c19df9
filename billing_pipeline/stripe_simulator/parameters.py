"""Reads request parameters: Stripe's bracketed forms, v2's JSON, and the checks each endpoint names.

First step of every endpoint.  A parameter nobody named is refused, as Stripe does
(`additionalProperties: false` in its specification); `expand` is accepted everywhere and changes nothing.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from billing_pipeline.stripe_simulator.wire import Body, Refusal, invalid

Check = Callable[[str, Any], Any]
"""Takes the parameter's name and raw value; returns the value or raises `Refusal`."""

NESTING_MAX = 8

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_PLAIN_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_form(text: str) -> Body:
    """`payload[value]=1&expand[]=x` as nested dictionaries; list positions stay keys ("0", "1").

    Raises `Refusal` when one name is used both as a value and as a group, or nests too deeply.
    """
    params: Body = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        *path, leaf = _path(name)
        group = params
        for part in path:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise invalid(f"Invalid object: {name} is given both as a value and as a group.", name)
        if isinstance(group.get(leaf), dict):
            raise invalid(f"Invalid object: {name} is given both as a value and as a group.", name)
        group[leaf or str(len(group))] = value
    return params


def _path(name: str) -> list[str]:
    if not name.endswith("]"):
        return [name]
    path = [name.partition("[")[0], *_BRACKETS.findall(name)]
    if len(path) > NESTING_MAX:
        raise invalid(f"Invalid object: {name[:40]}... is nested more than {NESTING_MAX} deep.", name[:40])
    return path


def parse_json(body: bytes) -> Body:
    """The JSON object of a v2 body; no body at all is an empty one.  Raises `Refusal` for anything else."""
    try:
        params = json.loads(body.decode("utf-8") or "{}")
    except (ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise Refusal(400, "The request body must be one JSON object.", code="invalid_json")
    return params


def checked(
    params: Mapping[str, Any],
    required: Mapping[str, Check] | None = None,
    optional: Mapping[str, Check] | None = None,
    *,
    inside: str = "",
) -> Body:
    """Every given parameter, checked.  Raises `Refusal` for an unknown, missing or malformed one."""
    required, optional = required or {}, optional or {}
    found: Body = {}
    for name, raw in params.items():
        check = required.get(name) or optional.get(name)
        full_name = f"{inside}[{name}]" if inside else name
        if check is not None:
            found[name] = check(full_name, raw)
        elif inside or name != "expand":
            raise invalid(f"Received unknown parameter: {full_name}", full_name, code="parameter_unknown")
    for name in required:
        if name not in found:
            full_name = f"{inside}[{name}]" if inside else name
            raise invalid(f"Missing required param: {full_name}.", full_name, code="parameter_missing")
    return found


def text(length_max: int = 5000) -> Check:
    """A string of 1 to `length_max` characters."""

    def check(name: str, raw: Any) -> str:
        if not isinstance(raw, str):
            raise invalid(f"Invalid string: {name} must be a string.", name)
        if raw == "":
            message = f"You passed an empty string for '{name}', which cannot be unset."
            raise invalid(message, name, code="parameter_invalid_empty")
        if len(raw) > length_max:
            shown = f"{raw[:10]}...{raw[-4:]}"
            raise invalid(f"Invalid string: {shown}; must be at most {length_max} characters", name)
        return raw

    return check


def integer(at_least: int | None = None, at_most: int | None = None) -> Check:
    """A whole number, optionally between two bounds (both included)."""

    def check(name: str, raw: Any) -> int:
        if isinstance(raw, dict) or not _INTEGER.fullmatch(str(raw)):
            raise invalid(f"Invalid integer: {name} must be a whole number.", name, code="parameter_invalid_integer")
        number = int(raw)
        if (at_least is not None and number < at_least) or (at_most is not None and number > at_most):
            message = f"Invalid integer: {name} is {number}; it must be between {at_least} and {at_most}."
            raise invalid(message, name, code="parameter_invalid_integer")
        return number

    return check


def interval(name: str, raw: Any) -> Callable[[int], bool]:
    """Epoch seconds, or bounds `gt`, `gte`, `lt`, `lte` around them, as the test that a number passes."""
    if not isinstance(raw, dict):
        exact = integer(0)(name, raw)
        return lambda number: number == exact
    bounds = checked(raw, optional=dict.fromkeys(_BOUNDS, integer(0)), inside=name)
    return lambda number: all(_BOUNDS[bound](number, limit) for bound, limit in bounds.items())


_BOUNDS: dict[str, Callable[[int, int], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def plain_decimal(name: str, raw: Any) -> Decimal:
    """A decimal number without exponent, such as `-0.25`."""
    if not is_plain_decimal(raw):
        raise invalid(f"Invalid decimal: {name} must be digits with at most one point.", name)
    return Decimal(raw)


def is_plain_decimal(raw: Any) -> bool:
    """Whether this is a decimal number in ASCII digits without exponent, sign `+` or spaces."""
    return isinstance(raw, str) and _PLAIN_DECIMAL.fullmatch(raw) is not None


def flag(name: str, raw: Any) -> bool:
    """`true` or `false`."""
    if raw not in ("true", "false"):
        raise invalid(f"Invalid boolean: {name} must be true or false.", name)
    return bool(raw == "true")


def one_of(*choices: str) -> Check:
    """One of the given words."""

    def check(name: str, raw: Any) -> str:
        if raw not in choices:
            raise invalid(f"Invalid {name}: must be one of {', '.join(choices)}", name)
        return str(raw)

    return check


def group(required: Mapping[str, Check] | None = None, optional: Mapping[str, Check] | None = None) -> Check:
    """A nested group of parameters, checked by the same rules."""

    def check(name: str, raw: Any) -> Body:
        if not isinstance(raw, dict):
            raise invalid(f"Invalid object: {name} must be a group of parameters.", name)
        return checked(raw, required, optional, inside=name)

    return check


def sequence(check_item: Check) -> Check:
    """A non-empty list, given as `name[0]`, `name[1]` or `name[]`."""

    def check(name: str, raw: Any) -> list[Any]:
        if not isinstance(raw, dict) or not raw or not all(key.isdecimal() for key in raw):
            raise invalid(f"Invalid array: {name} must be a list of at least one item.", name)
        return [check_item(f"{name}[{key}]", raw[key]) for key in sorted(raw, key=int)]

    return check


def json_list(check_item: Check, length_max: int) -> Check:
    """A JSON list of 1 to `length_max` items."""

    def check(name: str, raw: Any) -> list[Any]:
        if not isinstance(raw, list) or not 1 <= len(raw) <= length_max:
            raise invalid(f"Invalid array: {name} must be a list of 1 to {length_max} items.", name)
        return [check_item(f"{name}[{position}]", item) for position, item in enumerate(raw)]

    return check


def instant(name: str, raw: Any) -> datetime:
    """An RFC 3339 timestamp, such as `2026-06-15T12:00:30Z`, as an aware datetime."""
    if isinstance(raw, str) and _RFC_3339.fullmatch(raw):
        try:
            return datetime.fromisoformat(raw.upper())
        except ValueError:
            pass  # the 31st of June has the right form
    raise invalid(f"Invalid timestamp: {name} must be an RFC 3339 timestamp.", name)


def instant_seconds(name: str, raw: Any) -> int:
    """An RFC 3339 timestamp as whole epoch seconds, fractions cut off: the unit of a meter event's timestamp."""
    return math.floor(instant(name, raw).timestamp())


def json_string_map(name: str, raw: Any) -> dict[str, str]:
    """A JSON object with string values."""
    if not isinstance(raw, dict):
        raise invalid(f"Invalid hash: {name} must map keys to strings.", name)
    return string_map(name, raw)


def string_map(name: str, raw: Any) -> dict[str, str]:
    """Free keys with string values.  An empty string in the whole map's place is an empty map."""
    if raw == "":
        return {}
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise invalid(f"Invalid hash: {name} must map keys to strings.", name)
    return dict(raw)
