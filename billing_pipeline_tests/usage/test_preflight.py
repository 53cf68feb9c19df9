"""Each probe of the preflight passes where all is well and fails for its own reason, and asking changes nothing."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ReadOnlySqlTransaction
from psycopg.sql import SQL, Identifier

from billing_pipeline.database import embedded, reading
from billing_pipeline.database.connection import connect
from billing_pipeline.database.migrate import migrate
from billing_pipeline.database.queries import execute
from billing_pipeline.database.reading import read_only
from billing_pipeline.domain.probes import Result
from billing_pipeline.errors import DatabaseUnavailable, SettingsError
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.catalogue import CANARY_EMAIL
from billing_pipeline.stripe_api.client import Account
from billing_pipeline.stripe_api.webhook_endpoints import register
from billing_pipeline.stripe_simulator.keys import KeyMode
from billing_pipeline.usage import gate
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.lease import acquire
from billing_pipeline.usage.mark import Mark
from billing_pipeline.usage.preflight import about_settings
from billing_pipeline.usage.preflight.ask import ASKS, ask
from billing_pipeline.usage.preflight.site import Site
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_postgres import require_superuser

HOUR = timedelta(hours=1)
LIVE_KEY = "rk_live_51planted_secret_ABCD"


def add_price(simulator, event_name, **params):
    client = simulator.client()
    [meter] = [
        meter
        for meter in client.v1.billing.meters.list({"limit": 100}).data
        if meter.event_name == event_name and meter.status == "active"
    ]
    product = client.v1.products.create({"name": event_name})
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter.id}
    return client.v1.prices.create(
        {"currency": "usd", "product": product.id, "unit_amount": 1, "recurring": recurring} | params
    )


@pytest.fixture
def ready(flow, bill, simulator):
    """A flow that has flushed once, with everything in place for the next one."""
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=datetime.now(UTC) - 5 * HOUR))
    for meter in flow.catalogue.meters:
        add_price(simulator, meter.event_name)
    flush(flow)
    return flow


def asked(flow, *names, require_enabled=False, **overrides):
    """What these probes find with the flow's settings, some of them otherwise."""
    settings = load_settings(**flow.settings.model_dump(exclude_unset=True) | overrides)
    site = Site(lambda: settings, require_enabled=require_enabled)
    return {probe.name: finding for probe, finding in ask(site, set(names) or set(ASKS), ASKS)}


def one(flow, name, **overrides):
    """Result and words of one probe."""
    finding = asked(flow, name, **overrides)[name]
    return str(finding.result), finding.found


def whole_database(connection):
    """Every row of every table, and every sequence."""
    tables = connection.execute(
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
        "WHERE schemaname IN ('billing_pipeline', 'public') ORDER BY 1"
    ).fetchall()
    rows = {name: sorted(map(str, connection.execute(f"TABLE {name}").fetchall())) for (name,) in tables}
    return rows, connection.execute("SELECT schemaname, sequencename, last_value FROM pg_sequences").fetchall()


def files_of(folder: Path):
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_all_pass_where_all_is_well_and_asking_changes_nothing(ready, simulator, monkeypatch):
    monkeypatch.setattr(about_settings, "durability_faults", lambda connection: [])
    before = whole_database(ready.connection), files_of(ready.settings.billing_state_dir), simulator.journal()
    requests = []
    begin = simulator.core.begin
    monkeypatch.setattr(simulator.core, "begin", lambda request: requests.append(request.method) or begin(request))

    found = asked(ready)

    assert {name: finding.found for name, finding in found.items() if finding.result is not Result.PASS} == {}
    assert list(found) == list(ASKS)
    assert set(requests) == {"GET"}
    assert (whole_database(ready.connection), files_of(ready.settings.billing_state_dir), simulator.journal()) == before


