"""The fixtures are what they say they are, their lint finds what is not, and the dispatcher reads every one."""

import json
import shutil
from datetime import UTC, datetime

import pytest

from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline_tests.fixtures import FOLDER, faults_of, load_fixtures
from billing_pipeline_tests.fixtures.__main__ import main
from billing_pipeline_tests.webhooks.events import store

NOW = datetime(2026, 9, 22, tzinfo=UTC)


def test_the_fixtures_have_no_fault(capsys):
    assert main(FOLDER) == 0
    assert capsys.readouterr().out == "23 fixtures of 3 versions, 0 faults.\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda event: json.dumps(event)[:-1], "invoice.paid.json: no JSON"),
        (lambda event: json.dumps(event | {"id": "in_1"}), "its id does not begin with evt_"),
        (lambda event: json.dumps(event | {"id": "evt_fixture_endive_invoice_created"}), "invoice.created.json"),
        (lambda event: json.dumps(event | {"api_version": "2020-01-01"}), "its api_version is 2020-01-01"),
        (lambda event: json.dumps(event | {"type": "invoice.voided"}), "its type is invoice.voided"),
        (lambda event: json.dumps(event | {"livemode": True}), "it is of live mode"),
    ],
)
def test_a_fault_is_named_with_its_file(tmp_path, change, said, capsys):
    shutil.copytree(FOLDER, tmp_path / "stripe")
    path = tmp_path / "stripe" / "2026-10-28.endive" / "invoice.paid.json"
    path.write_text(change(json.loads(path.read_text())))

    [fault] = faults_of(tmp_path / "stripe")
    assert "invoice.paid.json: " in fault
    assert said in fault
    assert main(tmp_path / "stripe") == 1
    assert said in capsys.readouterr().err


def test_no_fixture_and_a_stray_file_are_faults(tmp_path):
    (tmp_path / "invoice.json").write_text("{}")

    assert list(faults_of(tmp_path)) == [
        f"{tmp_path}: there is no fixture",
        "invoice.json: not <API version>/<type>.json",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2026-10-28.endive", "2024-06-20"])
def test_a_customers_whole_way_is_read_in_every_version(connection, version):
    events = [event for event in load_fixtures() if event.get("api_version") == version]
    store(connection, events, now=NOW)
    report = Dispatcher(connection, lambda: NOW).run_once()

    assert (report.processed, report.handled) == (11, 11)
    assert connection.execute("SELECT stripe_invoice_id, status FROM invoices ORDER BY 1").fetchall() == [
        ("in_1", "paid"),
        ("in_2", "open"),
    ]
    assert connection.execute("SELECT feature, active FROM entitlements ORDER BY 1").fetchall() == [
        ("saas", False),
        ("sso", True),
    ]
