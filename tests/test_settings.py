"""Settings: defaults that work, environment variables, and refusals that say what would do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from orchestration.cadence import Cadence
from orchestration.settings import Settings


@pytest.mark.parametrize(
    ("text", "cron", "seconds"),
    [
        ("5s", None, 5),
        ("30s", None, 30),
        (" 55 s ", None, 55),
        ("60s", "* * * * *", None),
        ("1m", "* * * * *", None),
        ("120s", "*/2 * * * *", None),
        ("15m", "*/15 * * * *", None),
        ("60m", "0 * * * *", None),
        ("2h", "0 */2 * * *", None),
        ("24h", "0 0 * * *", None),
        ("*/5 * * * *", "*/5 * * * *", None),
        ("0 4 * * MON", "0 4 * * MON", None),
    ],
)
def test_a_cadence_is_an_interval_or_cron(text: str, cron: str | None, seconds: int | None) -> None:
    """Under a minute a cadence is seconds; otherwise it is a cron expression."""
    cadence = Cadence(text)
    assert (cadence.cron, cadence.interval_seconds) == (cron, seconds)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "neither an interval"),
        ("often", "neither an interval"),
        ("1d", "neither an interval"),
        ("-5s", "neither an interval"),
        ("@daily", "neither an interval"),
        ("* * * * * *", "neither an interval"),
        ("61 * * * *", "neither an interval"),
        ("0s", "is below 5s"),
        ("4s", "is below 5s"),
        ("0m", "is below 5s"),
        ("7s", "must be a multiple of 5s"),
        ("90s", "does not divide an hour or a day evenly"),
        ("7m", "does not divide an hour or a day evenly"),
        ("5h", "does not divide an hour or a day evenly"),
        ("48h", "does not divide an hour or a day evenly"),
    ],
)
def test_a_cadence_that_makes_no_sense_is_refused(text: str, told: str) -> None:
    """The refusal names the text and what is wrong with it."""
    with pytest.raises(ValueError, match=told) as refused:
        Cadence(text)
    assert repr(text) in str(refused.value)


def test_the_defaults_are_those_of_one_machine(settings: Callable[..., Settings]) -> None:
    """Without any variable everything is on loopback and below the home."""
    found = settings()
    assert found.bootstrap_servers == "127.0.0.1:9092"
    assert found.clickhouse_address == "http://127.0.0.1:8123"
    assert found.lake == str(found.home / "lake")
    assert found.ledger == f"sqlite:///{found.home}/ledger.db"
    assert found.kafka_client == {"bootstrap.servers": "127.0.0.1:9092"}
    assert Cadence(found.cadence).cron == "* * * * *"


def test_the_environment_sets(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each setting is a variable TIDEMARK_…; what is configured takes the place of the local."""
    variables = {
        "HOME": str(tmp_path / "elsewhere"),
        "KAFKA_BOOTSTRAP_SERVERS": "kafka:9093",
        "KAFKA_OPTIONS": '{"security.protocol": "SASL_SSL"}',
        "CLICKHOUSE_URL": "https://clickhouse:8443",
        "LAKE_URI": "s3://bucket/lake",
        "LEDGER_URL": "postgresql+psycopg2://ledger",
        "CADENCE": "30s",
        "BATCH_MAX_RECORDS": "7",
    }
    settings()  # clears away what the machine has set
    for name, value in variables.items():
        monkeypatch.setenv(f"TIDEMARK_{name}", value)
    found = Settings()
    assert found.home == tmp_path / "elsewhere"
    assert found.kafka_client == {
        "bootstrap.servers": "kafka:9093",
        "security.protocol": "SASL_SSL",
    }
    assert found.clickhouse_address == "https://clickhouse:8443"
    assert found.lake == "s3://bucket/lake"
    assert found.ledger == "postgresql+psycopg2://ledger"
    assert found.batch_max_records == 7


