"""A database's address never shows its password, however it is malformed and wherever the refusal is read."""

from __future__ import annotations

import traceback

import pytest

from billing_pipeline.database.arrow import read_batches
from billing_pipeline.database.connection import connect, describe
from billing_pipeline.database.location import resolve_dagster_url, resolve_database_url, with_database
from billing_pipeline.errors import BillingError, DatabaseUnavailable, SettingsError
from billing_pipeline.settings import load_settings
from billing_pipeline_tests.cli.command import billing_pipeline

SECRET = "hunter2secret"

MALFORMED = [
    f"postgres//u:{SECRET}@h/db",
    f"postgresql://u:{SECRET}%zz@h/db",
    f"postgresql://u:{SECRET}%@h/db",
    f"postgresql://u:pa@{SECRET}@127.0.0.1:9/db",
    f"postgresql://u:@{SECRET}@127.0.0.1:9/db",
    f"postgresql://u:12/{SECRET}@127.0.0.1/db",
    f"postgresql://u:{SECRET}/x@127.0.0.1/db",
    f"postgresql://127.0.0.1/db?{SECRET}=x",
    f"postgresql://127.0.0.1/?host={SECRET}@127.0.0.1",
    f"postgresql://127.0.0.1/?hostaddr={SECRET}@127.0.0.1",
    f"postgresql://127.0.0.1/?dbname={SECRET}@127.0.0.1/db",
    f"postgresql://u:1?port={SECRET}",
    f"postgresql://u:[{SECRET}/x@127.0.0.1/db",
    f"postgresql://u@[{SECRET}/db",
    f"postgresql://u:{SECRET}@127.0.0.1:99x/db",
    f"postgresql://u:{SECRET}@127.0.0.1/db?nonsense=1",
    f"postgresql://u:{SECRET}@127.0.0.1/db?a=b=c",
    f"postgresql://u:{SECRET} x@127.0.0.1:port/db",
    f"password={SECRET} host",
    f"password='{SECRET}",
    SECRET,
]

UNREACHABLE = [
    f"postgresql://u:{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:{SECRET}#x@127.0.0.1:1/db",
    f"postgresql://u:{SECRET}?x=y@127.0.0.1:1/db",
    f"postgresql://u:{SECRET}%20%40%2F@127.0.0.1:1/db",
    f"postgresql://u@127.0.0.1:1/db?password={SECRET}",
    f"host=127.0.0.1 port=1 user=u password={SECRET} dbname=db",
]


def every_text_of(exc: BaseException) -> str:
    """What any log could show of an error: also the errors it came from, suppressed or not."""
    texts = ["".join(traceback.format_exception(exc)), str(exc), repr(exc)]
    for origin in (exc.__cause__, exc.__context__):
        texts += [every_text_of(origin)] if origin else []
    return "\n".join(texts)


def open_it(url: str) -> None:
    with connect(url):
        pass


USES = {
    "connect": open_it,
    "describe": describe,
    "read": lambda url: list(read_batches(url, "SELECT 1")),
    "DATABASE_URL": lambda url: resolve_database_url(load_settings(database_url=url)),
    "DAGSTER_DATABASE_URL": lambda url: resolve_dagster_url(load_settings(dagster_database_url=url)),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_address_is_refused_without_showing_it(use, url):
    with pytest.raises(SettingsError, match=r"postgresql://") as refusal:
        USES[use](url)

    assert SECRET not in every_text_of(refusal.value)


@pytest.mark.parametrize("use", ["connect", "read"])
@pytest.mark.parametrize("url", UNREACHABLE)
def test_a_server_that_does_not_answer_is_named_without_the_password(use, url):
    with pytest.raises(DatabaseUnavailable, match=r"at 127\.0\.0\.1:1/db: ") as refusal:
        USES[use](url)

    assert SECRET not in every_text_of(refusal.value)


@pytest.mark.parametrize("url", MALFORMED[:4] + UNREACHABLE[:2])
def test_a_command_shows_one_sentence_and_no_password(tmp_path, url):
    code, out, err = billing_pipeline("migrate", folder=tmp_path, DATABASE_URL=url)

    assert code in (1, 2)
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert SECRET not in err


def test_a_failure_while_reading_is_ours_and_names_the_cause(database_url):
    failing = "SELECT 1 / (1000 - i) FROM generate_series(1, 2000) AS i"

    with pytest.raises(BillingError, match=r"division by zero"):
        list(read_batches(database_url, failing))


@pytest.mark.parametrize("password", ["a#b", "a%23b", "a%40%2Fb%25", "a%20b"])
def test_another_database_of_the_server_keeps_every_other_option(password):
    url = f"postgresql://u:{password}@h1:5433,h2:5434/one?sslmode=require&options=-c%20x%3Dy"

    moved = with_database(url, "an other/one")

    assert describe(moved) == "h1,h2:5433,5434/an other/one"
    assert with_database(moved, "one") == with_database(url, "one")
