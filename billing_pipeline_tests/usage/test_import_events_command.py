"""The command: what a person types, what it answers, and its exit code."""

import pytest
import typer
from typer.testing import CliRunner

from billing_pipeline.cli.import_events import import_events_command
from billing_pipeline.errors import UserError
from billing_pipeline_tests.usage.test_import_events import ROWS, stored, write


@pytest.fixture
def run(database_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", database_url)
    app = typer.Typer()
    app.command()(import_events_command)

    def invoke(*arguments: object):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_it_says_where_every_event_went(run, tmp_path):
    file = write(tmp_path, *ROWS)

    first = run(file)
    assert first.exit_code == 0
    assert "3 events read, 3 added, 0 already there" in first.stdout
    assert "3 events read, 0 added, 3 already there" in run(file).stdout


def test_conflicts_left_out_are_listed_and_exit_with_1(run, tmp_path):
    run(write(tmp_path, *ROWS))

    second = run(write(tmp_path, ROWS[0].replace("1.50", "9"), ROWS[1]), "--skip-conflicts")
    assert second.exit_code == 1
    assert "2 events read, 0 added, 1 already there" in second.stdout
    assert "1 events left out, because their ids are known with other contents, first a." in second.stderr


def test_options_are_a_mapping(run, connection, tmp_path):
    header = "when,tokens_in,region"
    file = write(tmp_path, "2026-11-20 10:00:00,12,eu", "2026-11-20 11:00:00,30,us", header=header)
    result = run(
        *(file, "--time-column", "when", "--assume-timezone", "UTC", "--id-prefix", "day1", "--row-modulo", "2"),
        *("--event", "requests", "--event", "prompt_tokens=tokens_in", "--property", "region"),
        *("--shift-to-end-at", "2026-11-21T06:00:00+01:00"),
    )

    assert result.exit_code == 0
    assert stored(
        connection, "event_id, organization_id, quantity::int, to_char(occurred_at, 'DD HH24'), properties"
    ) == [
        ("day1:1:prompt_tokens", "org-0001", 12, "21 04", {"region": "eu"}),
        ("day1:1:requests", "org-0001", 1, "21 04", {"region": "eu"}),
        ("day1:2:prompt_tokens", "org-0002", 30, "21 05", {"region": "us"}),
        ("day1:2:requests", "org-0002", 1, "21 05", {"region": "us"}),
    ]


@pytest.mark.parametrize("text", ["soon", "2026-11-21T06:00:00"])
def test_an_end_without_an_offset_is_refused(run, tmp_path, text):
    with pytest.raises(UserError, match=r"--shift-to-end-at .* is not a time with an offset"):
        run(write(tmp_path, *ROWS), "--shift-to-end-at", text)
