"""The only reader of the environment.

Settings come from the process environment, then `.env.local`, `.env`, `.env.compose`; the first that
names a value wins.  What is empty or only spaces counts as unset, and a key that is only a placeholder is refused.
Everything else receives a `Settings` value.  Secrets are `SecretStr`, so printing a settings object
never shows them; `domain.redaction.mask` is the one way to show which key is meant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from dotenv import dotenv_values
from pydantic import AliasChoices, AwareDatetime, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from billing_pipeline.domain.dispatching import ATTEMPTS_MAX, REQUEST_TIMEOUT, SLA, WRITING, asking_time
from billing_pipeline.domain.protocol import PAST_LIMIT, ProtocolTimes
from billing_pipeline.domain.redaction import is_placeholder
from billing_pipeline.domain.source_columns import DEFAULT_RELATION, parse_source_columns
from billing_pipeline.domain.volume import VolumeFactors
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.errors import SettingsError

SIMULATOR_KEY = "sk_test_simulator"
"""The key used when no Stripe key is set; only the simulator accepts it."""

ZEITGEIST = "zeitgeist"
"""An event type that has a switch of its own to be required."""

ENV_FILES = (".env.compose", ".env", ".env.local")
"""Lowest precedence first, as pydantic-settings reads them."""

TOKEN_LENGTH_MIN = 24

DATABASE_URL_FORM = "//user:password@host"
"""What .env.example shows; whoever copies it has not filled it in."""


class Level(StrEnum):
    """How far the pipeline may go.  `live` means: send; whose money is decided by the key."""

    OFF = "off"
    SHADOW = "shadow"
    LIVE = "live"


class MeterSinkName(StrEnum):
    """Which of Stripe's endpoints takes the meter events."""

    V1 = "v1"
    V2_STREAM = "v2_stream"


