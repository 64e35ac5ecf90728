"""Every setting, declared once: name, unit, default and a sentence.

Each is an environment variable `TIDEMARK_<NAME>`; `tidemark settings` prints this list. The
defaults make everything work on one machine with the local stack. Settings are read once, at the
start of a process, and refused there with a sentence when they make no sense.

What the environment does not say is looked up in the file `settings.env` in TIDEMARK_HOME, one
`TIDEMARK_<NAME>=value` a line. Dagster's Reload reads that file again, so the cadence can be
changed there while everything runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from orchestration.addresses import (
    HIDDEN,
    has_login,
    is_http,
    is_redis,
    masked_address,
    masked_path,
    masked_values,
)
from orchestration.cadence import Cadence, is_cron
from orchestration.s3_address import is_s3, s3_address
from orchestration.settings_trouble import check_settings_file, variable_of

_TOPIC = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,238}")
"""Kafka's 249 characters, less those of _historical."""

_STORES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes that pyarrow.fs knows."""

_PATTERN_SIGNS = "?*{}[]"

DEFAULT_HOME = Path(".tidemark")
SETTINGS_FILE = "settings.env"


class Mode(StrEnum):
    """What a protection of the capture API does when it would say no."""

    ENFORCE = "enforce"
    DRY_RUN = "dry_run"  # lets pass, counts and logs
    OFF = "off"


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Networks from a text, separated by commas or spaces; raises ValueError for anything else."""
    try:
        return tuple(ip_network(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(
            f"{error}: write addresses or networks, separated by commas, such as "
            "10.0.0.0/8, 2001:db8::/32"
        ) from None


def _absolute_folder(folder: Path) -> Path:
    """The folder wherever a process stands; raises ValueError for what would be read as a pattern.

    ClickHouse and DuckDB match `*?{}[]` in a path against files, and a SQLite URL ends at `?`.
    """
    folder = folder.expanduser().absolute()
    found = " ".join(sign for sign in _PATTERN_SIGNS if sign in str(folder))
    if found:
        raise ValueError(
            f"the folder {folder} has {found} in its path, which would be read as a pattern: "
            "name one without"
        )
    return folder


_SHOWN: dict[str, Callable[[Any], str]] = {
    "kafka_options": masked_values,
    "clickhouse_url": masked_address,
    "clickhouse_password": lambda password: HIDDEN,
    "lake_uri": masked_address,
    "ledger_url": masked_address,
    "dagster_storage_url": masked_address,
    "alarm_webhook_url": masked_path,
    "alarm_webhook_headers": masked_values,
    "capture_redis_url": masked_address,
}
"""How settings are shown that may hold secrets."""


class Settings(BaseSettings):
    """The settings of every Tidemark process."""

    # A refusal goes to logs and the UI, and what was written may hold a password.
    model_config = SettingsConfigDict(
        env_prefix="TIDEMARK_", extra="ignore", hide_input_in_errors=True
    )

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """What stands in a log that prints them."""
        for name in type(self).model_fields:
            yield name, self.shown(name) if name in _SHOWN else getattr(self, name)

    def shown(self, name: str) -> str:
        """A setting as text, without what is secret in it."""
        value = getattr(self, name)
        return _SHOWN[name](value) if value and name in _SHOWN else str(value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the caller says goes first, then the environment, then settings.env."""
        said = {**env_settings(), **init_settings()}
        home = Path(said.get("home") or DEFAULT_HOME).expanduser()
        check_settings_file(home / SETTINGS_FILE)
        file = DotEnvSettingsSource(settings_cls, env_file=home / SETTINGS_FILE)
        return init_settings, env_settings, file

    home: Path = Field(
        DEFAULT_HOME,
        description="Folder that holds everything the local stack writes.",
    )

    capture_port: int = Field(
        8000, ge=1, le=65535, description="Port of the capture API, on loopback."
    )
    dagster_port: int = Field(
        3000, ge=1, le=65535, description="Port of the Dagster UI, on loopback."
    )

    kafka_bootstrap_servers: str = Field(
        "", description="Kafka to use; empty: the local one on TIDEMARK_KAFKA_PORT."
    )
    kafka_port: int = Field(
        9092, ge=1, le=65535, description="Port of the local Kafka, on loopback."
    )
    kafka_options: dict[str, str] = Field(
        default_factory=dict,
        description="librdkafka settings for every client, as JSON (SASL, TLS, …).",
    )
    kafka_partitions: int = Field(8, ge=1, description="Partitions of topics that Tidemark makes.")
    kafka_replication_factor: int = Field(
        1, ge=1, description="Replicas of topics that Tidemark makes; 3 in production."
    )
    topic: str = Field(
        "events",
        description="Kafka topic that events go through; <topic>_historical and <topic>_overflow "
        "stand beside it.",
    )

    clickhouse_url: str = Field(
        "",
        description="ClickHouse over HTTP; empty: the local one on TIDEMARK_CLICKHOUSE_PORT.",
    )
    clickhouse_port: int = Field(
        8123, ge=1, le=65535, description="Port of the local ClickHouse, on loopback."
    )
    clickhouse_user: str = Field("default", description="ClickHouse user.")
    clickhouse_password: str = Field("", description="ClickHouse password.")
    clickhouse_database: str = Field("tidemark", description="ClickHouse database of the tables.")

    lake_uri: str = Field(
        "",
        description="Where staged Parquet goes: a folder, or s3://BUCKET/PATH "
        "(docs/object-store.md); empty: <home>/lake.",
    )
    ledger_url: str = Field(
        "",
        description="SQLAlchemy URL of the ledger; empty: SQLite in <home>/ledger.db.",
    )
    dagster_storage_url: str = Field(
        "",
        description="PostgreSQL URL of Dagster's runs and events, which may be the ledger's "
        "database; empty: SQLite in <home>/dagster.",
    )

    cadence: str = Field(
        "1m", description="How often micro-batches run: 30s, 1m, or cron (*/5 * * * *)."
    )
    cadence_overflow: str = Field(
        "", description="The same for <topic>_overflow; empty: it goes with the main topic."
    )
    cadence_historical: str = Field(
        "", description="The same for <topic>_historical; empty: it goes with the main topic."
    )
    fork_runs: bool = Field(
        True,
        description="Fork runs from a warm process; false: each run is a new process, which costs "
        "a second and more of processor time.",
    )
    batch_max_records: int = Field(
        500_000, ge=1, description="Most Kafka offsets that one batch spans."
    )
    batch_max_bytes: int = Field(
        1 << 30,
        ge=1 << 20,
        description="Bytes of record values after which planning cuts smaller.",
    )
    stagers: int = Field(
        1,
        ge=1,
        le=32,
        description="Batches of different partitions that one run stages at once, each in a "
        "process of its own, when more than one waits; 1: the run stages them itself. If the lake "
        "is no folder, the home's disk holds a copy of these dates' index (keys/) meanwhile.",
    )
    duplicate_window_days: int = Field(
        2,
        ge=1,
        description="Arrival dates, today included, in which a uuid is stored once.",
    )
    hold_over_percent: float = Field(
        20.0,
        ge=0,
        le=100,
        description="Percent of a batch's records that may be rejected; beyond it, and beyond "
        "TIDEMARK_HOLD_OVER_RECORDS, the batch is held. 100: never.",
    )
    hold_over_records: int = Field(
        1_000,
        ge=0,
        description="Records of a batch that may be rejected; beyond it, and beyond "
        "TIDEMARK_HOLD_OVER_PERCENT, the batch is held.",
    )
    warn_rejects_percent: float = Field(
        5.0,
        ge=0,
        le=100,
        description="Percent of a date's records, or of a run's, that may be dead letters before "
        "the check rejects_share warns. 100: never.",
    )
    warn_rejects_records: int = Field(
        100,
        ge=0,
        description="Dead letters, of a date or of a run, below which it does not warn.",
    )
    redrive_tries: int = Field(
        3,
        ge=1,
        description="Tries of a dead letter that fail before redrives leave it out, unless they "
        "are told to take it again.",
    )
    lease_seconds: int = Field(
        60,
        ge=1,
        description="Seconds after which a batch's silent worker may be replaced.",
    )
    load_attempts: int = Field(
        4,
        ge=1,
        description="Tries of one stage inside a run, with back-off, before it fails.",
    )
    table_backoff_max_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds between two tries at a ClickHouse table that takes nothing, at most; "
        "it is waited for after TIDEMARK_LOAD_ATTEMPTS failures in a row.",
    )
    batch_backoff_max_seconds: float = Field(
        900.0,
        gt=0,
        description="Seconds between two tries at a batch that fails while others go on, at most.",
    )
    unknown_error_tries: int = Field(
        3,
        ge=1,
        description="Tries of a batch that end in an error which nobody knows, before it waits for "
        "a person.",
    )
    staged_max_bytes: int = Field(
        20 << 30,
        ge=0,
        description="Bytes of staged files that wait to be loaded; beyond it no more is planned. "
        "0: any.",
    )
    lake_min_free_bytes: int = Field(
        1 << 30,
        ge=0,
        description="Bytes that stay free on the disk of a local lake: nothing is staged below it. "
        "Of another lake's index nothing is copied below it to the home's disk.",
    )

    checks_cron: str = Field(
        "*/5 * * * *",
        description="When completeness, freshness, schema, duplicates and share of rejects are "
        "checked: cron, in UTC.",
    )
    housekeeping_cron: str = Field(
        "17 3 * * *", description="When housekeeping runs: cron, in UTC."
    )
    keep_runs_days: int = Field(
        7,
        ge=0,
        description="Days after which Dagster's runs are deleted; their batches stay on record. "
        "0: never.",
    )
    keep_replaced_days: int = Field(
        7,
        ge=0,
        description="Days for which a date that was rebuilt or re-enriched can be brought back.",
    )
    keep_staged_days: int = Field(
        0,
        ge=0,
        description="Days after which a date's staged files are deleted, once ClickHouse is proved "
        "to hold all of it; it cannot be rebuilt from then on. 0: never.",
    )
    keep_dead_letters_days: int = Field(
        0,
        ge=0,
        description="Days after which a date's dead letters are deleted, files and rows, redriven "
        "or not. 0: never.",
    )
    keep_events_days: int = Field(
        0,
        ge=0,
        description="Days after which a date of the table events is dropped; it can be rebuilt as "
        "long as its staged files are kept. 0: never.",
    )
    keep_keys_days: int = Field(
        35,
        ge=0,
        description="Days after which a date's index of duplicates is deleted; it is made anew "
        "when it is needed. 0: never.",
    )
    keep_ledger_days: int = Field(
        0,
        ge=0,
        description="Days after which the ledger forgets the batches of a date that has no file "
        "left, and what is over: alarms, rebuilds. 0: never.",
    )
    alarm_webhook_url: str = Field(
        "",
        description="Where alarms are posted, as JSON with a `text` that chat services show; "
        "empty: they stand in the log alone.",
    )
    alarm_webhook_headers: dict[str, str] = Field(
        default_factory=dict,
        description="Headers of that request, as JSON (Authorization, …).",
    )
    alarm_interval_seconds: int = Field(
        60, ge=5, description="Seconds between two looks at what there is to be alarmed about."
    )
    alarm_oldest_seconds: float = Field(
        900.0,
        ge=0,
        description="Seconds after the next tick of its cadence that a record may wait to be "
        "loaded before there is an alarm and the check freshness is red. 0: any.",
    )
    alarm_lag_records: int = Field(
        0, ge=0, description="Records of a topic that may wait before there is an alarm. 0: any."
    )
    alarm_retention_seconds: float = Field(
        21_600.0,
        ge=0,
        description="Seconds before Kafka forgets an unread record at which there is an alarm; "
        "half of the topic's retention at most. 0: none.",
    )
    alarm_failing_seconds: float = Field(
        300.0,
        ge=0,
        description="Seconds that something may fail, and be tried again by itself, before there "
        "is an alarm.",
    )
    alarm_missed_ticks: int = Field(
        5,
        ge=1,
        description="Ticks of the cadence that may pass over unread records without a new batch "
        "before there is an alarm.",
    )

    capture_ack_timeout_ms: int = Field(
        5_000,
        ge=100,
        description="Milliseconds Kafka has to acknowledge before the API says 503.",
    )
    capture_max_body_bytes: int = Field(
        20 << 20,
        ge=1024,
        description="Largest request body, as it comes over the wire.",
    )
    capture_max_decompressed_bytes: int = Field(
        100 << 20,
        ge=1024,
        description="Largest content of a compressed request body; the bytes in flight bound it, "
        "too.",
    )
    capture_v1_max_compressed_bytes: int = Field(
        10 << 20,
        ge=1024,
        description="Largest body of a v1 request as it is sent, compressed or not.",
    )
    capture_v1_max_decompressed_bytes: int = Field(
        50 << 20,
        ge=1024,
        description="Largest body of a v1 request after decompression.",
    )
    capture_max_inflight_bytes: int = Field(
        256 << 20, ge=1 << 20, description="Request bytes held at once; beyond it: 503."
    )
    capture_linger_ms: int = Field(
        2, ge=0, description="Milliseconds the producer waits to fill a Kafka batch."
    )
    capture_workers: int = Field(
        1, ge=1, le=256, description="Processes that serve the capture API's port; one a core."
    )
    capture_rate_limits: Mode = Field(
        Mode.ENFORCE,
        description="What the rate limits do: enforce (429), dry_run (count and log), off.",
    )
    capture_project_events_per_second: float = Field(
        0, ge=0, description="Events a second that a project may send; 0: any number."
    )
    capture_project_burst_events: int = Field(
        0, ge=0, description="Events that a project may send at once; 0: those of ten seconds."
    )
    capture_address_requests_per_second: float = Field(
        0, ge=0, description="Requests a second that a client address may send; 0: any number."
    )
    capture_address_burst_requests: int = Field(
        0, ge=0, description="Requests that an address may send at once; 0: those of ten seconds."
    )
    capture_quotas: Mode = Field(
        Mode.ENFORCE, description="What daily quotas do: enforce, dry_run (count and log), off."
    )
    capture_daily_quota: int = Field(
        0,
        ge=0,
        description="Events that a project may send a UTC day, unless it has its own; 0: any.",
    )
    capture_overflow: Mode = Field(
        Mode.ENFORCE,
        description="Whether hot keys go to <topic>_overflow: enforce, dry_run, off.",
    )
    capture_overflow_events_per_second: float = Field(
        1_000,
        gt=0,
        description="Events a second, over ten seconds, that make a person's key too hot for its "
        "partition.",
    )
    capture_overflow_keeps_key: bool = Field(
        False,
        description="Keep overflowing events of a person in one partition, and so in order.",
    )
    capture_redis_url: str = Field(
        "",
        description="Redis or Valkey in which replicas share their rate limits; empty: each worker "
        "has its own.",
    )
    log_format: LogFormat = Field(
        LogFormat.TEXT,
        description="Log lines of the capture API: text, or json (an object a line).",
    )
    capture_unknown_tokens: Mode = Field(
        Mode.ENFORCE,
        description="Events whose token no project has: enforce (401), dry_run (taken in, counted "
        "and logged), off (taken in); those taken in become dead letters.",
    )
    capture_leave_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds between SIGTERM, when readiness turns 503, and the end of accepting.",
    )
    capture_spool_dir: str = Field(
        "",
        description="Folder on a disk of its own where the API keeps accepted events while Kafka "
        "is away; empty: none, and it answers 503.",
    )
    capture_spool_max_bytes: int = Field(
        1 << 30, ge=1 << 20, description="Bytes that the spool of one worker may take; then 503."
    )
    capture_scripts_dir: str = Field(
        "",
        description="Folder with posthog-js's `dist` from npm, served on /static/ for PostHog's "
        "HTML snippet; empty: none, and these paths are 404.",
    )
    capture_project_refresh_seconds: float = Field(
        2.0, gt=0, description="Seconds between looks at the project list."
    )

    capture_max_connections: int = Field(
        10_000, ge=1, description="Connections a worker keeps; beyond it: 503."
    )
    capture_head_timeout_seconds: float = Field(
        10.0, gt=0, description="Seconds a client has to send a request's headers."
    )
    capture_keep_alive_seconds: float = Field(
        75.0,
        gt=0,
        description="Seconds a connection may be idle between requests; longer than a gateway "
        "keeps it (60 in deploy/gateway).",
    )
    capture_stall_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description="Seconds a body may take besides those of its bytes at 64 kB/s, or the rest of "
        "a refused one, or answers may be left unread.",
    )
    capture_trusted_proxies: str = Field(
        "",
        description="Addresses or networks (10.0.0.0/8, …) of the gateways whose X-Forwarded-For "
        "and X-Request-Id the capture API believes; empty: nobody's.",
    )

    @field_validator("capture_trusted_proxies")
    @classmethod
    def _trusted_proxies_are_networks(cls, text: str) -> str:
        _networks(text)
        return text

    @field_validator("cadence", "cadence_overflow", "cadence_historical")
    @classmethod
    def _cadence_makes_sense(cls, text: str, info: ValidationInfo) -> str:
        if text or info.field_name == "cadence":
            Cadence(text)
        return text

    @field_validator("checks_cron", "housekeeping_cron")
    @classmethod
    def _is_five_fields_of_cron(cls, text: str) -> str:
        if len(text.split()) != 5 or not is_cron(text):
            raise ValueError(f"{text!r} is no cron expression: write five fields, 17 3 * * *")
        return text

    @field_validator("keep_staged_days", "keep_events_days", "keep_keys_days")
    @classmethod
    def _kept_for_the_window(cls, days: int, info: ValidationInfo) -> int:
        window = info.data.get("duplicate_window_days", 0)
        if 0 < days < window:
            raise ValueError(
                f"{days} is below TIDEMARK_DUPLICATE_WINDOW_DAYS, {window}: duplicates are looked "
                "for there"
            )
        return days

    @field_validator("keep_ledger_days")
    @classmethod
    def _ledger_outlives_files(cls, days: int, info: ValidationInfo) -> int:
        if not days:
            return days
        for name in ("keep_staged_days", "keep_dead_letters_days", "keep_keys_days"):
            variable, kept = variable_of(name), info.data.get(name, 1)
            if not kept:
                raise ValueError(
                    f"{variable} is 0, so files are kept for ever, and their rows with them: set "
                    "both, or neither"
                )
            if kept > days:
                raise ValueError(f"{days} is below {variable}, {kept}: files need their rows")
        if info.data.get("keep_events_days", 0) > days:
            raise ValueError(f"{days} is below TIDEMARK_KEEP_EVENTS_DAYS: rows need their batches")
        return days

    @field_validator("clickhouse_url")
    @classmethod
    def _clickhouse_is_http(cls, url: str) -> str:
        if url and not is_http(url):
            raise ValueError("not an address of ClickHouse: write https://HOST:PORT")
        return url

    @field_validator("alarm_webhook_url")
    @classmethod
    def _webhook_is_http(cls, url: str) -> str:
        if url and not is_http(url):
            raise ValueError("not an address of a webhook: write https://HOST/PATH")
        if has_login(url):
            raise ValueError(
                "user and password do not go there: write them as TIDEMARK_ALARM_WEBHOOK_HEADERS, "
                '{"Authorization": "Basic …"}'
            )
        return url

    @field_validator("capture_redis_url")
    @classmethod
    def _redis_url_has_a_scheme(cls, url: str) -> str:
        if url and not is_redis(url):
            raise ValueError(
                "not an address of Redis: write redis://HOST:PORT/0, rediss:// or unix://"
            )
        return url

    @field_validator("home", mode="before")
    @classmethod
    def _empty_home_is_unset(cls, home: object) -> object:
        return DEFAULT_HOME if home == "" else home

    @field_validator("home")
    @classmethod
    def _home_is_absolute(cls, home: Path) -> Path:
        return _absolute_folder(home)

    @field_validator("topic")
    @classmethod
    def _topic_is_one_of_kafka(cls, topic: str) -> str:
        if not _TOPIC.fullmatch(topic):
            raise ValueError("not a topic of Kafka: write letters, digits, dots, - and _")
        return topic

    @field_validator("clickhouse_database")
    @classmethod
    def _database_is_an_identifier(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("not a database's name: write letters, digits and _")
        return name

    @field_validator("lake_uri")
    @classmethod
    def _lake_is_an_absolute_folder_or_a_store(cls, uri: str) -> str:
        scheme, is_uri, _ = uri.partition("://")
        if is_uri and scheme not in _STORES:
            raise ValueError("no such store: write a folder, s3://BUCKET/PATH, gs://… or abfs://…")
        if is_s3(uri):
            s3_address(uri, {})
        return uri if not uri or is_uri else str(_absolute_folder(Path(uri)))

    @field_validator("ledger_url")
    @classmethod
    def _ledger_file_is_absolute(cls, url: str) -> str:
        if not url:
            return url
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise ValueError(
                "not a database URL: write sqlite:///FILE or postgresql+psycopg2://USER@HOST/NAME"
            ) from None
        file = parsed.database or ""
        if parsed.get_backend_name() != "sqlite" or file.startswith((":memory:", "file:")):
            return url
        if not file:
            raise ValueError("the ledger needs a file: write sqlite:///FILE")
        absolute = parsed.set(database=str(Path(file).expanduser().absolute()))
        return absolute.render_as_string(hide_password=False)

    @field_validator("dagster_storage_url")
    @classmethod
    def _dagster_storage_is_postgresql(cls, url: str) -> str:
        if not url:
            return url
        how = "write postgresql://USER:PASSWORD@HOST/NAME, or nothing for SQLite"
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise ValueError(f"not a database URL: {how}") from None
        if parsed.drivername.partition("+")[0] not in ("postgresql", "postgres"):
            raise ValueError(f"Dagster's storage is SQLite or PostgreSQL: {how}")
        # The driver that Dagster speaks to; without its name SQLAlchemy would take another.
        named = parsed.set(drivername="postgresql+psycopg2")
        return named.render_as_string(hide_password=False)

    @classmethod
    def dagster_storage_url_of(cls, home: Path) -> str:
        """That setting alone, whatever is wrong with others: Dagster's storage opens all the same.

        Raises pydantic's ValidationError when it makes no sense itself.
        """
        name = "dagster_storage_url"
        field = cls.model_fields[name]
        for source in (
            EnvSettingsSource(cls),
            DotEnvSettingsSource(cls, env_file=home / SETTINGS_FILE),
        ):
            url, _, _ = source.get_field_value(field, name)
            if url is not None:
                empty = cls.model_construct()
                cls.__pydantic_validator__.validate_assignment(empty, name, url)
                return empty.dagster_storage_url
        return ""

    def environment(self) -> dict[str, str]:
        """Environment variables under which a child of this process has these same settings.

        Only what the child would not find out by itself, from what it inherits or from
        settings.env: that file can then still be changed while the child runs.
        """
        otherwise = Settings(home=self.home).model_dump(mode="json")
        return {"TIDEMARK_HOME": str(self.home)} | {
            variable_of(name): value if isinstance(value, str) else json.dumps(value)
            for name, value in self.model_dump(mode="json").items()
            if value != otherwise[name]
        }

    @cached_property
    def bootstrap_servers(self) -> str:
        """Kafka's bootstrap servers, local or configured."""
        return self.kafka_bootstrap_servers or f"127.0.0.1:{self.kafka_port}"

    @cached_property
    def historical_topic(self) -> str:
        """Where historical migrations go, so that they hold up no fresh events."""
        return f"{self.topic}_historical"

    @cached_property
    def overflow_topic(self) -> str:
        """Where the events of keys that are too hot for one partition go."""
        return f"{self.topic}_overflow"

    @cached_property
    def topics(self) -> tuple[str, str, str]:
        """Every topic that the capture API writes and micro-batches read."""
        return self.topic, self.historical_topic, self.overflow_topic

    @cached_property
    def own_cadences(self) -> dict[str, str]:
        """The topics that do not go with the main one, and their cadences."""
        said = {
            self.overflow_topic: self.cadence_overflow,
            self.historical_topic: self.cadence_historical,
        }
        return {topic: cadence for topic, cadence in said.items() if cadence}

    def cadence_of(self, topic: str) -> Cadence:
        """How often micro-batches take a topic."""
        return Cadence(self.own_cadences.get(topic, self.cadence))

    @cached_property
    def trusted_proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of the gateways that the capture API believes."""
        return _networks(self.capture_trusted_proxies)

    @cached_property
    def topics_by_urgency(self) -> tuple[str, str, str]:
        """The same topics in the order in which a micro-batch takes them."""
        return self.topic, self.overflow_topic, self.historical_topic

    @cached_property
    def kafka_client(self) -> dict[str, str]:
        """What every Kafka client starts from: the servers and the options passed through."""
        return {"bootstrap.servers": self.bootstrap_servers, **self.kafka_options}

    @cached_property
    def clickhouse_address(self) -> str:
        """ClickHouse's HTTP address, local or configured."""
        return self.clickhouse_url or f"http://127.0.0.1:{self.clickhouse_port}"

    @cached_property
    def lake(self) -> str:
        """The lake's root as a URI or an absolute folder."""
        return self.lake_uri or str(self.home / "lake")

    @cached_property
    def ledger(self) -> str:
        """The ledger's SQLAlchemy URL."""
        if self.ledger_url:
            return self.ledger_url
        return URL.create("sqlite", database=str(self.home / "ledger.db")).render_as_string()

    @cached_property
    def capture_address(self) -> str:
        """Where the local capture API answers."""
        return f"http://127.0.0.1:{self.capture_port}"

    @cached_property
    def dagster_address(self) -> str:
        """Where the local Dagster UI answers."""
        return f"http://127.0.0.1:{self.dagster_port}"
