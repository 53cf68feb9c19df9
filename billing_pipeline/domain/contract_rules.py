"""Every rule of the data contract: its stable reason code, how bad a breach is, what it means and what to do next.

This is the one list.  The validation, the command, Dagster's checks and `docs/contract.md` read it, so a code means
the same everywhere and for ever; what finds a breach is in `usage/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SAMPLES_MAX = 5


class Severity(StrEnum):
    """What a fault does."""

    ROW = "row"  # its rows wait in quarantine
    NOTICE = "notice"  # a person should know
    TABLE = "table"  # stops the flush when the pipeline is set to fail closed


class Part(StrEnum):
    """What a rule looks at, and so when it can be asked."""

    SOURCE = "source"  # what the source is; a source that breaks it is not read, whatever the settings say
    DRIFT = "drift"  # how the source changed, and what it lacks
    TABLE = "table"  # the source's rows as a whole
    VOLUME = "volume"  # usage windows, so after aggregation
    ROW = "row"  # one row alone


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, named by the reason code of its breach."""

    reason: str
    part: Part
    severity: Severity
    meaning: str
    """A plain sentence that is true when the rule is broken."""
    remedy: str
    """What to do next."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule: its stable reason code, how many rows, and up to five of their ids."""

    reason: str
    severity: Severity
    count: int
    samples: tuple[str, ...] = ()


def fault(reason: str, count: int, samples: tuple[str, ...] = ()) -> Fault:
    """The breach of a rule, as severe as the rule says."""
    return Fault(reason, RULES[reason].severity, count, samples[:SAMPLES_MAX])


_SOURCE_SQL = "docs/getting-started.md has the columns and their SQL; BILLING_SOURCE_RELATION names the source."
_MEND = "Mend the row in the source and set its recorded_at to now(); it leaves quarantine by itself."
_MEANT = (
    "See the samples for the meter. If the product is wrong, mend it and its rows; if the change is meant, raise "
    "{setting} until the history has caught up."
)


def _row(reason: str, meaning: str, remedy: str = _MEND) -> Rule:
    return Rule(reason, Part.ROW, Severity.ROW, meaning, remedy)