def test_a_relative_home_is_made_absolute(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that changes its folder later keeps its home."""
    monkeypatch.chdir(tmp_path)
    assert settings(home=".tidemark").home == tmp_path / ".tidemark"
    assert settings(home="~/x").home == Path.home() / "x"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cadence", "often"),
        ("batch_max_records", 0),
        ("batch_max_bytes", 10),
        ("duplicate_window_days", 0),
        ("kafka_partitions", 0),
        ("kafka_options", "not JSON"),
        ("capture_ack_timeout_ms", 1),
    ],
)
def test_nonsense_is_refused_by_name(
    settings: Callable[..., Settings], name: str, value: object
) -> None:
    """The refusal says which setting it is about."""
    with pytest.raises(ValidationError, match=name):
        settings(**{name: value})


def test_every_setting_has_a_sentence() -> None:
    """`tidemark settings` has something to say about each of them."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


SECRETS: dict[str, object] = {
    "kafka_options": {"sasl.password": "hunter2"},
    "clickhouse_url": "https://me:hunter2@ch:8443",
    "clickhouse_password": "hunter2",
    "lake_uri": "s3://me:hunter2@bucket/lake?region=r",
    "ledger_url": "postgresql+psycopg2://me:hunter2@db/ledger",
    "dagster_storage_url": "postgresql://me:hunter2@db/dagster",
    "alarm_webhook_url": "https://chat/hooks/hunter2",
    "alarm_webhook_headers": {"Authorization": "Bearer hunter2"},
    "capture_redis_url": "redis://:hunter2@redis:6379/0",
}


def test_a_secret_is_not_shown(settings: Callable[..., Settings]) -> None:
    """Neither by `tidemark settings` nor where a log prints them; where things are, is."""
    found = settings(**SECRETS)
    assert "hunter2" not in repr(found)
    shown = {name: found.shown(name) for name in Settings.model_fields}
    assert [name for name, text in shown.items() if "hunter2" in text] == []
    assert shown["alarm_webhook_url"] == "https://chat/********"
    assert shown["ledger_url"] == "postgresql+psycopg2://********@db/ledger"
    assert shown["kafka_options"] == "{'sasl.password': '********'}"
    assert settings().shown("alarm_webhook_url") == ""


def test_no_setting_that_may_hold_a_secret_is_forgotten() -> None:
    """Whatever is an address, a password or a set of options of somebody else."""
    may = re.compile(r"_(url|uri|password|options|headers|token|secret)$")
    assert {name for name in Settings.model_fields if may.search(name)} == set(SECRETS)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("clickhouse_url", "ch:8123", "write https://HOST:PORT"),
        ("clickhouse_url", "http://me:hunter/2@ch", "write https://HOST:PORT"),
        ("capture_redis_url", "redis://:hunter/2@r", "write redis://HOST:PORT/0"),
        ("alarm_webhook_url", "https://me:hunter2@chat/x", "TIDEMARK_ALARM_WEBHOOK_HEADERS"),
        ("alarm_webhook_url", "https://chat/hunter 2", "write https://HOST/PATH"),
        ("lake_uri", "s4://me:hunter2@bucket", "write a folder, s3://BUCKET/PATH"),
        ("lake_uri", "s3://me:hunter/2@bucket", "each / in them as %2F"),
        ("lake_uri", "s3://hunter_2:x/y", "no name of a bucket"),
        ("lake_uri", "s3://bucket?secret=hunter2", "none of region, endpoint_override"),
    ],
)
def test_an_address_that_no_library_can_read_is_refused(
    settings: Callable[..., Settings], name: str, value: str, told: str
) -> None:
    """With what would do, and without what was written."""
    with pytest.raises(ValidationError, match=name) as refused:
        settings(**{name: value})
    assert told in str(refused.value)
    assert "hunter" not in str(refused.value)


@pytest.mark.parametrize("name", ["dagster_storage_url", "ledger_url", "capture_redis_url"])
def test_a_refusal_does_not_show_what_was_written(
    settings: Callable[..., Settings], name: str
) -> None:
    """It goes to logs and to the UI, and an address with a slip in it may hold a password."""
    with pytest.raises(ValidationError, match=name) as refused:
        settings(**{name: "postgrs:/me:hunter2@db/dagster"})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("sign", list("?*{}[]"))
