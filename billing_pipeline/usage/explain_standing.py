"""What a usage window comes to: its facts as `domain/standing.py` wants them, and what the source says now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext

from billing_pipeline.domain.amounts import amount, units_of
from billing_pipeline.domain.entries import NOT_STATED
from billing_pipeline.domain.reach import reach_start
from billing_pipeline.domain.standing import Ledger, OpenEntry, Standing, Verdict
from billing_pipeline.usage.explained import (
    CountedRows,
    Definition,
    ExplainedEntry,
    ExplainedWindow,
    ShownHour,
    WindowRow,
)

DIGITS_MAX = 1000
"""Of an amount: many rows of many digits, summed and scaled, are not rounded here."""
LEVELS = ("max", "last", "unique")


def standing_of(
    window: WindowRow,
    definition: Definition | None,
    counted: CountedRows | None,
    entries: Sequence[ExplainedEntry],
    shown: Sequence[ShownHour],
    ledger: Ledger,
) -> Standing:
    """Where a window stands; `counted` is what the source says now, None where it cannot be read."""
    differing = next((hour for hour in shown if hour.differs), None)
    unsettled = [entry for entry in entries if entry.row.state in ("pending", "ambiguous")]
    refused = [entry for entry in entries if entry.row.state == "rejected" and entry.row.hold_reason is not None]
    return Standing(
        window_id=window.window_id,
        target=window.target,
        stated=_sum(entry for entry in entries if entry.row.state not in NOT_STATED),
        proved=_sum(entry for entry in entries if entry.row.state in ("confirmed", "adopted")),
        ends_at=window.ends_at,
        is_mapped=window.stripe_customer_id is not None,
        open_entry=_open(unsettled[0]) if unsettled else None,
        accepted=tuple(_open(entry) for entry in entries if entry.row.state == "accepted"),
        refused=_open(refused[-1]) if refused else None,
        hold_reason=window.hold_reason,
        cut_after=window.cut_after,
        sealed_at=window.sealed_at,
        adjusted=window.adjusted,
        adjusted_by=window.adjusted_by,
        shown=differing.observed if differing else None,
        all_entries=differing.proved if differing else None,
        source_says=_source_says(window, definition, counted, ledger),
        is_beyond_reach=_is_beyond_reach(window, ledger),
    )


def waiting_verdict(counted: CountedRows, definition: Definition, ledger: Ledger) -> Verdict:
    """Of rows that no usage window holds yet."""
    events = f"{counted.events:,} event" + ("" if counted.events == 1 else "s")
    if definition.aggregation in LEVELS:
        return Verdict(f"{events} of {definition.meter} not counted yet; {_noticed(counted, definition, ledger)}.")
    units = _whole(counted.quantity * definition.unit_scale)
    return Verdict(f"{units_of(units)} in {events} not counted yet; {_noticed(counted, definition, ledger)}.")


def verdict_in_all(windows: Sequence[ExplainedWindow], *, rows_not_counted: int) -> Verdict:
    """The last line: the one window's, or the first that is not settled and how many are."""
    if not windows:
        if rows_not_counted:
            return Verdict(
                f"Nothing was billed: no meter counts the hour's {rows_not_counted:,} rows, for the reasons above.",
                is_settled=True,
            )
        return Verdict("Nothing was used in this hour: no row, no usage window, nothing stated.", is_settled=True)
    if len(windows) == 1:
        return windows[0].verdict
    unsettled = [window for window in windows if not window.verdict.is_settled]
    if not unsettled:
        return Verdict(f"Nothing is owed in any of the {len(windows)} usage windows.", is_settled=True)
    first = unsettled[0]
    left = f"Not settled: {len(unsettled)} of {len(windows)} usage windows. The first, {first.meter}: "
    return Verdict(left + first.verdict.text, first.verdict.command)


def _sum(entries: Iterable[ExplainedEntry]) -> Decimal:
    return sum((entry.row.value for entry in entries), Decimal(0))


def _open(entry: ExplainedEntry) -> OpenEntry:
    last = entry.attempts[-1] if entry.attempts else None
    return OpenEntry(
        entry_id=entry.row.entry_id,
        value=entry.row.value,
        state=entry.row.state,
        first_attempt_at=entry.row.first_attempt_at,
        last_attempt_at=entry.row.last_attempt_at,
        retry_at=entry.row.retry_at,
        words=(last.error_message or last.error_code) if last else None,
    )


def _source_says(
    window: WindowRow, definition: Definition | None, counted: CountedRows | None, ledger: Ledger
) -> str | None:
    if counted is None or definition is None:
        return None
    if (counted.events, counted.quantity) == (window.event_count, window.quantity):
        return None
    noticed = _noticed(counted, definition, ledger, window)
    if window.period_level is not None:
        if counted.quantity == window.quantity:
            return None
        what = {"max": "the highest value", "last": "the latest value", "unique": "the number of different values"}
        return (
            f"The source now says {amount(counted.quantity)} for {what[definition.aggregation]} in the hour, not "
            f"{amount(window.quantity)}; {noticed}."
        )
    whole = _whole(counted.quantity * definition.unit_scale)
    says = whole + max(window.carried, -whole)
    if says == window.target:
        return None
    return f"The source now says {amount(says)}; {noticed}."


def _noticed(counted: CountedRows, definition: Definition, ledger: Ledger, window: WindowRow | None = None) -> str:
    sealed = window is not None and window.sealed_at is not None
    does = "counts the difference, which is owed after the seal and never sent" if sealed else "states the difference"
    if window is not None and _is_beyond_reach(window, ledger):
        return "the hour is older than Stripe takes usage, so it stays as it is"
    if counted.is_touched:
        return f"the next flush {does}"
    return f"the daily full flush {does}, or `billing-pipeline flush-now --full` now"


def _is_beyond_reach(window: WindowRow, ledger: Ledger) -> bool:
    return window.starts_at < reach_start(ledger.now)


def _whole(units: Decimal) -> Decimal:
    with localcontext(prec=DIGITS_MAX):
        return units.to_integral_value(rounding="ROUND_FLOOR")