RULES: dict[str, Rule] = {
    rule.reason: rule
    for rule in (
        Rule(
            "source_missing",
            Part.SOURCE,
            Severity.TABLE,
            "The source does not exist, or the login of DATABASE_URL may not see it.",
            f"Create it, or grant the login SELECT on it. {_SOURCE_SQL}",
        ),
        Rule(
            "source_columns_wrong",
            Part.SOURCE,
            Severity.TABLE,
            "A column of the source is absent or has another type.",
            f"Give the source the columns that the samples name, or put a view in front of it. {_SOURCE_SQL}",
        ),
        Rule(
            "source_column_missing",
            Part.SOURCE,
            Severity.TABLE,
            "A column that the source had is gone, and nothing can be counted without it.",
            "Give the column back, or name another in BILLING_SOURCE_COLUMNS.",
        ),
        Rule(
            "source_column_type_changed",
            Part.SOURCE,
            Severity.TABLE,
            "A column's type changed, and the new one cannot be billed exactly.",
            "Change it back, or put a view in front of the source; the samples say how.",
        ),
        Rule(
            "source_enum_narrowed",
            Part.SOURCE,
            Severity.TABLE,
            "A label that a meter counts is gone from an enum, so counting would take back what was billed for it.",
            "Give the label back, or take it out of the meter; a renamed label is one that is gone.",
        ),
        Rule(
            "event_id_not_unique",
            Part.SOURCE,
            Severity.TABLE,
            "PostgreSQL cannot prove that the source holds an event_id at most once, so usage could be billed twice.",
            "Make a unique index on event_id, or a view that is DISTINCT ON (event_id).",
        ),
        Rule(
            "source_kind_changed",
            Part.DRIFT,
            Severity.NOTICE,
            "The source became another kind of relation, such as a view instead of a table.",
            "Nothing, if that was meant.",
        ),
        Rule(
            "source_column_remapped",
            Part.DRIFT,
            Severity.NOTICE,
            "One of our columns is read from another column of the source than before.",
            "Nothing, if that was meant; BILLING_SOURCE_COLUMNS says which is read.",
        ),
        Rule(
            "source_enum_widened",
            Part.DRIFT,
            Severity.NOTICE,
            "An enum of the source has a new label.",
            "If it is a new event type, add it to a meter of BILLING_METERS_FILE or to ignored_event_types.",
        ),
        Rule(
            "source_index_missing",
            Part.DRIFT,
            Severity.NOTICE,
            "The source lacks an index that each flush looks for, so a flush takes longer as the source grows.",
            "Run the statements of the samples.",
        ),
        Rule(
            "lookback_empty",
            Part.TABLE,
            Severity.TABLE,
            "No event occurred in the lookback, which proves nothing about the source.",
            "Find out why the product records nothing; a wrong BILLING_SOURCE_RELATION looks the same.",
        ),
        Rule(
            "required_event_type_absent",
            Part.TABLE,
            Severity.TABLE,
            "An event type that must be there has not a single row in the lookback.",
            "Find out why the product stopped recording it, or take it out of "
            "STRIPE_BILLING_CONTRACT_REQUIRED_EVENT_TYPES.",
        ),
        Rule(
            "organization_unmapped",
            Part.TABLE,
            Severity.NOTICE,
            "An organization with usage has no Stripe customer; its usage is owed and not sent.",
            "Insert its customer into customer_mappings; in test mode `billing-pipeline create-customers` does.",
        ),
        Rule(
            "units_jumped",
            Part.VOLUME,
            Severity.TABLE,
            "The mean quantity of an event is many times what it was while the number of events is about the same, "
            "as when a product begins to report milliseconds instead of seconds.",
            _MEANT.format(setting="STRIPE_BILLING_CONTRACT_UNITS_FACTOR"),
        ),
        Rule(
            "volume_stopped",
            Part.VOLUME,
            Severity.TABLE,
            "A meter counted nothing on the last complete day, which it hardly ever did before.",
            "Find out why the product records nothing for it. A meter that is retired is taken out of the catalogue.",
        ),
        Rule(
            "volume_dropped",
            Part.VOLUME,
            Severity.NOTICE,
            "A meter counted far less on the last complete day than on its usual ones.",
            _MEANT.format(setting="STRIPE_BILLING_CONTRACT_VOLUME_FACTOR"),
        ),
        Rule(
            "volume_jumped",
            Part.VOLUME,
            Severity.NOTICE,
            "A meter counted far more on the last complete day than on its usual ones.",
            _MEANT.format(setting="STRIPE_BILLING_CONTRACT_VOLUME_FACTOR"),
        ),
        _row(
            "event_id_missing",
            "The row has no event_id; it cannot be told from another, so it is reported and not kept in quarantine.",
            "Give the row an id of its own and set its recorded_at to now().",
        ),
        _row("organization_id_missing", "The row has no organization_id, so nobody can be billed for it."),
        _row("event_type_missing", "The row has no event_type, so no meter counts it."),
        _row("quantity_missing", "The row has no quantity, and a meter sums its event type."),
        _row("quantity_not_finite", "The quantity is NaN or infinite."),
        _row("quantity_negative", "The quantity is below zero."),
        _row(
            "quantity_too_many_digits",
            "The quantity has more than 15 digits before the decimal point or more than 12 after it.",
        ),
        _row("property_missing", "The row lacks the property whose different values a meter of its type counts."),
        _row("occurred_at_missing", "The row has no occurred_at, so it belongs to no hour."),
        _row("recorded_at_missing", "The row has no recorded_at, so no flush would notice it."),
        _row("time_out_of_range", "A time lies outside the years 1 to 9999, or is infinite."),
        _row("occurred_at_in_future", "The event occurred more than 5 minutes after it was recorded."),
        _row(
            "occurred_at_too_old",
            "The event was recorded more than 35 days after it occurred, and Stripe takes nothing that old.",
            "Bill it by an invoice item, or correct occurred_at if that is wrong.",
        ),
        _row(
            "event_type_unknown",
            "The catalogue does not know the event type.",
            "Add the type to a meter of BILLING_METERS_FILE, or to ignored_event_types if it is not billed.",
        ),
    )
}
"""By reason, in the order in which people read them: the source, the whole, the volume, the rows."""


def rules_of(*parts: Part) -> tuple[Rule, ...]:
    """The rules that look at these parts, in order."""
    return tuple(rule for rule in RULES.values() if rule.part in parts)
