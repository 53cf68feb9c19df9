"""Renders reports as the metadata a person reads in the Dagster UI.

Used by assets and checks; nothing here reads the database.
"""

from dataclasses import asdict
from decimal import Decimal

import dagster as dg

from billing_pipeline.reconciliation.reconcile import ReconciliationReport
from billing_pipeline.usage.contract import ContractReport

ROWS_MAX = 100
"""A metadata table is stored in Dagster's event log and loaded whole by the UI."""


def fault_table(report: ContractReport) -> dg.TableMetadataValue:
    """Each fault with its count and a few of its rows."""
    columns = [
        dg.TableColumn("reason", "string"),
        dg.TableColumn("severity", "string"),
        dg.TableColumn("count", "int"),
        dg.TableColumn("samples", "string"),
    ]
    records = [
        dg.TableRecord(
            {
                "reason": fault.reason,
                "severity": str(fault.severity),
                "count": fault.count,
                "samples": ", ".join(fault.samples),
            }
        )
        for fault in report.faults
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def sides_table(report: ReconciliationReport) -> dg.TableMetadataValue:
    """Source, ledger and Stripe side by side, those with differences first."""
    differing = {(difference.organization_id, difference.meter) for difference in report.differences}
    sides = sorted(
        report.sides, key=lambda s: ((s.organization_id, s.meter) not in differing, s.organization_id, s.meter)
    )
    records = [
        dg.TableRecord(
            {name: int(value) if isinstance(value, Decimal) else value for name, value in asdict(side).items()}
        )
        for side in sides[:ROWS_MAX]
    ]
    texts = {"organization_id", "meter"}
    names = list(records[0].data) if records else []
    columns = [dg.TableColumn(name, "string" if name in texts else "int") for name in names]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def difference_text(report: ReconciliationReport) -> dg.MarkdownMetadataValue:
    """One line per difference, faults first."""
    ordered = sorted(report.differences, key=lambda difference: not difference.is_fault)
    lines = [f"- {d.organization_id} · {d.meter}: {d.units} units {d.kind}" for d in ordered[:ROWS_MAX]]
    return dg.MetadataValue.md("\n".join(lines) or "no differences")