def test_before_the_first_flush_nothing_is_bound_frozen_or_made(flow, simulator):
    before = whole_database(flow.connection), simulator.journal()

    found = asked(flow, "ledger_account", "frozen", "restored", "high_water_mark", "canaries", "contract")

    assert {name: str(finding.result) for name, finding in found.items()} == {
        "contract": "warn",
        "high_water_mark": "pass",
        "frozen": "pass",
        "restored": "pass",
        "ledger_account": "pass",
        "canaries": "pass",
    }
    assert "the first flush that is not off binds it to acct_" in found["ledger_account"].found
    assert (whole_database(flow.connection), simulator.journal()) == before
    assert not (flow.settings.billing_state_dir / "high_water_mark.json").exists()


def test_the_database_refuses_a_probe_that_would_write(flow, database_url):
    with pytest.raises(DatabaseUnavailable) as refused, read_only(database_url) as connection:
        execute(connection, "freeze_ledger", {"reason": "x", "now": flow.clock()})

    assert isinstance(refused.value.__cause__, ReadOnlySqlTransaction)


def test_a_lock_that_somebody_holds_is_told_and_not_waited_for(ready, database_url, monkeypatch):
    monkeypatch.setattr(reading, "LOCK_MS_MAX", 50)
    with connect(database_url) as other, other.transaction():
        other.execute("LOCK TABLE billing_pipeline.flush_leases IN ACCESS EXCLUSIVE MODE")
        found = asked(ready, "lease", "frozen")

    assert (found["lease"].result, found["frozen"].result) == (Result.FAIL, Result.PASS)
    assert "lock timeout" in found["lease"].found


def test_wrong_settings_are_all_told_and_the_rest_is_skipped():
    def load():
        raise SettingsError("These settings are wrong: A: is wrong; B: is wrong.")

    found = {probe.name: finding for probe, finding in ask(Site(load), set(ASKS), ASKS)}

    assert (found.pop("settings").result, {finding.result for finding in found.values()}) == (
        Result.FAIL,
        {Result.SKIP},
    )
    assert {finding.found for finding in found.values()} == {"not asked, because of settings"}


def test_a_probe_that_breaks_hides_no_other_and_quotes_nothing(flow):
    def broken(site):
        raise KeyError("planted-secret")

    asks = {**ASKS, "schema": broken}
    found = {p.name: f for p, f in ask(Site(lambda: flow.settings), {"schema", "lease", "level"}, asks)}

    assert [str(found[name].result) for name in ("level", "schema", "lease")] == ["pass", "fail", "skip"]
    assert found["schema"].found.startswith("this probe broke: KeyError in broken, test_preflight.py:")


@pytest.mark.parametrize(
    ("given", "required", "result", "words"),
    [
        ({}, False, "pass", "live: a flush sends; key sk_test_…ests, test mode"),
        ({}, True, "warn", "in test mode nobody is charged"),
        ({"billing_mode": "shadow"}, False, "warn", "shadow: a flush computes and records, and sends nothing"),
        ({"billing_mode": "shadow"}, True, "fail", "shadow: a flush computes and records, and sends nothing"),
        ({"enable_billing": False}, False, "warn", "off: a flush does nothing"),
        ({"enable_billing": False}, True, "fail", "ENABLE_BILLING false, BILLING_MODE live"),
        ({"stripe_secret_key": LIVE_KEY}, True, "pass", "live: a flush sends; key rk_live_…ABCD, live mode"),
    ],
)
def test_the_level_is_told_and_below_live_fails_where_it_must_be_live(settings, given, required, result, words):
    values = settings.model_dump(exclude_unset=True) | given
    site = Site(lambda: load_settings(**values), require_enabled=required)
    [(_, finding)] = ask(site, {"level"}, ASKS)

    assert str(finding.result) == result
    assert words in finding.found
    assert "planted" not in finding.found


def test_a_database_that_does_not_answer_is_told_without_its_password(flow):
    found = asked(flow, "database", "frozen", "meters", database_url="postgresql://me:hunter2@127.0.0.1:1/billing")

    assert str(found["database"].result) == "fail"
    assert "does not answer at 127.0.0.1:1/billing" in found["database"].found
    assert "hunter2" not in found["database"].found
    assert (found["frozen"].found, found["meters"].result) == ("not asked, because of database", Result.PASS)


