"""`billing-pipeline import-events FILE`: put a file of usage into `billable_events`.

Options and `--mapping` make one mapping; `usage/import_mapping.py` says what its keys mean.
The file is looked at before anything is started, and event types that no meter knows are named afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.times import instant
from billing_pipeline.errors import ImportRefused

if TYPE_CHECKING:
    from billing_pipeline.usage.import_mapping import ImportMapping

CONFLICTS_LEFT_OUT = 1
"""Exit code: the rest was imported, and a person should look at what was not."""

TYPES_SHOWN = 10


def import_events_command(
    file: Annotated[Path, typer.Argument(help="A .csv or .parquet file.")],
    mapping: Annotated[
        Path | None,
        typer.Option(help="TOML file saying which column is what; its keys are in docs/getting-started.md."),
    ] = None,
    time_column: Annotated[str | None, typer.Option(help="Default: occurred_at.")] = None,
    assume_timezone: Annotated[
        str | None, typer.Option(help="Time zone of times without an offset; they are refused without this.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Default: event_id.")] = None,
    id_prefix: Annotated[
        str | None, typer.Option(help="Make ids PREFIX:ROW; {fingerprint} in it stands for the file's contents.")
    ] = None,
    organization: Annotated[str | None, typer.Option(help="One organization for every row.")] = None,
    organization_column: Annotated[str | None, typer.Option(help="Default: organization_id.")] = None,
    row_modulo: Annotated[int | None, typer.Option(help="Deal rows out to org-0001 ... org-N.")] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="TYPE=COLUMN, or TYPE to count 1 per row; repeat for several. TYPE is an event type of the meter "
            "catalogue (BILLING_METERS_FILE)."
        ),
    ] = None,
    properties: Annotated[
        list[str] | None, typer.Option("--property", help="A column to keep in properties; repeat for several.")
    ] = None,
    shift_to_end_at: Annotated[
        str | None, typer.Option(help="Move all times so that the latest is this, e.g. 2026-11-21T06:00:00Z.")
    ] = None,
    skip_conflicts: Annotated[
        bool, typer.Option("--skip-conflicts", help="Import the rest when ids are known with other contents; exit 1.")
    ] = False,
) -> None:
    """Load usage from a CSV or Parquet file, once.

    A second import of the same file adds nothing.  Everything is imported or, after any fault, nothing.
    """
    from billing_pipeline.cli.local_stack import ready_database
    from billing_pipeline.database.connection import connect
    from billing_pipeline.settings import load_settings
    from billing_pipeline.usage.catalogue import load_catalogue
    from billing_pipeline.usage.import_events import import_events, own_source
    from billing_pipeline.usage.import_mapping import load_mapping

    options = {
        "time_column": time_column,
        "timezone": assume_timezone,
        "id_column": id_column,
        "id_prefix": id_prefix,
        "organization": organization,
        "organization_column": organization_column,
        "row_modulo": row_modulo,
        "events": [_event_rule(text) for text in event or []],
        "properties": properties,
    }
    given = {name: value for name, value in options.items() if value not in (None, [])}
    columns = load_mapping(mapping, given)
    end_at = instant("--shift-to-end-at", shift_to_end_at) if shift_to_end_at else None
    settings = load_settings()
    relation = own_source(settings)
    unknown = sorted(_event_types(file, columns) - load_catalogue(settings).known_event_types)

    with _progress_bar() as progress, connect(ready_database(settings)) as connection:
        result = import_events(
            connection,
            file,
            columns,
            relation=relation,
            shift_to_end_at=end_at,
            skip_conflicts=skip_conflicts,
            progress=progress,
        )
    typer.echo(f"{file}: {result.read} events read, {result.added} added, {result.already_there} already there.")
    if unknown:
        names = ", ".join(unknown[:TYPES_SHOWN]) + (", ..." if len(unknown) > TYPES_SHOWN else "")
        typer.echo(
            f"warning: no meter of the catalogue takes the event types {names}; the next flush puts them into "
            "quarantine. Add them to BILLING_METERS_FILE (docs/getting-started.md), to a meter or to "
            "ignored_event_types.",
            err=True,
        )
    if result.conflicts:
        typer.echo(
            f"{result.conflicts} events left out, because their ids are known with other contents, first "
            f"{', '.join(result.conflict_ids)}.",
            err=True,
        )
        raise typer.Exit(CONFLICTS_LEFT_OUT)


def _event_types(file: Path, mapping: ImportMapping) -> set[str]:
    """The event types that the import will write; refuses an unreadable file before anything is started."""
    import pyarrow as pa

    from billing_pipeline.usage.import_file import check_file, read_batches

    types = {rule.event_type for rule in mapping.events if rule.event_type}
    columns = {rule.event_type_column for rule in mapping.events if rule.event_type_column}
    try:
        check_file(file, mapping)
        for batch in read_batches(file, mapping) if columns else ():
            for column in columns:
                types.update(str(value) for value in batch.rows[column].unique().to_pylist() if value is not None)
    except OSError as exc:
        raise ImportRefused(f"{file} cannot be read: {exc.strerror or exc}. Check the path.") from None
    except ImportRefused as exc:
        raise ImportRefused(f"{file}: {exc}. Nothing was imported.") from None
    except (UnicodeDecodeError, pa.ArrowException):
        pass  # the import reads it again and names the row
    return types


@contextmanager
def _progress_bar() -> Iterator[Callable[[int], None]]:
    """Rows staged so far, on stderr and only in a terminal; how many there will be is not known beforehand."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.completed:,.0f} rows"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("import", total=None)
        yield lambda rows: bar.advance(task, rows)


def _event_rule(text: str) -> dict[str, str]:
    event_type, equals, column = text.partition("=")
    return {"event_type": event_type, **({"quantity_column": column} if equals else {})}
