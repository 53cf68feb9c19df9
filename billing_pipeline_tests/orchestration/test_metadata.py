"""What a person sees in the UI: every digit of an amount, the reason beside it, and nothing pushed off the page."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.differences import Difference, DifferenceKind, Sides
from billing_pipeline.orchestration.metadata import CELL_MAX, quarantine_table, rows_table, sides_table
from billing_pipeline.reconciliation.completeness import Place, RowAccount
from billing_pipeline.reconciliation.reconcile import ReconciliationReport
from billing_pipeline.usage.contract import Fault, Severity


def rows(table):
    return [record.data for record in table.records]


def test_sides_with_differences_come_first_and_carry_the_reason():
    agreed = Sides("acme", "tokens", stated=Decimal(5), source_units=Decimal(5), observed=Decimal(5))
    short = Sides("zeta", "tokens", source_units=Decimal("7.5"))
    report = ReconciliationReport((agreed, short), (Difference("zeta", "tokens", DifferenceKind.NOT_CUT, Decimal(7)),))

    first, second = rows(sides_table(report))
    assert first == {
        "organization": "zeta",
        "meter": "tokens",
        "units": "source 7.5, ledger 0, Stripe 0",
        "differs": "not_cut 7",
    }
    assert (second["organization"], second["units"], second["differs"]) == ("acme", "5", "")


@given(st.decimals(min_value=-(10**24), max_value=10**24, places=12))
def test_no_digit_of_an_amount_is_lost(units):
    report = ReconciliationReport((Sides("acme", "tokens", observed=units),), ())

    shown = rows(sides_table(report))[0]["units"].rpartition("Stripe ")[2]
    assert Decimal(shown.replace(",", "")) == units


def test_the_quarantine_is_shown_by_reason_and_fits():
    long_id = "x" * 500
    table = quarantine_table([Fault("quantity_negative", Severity.ROW, 3, (long_id, "b"))])

    assert rows(table) == [{"reason": "quantity_negative", "events": 3, "samples": f"{long_id[:CELL_MAX]}…"}]
    assert [column.name for column in table.schema.columns] == ["reason", "events", "samples"]


def test_the_places_of_all_rows_are_shown():
    account = RowAccount({Place.COUNTED: 7, Place.WAITING: 2}, ())

    assert rows(rows_table(account)) == [{"place": "counted", "rows": 7}, {"place": "waiting", "rows": 2}]