def test_no_database_yet_is_told_and_none_is_made(tmp_path):
    site = Site(lambda: load_settings(billing_state_dir=tmp_path / "state"))

    [(_, finding)] = ask(site, {"database"}, ASKS)

    assert finding.result is Result.FAIL
    assert "There is no database yet" in finding.found
    assert not (tmp_path / "state").exists()


def test_an_old_server_fails_and_this_one_passes(flow, monkeypatch):
    assert one(flow, "database")[0] == "pass"

    monkeypatch.setattr(about_settings, "POSTGRES_MIN", 99)
    result, words = one(flow, "database")
    assert (result, words.endswith("is older than 99")) == ("fail", True)


def test_a_database_that_takes_no_writes_fails_and_is_asked_further_all_the_same(ready, database_url):
    name = Identifier(conninfo_to_dict(database_url)["dbname"])
    ready.connection.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))

    found = asked(ready, "database", "frozen", "source")

    assert [str(finding.result) for finding in found.values()] == ["fail", "pass", "pass"]
    assert "takes no writes" in found["database"].found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE billing_pipeline.alembic_version SET version_num = '9999'", "does not know"),
        ("DELETE FROM billing_pipeline.alembic_version", "there is none of ours yet"),
        ("DROP SCHEMA billing_pipeline CASCADE", "there is none of ours yet"),
    ],
)
def test_another_schema_fails(flow, change, words):
    assert one(flow, "schema")[0] == "pass"

    flow.connection.execute(change)
    result, found = one(flow, "schema")
    assert (result, words in found) == ("fail", True)


