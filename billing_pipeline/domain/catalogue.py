"""The meter catalogue: which billable events count, how, and which Stripe meter takes them.

Read once per flush from `meters.toml` and passed to every stage of the usage flow.
Parsing collects every fault before it raises, so that one run shows a person all there is to mend.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from billing_pipeline.errors import CatalogueError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_COUNTING_KEYS = {"event_types", "aggregation", "event_name", "unit_scale", "filter", "property"}
_BRAKES_MIN = {"hour_max": 1, "hour_factor": 0, "flush_max": 1}
_METER_KEYS = _COUNTING_KEYS | _BRAKES_MIN.keys() | {"late_usage"}
EVENT_NAME_LENGTH_MAX = 100  # Stripe: event_name of a meter event
FILTER_CHOICES_MAX = 100


class Aggregation(StrEnum):
    """How the events of a window become its quantity."""

    SUM = "sum"  # of quantity
    COUNT = "count"  # of events; a quantity may be missing
    MAX = "max"  # the highest quantity of the billing period
    LAST = "last"  # the latest quantity of the billing period
    UNIQUE = "unique"  # how many different values a property has in the billing period; a quantity may be missing

    @property
    def needs_quantity(self) -> bool:
        """Whether an event without quantity cannot be counted."""
        return self not in {Aggregation.COUNT, Aggregation.UNIQUE}

    @property
    def is_period_level(self) -> bool:
        """Whether a window's worth depends on the rest of its billing period; sums and counts just add up."""
        return self not in {Aggregation.SUM, Aggregation.COUNT}


class LateUsage(StrEnum):
    """What is to become of usage that turns up when its period's invoice is final; `usage/adjust.py` does it."""

    INVOICE_ITEM = "invoice_item"  # billed by an item of the customer's next draft
    NEXT_PERIOD = "next_period"  # the same, of the next renewal only
    WRITE_OFF = "write_off"  # not billed


@dataclass(frozen=True, slots=True)
class Meter:
    """One entry of the catalogue."""

    name: str
    """Our name; part of every window and identifier."""
    event_types: tuple[str, ...]
    aggregation: Aggregation
    event_name: str
    """Stripe's meter event name."""
    unit_scale: Decimal = Decimal(1)
    """Stripe units per unit of quantity; the product is rounded down once, on the window total."""
    choices: tuple[str, ...] = ()
    """JSON objects, of which an event's properties must contain one; empty: every event of its types counts."""
    property: str | None = None
    """Of `unique`: the property whose different values are counted."""
    hour_max: int | None = None
    """A brake: Stripe units that one organization's hour may come to; more waits for a person."""
    hour_factor: int | None = None
    """A brake: how many times its usual hour an organization's hour may come to; None: as the settings say; 0: off."""
    flush_max: int | None = None
    """A brake: Stripe units that one flush may add."""
    late_usage: LateUsage = LateUsage.INVOICE_ITEM


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All meters, the event types deliberately not metered, and a version made from the text."""

    meters: tuple[Meter, ...]
    ignored_event_types: tuple[str, ...]
    version: str

    @property
    def known_event_types(self) -> frozenset[str]:
        """Event types that are metered or deliberately ignored; any other is quarantined."""
        return frozenset(self.ignored_event_types).union(*(meter.event_types for meter in self.meters))

    @property
    def summed_event_types(self) -> frozenset[str]:
        """Event types of which some meter takes the quantity; events of any other need none."""
        summing = [meter for meter in self.meters if meter.aggregation.needs_quantity]
        return frozenset().union(*(meter.event_types for meter in summing))

    @property
    def needed_properties(self) -> frozenset[tuple[str, str]]:
        """Event type and property, for each property that an event of the type must have."""
        counting = [meter for meter in self.meters if meter.property]
        return frozenset((kind, str(meter.property)) for meter in counting for kind in meter.event_types)

    @property
    def reads_properties(self) -> bool:
        """Whether any meter looks at more than the columns."""
        return any(meter.choices or meter.property for meter in self.meters)


def parse_catalogue(text: str, *, origin: str) -> Catalogue:
    """Read a catalogue from TOML; `origin` names the file in messages.  Raises `CatalogueError` with all faults."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise CatalogueError(f"{origin} is not valid TOML: {exc}.") from None
    faults = [f"unknown key {key!r}" for key in document.keys() - {"meters", "ignored_event_types"}]
    tables = document.get("meters", {})
    meters = [_meter(name, entry, faults) for name, entry in tables.items()] if isinstance(tables, dict) else []
    if not meters:
        faults.append("no [meters.NAME] table; at least one meter is needed")
    ignored = document.get("ignored_event_types", [])
    if not _is_text_list(ignored):
        faults.append("ignored_event_types must be a list of texts")
        ignored = []
    known = [meter for meter in meters if meter is not None]
    faults += _repeats("ignored_event_types", ignored) + _clashes(known, ignored)
    if faults:
        raise CatalogueError(f"{origin} has {len(faults)} fault(s): " + "; ".join(faults) + ".")
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Catalogue(tuple(known), tuple(ignored), version)


