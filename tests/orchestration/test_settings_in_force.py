"""A cadence that makes no sense: the last good one stays in force, and everybody says so."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from capture_api import __main__ as capture_api
from local_stack.processes import start, stop_all, wait_ready
from orchestration.alarms.sensor import Watch
from orchestration.cli import tidemark
from orchestration.definitions import definitions
from orchestration.services import LOCATION, dagster_services
from orchestration.settings import SETTINGS_FILE, Settings
from orchestration.settings_in_force import (
    SettingsTrouble,
    note_cadences,
    settings_in_force,
)
from orchestration.webserver import ask
from tests.conftest import unused_port
from tests.stack import Stack

NewSettings = Callable[..., Settings]

TOLD = (
    "TIDEMARK_CADENCE: cadence '7x' is neither an interval (30s, 1m, 2h) nor a five-field cron "
    "expression (*/5 * * * *). 10s stays in force until it is mended and the code is reloaded"
)


@pytest.fixture
def write(
    settings: NewSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Writes a home's settings.env."""
    settings()  # clears the environment
    monkeypatch.setenv("TIDEMARK_HOME", str(tmp_path))

    def write(**values: str) -> None:
        lines = [f"TIDEMARK_{name.upper()}={value}\n" for name, value in values.items()]
        (tmp_path / SETTINGS_FILE).write_text("".join(lines))

    return write


def test_the_last_good_cadence_stays_in_force(write: Callable[..., None]) -> None:
    """With what is wrong; other settings are taken as they are written, good cadences too."""
    write(cadence="10s", cadence_overflow="30s")
    note_cadences(settings_in_force().settings)
    write(cadence="7x", cadence_overflow="1h", batch_max_records="7")
    found = settings_in_force()
    assert found.trouble == TOLD
    assert (found.settings.cadence, found.settings.cadence_overflow) == ("10s", "1h")
    assert found.settings.batch_max_records == 7
    # What is in force is what the next bad one leaves there.
    note_cadences(found.settings)
    write(cadence="5m", cadence_overflow="often", cadence_historical="seldom")
    found = settings_in_force()
    assert (found.settings.cadence, found.settings.cadence_overflow) == ("5m", "1h")
    assert "TIDEMARK_CADENCE_OVERFLOW: cadence 'often'" in found.trouble
    assert "seldom" in found.trouble
    assert "going with the main topic stays in force" in found.trouble
    write(cadence="5m")
    assert settings_in_force().trouble == ""


@pytest.mark.parametrize("note", [None, "no JSON", "[]", '{"cadence": "8x"}', '{"cadence": 5}'])
def test_without_a_good_one_the_error_stands(
    write: Callable[..., None], tmp_path: Path, note: str | None
) -> None:
    """Nothing was ever in force here, or what was noted is not to be read."""
    write(cadence="7x")
    if note is not None:
        (tmp_path / "cadences.json").write_text(note)
    with pytest.raises(ValidationError, match="cadence '7x' is neither"):
        settings_in_force()


def test_another_bad_setting_is_refused_as_ever(write: Callable[..., None]) -> None:
    """Beside a bad cadence, too."""
    write()
    note_cadences(settings_in_force().settings)
    write(cadence="7x", batch_max_records="none")
    with pytest.raises(ValidationError, match="batch_max_records"):
        settings_in_force()


