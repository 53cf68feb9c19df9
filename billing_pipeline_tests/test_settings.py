"""What the settings accept, what they refuse, and that they say all of it at once without showing a secret."""

import pytest

from billing_pipeline.domain.redaction import is_placeholder, mask
from billing_pipeline.errors import SettingsError, told
from billing_pipeline.settings import Level, load_settings, origin

KEY = "sk_test_0123456789abcdefABCD"


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_all_faults_are_told_at_once_with_the_place_that_helps(monkeypatch):
    monkeypatch.setenv("DAGSTER_PORT", "many")
    monkeypatch.setenv("STRIPE_SECRET_KEY", "pk_test_0123456789")
    monkeypatch.setenv("ENABLE_BILLING", "true")
    monkeypatch.setenv("STRIPE_BILLING_ENABLED", "no")

    with pytest.raises(SettingsError) as refusal:
        load_settings()

    lines = told(refusal.value).splitlines()
    assert lines[0] == "These settings are wrong:"
    assert [line.split()[0].rstrip(":") for line in lines[1:-1]] == [
        "ENABLE_BILLING",
        "STRIPE_SECRET_KEY",
        "DAGSTER_PORT",
    ]
    assert lines[-1] == "See docs/troubleshooting.md#settings."


@pytest.mark.parametrize("blank", ["", " ", "\t "])
def test_a_blank_value_counts_as_unset(monkeypatch, blank):
    for name in ("STRIPE_SECRET_KEY", "BILLING_MODE", "DAGSTER_PORT", "DATABASE_URL", "ENABLE_BILLING"):
        monkeypatch.setenv(name, blank)

    assert load_settings() == load_settings(_env_file=None)
    assert load_settings().dagster_port == 3000


@pytest.mark.parametrize(
    ("name", "placeholder"),
    [
        ("STRIPE_SECRET_KEY", "sk_test_your_project_key"),
        ("STRIPE_SECRET_KEY", "sk_test_..."),
        ("STRIPE_SECRET_KEY", "sk_live_"),
        ("STRIPE_SECRET_KEY", "rk_live_<key>"),
        ("STRIPE_SECRET_KEY", "sk_test_xxxxxxxxxxxx"),
        ("STRIPE_SECRET_KEY", "sk_test_change-me"),
        ("DATABASE_URL", "postgresql://user:password@host:5432/database"),
    ],
)
def test_a_placeholder_is_refused_and_not_repeated(monkeypatch, name, placeholder):
    monkeypatch.setenv(name, placeholder)

    with pytest.raises(SettingsError, match=f"{name}: is a placeholder; fill in") as refusal:
        load_settings()
    assert f" {placeholder}" not in str(refusal.value)


@pytest.mark.parametrize("key", [KEY, "rk_live_51H8sAbcdef3XYZ0123456", "sk_test_simulator"])
def test_a_key_is_no_placeholder(key):
    assert not is_placeholder(key)


@pytest.mark.parametrize(
    ("enabled", "expected"),
    [("1", Level.SHADOW), ("true", Level.SHADOW), ("yes", Level.SHADOW), ("0", Level.OFF), ("no", Level.OFF)],
)
@pytest.mark.parametrize("name", ["ENABLE_BILLING", "STRIPE_BILLING_ENABLED"])
def test_the_master_switch_has_two_names_and_takes_every_word_for_yes_and_no(monkeypatch, name, enabled, expected):
    monkeypatch.setenv("STRIPE_SECRET_KEY", KEY)
    monkeypatch.setenv(name, enabled)

    assert load_settings().level is expected


def test_the_two_names_contradict_each_other_across_files_too(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("STRIPE_BILLING_ENABLED=0\n")
    monkeypatch.setenv("ENABLE_BILLING", "1")

    with pytest.raises(SettingsError, match="ENABLE_BILLING and STRIPE_BILLING_ENABLED contradict each other"):
        load_settings()


def test_the_first_file_that_names_a_value_wins_and_is_named(tmp_path, monkeypatch):
    for number, file in enumerate((".env.compose", ".env", ".env.local")):
        (tmp_path / file).write_text(f"DAGSTER_PORT={4000 + number}\nSIMULATOR_PORT=\n")
    assert origin("dagster_port") == ".env.local"
    (tmp_path / ".env.local").write_text("DAGSTER_PORT=' '\n")
    assert origin("dagster_port") == ".env"
    monkeypatch.setenv("DAGSTER_PORT", "5000")
    assert (origin("dagster_port"), origin("simulator_port")) == ("environment", "default")


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        (KEY, "sk_test_…ABCD"),
        ("rk_live_0123456789", "rk_live_…6789"),
        ("whsec_0123456789", "whsec_…6789"),
        ("sk_test_123", "***"),
        ("", "***"),
        ("some other secret", "…cret"),
    ],
)
def test_one_rule_masks_every_secret(secret, shown):
    assert mask(secret) == shown


@pytest.mark.parametrize(("sla", "timeout"), [(10, 20), (45, 20), (165, 80)])
def test_a_claim_that_would_lapse_while_its_worker_waits_for_stripe_is_refused(sla, timeout):
    with pytest.raises(SettingsError) as refused:
        load_settings(billing_dispatch_sla_seconds=sla, stripe_timeout_seconds=timeout)

    assert str(refused.value) == (
        f"These settings are wrong: BILLING_DISPATCH_SLA_SECONDS is {sla}: a worker that waits for Stripe would lose "
        f"what it has claimed. With STRIPE_TIMEOUT_SECONDS at {timeout} set it to more than {2 * timeout + 5}."
    )
    assert load_settings(billing_dispatch_sla_seconds=2 * timeout + 6, stripe_timeout_seconds=timeout)


@pytest.mark.parametrize(
    "url", ["https://stripe:hunter2@billing.example.com/webhooks/stripe", "https://b.example/?hunter2"]
)
def test_a_webhook_address_that_would_show_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(SettingsError, match="BILLING_WEBHOOK_URL: must have no login and no query") as refusal:
        load_settings(billing_webhook_url=url)

    assert "hunter2" not in str(refusal.value)