def _meter(name: str, entry: Any, faults: list[str]) -> Meter | None:
    found = len(faults)
    where = f"meters.{name}"
    if not _NAME.fullmatch(name):
        faults.append(f"{where}: a meter's name is lower case letters, digits and underscores, at most 64")
    if not isinstance(entry, dict):
        faults.append(f"{where}: must be a table")
        return None
    faults += [f"{where}: unknown key {key!r}" for key in sorted(entry.keys() - _METER_KEYS)]
    event_types = entry.get("event_types")
    if not _is_text_list(event_types) or not event_types:
        faults.append(f"{where}: event_types must be a list of at least one text")
    else:
        faults += _repeats(f"{where}: event_types", event_types)
    aggregation = entry.get("aggregation")
    if aggregation not in list(Aggregation):
        faults.append(f"{where}: aggregation must be one of {', '.join(Aggregation)}, not {aggregation!r}")
    event_name = entry.get("event_name", name)
    if not isinstance(event_name, str) or not 0 < len(event_name) <= EVENT_NAME_LENGTH_MAX:
        faults.append(f"{where}: event_name must be 1 to {EVENT_NAME_LENGTH_MAX} characters")
    # A TOML float has already lost its exact value, so fractions are written as text.
    scale = entry.get("unit_scale", 1)
    is_exact = isinstance(scale, (int, str)) and not isinstance(scale, bool)
    if not is_exact or not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", str(scale)):
        faults.append(f'{where}: unit_scale must be a whole number, or a decimal in quotes such as "0.001"')
    elif Decimal(str(scale)) == 0:
        faults.append(f"{where}: unit_scale must be above 0")
    choices = _choices(where, entry.get("filter", {}), faults)
    prop = entry.get("property")
    if aggregation == Aggregation.UNIQUE and not (isinstance(prop, str) and prop):
        faults.append(f'{where}: unique needs property = "...", whose different values are counted')
    if aggregation != Aggregation.UNIQUE and prop is not None:
        faults.append(f"{where}: property belongs to the aggregation unique only")
    for brake, least in _BRAKES_MIN.items():
        limit = entry.get(brake)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < least):
            of_units = " of Stripe units" if brake.endswith("_max") else ""
            faults.append(f"{where}: {brake} must be a whole number{of_units}, at least {least}")
    late_usage = entry.get("late_usage", LateUsage.INVOICE_ITEM)
    if late_usage not in list(LateUsage):
        faults.append(f"{where}: late_usage must be one of {', '.join(LateUsage)}, not {late_usage!r}")
    if len(faults) > found:
        return None
    return Meter(
        name,
        tuple(event_types or ()),
        Aggregation(str(aggregation)),
        event_name,
        Decimal(str(scale)),
        choices,
        prop,
        hour_max=entry.get("hour_max"),
        hour_factor=entry.get("hour_factor"),
        flush_max=entry.get("flush_max"),
        late_usage=LateUsage(late_usage),
    )


def _choices(where: str, given: Any, faults: list[str]) -> tuple[str, ...]:
    """Every combination that the filter accepts, as JSON; a property may name several values."""
    if not isinstance(given, dict) or not all(given):
        faults.append(f"{where}: filter must be a table of properties and the values they may have")
        return ()
    values = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    for key, accepted in values.items():
        # No fractions: a TOML float has already lost its exact value.
        if not accepted or not all(isinstance(value, (str, int)) for value in accepted):
            faults.append(f"{where}: filter.{key} must be a text, a whole number, true or false, or a list of them")
            return ()
    if math.prod(len(accepted) for accepted in values.values()) > FILTER_CHOICES_MAX:
        faults.append(f"{where}: filter has more than {FILTER_CHOICES_MAX} combinations")
        return ()
    if not values:
        return ()
    combinations = itertools.product(*(values[key] for key in sorted(values)))
    return tuple(json.dumps(dict(zip(sorted(values), chosen, strict=True))) for chosen in combinations)


def _repeats(where: str, event_types: list[str]) -> list[str]:
    # A type listed twice would count each of its events twice.
    repeated = sorted(kind for kind, times in Counter(event_types).items() if times > 1)
    return [f"{where} lists {kind!r} more than once" for kind in repeated]


def _clashes(meters: list[Meter], ignored: list[str]) -> list[str]:
    faults = []
    names: dict[str, str] = {}
    for meter in meters:
        if other := names.get(meter.event_name):
            faults.append(f"meters.{meter.name} and meters.{other} share the event_name {meter.event_name!r}")
        names[meter.event_name] = meter.name
        faults += [
            f"meters.{meter.name}: {kind!r} is both metered and ignored"
            for kind in meter.event_types
            if kind in ignored
        ]
    return faults


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)