def test_a_login_that_may_not_write_the_ledger_fails(flow, database_url):
    require_superuser(flow.connection)
    role = Identifier(f"preflight_reader_{os.getpid()}")
    flow.connection.execute(SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        for grant in ("USAGE ON SCHEMA billing_pipeline", "SELECT ON ALL TABLES IN SCHEMA billing_pipeline"):
            flow.connection.execute(SQL("GRANT {} TO {}").format(SQL(grant), role))
        flow.connection.execute(SQL("GRANT INSERT ON billing_pipeline.attempts TO {}").format(role))
        user = conninfo_to_dict(database_url)["user"]
        url = database_url.replace(f"//{user}@", f"//preflight_reader_{os.getpid()}@")
        assert url != database_url
        result, found = one(flow, "schema", database_url=url)
    finally:
        flow.connection.execute(SQL("DROP OWNED BY {}").format(role))
        flow.connection.execute(SQL("DROP ROLE {}").format(role))

    assert (result, found.startswith("the login may not write adjusted_windows, ")) == ("fail", True)
    assert "attempts," not in found


@pytest.mark.parametrize(
    ("faults", "key", "result"),
    [
        (["fsync is off"], LIVE_KEY, "fail"),
        (["fsync is off"], "sk_test_any_key_will_do", "warn"),
        (["full_page_writes is off"], LIVE_KEY, "warn"),
        ([], LIVE_KEY, "pass"),
    ],
)
def test_a_server_that_forgets_fails_in_live_mode_only(flow, monkeypatch, faults, key, result):
    # What the server says is tested with servers of their own; here, what the preflight makes of it.
    monkeypatch.setattr(about_settings, "durability_faults", lambda connection: faults)

    assert one(flow, "durability", stripe_secret_key=key)[0] == result


@pytest.mark.slow
def test_an_embedded_server_that_is_there_is_asked_and_keeps_what_it_commits():
    # Not below pytest's folder, which the server's own user may not pass while another pytest starts.
    with tempfile.TemporaryDirectory(prefix="billing-preflight-") as name:
        folder = Path(name)
        migrate(embedded.ensure_running(folder).url(), create_source=True)
        try:
            site = Site(lambda: load_settings(billing_state_dir=folder))
            found = {probe.name: str(finding.result) for probe, finding in ask(site, {"schema", "durability"}, ASKS)}
        finally:
            embedded.stop(folder)

    assert found == {"schema": "pass", "durability": "pass"}


def test_a_catalogue_that_cannot_be_used_fails(flow, tmp_path):
    assert one(flow, "catalogue") == ("pass", "3 meters: api_requests, prompt_tokens, generated_tokens")

    (tmp_path / "wrong.toml").write_text("[meters.tokens]\naggregation = 'median'\n")
    result, words = one(flow, "catalogue", billing_meters_file=tmp_path / "wrong.toml")
    assert (result, "median" in words) == ("fail", True)

    result, words = one(flow, "catalogue", stripe_billing_contract_required_event_types=("espresso",))
    assert (result, "does not know: espresso" in words) == ("fail", True)


def test_a_source_that_cannot_be_counted_fails_and_what_needs_it_is_skipped(flow):
    assert one(flow, "source") == ("pass", "public.billable_events, a table")

    flow.connection.execute("ALTER TABLE public.billable_events RENAME quantity TO amount")
    found = asked(flow, "source", "lookback", "customers_mapped")
    assert found["source"].result is Result.FAIL
    assert found["source"].found == "source_columns_wrong: quantity: absent, expected numeric"
    assert {found[name].found for name in ("lookback", "customers_mapped")} == {"not asked, because of source"}


def test_a_change_of_the_source_that_forbids_nothing_is_told(ready):
    ready.connection.execute(
        "ALTER TABLE public.billable_events RENAME TO events; CREATE VIEW public.billable_events AS TABLE public.events"
    )

    result, words = one(ready, "source")
    assert (result, words.startswith("source_kind_changed: ")) == ("warn", True)


def test_a_missing_index_is_told_with_what_to_run(flow):
    assert one(flow, "source_indexes")[0] == "pass"

    indexes = flow.connection.execute(
        "SELECT indexname FROM pg_indexes WHERE tablename = 'billable_events' AND indexdef LIKE '%(recorded_at)%'"
    ).fetchall()
    for (name,) in indexes:
        flow.connection.execute(SQL("DROP INDEX public.{}").format(Identifier(name)))
    finding = asked(flow, "source_indexes")["source_indexes"]
    assert (finding.result, finding.found.endswith("on recorded_at")) == (Result.WARN, True)
    assert finding.remedy == 'Run: CREATE INDEX CONCURRENTLY ON "public"."billable_events" ("recorded_at")'


def test_an_empty_lookback_fails_only_where_the_contract_fails_closed(flow):
    result, words = one(flow, "lookback")
    assert (result, words) == ("warn", "lookback_empty in the last 30 days: no row")
    assert one(flow, "lookback", stripe_billing_contract_fail_closed=True)[0] == "fail"

    at = datetime.now(UTC) - HOUR
    insert_events(flow.connection, billable_event(occurred_at=at))
    assert one(flow, "lookback") == ("pass", f"usage in the last 30 days, the latest of {at:%Y-%m-%d %H:%M} UTC")

    missing = {"stripe_billing_contract_required_event_types": ("api_request",)}
    assert one(flow, "lookback", **missing)[1] == "required_event_type_absent in the last 30 days: api_request"


def test_the_last_validation_is_told_with_its_verdict_and_age(flow):
    assert one(flow, "contract") == ("warn", "never validated; the first flush does")

    flow.validate_contract()
    assert one(flow, "contract")[0] == "warn"
    assert "lookback_empty" in one(flow, "contract")[1]
    assert one(flow, "contract", stripe_billing_contract_fail_closed=True)[0] == "fail"

    insert_events(flow.connection, billable_event(occurred_at=datetime.now(UTC) - HOUR))
    flow.validate_contract()
    assert one(flow, "contract")[0] == "pass"

    flow.connection.execute("UPDATE contract_runs SET cutoff_at = cutoff_at - interval '30 hours'")
    result, words = one(flow, "contract")
    assert (result, words.endswith("and passed, 30 hours ago; no flush since")) == ("warn", True)

    result, words = one(flow, "contract", stripe_billing_validate_contract_before_flush=False)
    assert (result, words) == ("warn", "a flush does not validate")


def test_a_lease_as_long_as_the_hour_is_told_and_so_is_who_holds_it(flow):
    assert one(flow, "lease") == ("pass", "free; lasts 3,300 s")
    assert one(flow, "lease", stripe_usage_flush_lock_ttl_seconds=3600)[0] == "warn"

    acquire(flow.connection, lock_key="usage-flush", holder="run:7", ttl=HOUR, now=flow.clock())
    until = flow.connection.execute("SELECT expires_at FROM flush_leases").fetchone()[0]
    assert one(flow, "lease") == ("pass", f"held by run:7 until {until:%H:%M:%S} UTC; lasts 3,300 s")


def test_organizations_without_a_customer_are_told_with_what_they_owe(flow, bill):
    bill("acme")
    at = flow.clock() - 5 * HOUR
    insert_events(flow.connection, billable_event(occurred_at=at))
    assert one(flow, "customers_mapped") == ("pass", "no organization with usage is without one")

    insert_events(
        flow.connection,
        *(
            billable_event(organization_id=name, quantity=quantity, occurred_at=at)
            for name, quantity in (("zeta", 1000), ("beta", 20), ("gamma", 3), ("delta", 2))
        ),
    )
    assert one(flow, "customers_mapped") == (
        "warn",
        "4 organizations without one: beta, delta, gamma, ..., nothing counted yet",
    )

    flow.aggregate()
    assert one(flow, "customers_mapped") == (
        "warn",
        "4 organizations without one: zeta, beta, gamma, ..., 1,025 units owed",
    )


def test_a_mark_that_cannot_be_kept_fails_and_its_address_is_never_shown(ready, tmp_path):
    assert one(ready, "high_water_mark")[1].startswith("kept in: file; attempt ")

    (tmp_path / "a_file").write_text("")
    cases = {
        (tmp_path / "a_file" / "token-planted.json").as_uri(): "fail",
        "memory://token-planted/mark.json": "fail",
        "nonsense://token:planted@host/mark?token=planted": "fail",
        "https://host:12planted/mark.json?token=planted": "fail",
        "ftp://host:12planted/mark.json": "fail",
        "ftp://user:planted@127.0.0.1:1/mark.json": "fail",
    }
    for url, result in cases.items():
        found, words = one(ready, "high_water_mark", billing_mark_url=url)
        assert (found, "planted" in words) == (result, False), (url, words)
        assert "this probe broke" not in words


def test_a_mark_in_the_databases_own_folder_fails(tmp_path):
    mark = (tmp_path / "postgres" / "mark.json").as_uri()
    (tmp_path / "postgres").mkdir()
    site = Site(lambda: load_settings(billing_state_dir=tmp_path, billing_mark_url=mark))
    [(_, finding)] = ask(site, {"high_water_mark"}, ASKS)

    assert finding.result is Result.FAIL
    assert "a restore takes it back too" in finding.found


def test_a_mark_on_this_machine_is_told_in_live_mode(ready):
    result, words = one(ready, "high_water_mark", stripe_secret_key=LIVE_KEY)
    assert (result, words.endswith("a file of this machine")) == ("warn", True)


def test_a_frozen_ledger_fails_with_its_reason(ready):
    gate.freeze(ready.connection, "somebody looked odd at it", now=ready.clock())

    result, words = one(ready, "frozen")
    assert (result, words.endswith("UTC: somebody looked odd at it")) == ("fail", True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda flow, mark: flow.mark.replace_with(Mark(mark.ledger_id, 99)), "attempt 99 was made, but"),
        (lambda flow, mark: flow.mark.path.unlink(), "the high-water mark is missing"),
        (lambda flow, mark: flow.mark.replace_with(Mark("another", 0)), "belongs to ledger another"),
        (
            lambda flow, mark: flow.connection.execute("UPDATE ledger_identity SET database_timeline = '77'"),
            "the database's timeline changed from 77 to",
        ),
    ],
    ids=["ahead", "missing", "another's", "timeline"],
)
def test_a_restored_ledger_is_told_and_not_frozen_by_asking(ready, change, words):
    assert one(ready, "restored")[0] == "pass"

    change(ready, ready.mark.read())
    result, found = one(ready, "restored")
    assert (result, words in found) == ("fail", True)
    assert gate.read_identity(ready.connection).frozen_at is None


