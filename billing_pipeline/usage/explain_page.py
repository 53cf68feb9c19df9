"""An explanation in words: what the command prints and what Dagster shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import localcontext

from billing_pipeline.domain.amounts import amount, units_of
from billing_pipeline.domain.contract_rules import RULES
from billing_pipeline.domain.windows import HOUR, hour_of
from billing_pipeline.usage.explained import (
    Attempt,
    Definition,
    ExplainedEntry,
    ExplainedWindow,
    Explanation,
    Operation,
    RowsNotCounted,
    WindowRow,
)
from billing_pipeline.usage.page import Fact, Page, Section, visible

PLACES = {
    "waiting": "in quarantine, waiting",
    "dismissed": "in quarantine, dismissed",
    "without_event_id": "without an event_id: {meaning}",
    "not_judged_yet": "not judged yet; the next flush does",
    "filtered_out": "left out by the catalogue: the filter of no meter takes them",
    "before_billing_start": "used before billing began",
    "no_meter_in_its_hour": "left out by the catalogue: a meter counts their type, but not in this hour",
    "ignored_event_type": "left out by the catalogue: their type is not billed",
}
OF_LEVELS = {"max": "highest value", "last": "latest value", "unique": "different values"}
DIGITS_MAX = 1000


def page_of(explanation: Explanation) -> Page:
    """The whole explanation, window by window."""
    sections = [_window(window, explanation) for window in explanation.windows]
    if explanation.not_counted:
        sections.append(Section("Not counted", tuple(_not_counted(explanation.not_counted))))
    if explanation.operations:
        sections.append(Section("Decided by persons", tuple(map(_operation, explanation.operations))))
    return Page(
        f"{visible(explanation.organization_id)}, the hour of {_minute(explanation.hour_at)}",
        tuple(_notes(explanation)),
        tuple(sections),
        explanation.verdict.text,
        explanation.verdict.command,
    )


def _notes(explanation: Explanation) -> Iterator[str]:
    counted = _second(explanation.counted_at) if explanation.counted_at else "never yet"
    yield f"Asked {_second(explanation.asked_at)}; usage was last counted {counted}."
    if explanation.frozen_at is not None:
        yield f"The ledger is FROZEN since {_minute(explanation.frozen_at)}: {visible(explanation.frozen_reason or '')}"
    if explanation.no_source_because:
        yield visible(explanation.no_source_because)


def _window(window: ExplainedWindow, explanation: Explanation) -> Section:
    row, definition = window.row, window.definition
    if row is None:
        title = f"{window.meter}, in no usage window yet"
        return Section(title, (_source(window, explanation), *_definition(definition), Fact("so", window.verdict.text)))
    whole = row.starts_at == hour_of(row.starts_at) and row.ends_at - row.starts_at == HOUR
    span = "" if whole else f", {row.starts_at:%H:%M:%S} to {row.ends_at:%H:%M:%S}"
    whose = f"customer {row.stripe_customer_id}" if row.stripe_customer_id else "no customer"
    facts = [
        _source(window, explanation),
        *_definition(definition),
        Fact(
            "counted",
            f"by meter version {row.meter_version} and contract version {row.contract_version}, "
            f"from the snapshot of {_second(row.cutoff_at)}",
        ),
        Fact("units", _arithmetic(row, definition)),
        *_level(window),
        *_periods(window),
        Fact("price", _price(window)),
        *(_entry(entry) for entry in window.entries),
        *_shown(window),
        *(
            Fact(
                "sealed",
                f"{_minute(s.starts_at)} to {_minute(s.ends_at)}, {_minute(s.sealed_at)} by "
                f"{visible(s.actor)}: {visible(s.reason)}",
            )
            for s in window.seals
        ),
    ]
    if len(explanation.windows) > 1:
        facts.append(Fact("so", window.verdict.text))
    return Section(f"{row.meter}{span}, {whose}, window {row.window_id}", tuple(facts))


def _source(window: ExplainedWindow, explanation: Explanation) -> Fact:
    counted, row = window.counted, window.row
    if counted is None:
        return Fact("source", "unknown, see above")
    aggregation = window.definition.aggregation if window.definition else "sum"
    what = OF_LEVELS.get(aggregation, "count" if aggregation == "count" else "sum")
    text = f"{_events(counted.events)}, {what} {amount(counted.quantity)}"
    if row is not None and (counted.events, counted.quantity) != (row.event_count, row.quantity):
        text += f"; when last counted: {_events(row.event_count)}, {what} {amount(row.quantity)}"
    if counted.events_since:
        text += f" ({counted.events_since:,} recorded since)"
    details = list(_ids(counted.event_ids, counted.events))
    if counted.events_filtered:
        details.append(f"{_events(counted.events_filtered)} more of its types, left out by the meter's filter")
    return Fact("source", text, tuple(details))


def _definition(definition: Definition | None) -> Iterator[Fact]:
    if definition is None:
        yield Fact("meter", "no definition of it is known for this hour any more")
        return
    types = ", ".join(visible(kind) for kind in definition.event_types)
    unique = f" of {definition.property}" if definition.property else ""
    filtered = ", where its filter takes them" if definition.is_filtered else ""
    until = f"until {_minute(definition.valid_until)}" if definition.valid_until else "still valid"
    yield Fact(
        "meter",
        f"{definition.aggregation}{unique} of {types}{filtered}, times {amount(definition.unit_scale)}, to Stripe's "
        f"{definition.event_name}; defined so from {_minute(definition.valid_from)}, {until}",
    )


def _arithmetic(row: WindowRow, definition: Definition | None) -> str:
    if row.period_level is not None:
        return (
            f"quantity {amount(row.quantity)} -> adds {amount(row.target)} to the level = target {amount(row.target)}"
        )
    scale = f" x {amount(definition.unit_scale)}" if definition else ""
    whole = row.target - row.carried
    carried = " (fractions of the month that add up to whole units)" if row.carried else ""
    return (
        f"quantity {amount(row.quantity)}{scale} = {amount(row.units)} units -> {amount(whole)} whole "
        f"{'-' if row.carried < 0 else '+'} {amount(abs(row.carried))} carried{carried} = target {amount(row.target)}"
    )


def _level(window: ExplainedWindow) -> Iterator[Fact]:
    row, level = window.row, window.level
    if row is None or row.period_level is None:
        return
    text = f"{amount(row.period_level)} units up to here, of which this hour adds {amount(row.target)}"
    if level is not None:
        began = f"the billing period that began {_minute(level.began_at)}"
        before = (
            f"{amount(level.level_before)} with {_minute(level.before_at)}"
            if (level.level_before is not None and level.before_at is not None)
            else "nothing"
        )
        text += f"; before it in {began}: {before}"
    yield Fact("level", text)


def _periods(window: ExplainedWindow) -> Iterator[Fact]:
    for period in window.periods:
        end = _second(period.ends_at) if period.ends_at else "no end yet"
        yield Fact("period", f"{_second(period.starts_at)} to {end}, {period.subscription_item_id}")
    if not window.periods:
        yield Fact("period", "none known that holds it: no subscription, or Stripe was asked too late to tell")


def _price(window: ExplainedWindow) -> str:
    if window.price is None or window.row is None:
        return f"unknown because: {visible(window.no_price_because or 'it was not asked')}"
    price = window.price
    with localcontext(prec=DIGITS_MAX):
        total = price.minor_units * window.row.target
    each = f"{amount(price.minor_units)} minor unit{'' if price.minor_units == 1 else 's'} of {price.currency} each"
    return f"{each}, {amount(total)} in all"


def _entry(entry: ExplainedEntry) -> Fact:
    row = entry.row
    held = f", on hold: {row.hold_reason.replace('_', ' ')}" if row.hold_reason else ""
    retry = f", again after {_second(row.retry_at)}" if row.retry_at else ""
    details = [f"{row.identifier}, cut {_second(row.created_at)}, epoch {row.epoch}"]
    earlier = entry.attempts[0].attempts_of_entry - len(entry.attempts) if entry.attempts else 0
    if earlier:
        details.append(f"{earlier:,} earlier attempts")
    details += [_attempt(attempt) for attempt in entry.attempts]
    for found in entry.evidence:
        shown = "" if found.observed is None else f" {amount(found.observed)}"
        details.append(
            f"evidence {found.kind.replace('_', ' ')}{shown}, by {found.granularity}, {_second(found.observed_at)}"
        )
    signed = f"{'+' if row.value > 0 else '-'}{units_of(abs(row.value))}"
    return Fact(
        f"entry {row.entry_id}",
        f"sequence {row.sequence}, {signed}, {row.state}, minute {_minute(row.slot_at)}{held}{retry}",
        tuple(details),
    )


def _attempt(attempt: Attempt) -> str:
    parts = [
        f"attempt {attempt.attempt_id} by {attempt.channel}, {_second(attempt.started_at)}",
        attempt.outcome.replace("_", " ") if attempt.outcome else "outcome not known",
        f"HTTP {attempt.http_status}" if attempt.http_status else "no answer",
    ]
    words = ": ".join(visible(text) for text in (attempt.error_code, attempt.error_message) if text)
    return ", ".join(part for part in (*parts, attempt.request_id or "", words) if part)


def _shown(window: ExplainedWindow) -> Iterator[Fact]:
    for hour in window.shown:
        stated = f"the ledger has proved {amount(hour.proved)} there"
        if hour.unproved:
            stated += f", and {amount(hour.unproved)} are not proved yet"
        if hour.observed is None or hour.observed_at is None:
            yield Fact("Stripe", f"not asked about {_minute(hour.hour_at)} yet; {stated}")
        else:
            yield Fact(
                "Stripe",
                f"showed {amount(hour.observed)} for {_minute(hour.hour_at)}, read "
                f"{_second(hour.observed_at)}; {stated}",
            )


def _not_counted(groups: Sequence[RowsNotCounted]) -> Iterator[Fact]:
    for group in groups:
        place = PLACES[group.place].format(meaning=RULES["event_id_missing"].meaning)
        text = place
        if group.reason and group.place != "without_event_id":
            text += f", {group.reason}: {RULES[group.reason].meaning}"
        if group.dismissed_by:
            text += f" Dismissed by {visible(group.dismissed_by)}: {visible(group.dismissed_reason or '')}"
        details = [
            f"type {visible(group.event_type) if group.event_type else '(none)'}, quantity {amount(group.quantity)}"
        ]
        if any(group.event_ids):
            details += _ids(group.event_ids, group.events)
        yield Fact(_rows(group.events), text, tuple(details))
    if (left := groups[0].groups - len(groups)) > 0:
        yield Fact("", f"and {left:,} kinds of rows more")


def _operation(operation: Operation) -> Fact:
    what = operation.action.replace("_", " ")
    if operation.meter:
        what += f" of {operation.meter}, difference {operation.difference}"
    when = f"{_minute(operation.done_at)} by {visible(operation.actor)}"
    return Fact("", f"{what}, {when}: {visible(operation.reason)}")


def _ids(event_ids: Sequence[str], events: int) -> Iterator[str]:
    if not event_ids:
        return
    more = f" and {events - len(event_ids):,} more" if events > len(event_ids) else ""
    yield ", ".join(visible(event_id) for event_id in event_ids) + more


def _events(count: int) -> str:
    return f"{count:,} event" + ("" if count == 1 else "s")


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _second(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