class Settings(BaseSettings):
    """All settings, with their defaults.  Field names in lower case are the environment names."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILES, env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )

    database_url: SecretStr | None = Field(default=None, description="PostgreSQL 15+; unset: embedded")
    dagster_database_url: SecretStr | None = Field(default=None, description="Dagster's own database")
    billing_state_dir: Path = Field(default=Path(".billing"), description="embedded server, simulator, marks")
    billing_source_relation: str = Field(default=DEFAULT_RELATION, description="schema.name")
    billing_source_columns: str = Field(default="", description="our names and theirs: event_id=id, quantity=amount")
    billing_meters_file: Path | None = Field(default=None, description="unset: the packaged catalogue")
    billing_start_at: AwareDatetime | None = Field(default=None, description="first hour billed; unset: all in reach")
    billing_window_grace_seconds: int = Field(default=300, ge=0, le=3600)
    billing_cutoff_overlap_seconds: int = Field(default=900, ge=0, le=86_400)
    billing_brake_hour_factor: int = Field(default=100, ge=0, description="times the usual hour; 0: no such brake")
    billing_brake_taken_back_percent: int = Field(default=20, ge=0, le=100, description="100: no such brake")

    enable_billing: bool | None = Field(
        default=None, validation_alias=AliasChoices("ENABLE_BILLING", "STRIPE_BILLING_ENABLED")
    )
    billing_mode: Level | None = Field(default=None)

    stripe_secret_key: SecretStr | None = Field(default=None)
    stripe_api_base: str | None = Field(default=None, description="unset: Stripe, or the simulator without key")
    stripe_meter_events_base: str | None = Field(default=None)
    simulator_port: int = Field(default=12111, ge=1, le=65535)
    dagster_port: int = Field(default=3000, ge=1, le=65535)
    stripe_max_concurrency: int = Field(default=16, ge=1, le=256)
    stripe_timeout_seconds: int = Field(default=int(REQUEST_TIMEOUT.total_seconds()), ge=1, le=80)

    stripe_meter_sink: MeterSinkName = Field(default=MeterSinkName.V1)
    stripe_meter_events_per_second: int | None = Field(default=None, ge=1, le=200_000)
    stripe_billing_queue: str = Field(default="default", min_length=1, max_length=200)
    stripe_usage_flush_lock_key: str = Field(default="usage-flush", min_length=1, max_length=200)
    stripe_usage_flush_lock_ttl_seconds: int = Field(default=3300, ge=60, le=86_400)

    stripe_webhook_secret: SecretStr | None = Field(
        default=None, description="whsec_...; several, separated by commas, while one is being rolled"
    )
    billing_webhook_url: str | None = Field(default=None, description="where Stripe sends webhooks; for the preflight")
    billing_intake_port: int = Field(default=8000, ge=1, le=65535, description="of billing-pipeline serve")
    billing_dispatch_sla_seconds: int = Field(
        default=int(SLA.total_seconds()), ge=10, description="a claimed event is done by then"
    )
    billing_dispatch_attempts_max: int = Field(default=ATTEMPTS_MAX, ge=1, description="then it is parked for a person")
    billing_event_bodies_kept_days: int = Field(default=90, ge=30, description="payloads of handled events and answers")
    billing_access_token: SecretStr | None = Field(default=None, description="for the web app; unset: no such routes")
    redis_url: SecretStr | None = Field(default=None, description="where product code caches features; unset: nowhere")
    enable_billing_stream: bool = Field(default=False, description="the live feed; wants Redis and an access token")
    billing_events_redis_url: SecretStr | None = Field(default=None, description="Redis of the feed; unset: REDIS_URL")
    billing_feed_kept_days: int = Field(default=30, ge=1, description="how long the feed is kept")
    saas_workspace_booking_url: str | None = Field(default=None, description="where who lacks saas is sent")
    saas_upgrade_price_id: str | None = Field(default=None, description="price_...; unset: nobody upgrades by itself")
    saas_upgrade_return_url: str | None = Field(default=None, description="where a checkout leads back to")

    billing_mark_url: str | None = Field(default=None, description="any fsspec address; unset: a file in the state dir")
    billing_safe_send_seconds: int = Field(default=72_000, ge=60)
    billing_lateness_seconds: int = Field(default=3_600, ge=20)
    billing_settle_seconds: int = Field(default=28_800, ge=60)
    billing_entry_lease_seconds: int = Field(default=120, ge=31)
    billing_summary_reads_max: int = Field(default=2_000, ge=1, description="Stripe reads per confirmation run")

    stripe_billing_contract_lookback_days: int = Field(default=30, ge=1)
    stripe_billing_validate_contract_before_flush: bool = Field(default=True)
    stripe_billing_contract_fail_closed: bool = Field(default=False)
    stripe_billing_contract_required_event_types: Annotated[tuple[str, ...], NoDecode] = Field(default=())
    stripe_billing_contract_require_zeitgeist: bool = Field(default=False)
    stripe_billing_contract_volume_factor: int = Field(default=5, ge=2)
    stripe_billing_contract_units_factor: int = Field(default=10, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, given: Any) -> Any:
        # A value in quotes may be only spaces, which `env_ignore_empty` takes for a value.
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in given.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("stripe_secret_key")
    @classmethod
    def _key_is_one(cls, key: SecretStr | None) -> SecretStr | None:
        if key and not key.get_secret_value().startswith(("sk_test_", "sk_live_", "rk_test_", "rk_live_")):
            raise ValueError("must start with sk_test_, sk_live_, rk_test_ or rk_live_")
        if key and is_placeholder(key.get_secret_value()):
            raise ValueError("is a placeholder; fill in a key of yours, or leave it empty for the simulator")
        return key

    @field_validator("stripe_webhook_secret")
    @classmethod
    def _webhook_secrets_are_some(cls, secrets: SecretStr | None) -> SecretStr | None:
        for secret in _listed(secrets.get_secret_value() if secrets else ""):
            if not secret.startswith("whsec_"):
                raise ValueError("must start with whsec_; several are separated by commas")
            if is_placeholder(secret):
                raise ValueError("is a placeholder; fill in the endpoint's signing secret, or leave it empty")
        return secrets

    @field_validator("billing_access_token")
    @classmethod
    def _token_cannot_be_guessed(cls, token: SecretStr | None) -> SecretStr | None:
        if token and (len(token.get_secret_value()) < TOKEN_LENGTH_MIN or is_placeholder(token.get_secret_value())):
            raise ValueError(f"must be a random text of at least {TOKEN_LENGTH_MIN} characters")
        return token

    @field_validator("saas_workspace_booking_url", "saas_upgrade_return_url", "billing_webhook_url")
    @classmethod
    def _address_is_of_the_web(cls, url: str | None) -> str | None:
        if url and not url.startswith(("https://", "http://localhost", "http://127.0.0.1")):
            raise ValueError("must be an https address")
        return url

    @field_validator("billing_webhook_url")
    @classmethod
    def _webhook_address_is_no_secret(cls, url: str | None) -> str | None:
        # It is shown; what Stripe sends is signed, so a login or a token in it would only be one more secret.
        if url and ("@" in url or "?" in url):
            raise ValueError("must have no login and no query")
        return url

    @field_validator("redis_url", "billing_events_redis_url")
    @classmethod
    def _redis_url_is_one(cls, url: SecretStr | None) -> SecretStr | None:
        if url and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return url

    @field_validator("database_url", "dagster_database_url")
    @classmethod
    def _url_is_filled_in(cls, url: SecretStr | None) -> SecretStr | None:
        if url and DATABASE_URL_FORM in url.get_secret_value():
            raise ValueError("is a placeholder; fill in your database, or leave it empty for the embedded one")
        return url

    @field_validator("billing_source_relation")
    @classmethod
    def _relation_has_a_schema(cls, relation: str) -> str:
        if len(parts := relation.split(".")) != 2 or not all(part.strip() for part in parts) or "%" in relation:
            raise ValueError(f"must be schema.name without a %, such as {DEFAULT_RELATION}")
        return relation

    @field_validator("billing_source_columns")
    @classmethod
    def _columns_are_a_mapping(cls, columns: str) -> str:
        parse_source_columns(columns)
        return columns

    @field_validator("stripe_billing_contract_lookback_days")
    @classmethod
    def _lookback_is_no_longer_than_stripes(cls, days: int) -> int:
        if days > PAST_LIMIT.days:
            raise ValueError(f"must be at most {PAST_LIMIT.days}: Stripe takes no older meter events")
        return days

    @field_validator("stripe_billing_contract_required_event_types", mode="before")
    @classmethod
    def _types_are_listed_with_commas(cls, types: object) -> object:
        return _listed(types) if isinstance(types, str) else types

    @field_validator("billing_start_at")
    @classmethod
    def _billing_starts_with_an_hour(cls, start_at: datetime | None) -> datetime | None:
        if start_at is not None and start_at != hour_of(start_at):
            raise ValueError("must be a full UTC hour, such as 2026-01-01T00:00:00Z")
        return start_at

    @model_validator(mode="after")
    def _an_upgrade_leads_back(self) -> Self:
        if (self.saas_upgrade_price_id is None) != (self.saas_upgrade_return_url is None):
            raise ValueError("SAAS_UPGRADE_PRICE_ID and SAAS_UPGRADE_RETURN_URL are set together or not at all")
        return self

    @model_validator(mode="after")
    def _times_fit_together(self) -> Self:
        if faults := self.protocol_times.faults():
            raise ValueError("the protocol's times do not fit: " + "; ".join(faults))
        return self

    @model_validator(mode="after")
    def _a_claim_outlasts_stripes_answer(self) -> Self:
        timeout = timedelta(seconds=self.stripe_timeout_seconds)
        if asking_time(timedelta(seconds=self.billing_dispatch_sla_seconds), timeout) <= timedelta(0):
            raise ValueError(
                f"BILLING_DISPATCH_SLA_SECONDS is {self.billing_dispatch_sla_seconds}: a worker that waits for Stripe "
                f"would lose what it has claimed. With STRIPE_TIMEOUT_SECONDS at {self.stripe_timeout_seconds} set it "
                f"to more than {int((2 * timeout + WRITING).total_seconds())}"
            )
        return self

    @cached_property
    def protocol_times(self) -> ProtocolTimes:
        """The durations of the submission protocol."""
        return ProtocolTimes(
            safe_send=timedelta(seconds=self.billing_safe_send_seconds),
            lateness=timedelta(seconds=self.billing_lateness_seconds),
            settle=timedelta(seconds=self.billing_settle_seconds),
            entry_lease=timedelta(seconds=self.billing_entry_lease_seconds),
            request_timeout=timedelta(seconds=self.stripe_timeout_seconds),
        )

    @property
    def required_event_types(self) -> tuple[str, ...]:
        """Event types without which the contract fails; the switch for zeitgeist is one more name in the list."""
        zeitgeist = (ZEITGEIST,) if self.stripe_billing_contract_require_zeitgeist else ()
        return tuple(dict.fromkeys((*self.stripe_billing_contract_required_event_types, *zeitgeist)))

    @property
    def volume_factors(self) -> VolumeFactors:
        """How many times its median a meter's volume, or its units, may become."""
        return VolumeFactors(self.stripe_billing_contract_volume_factor, self.stripe_billing_contract_units_factor)

    @cached_property
    def source_columns(self) -> dict[str, str]:
        """Our names of the source's columns and theirs, where they differ."""
        return parse_source_columns(self.billing_source_columns)

    @cached_property
    def mark_url(self) -> str:
        """Where the high-water mark is kept: outside the database, so that no restore takes it back."""
        return self.billing_mark_url or (self.billing_state_dir.absolute() / "high_water_mark.json").as_uri()

    @cached_property
    def meter_events_per_second(self) -> int:
        """Calls a second that Stripe documents: 1,000 live, 25 in a sandbox; the simulator has no limit to respect."""
        if self.stripe_meter_events_per_second is not None:
            return self.stripe_meter_events_per_second
        return 1_000 if self.livemode else (100_000 if self.uses_simulator else 25)

    @cached_property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The signing secrets that are active, the newest first by convention; never log them."""
        return _listed(self.stripe_webhook_secret.get_secret_value() if self.stripe_webhook_secret else "")

    @property
    def feed_redis_url(self) -> str | None:
        """Where the feed's wake-ups go; it may hold a password, so never log it."""
        url = self.billing_events_redis_url or self.redis_url
        return url.get_secret_value() if url else None

    @cached_property
    def uses_simulator(self) -> bool:
        """Without a Stripe key, everything talks to the local simulator."""
        return self.stripe_secret_key is None

    @cached_property
    def stripe_key(self) -> str:
        """The key to authenticate with; never log it."""
        return self.stripe_secret_key.get_secret_value() if self.stripe_secret_key else SIMULATOR_KEY

    @cached_property
    def livemode(self) -> bool:
        """Derived from the key's prefix, never set by hand."""
        return self.stripe_key.startswith(("sk_live_", "rk_live_"))

    @cached_property
    def stripe_base_addresses(self) -> dict[str, str]:
        """The SDK's `base_addresses`; empty means Stripe itself."""
        base = self.stripe_api_base
        if base is None and self.uses_simulator:
            base = f"http://127.0.0.1:{self.simulator_port}"
        addresses = {"api": base, "meter_events": self.stripe_meter_events_base or base}
        return {name: address for name, address in addresses.items() if address is not None}

    @cached_property
    def level(self) -> Level:
        """Off, shadow or live; a real key never sends before both switches say so."""
        if self.enable_billing is False:
            return Level.OFF
        if self.billing_mode is not None and (self.enable_billing or self.uses_simulator):
            return self.billing_mode
        if self.uses_simulator:
            return Level.LIVE
        return Level.SHADOW if self.enable_billing else Level.OFF


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; every fault is reported at once.  Raises `SettingsError`."""
    faults = _contradictions()
    try:
        settings = Settings(**overrides)
    except ValidationError as exc:
        # The input value is left out on purpose: it may be a secret.
        faults += [
            ": ".join([*(str(part).upper() for part in fault["loc"][:1]), fault["msg"].removeprefix("Value error, ")])
            for fault in exc.errors(include_input=False, include_context=False)
        ]
    if faults:
        raise SettingsError(_told(faults))
    return settings


def _listed(values: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for part in values.split(",") if (value := part.strip())))


def _told(faults: list[str]) -> str:
    if len(faults) == 1:
        return f"These settings are wrong: {faults[0]}."
    return "These settings are wrong:" + "".join(f"\n  {fault}" for fault in faults)


def environment_names(field: str) -> tuple[str, ...]:
    """The names that the environment may use for a field of `Settings`, the usual one first."""
    alias = Settings.model_fields[field].validation_alias
    return tuple(str(name) for name in alias.choices) if isinstance(alias, AliasChoices) else (field.upper(),)


def origin(field: str) -> str:
    """Where a field's value comes from: `environment`, the name of a file, or `default`."""
    for where, values in _layers():
        if any(values.get(name, "").strip() for name in environment_names(field)):
            return where
    return "default"


def _layers() -> list[tuple[str, Mapping[str, str]]]:
    """Where values may come from, the one that wins first."""
    files: list[tuple[str, Mapping[str, str | None]]] = [(file, dotenv_values(file)) for file in reversed(ENV_FILES)]
    layers = [("environment", os.environ), *files]
    return [(where, {name.upper(): value or "" for name, value in values.items()}) for where, values in layers]


def _contradictions() -> list[str]:
    """A switch with two names, of which one says yes and another no, wherever they are set."""
    found = []
    for field in Settings.model_fields:
        values = {}
        for name in environment_names(field):
            said = next((value for _, layer in _layers() if (value := layer.get(name, "").strip().lower())), None)
            if said is not None:
                values[name] = said in {"1", "true", "yes", "on", "t", "y"}
        if len(set(values.values())) > 1:
            found.append(f"{' and '.join(values)} contradict each other; set only one of them")
    return found