def test_the_mark_of_another_ledger_is_told_before_the_first_flush(flow):
    flow.mark.raise_to(Mark("another", 5))

    result, words = one(flow, "restored")
    assert (result, "belongs to ledger another, and this database has no ledger yet" in words) == ("fail", True)


def test_the_account_and_mode_of_another_ledger_fail_and_bind_nothing(ready):
    assert one(ready, "ledger_account")[0] == "pass"

    ready.connection.execute("UPDATE ledger_identity SET stripe_account = 'acct_other'")
    result, words = one(ready, "ledger_account")
    assert (result, "bound to acct_other (test mode), but the key belongs to acct_" in words) == ("fail", True)
    assert gate.read_identity(ready.connection).stripe_account == "acct_other"


def test_more_canaries_than_were_sent_fail(ready, simulator):
    assert one(ready, "canaries") == ("pass", "3 sent in the last days, and no more shown")

    client = simulator.client()
    [canary] = client.v1.customers.list({"email": CANARY_EMAIL}).data
    payload = {"stripe_customer_id": canary.id, "value": "1"}
    client.v1.billing.meter_events.create({"event_name": "prompt_tokens", "payload": payload})
    assert one(ready, "canaries") == (
        "fail",
        "Stripe shows 2 canaries of prompt_tokens, but the ledger sent only 1",
    )
    assert gate.read_identity(ready.connection).frozen_at is None