@pytest.mark.parametrize("name", ["home", "lake_uri"])
def test_a_folder_that_reads_as_a_pattern_is_refused(
    settings: Callable[..., Settings], tmp_path: Path, name: str, sign: str
) -> None:
    """The engines would match such a path against files: the refusal names the sign."""
    with pytest.raises(ValidationError, match="read as a pattern") as refused:
        settings(**{name: f"{tmp_path}/a{sign}b"})
    assert f" has {sign} in its path" in str(refused.value)


def test_an_empty_home_is_unset(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TIDEMARK_HOME= does not put everything into the present folder."""
    settings()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEMARK_HOME", "")
    (tmp_path / ".tidemark").mkdir()
    (tmp_path / ".tidemark" / "settings.env").write_text("TIDEMARK_CADENCE=2h\n")
    found = Settings()
    assert (found.home, found.cadence) == (tmp_path / ".tidemark", "2h")


def test_relative_places_are_made_absolute(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Services run in another folder, and find the same ledger and the same lake."""
    monkeypatch.chdir(tmp_path)
    found = settings(ledger_url="sqlite:///my.db", lake_uri="my lake")
    assert found.ledger == f"sqlite:///{tmp_path}/my.db"
    assert found.lake == str(tmp_path / "my lake")
    assert settings(lake_uri="s3://bucket/x?region=y").lake == "s3://bucket/x?region=y"
    far = "postgresql+psycopg2://u:p%40ss@db/tidemark"
    assert settings(ledger_url=far).ledger == far


def test_a_ledger_in_an_odd_folder_is_the_file_it_says(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """No character of the home's path changes the meaning of the ledger's URL."""
    home = tmp_path / "100%41 #ü@:&"
    assert make_url(settings(home=home).ledger).database == str(home / "ledger.db")


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "sqlite:///"])
def test_a_ledger_that_is_no_file_or_database_is_refused(
    settings: Callable[..., Settings], url: str
) -> None:
    """The refusal says how a ledger's URL is written."""
    with pytest.raises(ValidationError, match="sqlite:///FILE"):
        settings(ledger_url=url)


@pytest.mark.parametrize("port", [0, -1, 65536])
@pytest.mark.parametrize("name", ["capture_port", "dagster_port", "kafka_port", "clickhouse_port"])
def test_a_port_is_one_that_exists(settings: Callable[..., Settings], name: str, port: int) -> None:
    """1 to 65535, for all four."""
    with pytest.raises(ValidationError, match=name):
        settings(**{name: port})


def test_a_topic_beside_the_main_one_has_its_cadence_unless_its_own_is_said(
    settings: Callable[..., Settings],
) -> None:
    """And that is checked as the main one's is."""
    made = settings(cadence="30s", cadence_historical="0 3 * * *")
    assert [made.cadence_of(topic).text for topic in made.topics_by_urgency] == [
        "30s",
        "30s",
        "0 3 * * *",
    ]
    with pytest.raises(ValidationError, match="must be a multiple of 5s"):
        settings(cadence_overflow="7s")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_dagsters_storage_names_the_driver_that_dagster_speaks_to(
    settings: Callable[..., Settings], scheme: str
) -> None:
    """However PostgreSQL is written, the password included."""
    found = settings(dagster_storage_url=f"{scheme}://me:s%40cret@db:5433/dagster?sslmode=require")
    url = "postgresql+psycopg2://me:s%40cret@db:5433/dagster?sslmode=require"
    assert found.dagster_storage_url == url


@pytest.mark.parametrize("url", ["nonsense", "sqlite:///dagster.db", "mysql://db/dagster"])
def test_another_storage_for_dagster_is_refused(
    settings: Callable[..., Settings], url: str
) -> None:
    """The refusal says what would be accepted."""
    with pytest.raises(ValidationError, match=r"write postgresql://USER:PASSWORD@HOST/NAME"):
        settings(dagster_storage_url=url)
