"""Dagster handles what the service left, judges the service levels, and launches one run for each failed attempt."""

import json
from datetime import timedelta

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.orchestration import webhook_checks, webhook_sensors
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.switches import is_on
from billing_pipeline.orchestration.webhook_assets import WEBHOOK_ASSETS
from billing_pipeline.orchestration.webhook_checks import WEBHOOK_CHECKS
from billing_pipeline.orchestration.webhook_jobs import WEBHOOK_JOBS
from billing_pipeline.orchestration.webhook_sensors import EVENT_TAG, stripe_events_to_replay
from billing_pipeline.webhooks.claims import claim_due
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.webhooks.events import event, invoice, store, subscription

SPECS = [spec for asset in WEBHOOK_ASSETS for spec in ([asset] if isinstance(asset, dg.AssetSpec) else asset.specs)]
HANDLE = "handle_stripe_events"
BROKEN = {"status": 7}


@pytest.fixture
def environment(settings, monkeypatch):
    """A run reads its settings from the environment, as a worker of its own would."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("BILLING_STATE_DIR", str(settings.billing_state_dir))
    monkeypatch.setenv("STRIPE_SECRET_KEY", settings.stripe_key)
    monkeypatch.setenv("STRIPE_API_BASE", settings.stripe_api_base)
    return monkeypatch


@pytest.fixture
def now(connection, environment):
    return connection.execute("SELECT clock_timestamp()").fetchone()[0]


def run(job, instance=None, **config):
    run_config = {"ops": {HANDLE: {"config": config}}} if config else {}
    return defs.resolve_job_def(job).execute_in_process(instance=instance, run_config=run_config, raise_on_error=False)


def checks(result):
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def check(name):
    [found] = [one for one in WEBHOOK_CHECKS if one.check_key.name == name]
    job = dg.define_asset_job("asked", selection=dg.AssetSelection.checks(found))
    location = dg.Definitions(assets=defs.assets, asset_checks=defs.asset_checks, resources=defs.resources, jobs=[job])
    return checks(location.resolve_job_def("asked").execute_in_process())[name]


def outcomes(connection):
    return dict(connection.execute("SELECT stripe_event_id, processing_outcome FROM stripe_events").fetchall())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key.to_user_string())
def test_every_asset_says_what_it_is_and_whose(spec):
    assert len(spec.description.split()) >= 8
    assert (spec.group_name, spec.owners) == ("webhooks", ["team:billing"])
    assert spec.kinds == {"postgres", "stripe"}
    assert spec.freshness_policy is not None


@pytest.mark.parametrize("job", WEBHOOK_JOBS, ids=lambda job: job.name)
def test_every_job_says_what_it_does_and_ends(job):
    assert len(job.description.split()) >= 5
    assert int(job.tags["dagster/max_runtime"]) <= 2700


def test_the_hourly_job_handles_what_waits_and_judges(connection, now):
    store(
        connection, [event("customer.subscription.created", subscription()), event("invoice.paid", invoice())], now=now
    )

    result = run("dispatch_stripe_events")

    assert result.success
    assert set(outcomes(connection).values()) == {"processed"}
    told = {
        one.asset_key.to_user_string(): one.materialization.metadata
        for one in result.get_asset_materialization_events()
    }
    assert {name: found["dagster/row_count"].value for name, found in told.items()} == {
        "subscriptions": 1,
        "invoices": 1,
        "entitlements": 1,
    }
    assert sum(found["events_processed"].value for found in told.values()) == 2
    assert {name for name, found in checks(result).items() if not found.passed} == set()
    assert len(checks(result)) == len(WEBHOOK_CHECKS) - 1


def test_a_mapping_that_no_event_tells_of_is_decided_on(connection, now):
    store(connection, [event("customer.subscription.created", subscription(metadata={}))], now=now)
    Dispatcher(connection, lambda: now).run_once()
    map_customer(connection, "acme", "cus_1")

    assert run("dispatch_stripe_events").success
    assert connection.execute("SELECT organization_id, active FROM entitlements").fetchall() == [("acme", True)]


def test_a_question_that_events_left_is_asked(connection, now, simulator):
    customer = simulator.client().v1.customers.create({"metadata": {"organization_id": "acme"}}).id
    thin = {
        "object": "v2.core.event",
        "related_object": {"id": customer, "type": "customer"},
        "created": f"{now:%FT%TZ}",
    }
    store(connection, [{**thin, "id": "evt_thin", "type": "v1.customer.updated", "livemode": False}], now=now)

    run("dispatch_stripe_events")

    assert connection.execute("SELECT stripe_customer_id, organization_hint FROM stripe_customers").fetchall() == [
        (customer, "acme")
    ]


def test_a_failed_event_warns_and_a_parked_one_is_an_error(connection, now, caplog):
    store(connection, [event("customer.subscription.updated", subscription(**BROKEN))], now=now)
    Dispatcher(connection, lambda: now).run_once()
    failed = check("no_failed_events")
    assert (failed.passed, failed.severity, failed.metadata["failed"].value) == (False, dg.AssetCheckSeverity.WARN, 1)
    assert "events replay" in failed.metadata["do_next"].value
    assert not check("webhook_success_rate").passed

    Dispatcher(connection, lambda: now + timedelta(hours=1), attempts_max=2).run_once()
    parked = check("no_failed_events")
    assert (parked.severity, parked.metadata["parked"].value) == (dg.AssetCheckSeverity.ERROR, 1)
    assert ("Webhook check failed", "no_failed_events", "1 parked, 0 to be tried again") in [
        (record.getMessage(), record.check, record.found) for record in caplog.records if hasattr(record, "check")
    ]


def test_what_nobody_took_or_brought_back_is_stuck_after_the_sla(connection, now):
    one, other = (event("customer.subscription.created", subscription(id=f"sub_{n}")) for n in (1, 2))
    store(connection, [one], now=now - timedelta(seconds=310))
    claim_due(connection, limit=1, sla=timedelta(minutes=5), now=now - timedelta(seconds=305))
    store(connection, [other], now=now - timedelta(seconds=200))

    found = check("stuck_dispatches")
    assert (found.passed, found.metadata["events"].value) == (False, 1)
    assert found.metadata["oldest"].records[0].data["how"] == "taken, not ended"
    connection.execute("UPDATE event_dispatches SET due_at = due_at - interval '1 hour'")
    assert check("stuck_dispatches").metadata["events"].value == 2
    run("dispatch_stripe_events")
    assert check("stuck_dispatches").passed


@pytest.mark.parametrize(("handled", "passes"), [(19, False), (20, True)])
def test_ninety_five_percent_must_end_well(connection, now, handled, passes):
    good = [event("customer.subscription.created", subscription(id=f"sub_{n}")) for n in range(handled)]
    store(connection, [*good, event("customer.subscription.updated", subscription(**BROKEN))], now=now)
    Dispatcher(connection, lambda: now).run_once()
    # It has just come and had no time yet.
    store(connection, [event("customer.created", {"id": "cus_9", "object": "customer"})], now=now)

    assert check("webhook_success_rate").passed is passes


@pytest.mark.parametrize(("repeated", "passes"), [(19, True), (20, False)])
def test_a_fifth_of_repetitions_is_told(connection, now, repeated, passes):
    hour = now.replace(minute=0, second=0, microsecond=0)
    rows = [(hour, "a", "accepted", 100 - repeated), (hour, "a", "duplicate", repeated - 1), (hour, "a", "requeued", 1)]
    rows += [(hour - timedelta(hours=30), "a", "duplicate", 1_000)]
    for row in rows:
        connection.execute("INSERT INTO delivery_counts VALUES (%s, %s, %s, %s)", row)

    assert check("duplicate_ratio").passed is passes


@pytest.mark.parametrize(("failures", "passes"), [(10, True), (11, False)])
def test_more_than_ten_bad_signatures_in_an_hour_are_told(connection, now, failures, passes):
    minute = now.replace(second=0, microsecond=0)
    connection.execute("INSERT INTO signature_failures VALUES (%s, 'invalid_signature', %s)", (minute, failures))
    old = minute - timedelta(minutes=70)
    connection.execute("INSERT INTO signature_failures VALUES (%s, 'invalid_signature', 50)", (old,))

    assert check("signature_failures").passed is passes


def test_an_impossible_step_of_an_invoice_is_told(connection, now):
    steps = [("draft", "open"), ("open", "paid"), ("paid", "open")]
    told = [
        event(
            "invoice.updated",
            invoice(status=became),
            data={"object": invoice(status=became), "previous_attributes": {"status": was}},
        )
        for was, became in steps
    ]
    store(connection, told[:2], now=now)
    assert check("invoice_transitions").passed
    store(connection, told[2:], now=now)
    found = check("invoice_transitions")

    assert (found.passed, found.description) == (False, f"paid to open: 1, such as {told[2]['id']}")


def test_a_projection_that_was_tampered_with_fails_its_daily_check(connection, now):
    store(connection, [event("customer.subscription.created", subscription())], now=now)
    Dispatcher(connection, lambda: now).run_once()
    assert checks(run("rebuild_projections"))["projection_equals_rebuild"].passed
    connection.execute("UPDATE subscriptions SET status = 'canceled'")

    found = checks(run("rebuild_projections"))["projection_equals_rebuild"]

    assert (found.passed, found.description) == (False, "1 rows differ, 0 cannot be read")
    assert found.metadata["differences"].records[0].data["columns"] == "status"


def tick(instance, cursor=None):
    resources = {"billing": BillingResource()}
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources) as context:
        return stripe_events_to_replay.evaluate_tick(context)


def test_a_failed_event_starts_one_run_and_never_two(connection, now):
    bad = event("customer.subscription.updated", subscription(**BROKEN))
    store(connection, [bad], now=now)
    with dg.instance_for_test() as instance:
        assert tick(instance).run_requests == []
        Dispatcher(connection, lambda: now).run_once()
        connection.execute("UPDATE event_dispatches SET due_at = %s, attempts = 1", (now - timedelta(seconds=61),))

        first = tick(instance)
        again = tick(instance, first.cursor)
        connection.execute("UPDATE event_dispatches SET attempts = 2")
        next_attempt = tick(instance, again.cursor)

    [request] = first.run_requests
    assert (request.run_key, request.tags[EVENT_TAG]) == (f"{bad['id']}:1", bad["id"])
    assert again.run_requests == []
    assert [one.run_key for one in next_attempt.run_requests] == [f"{bad['id']}:2"]
    result = run("replay_stripe_events", **request.run_config["ops"][HANDLE]["config"])
    assert result.success
    assert connection.execute("SELECT attempts FROM event_dispatches").fetchone() == (3,)
    # Not due any more: a second run of the same request does nothing.
    assert run("replay_stripe_events", **request.run_config["ops"][HANDLE]["config"]).success
    assert connection.execute("SELECT attempts FROM event_dispatches").fetchone() == (3,)


def test_the_service_has_a_minute_and_a_worker_its_sla(connection, now):
    fresh, taken, lost = (event("customer.created", {"id": f"cus_{n}", "object": "customer"}) for n in range(3))
    store(connection, [fresh], now=now - timedelta(seconds=30))
    store(connection, [taken, lost], now=now - timedelta(minutes=9))
    statement = "UPDATE event_dispatches SET attempts = 1, claimed_at = %s WHERE stripe_event_id = %s"
    connection.execute(statement, (now - timedelta(minutes=2), taken["id"]))
    connection.execute(statement, (now - timedelta(minutes=6), lost["id"]))

    with dg.instance_for_test() as instance:
        [request] = tick(instance).run_requests

    assert request.run_key == f"{lost['id']}:1"


def test_many_events_are_a_few_runs_and_the_rest_waits_for_the_next_tick(connection, now, monkeypatch):
    monkeypatch.setattr(webhook_sensors, "RUN_EVENTS_MAX", 2)
    monkeypatch.setattr(webhook_sensors, "TICK_EVENTS_MAX", 5)
    told = [event("customer.created", {"id": f"cus_{n}", "object": "customer"}) for n in range(7)]
    store(connection, told, now=now - timedelta(minutes=9))
    with dg.instance_for_test() as instance:
        first = tick(instance)
        second = tick(instance, first.cursor)
        third = tick(instance, second.cursor)

    batches = [one.run_config["ops"][HANDLE]["config"]["event_ids"] for one in first.run_requests + second.run_requests]
    assert [len(batch) for batch in batches] == [2, 2, 1, 2]
    assert sorted(event_id for batch in batches for event_id in batch) == sorted(one["id"] for one in told)
    assert len({one.run_key for one in first.run_requests + second.run_requests}) == 4
    assert third.run_requests == []
    for batch in batches:
        run("replay_stripe_events", event_ids=batch)
    assert set(outcomes(connection).values()) == {"processed"}


def test_a_run_that_was_lost_is_launched_again_under_another_name(connection, now):
    one = event("customer.created", {"id": "cus_1", "object": "customer"})
    store(connection, [one], now=now - timedelta(minutes=9))
    with dg.instance_for_test() as instance:
        first = tick(instance)
        launched = json.loads(first.cursor)
        launched[one["id"]][1] -= int(webhook_sensors.AGAIN_AFTER.total_seconds()) + 5
        second = tick(instance, json.dumps(launched))

    assert [request.run_key for request in first.run_requests + second.run_requests] == [
        f"{one['id']}:0",
        f"{one['id']}:0:2",
    ]


def test_the_launchpad_replays_what_is_parked_or_failed_and_by_default_what_is_due(connection, now):
    good = event("customer.created", {"id": "cus_1", "object": "customer"})
    parked, failed = (event("customer.subscription.updated", subscription(id=f"sub_{n}", **BROKEN)) for n in (1, 2))
    store(connection, [parked], now=now)
    Dispatcher(connection, lambda: now, attempts_max=1).run_once()
    store(connection, [failed], now=now)
    Dispatcher(connection, lambda: now).run_once()
    store(connection, [good], now=now)

    assert run("replay_stripe_events").success
    assert outcomes(connection) == {good["id"]: "processed", parked["id"]: "parked", failed["id"]: "failed"}
    connection.execute("""UPDATE stripe_events SET payload = jsonb_set(payload, '{data,object,status}', '"active"')
        WHERE processing_outcome IN ('failed', 'parked')""")
    run("replay_stripe_events", status="failed")
    assert outcomes(connection)[failed["id"]] == "processed"
    run("replay_stripe_events", status="parked", event_ids=[parked["id"], good["id"]])
    assert set(outcomes(connection).values()) == {"processed"}


def test_the_sweep_says_how_far_the_inbox_is_complete_and_its_check_minds_only_while_it_is_on(
    connection, now, simulator, monkeypatch
):
    simulator.client().v1.customers.create()
    simulator.clock.advance(minutes=2)
    assert check("events_complete_through").passed
    monkeypatch.setattr(webhook_checks, "is_on", lambda instance, name: name == "hourly_event_sweep")
    assert check("events_complete_through").description == "no sweep has ended yet"

    result = run("sweep_stripe_events")

    assert result.success
    [told] = [one.event_specific_data.materialization for one in result.all_events if one.is_step_materialization]
    assert told.asset_key.to_user_string() == "stripe_events"
    assert {name: told.metadata[name].value for name in ("events_listed", "events_missing", "events_processed")} == {
        "events_listed": 1,
        "events_missing": 1,
        "events_processed": 1,
    }
    assert check("events_complete_through").passed
    connection.execute("UPDATE event_sweeps SET complete_through = complete_through - interval '3 hours'")
    assert not check("events_complete_through").passed


def test_a_gap_and_an_event_that_was_not_stored_fail_the_check_until_they_are_made_up_for(connection, now, simulator):
    simulator.client().v1.customers.create()
    run("sweep_stripe_events")
    connection.execute("UPDATE event_sweeps SET gap_from = complete_from - interval '9 days' WHERE sweep_id = 1")
    connection.execute("UPDATE event_sweeps SET events_unreadable = 1 WHERE sweep_id = 1")

    failed = check("events_complete_through")

    assert not failed.passed
    assert "Stripe lists no more what it told from" in failed.description
    assert "could not be stored since" in failed.description
    defs.resolve_job_def("sweep_stripe_events").execute_in_process(
        run_config={"ops": {"find_missed_events": {"config": {"objects": True}}}}
    )
    assert "lists no more" not in check("events_complete_through").description
    connection.execute("UPDATE event_sweeps SET events_unreadable = 0")
    assert check("events_complete_through").passed


def test_a_sweep_from_the_launchpad_may_read_all_objects(connection, now, simulator):
    simulator.client().v1.customers.create()
    config = {"since": f"{now - timedelta(hours=3):%Y-%m-%dT%H:%M:%SZ}", "objects": True}
    result = defs.resolve_job_def("sweep_stripe_events").execute_in_process(
        run_config={"ops": {"find_missed_events": {"config": config}}}
    )

    assert result.success
    assert connection.execute("SELECT count(*) FROM stripe_customers").fetchone() == (1,)


def test_every_day_all_objects_are_read_anew_without_anybody_asking(connection, now, simulator):
    """Of what no event tells; a customer of before the endpoint, say."""
    simulator.client().v1.customers.create()
    schedule = defs.get_repository_def().get_schedule_def("daily_object_reread")

    [request] = schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=now)).run_requests
    result = defs.resolve_job_def(schedule.job_name).execute_in_process(run_config=request.run_config)

    assert result.success
    assert connection.execute("SELECT object_kind, reason FROM object_snapshots ORDER BY 1").fetchall() == [
        ("customer", "reread"),
        ("entitlements.active_entitlement_summary", "reread"),
    ]
    # Longer than an hour's run, because Stripe shows features by customer only; below the day of the next one.
    assert 2_700 < int(request.tags["dagster/max_runtime"]) < 86_400


def test_a_schedule_that_somebody_turned_on_is_on():
    with dg.instance_for_test() as instance, dg.DagsterInstance.ephemeral() as nothing_kept:
        assert not is_on(instance, "hourly_event_sweep")
        assert not is_on(nothing_kept, "hourly_event_sweep")


def test_old_bodies_go_and_the_events_stay(connection, now):
    for age in (91, 89):
        handled = event("customer.created", {"id": f"cus_{age}", "object": "customer"})
        store(connection, [handled], now=now - timedelta(days=age))
    connection.execute(
        "INSERT INTO object_snapshots (object_id, object_kind, read_at, reason, payload, stored_at)"
        " VALUES ('cus_1', 'customer', %(at)s, 'tie', '{}', %(at)s)",
        {"at": now - timedelta(days=91)},
    )
    Dispatcher(connection, lambda: now).run_once()

    assert run("purge_event_bodies").success
    assert connection.execute("SELECT payload IS NULL FROM object_snapshots").fetchall() == [(True,)]
    assert connection.execute("SELECT payload IS NULL FROM stripe_events ORDER BY received_at").fetchall() == [
        (True,),
        (False,),
    ]
    assert checks(run("rebuild_projections"))["projection_equals_rebuild"].passed