def test_a_key_that_stripe_refuses_fails_masked_and_what_needs_it_is_skipped(ready, simulator):
    assert one(ready, "stripe_key")[0] == "pass"

    found = asked(ready, "stripe_key", "meters", "frozen", stripe_secret_key=LIVE_KEY)
    assert [str(finding.result) for finding in found.values()] == ["pass", "fail", "skip"]
    assert found["stripe_key"].found.startswith("Stripe refuses the key rk_live_…ABCD: ")
    assert "planted" not in str(found)


def test_a_stripe_that_does_not_answer_fails(ready):
    result, words = one(ready, "stripe_key", stripe_api_base="http://127.0.0.1:1")

    assert (result, words.startswith("Stripe does not answer at http://127.0.0.1:1")) == ("fail", True)


def test_every_permission_that_is_missing_is_named_at_once(ready, simulator):
    assert one(ready, "stripe_scopes") == (
        "pass",
        "reads meters, prices, customers, invoices, subscriptions, events, summaries; "
        "whether it may write meter events cannot be asked without writing",
    )

    simulator.core.keys["rk_test_restricted"] = KeyMode(scopes=frozenset({"account_read", "meters_read"}))
    result, words = one(ready, "stripe_scopes", stripe_secret_key="rk_test_restricted")
    assert result == "fail"
    assert words.startswith("may not read prices, customers, invoices, subscriptions, events: ")
    assert "prices_read" in words


def test_before_setup_the_summaries_are_not_claimed(settings):
    [(_, finding)] = ask(Site(lambda: settings), {"stripe_scopes"}, ASKS)

    assert finding.result is Result.PASS
    assert finding.found.endswith("summaries were not asked, there is no meter or canary customer yet")


def test_clocks_that_are_apart_fail(ready, simulator):
    assert one(ready, "clock")[0] == "pass"

    simulator.clock.advance(seconds=90)
    result, words = one(ready, "clock")
    assert (result, "more than a minute apart" in words) == ("fail", True)


def test_stripes_time_of_a_while_ago_is_no_wrong_clock(ready):
    site = Site(lambda: ready.settings)
    site.account = Account("acct_1", ready.clock() - 10 * HOUR)
    [(_, finding)] = ask(site, {"clock"}, ASKS)

    assert finding.result is Result.PASS


def test_a_meter_that_stripe_lacks_or_counts_otherwise_fails(ready, simulator):
    client = simulator.client()
    by_name = {meter.event_name: meter.id for meter in client.v1.billing.meters.list().data}
    client.v1.billing.meters.deactivate(by_name["prompt_tokens"])
    simulator.core.state.find("meter", by_name["generated_tokens"])["default_aggregation"]["formula"] = "count"

    result, words = one(ready, "meters")
    assert result == "fail"
    assert "Stripe has no active meter for prompt_tokens; " in words
    assert "generated_tokens has (formula, window, customer key, value key) ('count', None" in words