def test_a_note_that_cannot_be_written_stops_nothing(
    settings: NewSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, once it matters."""
    (tmp_path / "file").write_text("")
    note_cadences(settings(home=tmp_path / "file" / "below"))
    assert "cannot be noted" in caplog.text


def test_every_surface_tells_of_it(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """The trigger's description, each tick that starts nothing, and an alarm."""
    stack = new_stack(cadence="10s").make_topic()
    for own in ({}, {"cadence_historical": "0 3 * * *"}):
        made = definitions(stack.settings.model_copy(update=own), TOLD).get_repository_def()
        triggers = [*made.sensor_defs, *made.schedule_defs]
        described = {t.name: t.description or "" for t in triggers if "micro_batch" in t.name}
        assert len(described) == 1 + len(own)
        assert all(text.startswith(f"NOT AS WRITTEN: {TOLD}") for text in described.values())
    sensor = made.get_sensor_def("micro_batch_sensor")
    with dg.build_sensor_context(instance=instance, repository_def=made) as context:
        skipped = sensor.evaluate_tick(context)
        assert skipped.skip_message == f"nothing in Kafka waits to be loaded ({TOLD})"
        stack.send_numbers(range(3))
        assert len(sensor.evaluate_tick(context).run_requests or ()) == 1
    assert "1 alarms stand: settings" in Watch(stack.settings, 0, TOLD).tell(instance)
    assert "nothing to be alarmed about" in Watch(stack.settings, 0).tell(instance)


def test_the_commands_tell_of_it(write: Callable[..., None], kafka: str) -> None:
    """`status` shows it beside all else, `settings` fails with what would do."""
    write(cadence="10s", kafka_bootstrap_servers=kafka)
    call = CliRunner().invoke
    assert "TIDEMARK_CADENCE=10s" in call(tidemark, ["settings"]).output
    note_cadences(settings_in_force().settings)
    write(cadence="7x", kafka_bootstrap_servers=kafka)
    failed = call(tidemark, ["settings"])
    assert isinstance(failed.exception, SettingsTrouble)
    assert (str(failed.exception), failed.stdout) == (TOLD, "")
    assert "ATTENTION TIDEMARK_CADENCE: cadence '7x'" in call(tidemark, ["status"]).output
    assert json.loads(call(tidemark, ["status", "--json"]).output)["trouble"] == [TOLD]


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("command", ["alarms", "batch", "gaps", "retry --all", "down", "status"])
def test_commands_that_need_no_cadence_go_on(
    write: Callable[..., None], new_stack: Callable[..., Stack], command: str, noted: bool
) -> None:
    """They say what is wrong with it, and do their work, whether or not one was ever in force."""
    given = new_stack().make_topic().settings
    others = {
        "kafka_bootstrap_servers": given.kafka_bootstrap_servers,
        "clickhouse_url": given.clickhouse_url,
        "clickhouse_database": given.clickhouse_database,
        "topic": given.topic,
    }
    write(cadence="10s", **others)
    if noted:
        note_cadences(settings_in_force().settings)
    write(cadence="7x", **others)
    done = CliRunner().invoke(tidemark, command.split())
    assert done.exception is None, done.exception
    told = "ATTENTION TIDEMARK_CADENCE:" if command == "status" else "tidemark: TIDEMARK_CADENCE:"
    assert f"{told} cadence '7x' is neither" in done.output
    write(cadence="7x", capture_port="none", **others)
    assert "capture_port" in str(CliRunner().invoke(tidemark, command.split()).exception)


def test_the_capture_api_needs_no_cadence(
    write: Callable[..., None], kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It serves with one that makes no sense, and so does a worker that is started anew."""
    write(cadence="7x", kafka_bootstrap_servers=kafka)
    served: list[Any] = []
    monkeypatch.setattr("capture_api.__main__.uvicorn.run", lambda *args, **_: served.append(args))
    monkeypatch.setattr("sys.argv", ["capture_api"])
    monkeypatch.setattr("capture_api.__main__.signal.signal", lambda *_: None)
    assert capture_api.main() == 0
    assert len(served) == 1
    assert capture_api.worker_app() is not None


TRIGGERS = """
{ workspaceOrError { __typename ... on Workspace { locationEntries {
    locationOrLoadError { __typename ... on PythonError { message }
      ... on RepositoryLocation { repositories {
        sensors { name description minIntervalSeconds }
        schedules { name description cronSchedule } } } } } } } }
"""
RELOAD = """
mutation Reload($location: String!) {
  reloadRepositoryLocation(repositoryLocationName: $location) { __typename } }
"""
TICK = """
mutation Tick($selector: SensorSelector!) {
  sensorDryRun(selectorData: $selector, cursor: "") { __typename
    ... on DryRunInstigationTick { evaluationResult { skipReason error { message } } }
    ... on PythonError { message } } }
"""


class CodeServer:
    """A real code server over Tidemark's definitions, and the webserver that asks it."""

    def __init__(self, home: Path, kafka: str) -> None:
        self.home = home
        self.kafka = kafka
        self.settings = Settings(home=home, dagster_port=unused_port())

    def write(self, cadence: str) -> None:
        """What stands in settings.env."""
        (self.home / SETTINGS_FILE).write_text(
            f"TIDEMARK_CADENCE={cadence}\nTIDEMARK_KAFKA_BOOTSTRAP_SERVERS={self.kafka}\n"
        )

    @contextmanager
    def up(self) -> Iterator[None]:
        """Both run; their ends are waited for."""
        services = dagster_services(self.settings)[:2]
        try:
            for service in services:
                start(service, self.home)
            for service in services:
                wait_ready(service, self.home, 180.0)
            yield
        finally:
            stop_all(self.home)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The webserver's answer."""
        return ask(self.settings.dagster_address, query, **variables)

    def triggers(self) -> dict[str, tuple[Any, str]]:
        """Each trigger of micro-batches: how often it looks, and its description."""
        [entry] = self.ask(TRIGGERS)["workspaceOrError"]["locationEntries"]
        loaded = entry["locationOrLoadError"]
        assert loaded["__typename"] == "RepositoryLocation", loaded
        [repository] = loaded["repositories"]
        return {
            each["name"]: (each.get("cronSchedule") or each.get("minIntervalSeconds"), description)
            for each in [*repository["sensors"], *repository["schedules"]]
            if (description := each["description"] or "") and "micro_batch" in each["name"]
        }

    def reloaded(self, until: Callable[[dict[str, tuple[Any, str]]], bool]) -> None:
        """Press Reload, and wait until the triggers are as they are to be."""
        self.ask(RELOAD, location=LOCATION)
        end = time.monotonic() + 120.0
        while not until(self.triggers()):
            assert time.monotonic() < end, self.triggers()
            time.sleep(0.1)

    def tick(self, name: str) -> str:
        """Why a tick of now starts nothing."""
        selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": LOCATION,
            "sensorName": name,
        }
        answer = self.ask(TICK, selector=selector)["sensorDryRun"]
        assert answer["__typename"] == "DryRunInstigationTick", answer
        assert answer["evaluationResult"]["error"] is None, answer
        return str(answer["evaluationResult"]["skipReason"])


def test_reload_in_the_real_code_server(
    settings: NewSettings, tmp_path_factory: pytest.TempPathFactory, kafka: str
) -> None:
    """The location stays loaded with the cadence of before; mended, the new one is in force.

    A code server that is started anew over the bad one comes up as well.
    """
    settings()  # clears the environment
    server = CodeServer(tmp_path_factory.mktemp("reload"), kafka)
    server.write("10s")
    with server.up():
        assert server.triggers()["micro_batch_sensor"][0] == 10
        server.write("7x")
        server.reloaded(lambda triggers: TOLD in triggers["micro_batch_sensor"][1])
        assert server.triggers()["micro_batch_sensor"][0] == 10
        assert server.tick("micro_batch_sensor").endswith(f"({TOLD})")
    with server.up():
        assert TOLD in server.triggers()["micro_batch_sensor"][1]
        server.write("5m")
        server.reloaded(lambda triggers: "micro_batch_schedule" in triggers)
        assert server.triggers()["micro_batch_schedule"][0] == "*/5 * * * *"
        assert "7x" not in server.triggers()["micro_batch_schedule"][1]
    shutil.rmtree(server.home, ignore_errors=True)
