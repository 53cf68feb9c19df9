"""What the pages of the later usage assets show beside their counts: units per hour, by age, and Stripe's lag.

`usage/progress.py` reads the numbers.  Where there is nothing to draw, a sentence says so.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import dagster as dg

from billing_pipeline.domain.windows import utc
from billing_pipeline.orchestration.metadata import counts_table, units_text
from billing_pipeline.orchestration.plot import Bar, picture, short
from billing_pipeline.usage.progress import AGES, HOURS_SHOWN, ByAge, ProofHour, StatedHour, shown_hours

METERS_MAX = 12
"""Those with the most entries: a page for a person, and a row of Dagster's event log."""
SECOND = timedelta(seconds=1)

Values = dict[str, dg.MetadataValue[Any]]


def stated_plots(stated: list[StatedHour], *, now: datetime) -> Values:
    """A table of the Stripe meters, and of each its units per hour."""
    names = sorted({hour.event_name for hour in stated}, key=lambda name: (-_entries(stated, name), name))
    if not names:
        return {"units_per_hour": dg.MetadataValue.text(f"Nothing was stated for the last {HOURS_SHOWN} hours.")}
    plots: Values = {"by_meter": _by_meter(stated, names[:METERS_MAX])}
    for name in names[:METERS_MAX]:
        by_hour = {utc(hour.hour_at): hour.units for hour in stated if hour.event_name == name}
        plots[f"units_per_hour {name}"] = _hours("units per UTC hour of use", by_hour, now, say=short)
    if len(names) > METERS_MAX:
        others = f"{len(names) - METERS_MAX} meters with fewer entries are not shown."
        plots["units_per_hour of others"] = dg.MetadataValue.text(others)
    return plots


def waiting_plots(owed: ByAge, ambiguous: ByAge) -> Values:
    """What Stripe was not told, and what it may not have heard."""
    return {
        "owed_by_age": _ages("units owed, by the age of their hour", owed, "Nothing is owed."),
        "in_doubt_by_age": _ages("units in doubt, by the age of their first send", ambiguous, "Nothing is in doubt."),
    }


def proof_plots(accepted: ByAge, lags: list[ProofHour], *, now: datetime) -> Values:
    """How far Stripe's summaries are behind."""
    nothing = "All that Stripe accepted is proved."
    return {
        "not_proved_by_age": _ages("units accepted, not proved, by age of first send", accepted, nothing),
        "longest_proof_per_hour": _hours(
            "wait for the proof, per UTC hour",
            {lag.hour_at: Decimal(lag.longest // SECOND) for lag in lags},
            now,
            say=_waited,
        )
        if lags
        else dg.MetadataValue.text(f"No proof came in the last {HOURS_SHOWN} hours."),
    }


def _entries(stated: list[StatedHour], name: str) -> int:
    return sum(hour.entries for hour in stated if hour.event_name == name)


def _by_meter(stated: list[StatedHour], names: Iterable[str]) -> dg.TableMetadataValue:
    rows: list[dict[str, int | str]] = []
    for name in names:
        hours = [hour for hour in stated if hour.event_name == name]
        rows.append(
            {
                "Stripe meter": name,
                "entries": sum(hour.entries for hour in hours),
                "sent": sum(hour.sent for hour in hours),
                "confirmed": sum(hour.confirmed for hour in hours),
                "units": units_text(sum((hour.units for hour in hours), Decimal(0))),
            }
        )
    return counts_table(rows)


def _hours(
    title: str, by_hour: dict[datetime, Decimal], now: datetime, *, say: Callable[[Decimal], str]
) -> dg.MarkdownMetadataValue:
    quantities = [(hour, by_hour.get(hour, Decimal(0))) for hour in shown_hours(now)]
    most = max(quantity for _, quantity in quantities)
    bars = [Bar(quantity, below=f"{hour:%b %d %H:%M}" if hour.hour == 0 else "") for hour, quantity in quantities]
    return picture(f"{title}: most {say(most)}", bars)


def _waited(seconds: Decimal) -> str:
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{short(seconds / length)} {unit}"
    return f"{seconds} s"


def _ages(title: str, units: ByAge, nothing: str) -> dg.MetadataValue[Any]:
    if not any(units):
        return dg.MetadataValue.text(nothing)
    return picture(
        title,
        [Bar(one, below=name, above=short(one) if one else "") for one, (name, _) in zip(units, AGES, strict=True)],
    )
