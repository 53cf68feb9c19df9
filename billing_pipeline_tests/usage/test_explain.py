"""Why was this billed?  The explanation says what the source, the ledger and Stripe say, and what is left to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from psycopg.errors import ReadOnlySqlTransaction

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.domain.seals import Period
from billing_pipeline.errors import UserError
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_simulator.faults import Fault, FaultKind
from billing_pipeline.usage import explain_reads, gate
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.explain import Question, explain_hour, place_of_entry
from billing_pipeline.usage.explain_page import page_of
from billing_pipeline.usage.page import as_markdown, as_text
from billing_pipeline.usage.quarantine_decisions import dismiss
from billing_pipeline.usage.rebill import Decision, rebill
from billing_pipeline.usage.seal import seal
from billing_pipeline_tests.fix_flow import Subscriptions
from billing_pipeline_tests.fix_trial import HOUR, METER, V1_ONLY

pytestmark = V1_ONLY


def explain(trial, meter=METER, organization="acme", at=None, **question):
    return explain_hour(trial.flow, Question(organization, at or trial.closed, meter, **question))


def only(found):
    [window] = found.windows
    return window


def text_of(found):
    return as_text(page_of(found))


def independent_sum(trial, meter=METER):
    """The hour's rows of the meter's type, counted by nothing of ours."""
    return trial.rows(
        "SELECT count(*), coalesce(sum(quantity), 0) FROM public.billable_events WHERE organization_id = 'acme' "
        "AND event_type = %s AND occurred_at >= %s AND occurred_at < %s",
        meter,
        trial.closed,
        trial.closed + HOUR,
    )[0]


def test_a_settled_hour_is_told_from_its_rows_to_its_proof(trial):
    Subscriptions(trial.simulator).create(trial.customer, trial.closed - timedelta(days=2))
    for number in range(30):
        trial.use(100 + number, event_id=f"evt-{number:02}")
    trial.use(7, hours_before=1)
    trial.use(9, organization_id="globex")
    trial.flush()

    found = explain(trial)

    window = only(found)
    events, units = independent_sum(trial)
    assert (window.counted.events, window.counted.quantity) == (events, units) == (30, Decimal(3435))
    assert window.counted.event_ids == [f"evt-{number:02}" for number in range(20)]
    assert (window.row.target, window.row.carried, window.row.meter_version) == (3435, 0, window.definition.version)
    [entry] = window.entries
    [(identifier, request_id)] = trial.rows(
        "SELECT identifier, request_id FROM ledger_entries e JOIN attempts USING (entry_id) "
        "JOIN usage_windows USING (window_id) WHERE starts_at = %s",
        trial.closed,
    )
    assert (entry.row.value, entry.row.state, entry.row.identifier) == (3435, "confirmed", identifier)
    assert [(made.outcome, made.http_status, made.request_id) for made in entry.attempts] == [("ok", 200, request_id)]
    assert [(shown.kind, shown.observed) for shown in entry.evidence] == [("summary_present", 3435)]
    assert [(hour.observed, hour.proved) for hour in window.shown] == [(3435, 3435)]
    [period] = window.periods
    assert period.starts_at <= trial.closed < period.ends_at
    assert window.price.minor_units == 1
    assert found.verdict.text == "Stated 3,435 units; Stripe shows 3,435; nothing is owed."
    assert found.verdict.is_settled

    text = text_of(found)
    for words in (
        "30 events, sum 3,435",
        "evt-19 and 10 more",
        f"by meter version {window.definition.version} and contract version 1",
        "quantity 3,435 x 1 = 3,435 units -> 3,435 whole + 0 carried = target 3,435",
        "3,435 in all",
        f"sequence 0, +3,435 units, confirmed, minute {trial.closed:%Y-%m-%d %H:%M} UTC",
        f"ok, HTTP 200, {request_id}",
        "evidence summary present 3,435, by hour",
        f"showed 3,435 for {trial.closed:%Y-%m-%d %H:%M} UTC",
    ):
        assert words in text
    assert text.splitlines()[-1] == found.verdict.text


def test_a_lost_answer_is_owed_until_it_is_decided(trial):
    trial.use(4217)
    trial.weather.faults = [FaultKind.LOSE_REQUEST] * 20
    trial.cut()
    trial.send()

    found = explain(trial)

    first_attempt_at = only(found).entries[0].row.first_attempt_at
    latest = first_attempt_at + timedelta(hours=29)
    assert found.verdict.text == (
        f"4,217 units owed: entry 1 is ambiguous since {first_attempt_at:%Y-%m-%d %H:%M} UTC, decided at the latest "
        f"{latest:%Y-%m-%d %H:%M} UTC by what Stripe shows then."
    )
    assert "unknown, no answer" in text_of(found)
    trial.weather.faults = []
    trial.pass_time(minutes=5)
    trial.send()
    assert "Stripe took 4,217 of them and has not shown them yet" in explain(trial).verdict.text
    trial.prove()
    assert explain(trial).verdict.text == "Stated 4,217 units; Stripe shows 4,217; nothing is owed."


def test_a_late_row_shows_before_it_is_counted(trial):
    trial.use(4200, event_id="early")
    trial.flush()
    trial.use(100, event_id="late")

    found = explain(trial)

    window = only(found)
    assert (window.counted.events, window.counted.quantity) == independent_sum(trial) == (2, 4300)
    assert (window.counted.events_since, window.row.quantity) == (1, 4200)
    assert found.verdict.text == (
        "Stated 4,200 units; Stripe shows 4,200. The source now says 4,300; the next flush states the difference."
    )
    assert not found.verdict.is_settled
    trial.flush()
    assert explain(trial).verdict.text == "Stated 4,300 units; Stripe shows 4,300; nothing is owed."
    assert [entry.row.value for entry in only(explain(trial)).entries] == [4200, 100]


def test_a_row_that_was_changed_in_silence_waits_for_the_daily_count(trial):
    trial.use(4200, event_id="x")
    trial.flush()
    trial.connection.execute(
        "UPDATE public.billable_events SET quantity = 4000, recorded_at = recorded_at - interval '1 hour'"
    )

    words = explain(trial).verdict.text
    assert "The source now says 4,000; the daily full flush states the difference" in words
    trial.flow.aggregate(Scope.FULL)
    assert "200 units to be taken back: the next flush states the difference." in explain(trial).verdict.text


def test_rows_that_leave_the_source_after_years_change_nothing(trial):
    trial.use(4200, event_id="x")
    trial.flush()
    trial.connection.execute("DELETE FROM public.billable_events")
    trial.pass_time(days=60)

    found = explain(trial)

    assert found.verdict.is_settled
    assert found.verdict.text == (
        "Stated 4,200 units; Stripe shows 4,200; nothing is owed. The source now says 0; the hour is older than Stripe "
        "takes usage, so it stays as it is."
    )


def test_usage_of_no_window_yet_is_told(trial):
    trial.use(1)
    trial.flush()
    at = trial.closed - 5 * HOUR
    trial.use(70, hours_before=5)

    found = explain(trial, at=at)

    assert only(found).row is None
    assert found.verdict.text == "70 units in 1 event not counted yet; the next flush states the difference."


def test_a_refused_entry_names_what_stripe_said_and_the_command(trial):
    trial.use(10)
    trial.simulator.client().v1.customers.delete(trial.customer)
    trial.cut()
    trial.send()

    found = explain(trial)

    window = only(found)
    assert "10 units owed: Stripe refused entry 1 (" in found.verdict.text
    assert found.verdict.command == (f"billing-pipeline holds release {window.row.window_id} --by NAME --reason TEXT")
    text = text_of(found)
    for words in ("rejected, HTTP 400", "on hold: rejected by stripe"):
        assert words in text
    assert text.splitlines()[-1] == f"Next: `{found.verdict.command}`"


def test_rows_that_are_not_counted_are_told_with_their_reason(trial):
    trial.use(5, event_id="good")
    trial.use(6, event_id="no-type", event_type="promt_tokens")
    trial.use(0, event_id="nobody", quantity=None)
    trial.use(0, event_id="load-test", quantity=Decimal(-3))
    trial.flush()
    dismiss(
        trial.connection,
        ["load-test"],
        source=trial.flow.read_source(),
        actor="Ann",
        reason="ours",
        now=trial.flow.clock(),
    )
    trial.use(0, event_id="new-and-wrong", quantity=None)

    found = explain(trial, meter=None)

    places = {group.event_ids[0]: (group.place, group.reason) for group in found.not_counted}
    assert places == {
        "no-type": ("waiting", "event_type_unknown"),
        "nobody": ("waiting", "quantity_missing"),
        "load-test": ("dismissed", "quantity_negative"),
        "new-and-wrong": ("not_judged_yet", "quantity_missing"),
    }
    text = text_of(found)
    assert "Dismissed by Ann: ours" in text
    assert "The quantity is below zero." in text
    assert only(found).counted.event_ids == ["good"]


def test_what_the_catalogue_leaves_out_is_told(trial):
    trial.flow.catalogue = parse_catalogue(
        'ignored_event_types = ["heartbeat"]\n[meters.prompt_tokens]\nevent_types = ["prompt_tokens"]\n'
        'aggregation = "sum"\nfilter = { plan = ["paid"] }\n',
        origin="test",
    )
    trial.use(5, event_id="paid", properties={"plan": "paid"})
    trial.use(6, event_id="free", properties={"plan": "free"})
    trial.use(1, event_id="beat", event_type="heartbeat")
    trial.flush()

    found = explain(trial, meter=None)

    assert {group.event_ids[0]: group.place for group in found.not_counted} == {
        "free": "filtered_out",
        "beat": "ignored_event_type",
    }
    window = only(found)
    assert (window.counted.quantity, window.counted.events_filtered) == (5, 1)
    assert [group.event_ids for group in explain(trial).not_counted] == [["free"]]


def test_a_period_edge_inside_the_hour_makes_two_windows(trial):
    edge = trial.closed + timedelta(minutes=20)
    subscriptions = Subscriptions(trial.simulator)
    reset = subscriptions.create(trial.customer, trial.closed - timedelta(days=2))
    subscriptions.reset_anchor(reset, edge)
    trial.use(30, occurred_at=trial.closed + timedelta(minutes=5))
    trial.use(12, occurred_at=trial.closed + timedelta(minutes=40))
    trial.flush()

    found = explain(trial)

    first, second = found.windows
    assert (first.row.ends_at, first.row.target, first.counted.quantity) == (edge, 30, 30)
    assert (second.row.starts_at, second.row.target, second.counted.quantity) == (edge, 12, 12)
    assert [period.starts_at for period in second.periods] == [edge]
    assert all(window.verdict.is_settled for window in found.windows)
    assert found.verdict.text == "Nothing is owed in any of the 2 usage windows."
    assert f"{edge:%H:%M:%S} to {trial.closed + HOUR:%H:%M:%S}" in text_of(found)


@pytest.mark.parametrize(
    ("aggregation", "first", "then", "level", "adds"),
    [("max", [9, 4], [12, 3], 12, 3), ("unique", ["ann", "bob"], ["bob", "cy", "cy"], 3, 1)],
)
def test_the_level_of_a_period_is_told_with_what_the_hour_adds(trial, aggregation, first, then, level, adds):
    keys = 'property = "user"\n' if aggregation == "unique" else ""
    trial.flow.catalogue = parse_catalogue(
        f'[meters.prompt_tokens]\nevent_types = ["prompt_tokens"]\naggregation = "{aggregation}"\n{keys}', origin="test"
    )
    Subscriptions(trial.simulator).create(trial.customer, trial.closed - timedelta(days=2))
    for hours_before, values in ((2, first), (0, then)):
        for value in values:
            given = {"quantity": Decimal(value)} if aggregation == "max" else {"properties": {"user": value}}
            trial.use(1, hours_before=hours_before, **given)
    trial.flush()

    found = explain(trial)

    window = only(found)
    assert (window.row.period_level, window.row.target) == (level, adds)
    assert window.level.level_before == level - adds
    assert window.level.before_at == trial.closed - 2 * HOUR
    assert window.counted.quantity == {"max": 12, "unique": 2}[aggregation]
    assert f"{level} units up to here, of which this hour adds {adds}" in text_of(found)
    assert found.verdict.is_settled


def test_fractions_are_told_as_carried_units(trial):
    trial.flow.catalogue = parse_catalogue(
        '[meters.prompt_tokens]\nevent_types = ["prompt_tokens"]\naggregation = "sum"\nunit_scale = "0.001"\n',
        origin="test",
    )
    # One hour before, in the same month but for the first hour of one.
    at = trial.closed if trial.closed.day > 1 else trial.closed.replace(hour=5)
    trial.use(1600, occurred_at=at - 2 * HOUR)
    trial.use(2700, occurred_at=at)
    trial.flow.validate_contract()
    trial.flow.aggregate()

    text = text_of(explain(trial, at=at))

    assert "quantity 2,700 x 0.001 = 2.7 units -> 2 whole + 1 carried (fractions of the month" in text
    assert "= target 3" in text


def test_a_frozen_ledger_is_the_first_thing_to_know(trial):
    trial.use(10)
    trial.cut()
    gate.freeze(trial.connection, "a drill", now=trial.flow.clock(), actor="Ann")

    found = explain(trial)

    assert "10 units owed: entry 1 is cut and not sent yet" in found.verdict.text
    assert "The ledger is frozen since" in found.verdict.text
    assert "so nothing is sent: a drill" in found.verdict.text
    assert found.verdict.command == "billing-pipeline ledger status"
    assert "FROZEN" in text_of(found)


def test_an_organization_without_customer_is_told_how_to_get_one(trial):
    trial.use(10, organization_id="globex")
    trial.flush()

    found = explain(trial, organization="globex")

    assert found.verdict.text.startswith("10 units owed: the organization had no Stripe customer then")
    assert found.verdict.command == "billing-pipeline create-customers"


def test_a_seal_and_a_rebilling_are_told(trial):
    trial.use(10)
    trial.flush()
    trial.flow.catalogue = replace(
        trial.flow.catalogue,
        meters=tuple(
            replace(meter, unit_scale=Decimal(2)) if meter.name == METER else meter
            for meter in trial.flow.catalogue.meters
        ),
    )
    rebill(
        trial.connection,
        source=trial.flow.read_source(),
        catalogue=trial.flow.catalogue,
        meter=METER,
        since=trial.closed,
        overlap=timedelta(minutes=15),
        clock=trial.flow.clock,
        decision=Decision("Ann", "a token costs double", Decimal(10)),
    )
    trial.flush()
    seal(
        trial.connection,
        Period(trial.customer, None, trial.closed - HOUR, trial.closed + HOUR),
        leave_owed=False,
        closed_before=trial.flow.clock() - timedelta(minutes=5),
        actor="Bob",
        reason="invoice in_1 is final",
        now=trial.flow.clock(),
    )

    found = explain(trial)
    text = text_of(found)
    assert [(one.action, one.actor) for one in found.operations] == [("rebill", "Ann")]
    assert "rebill of prompt_tokens, difference 10" in text
    assert "by Bob: invoice in_1 is final" in text
    assert found.verdict.text == "Stated 20 units; Stripe shows 20; nothing is owed."
    assert explain(trial, at=trial.closed - 7 * HOUR).operations == ()

    trial.use(5)
    trial.flush()
    assert "10 units owed: they came after the seal" in explain(trial).verdict.text


def test_units_that_somebody_else_wrote_are_told(trial):
    trial.use(10)
    trial.flush()
    trial.connection.execute("UPDATE meter_summaries SET observed = 7")

    found = explain(trial)

    assert "Stripe shows 7 for the clock hour and the ledger's entries there add up to 10" in found.verdict.text
    assert found.verdict.command == "billing-pipeline reconcile"


def test_the_ledgers_side_is_told_while_the_source_cannot_be_read(trial):
    trial.use(10)
    trial.flush()
    trial.connection.execute("ALTER TABLE public.billable_events RENAME TO gone")

    found = explain(trial)

    assert "source_missing" in found.no_source_because
    assert found.verdict.text == "Stated 10 units; Stripe shows 10; nothing is owed."
    assert "unknown, see above" in text_of(found)


def test_nothing_is_written_even_by_mistake(trial, monkeypatch):
    trial.use(10)
    trial.flush()

    def writes(connection, window_ids):
        connection.execute("UPDATE usage_windows SET cut_due = true")

    monkeypatch.setattr(explain_reads, "entries_of", writes)
    with pytest.raises(ReadOnlySqlTransaction):
        explain(trial)
    trial.connection.execute("UPDATE usage_windows SET cut_due = cut_due")


def test_an_entry_is_found_by_number_and_by_name_and_a_canary_is_named(trial):
    trial.use(10)
    trial.flush()
    [(entry_id, identifier)] = trial.rows("SELECT entry_id, identifier FROM ledger_entries")

    wanted = Question("acme", trial.closed, METER)
    assert place_of_entry(trial.connection, entry_id=entry_id) == wanted
    assert place_of_entry(trial.connection, identifier=identifier) == wanted
    [(canary,)] = trial.rows("SELECT identifier FROM canaries ORDER BY canary_id LIMIT 1")
    with pytest.raises(UserError, match="is a canary: one unit"):
        place_of_entry(trial.connection, identifier=canary)
    with pytest.raises(UserError, match="has no entry 99"):
        place_of_entry(trial.connection, entry_id=99)
    with pytest.raises(UserError, match="no entry of the identifier be1_t_x"):
        place_of_entry(trial.connection, identifier="be1_t_x")


def test_what_is_unknown_is_refused_with_a_hint(trial):
    with pytest.raises(UserError, match="Nothing has been counted yet"):
        explain(trial)
    trial.use(10)
    trial.flush()

    with pytest.raises(UserError, match=r"organization Acmee.*Did you mean acme\?"):
        explain(trial, organization="Acmee")
    with pytest.raises(UserError, match=r"There is no meter tokens; there are .*prompt_tokens"):
        explain(trial, meter="tokens")
    with pytest.raises(UserError, match="lies before all data"):
        explain(trial, at=trial.closed - timedelta(days=400))
    quiet = explain(trial, at=trial.closed - 9 * HOUR)
    assert quiet.verdict.text == "Nothing was used in this hour: no row, no usage window, nothing stated."


def test_hostile_names_neither_move_a_terminal_nor_make_markup(trial):
    trial.use(10, event_id="\x1b[2Jevil\n<script>|*x*")
    trial.flush()

    page = page_of(explain(trial))

    assert "\\x1b[2Jevil\\n<script>" in as_text(page)
    assert "\x1b" not in as_text(page)
    assert "\\<script\\>\\|\\*x\\*" in as_markdown(page)


def test_an_answer_that_names_the_key_does_not_bring_it_here(trial):
    secret = "sk_test_planted0key0of0this0test"
    trial.use(10)
    trial.cut()
    trial.weather.faults = [Fault(FaultKind.KEY_EXPIRED_401)]
    with pytest.raises(Exception, match="refuses the key"):
        trial.send(stripe_secret_key=secret)
    flow = trial.another_flow(stripe_secret_key=secret, stripe_api_base="http://127.0.0.1:1")

    found = explain_hour(flow, Question("acme", trial.closed))

    assert "unknown because: Stripe does not answer" in text_of(found)
    assert secret not in text_of(found) + as_markdown(page_of(found)) + repr(found)


def test_shadow_mode_is_the_reason_that_nothing_was_sent(trial):
    trial.use(10)
    trial.cut()
    trial.flow.settings = load_settings(**trial.settings.model_dump() | {"billing_mode": "shadow"})

    assert explain(trial).verdict.text == (
        "10 units owed: entry 1 is cut and not sent yet, because billing is in shadow mode."
    )
