"""`config show` tells every setting and where it comes from, and no secret."""

import json

from billing_pipeline.settings import Settings
from billing_pipeline_tests.cli.command import billing_pipeline

PLANTED = "hunter2"
SECRETS = {
    "STRIPE_SECRET_KEY": f"sk_test_{PLANTED}0123456789",
    "DATABASE_URL": f"postgresql://{PLANTED}user:{PLANTED}@db.internal:5433/billing?password={PLANTED}",
    "DAGSTER_DATABASE_URL": f"postgresql://dagster:12/{PLANTED}@127.0.0.1/x",
    "BILLING_MARK_URL": f"s3://{PLANTED}:{PLANTED}@bucket/{PLANTED}?token={PLANTED}",
}


def test_every_setting_is_shown_with_where_it_comes_from(tmp_path):
    (tmp_path / ".env.local").write_text("STRIPE_METER_SINK=v2_stream\n")
    code, out, err = billing_pipeline("config", "show", "--json", folder=tmp_path, DAGSTER_PORT=3456)
    told = json.loads(out)

    assert (code, err) == (0, "")
    assert set(told["settings"]) == {name.upper() for name in Settings.model_fields}
    assert told["settings"]["DAGSTER_PORT"] == {"value": "3456", "from": "environment"}
    assert told["settings"]["STRIPE_METER_SINK"] == {"value": "v2_stream", "from": ".env.local"}
    assert told["settings"]["SIMULATOR_PORT"] == {"value": "12111", "from": "default"}
    assert (told["level"], told["stripe"]) == ("live", "the local simulator")


def test_only_what_was_changed_can_be_asked_for(tmp_path):
    code, out, _ = billing_pipeline(
        "config", "show", "--changed", folder=tmp_path, DAGSTER_PORT=3456, ENABLE_BILLING="false"
    )

    assert code == 0
    assert out == (
        "ENABLE_BILLING  false                     environment\n"
        "DAGSTER_PORT    3456                      environment\n"
        "\n"
        "Billing is off; Stripe is the local simulator.\n"
    )


def test_no_secret_is_ever_shown(tmp_path):
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        code, out, err = billing_pipeline(*arguments, folder=tmp_path, **SECRETS)

        assert code == 0
        assert PLANTED not in out + err
        assert "sk_test_…6789" in out
        assert "db.internal:5433/billing" in out
        assert "(malformed)" in out
        assert "s3://" in out


def test_wrong_settings_are_a_usage_error_with_all_of_them_and_no_value(tmp_path):
    code, out, err = billing_pipeline(
        "config", "show", folder=tmp_path, STRIPE_SECRET_KEY=f"pk_{PLANTED}", DAGSTER_PORT=PLANTED
    )

    assert (code, out) == (2, "")
    assert "STRIPE_SECRET_KEY: must start with" in err
    assert "DAGSTER_PORT: " in err
    assert PLANTED not in err