def replace_meter(simulator, event_name):
    """Archive the meter of that name and make another one."""
    client = simulator.client()
    [old] = [meter for meter in client.v1.billing.meters.list().data if meter.event_name == event_name]
    client.v1.billing.meters.deactivate(old.id)
    client.v1.billing.meters.create(
        {
            "display_name": "anew",
            "event_name": event_name,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )


def test_a_meter_without_a_price_is_told_with_what_hangs_elsewhere(flow, simulator):
    price = add_price(simulator, "prompt_tokens")
    add_price(simulator, "generated_tokens", active=False)
    replace_meter(simulator, "prompt_tokens")

    assert one(flow, "prices") == (
        "warn",
        "api_requests: no active price; "
        f"prompt_tokens: no active price ({price.id} on an archived meter of that name); "
        "generated_tokens: no active price (1 archived)",
    )


def test_a_price_that_hangs_elsewhere_is_told_beside_a_right_one(ready, simulator):
    assert one(ready, "prices")[0] == "pass"

    replace_meter(simulator, "prompt_tokens")
    assert "prompt_tokens: no active price (price_" in one(ready, "prices")[1]

    add_price(simulator, "prompt_tokens")
    result, words = one(ready, "prices")
    assert (result, "prompt_tokens: 1 active price (price_" in words) == ("warn", True)


def test_a_missing_canary_customer_fails(ready, simulator):
    client = simulator.client()
    [canary] = client.v1.customers.list({"email": CANARY_EMAIL}).data
    assert one(ready, "canary_customer") == ("pass", canary.id)

    client.v1.customers.delete(canary.id)
    assert one(ready, "canary_customer") == ("fail", "there is none")


def test_an_address_that_stripe_sends_nothing_or_too_little_to_fails(ready, simulator):
    url, client = "https://billing.example.com/webhooks/stripe", simulator.client()
    given = {"billing_webhook_url": url, "stripe_webhook_secret": "whsec_planted"}

    def found():
        return one(ready, "webhook_endpoint", **given)

    result, words = one(ready, "webhook_endpoint", billing_webhook_url=url)
    assert (result, "STRIPE_WEBHOOK_SECRET is not" in words) == ("fail", True)
    result, words = found()
    assert (result, f"nothing to {url} in test mode" in words) == ("fail", True)

    register(client, ready.settings, url)
    assert found() == ("pass", f"Stripe sends to {url}")

    [endpoint] = client.v1.webhook_endpoints.list().data
    client.v1.webhook_endpoints.update(endpoint.id, {"enabled_events": ["invoice.paid"]})
    result, words = found()
    assert (result, "is sent customer.created, " in words, "invoice.paid" in words) == ("fail", True, False)
    client.v1.webhook_endpoints.update(endpoint.id, {"disabled": True})
    result, words = found()
    assert (result, f"{endpoint.id} is disabled; " in words) == ("fail", True)


def test_without_an_address_nothing_is_asked_and_who_goes_live_is_told(ready):
    assert one(ready, "webhook_endpoint") == ("pass", "not asked, because BILLING_WEBHOOK_URL is not set")
    live = asked(ready, "webhook_endpoint", require_enabled=True)["webhook_endpoint"]
    assert (live.result, live.is_in_the_way) == (Result.WARN, False)


def test_no_probe_and_no_address_shows_a_secret(ready, tmp_path):
    secrets = {
        "database_url": "postgresql://billing:planted-password@127.0.0.1:1/billing",
        "dagster_database_url": "postgresql://dagster:planted-password@127.0.0.1:1/dagster",
        "stripe_secret_key": LIVE_KEY,
        "billing_mark_url": "s3://planted-bucket/mark.json?token=planted",
    }
    for left_out in (None, *secrets):
        given = {name: value for name, value in secrets.items() if name != left_out}
        found = asked(ready, **given)
        told = json.dumps([(finding.found, finding.remedy) for finding in found.values()])
        assert "planted" not in told
        assert "hunter2" not in told
