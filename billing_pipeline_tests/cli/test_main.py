"""What a person sees when a command fails: one sentence, the right exit code, no traceback and no secret."""

import signal
import subprocess
import sys

import pytest

from billing_pipeline_tests.cli.command import billing_pipeline, start

UNREACHABLE = "postgresql://billing:hunter2-secret@127.0.0.1:1/billing"

ADD = """
@app.command()
def try_it() -> None:
    {body}
"""


def test_no_command_shows_the_commands(tmp_path):
    code, out, err = billing_pipeline(folder=tmp_path)

    assert code == 2
    for name in ("up", "down", "migrate", "simulator"):
        assert f"\n  {name}" in out + err


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["migrate", "--no-such-option"], ["simulator", "--port", "x"]]
)
def test_a_usage_error_exits_2_without_traceback(tmp_path, arguments):
    code, _, err = billing_pipeline(*arguments, folder=tmp_path)

    assert code == 2
    assert "Traceback" not in err
    assert "Usage:" in err


@pytest.mark.parametrize(
    ("error", "code", "link"),
    [
        ("UserError", 2, ""),
        ("DatabaseUnavailable", 1, " See docs/troubleshooting.md#database."),
        ("LedgerFrozen", 3, " See docs/troubleshooting.md#frozen-ledger."),
        ("StripeRefused", 1, " See docs/troubleshooting.md#refused-by-stripe."),
    ],
)
def test_an_error_of_ours_is_one_sentence_its_exit_code_and_where_to_read_on(tmp_path, error, code, link):
    body = f"from billing_pipeline import errors; raise errors.{error}('What is wrong. Do this.')"

    assert billing_pipeline("try-it", folder=tmp_path, before=ADD.format(body=body)) == (
        code,
        "",
        f"error: What is wrong. Do this.{link}\n",
    )


def test_a_defect_shows_its_traceback(tmp_path):
    code, _, err = billing_pipeline("try-it", folder=tmp_path, before=ADD.format(body="1 / 0"))

    assert code == 1
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_and_lets_it_clean_up(tmp_path, number, code):
    body = """
    import time
    try:
        print("waiting", flush=True); time.sleep(60)
    finally:
        print("cleaned up", flush=True)
"""
    process = start("try-it", folder=tmp_path, before=ADD.format(body=body))
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)

    assert (process.returncode, out, err) == (code, "cleaned up\n", "")


def test_ctrl_c_works_even_where_a_shell_said_to_ignore_it(tmp_path):
    body = "import time; print('waiting', flush=True); time.sleep(60)"
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("try-it", folder=tmp_path, before=ADD.format(body=body))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)

    assert process.returncode == 130


def test_a_wrong_setting_is_named(tmp_path):
    code, _, err = billing_pipeline("migrate", folder=tmp_path, DAGSTER_PORT="many")

    assert code == 2
    assert err.startswith("error: These settings are wrong: DAGSTER_PORT:")


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path):
    code, out, err = billing_pipeline("migrate", folder=tmp_path, DATABASE_URL=UNREACHABLE)

    assert code == 1
    assert err.startswith("error: PostgreSQL does not answer at 127.0.0.1:1/billing")
    assert err.count("\n") == 1
    assert "hunter2" not in out + err


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://billing:word@hunter2@127.0.0.1/billing",
        "postgresql://billing:12/hunter2@127.0.0.1/billing",
        "postgresql://billing:hunter2-secret@127.0.0.1:99x/billing",
        "postgresql://billing:hunter2-secret@127.0.0.1/billing?nonsense=1",
        "postgresql://billing:hunter2%zz@127.0.0.1/billing",
        "mysql://billing:hunter2-secret@127.0.0.1/billing",
        "hunter2-secret",
    ],
)
@pytest.mark.parametrize("setting", ["DATABASE_URL", "DAGSTER_DATABASE_URL"])
def test_a_malformed_url_is_refused_without_showing_it(tmp_path, setting, url):
    before = ADD.format(
        body="from billing_pipeline.database.location import resolve_dagster_url as r; "
        "from billing_pipeline.settings import load_settings; r(load_settings())"
    )
    code, out, err = billing_pipeline("try-it", folder=tmp_path, before=before, **{setting: url})

    assert code == 2
    assert err.startswith(f"error: {setting} ")
    assert "hunter2" not in out + err


def test_the_command_starts_without_heavy_libraries():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, billing_pipeline.cli.main; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    heavy = {"dagster", "sqlalchemy", "alembic", "psycopg", "pydantic", "pandas", "pandera", "pyarrow", "stripe"}
    assert heavy.isdisjoint(loaded)
