"""The whole way with the lake in a bucket of a real S3 store, and a store that fails meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner

from assets.pipeline import object_store
from assets.pipeline.batch import State
from assets.pipeline.errors import TransientError
from assets.pipeline.imports import import_file
from assets.pipeline.redrive import Wanted, redrive
from assets.pipeline.staging import stage_batches
from orchestration.cli import tidemark
from orchestration.housekeeping.keys import let_go_of_index
from orchestration.housekeeping.letters import let_go_of_letters
from orchestration.housekeeping.staged import let_go_of_staged
from orchestration.ledger.keys import live_key_files
from orchestration.ledger.projects import create_project
from orchestration.reconcile import everything, reconcile
from tests.capture_api.conftest import Capture
from tests.exports import lines_of
from tests.faults.conftest import Scene
from tests.faults.run_worker import AGAIN, WAITS
from tests.faults.test_killed_worker import named_in_the_ledger
from tests.faults.test_rebuild import day_of
from tests.faults.test_reenrich import by_older_code, made_by
from tests.faulty_proxy import Canned, Exchange, Fault, FaultyProxy
from tests.object_store import BUCKET, KEY, SECRET, ObjectStore
from tests.orchestration.test_letting_go import KEEP, OLD, old_stack, sent
from tests.records import Sent, uuid_of, value_of
from tests.stack import Stack

NewScene = Callable[..., Scene]

DENIED = Canned(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>", "text/xml")


@pytest.fixture
def between(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A way to the store that a test may break."""
    with FaultyProxy(bucket.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def in_the_bucket(bucket: ObjectStore, stack: Stack) -> set[str]:
    """Every object of a stack's lake, as the owner of the bucket sees it."""
    root = stack.settings.lake.removeprefix(f"s3://{BUCKET}/")
    return {name.removeprefix(f"{root}/") for name in bucket.objects(root)}


def command(stack: Stack, *arguments: str, exit_code: int = 0) -> str:
    """What a command of `tidemark` prints."""
    result = CliRunner().invoke(tidemark, arguments, env=stack.settings.environment())
    assert result.exit_code == exit_code, result.output
    return result.output


def wrong(stack: Stack) -> list[str]:
    """What an audit of everything finds, by sums and by rows."""
    found = reconcile(stack.worker(), everything(stack.worker()), by_rows=True)
    return [str(finding) for finding in found.findings]


def test_from_capture_to_the_proof(new_stack: Callable[..., Stack], bucket: ObjectStore) -> None:
    """What was posted is in the bucket and in ClickHouse, proved, and explained from both."""
    stack = new_stack(lake_uri=bucket.lake_uri()).make_topics()
    stack.settings.home.mkdir(parents=True)
    capture = Capture(stack.settings.home, stack.kafka, stack.settings.topic)
    try:
        capture.start()
        for number in (1, 2, 1):
            event = {"event": "e", "distinct_id": "d", "uuid": uuid_of(number), "properties": {}}
            assert capture.client.post("/batch/", json=capture.batch(event)).status_code == 200
    finally:
        capture.stop()
    command(stack, "batch")
    [batch] = stack.batches()
    assert batch.state is State.COMMITTED
    assert batch.staged is not None
    assert (batch.staged.balance.ok, batch.staged.balance.duplicate) == (2, 1)
    assert in_the_bucket(bucket, stack) == {
        *(file.path for file in batch.staged.files),
        *(file.path for file in live_key_files(stack.ledger, *[batch.arrival_date] * 2)),
    }
    assert wrong(stack) == []
    told = json.loads(command(stack, "explain", uuid_of(1), "--json"))
    assert sorted(one["verdict"] for one in told["records"]) == ["duplicate", "loaded"]
    for secret in (KEY, SECRET):
        assert secret not in command(stack, "status") + command(stack, "settings")


def test_a_date_is_made_anew_in_every_way(
    new_scene: NewScene, bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebuilt, enriched again and brought back, replayed where the bucket has lost its files."""
    scene = new_scene(60, batch_max_records=60, lake_uri=bucket.lake_uri())
    stack = scene.stack
    with monkeypatch.context() as older:
        older.setattr("assets.pipeline.stage.enrich", by_older_code)
        older.setattr("assets.pipeline.registering.TRANSFORM_VERSION", "0")
        stack.run()
    day = str(day_of(scene))
    command(stack, "backfill", "rebuild", day)
    command(stack, "backfill", "re-enrich", day)
    assert made_by(scene) == {("web", 1): 60}
    command(stack, "backfill", "back", day)
    assert made_by(scene) == {("older", 0): 60}
    for batch in stack.batches():
        for file in batch.staged.files if batch.staged else ():
            stack.worker().lake.delete(file.path)
    command(stack, "backfill", "replay", day)
    scene.prove()
    assert wrong(stack) == []
    named = named_in_the_ledger(scene)
    assert {name for name in in_the_bucket(bucket, stack) if "/arrival" in name} >= named


def test_letters_an_import_and_the_index_and_what_is_let_go_of(
    new_stack: Callable[..., Stack], bucket: ObjectStore
) -> None:
    """Dead letters are read again, a file of the bucket comes in, old files go, keys come back."""
    stack = old_stack(new_stack, lake_uri=bucket.lake_uri())
    project = create_project(stack.ledger, "shop")
    stack.send(Sent(value_of(200, project_id=0), key=f"{project.token}:person".encode()))
    stack.run()
    assert redrive(stack.worker(), Wanted(("unknown_project",))).letters == 1

    lines = b"".join(line + b"\n" for line in lines_of(range(300, 305)))
    with bucket.as_owner().open_output_stream(f"{BUCKET}/export.jsonl") as sink:
        sink.write(lines)
    assert import_file(stack.worker(), f"s3://{BUCKET}/export.jsonl", project.token).is_done

    today = stack.batches()[-1].arrival_date
    for file in live_key_files(stack.ledger, OLD, today):
        stack.worker().lake.delete(file.path)
    stack.send(sent(100, 0), sent(101, 0))
    stack.run()
    last = stack.batches()[-1].staged
    assert last is not None
    assert (last.balance.ok, last.balance.duplicate) == (0, 2)
    assert wrong(stack) == []

    before = in_the_bucket(bucket, stack)
    old = {name for name in before if str(OLD) in name and not name.startswith("keys/")}
    letters = {name for name in old if name.startswith("dead_letters/")}
    assert let_go_of_staged(stack.worker(), KEEP).count == len(old) - len(letters) == 3
    assert let_go_of_letters(stack.worker(), KEEP).count == 1
    assert let_go_of_index(stack.worker(), KEEP).count
    assert not [name for name in in_the_bucket(bucket, stack) if str(OLD) in name]
    assert wrong(stack) == []


@pytest.mark.matrix("files published, not registered", "a run with stagers is killed")
@pytest.mark.parametrize(("stagers", "point"), [(1, "half-published"), (2, "compared")])
def test_a_worker_is_killed(
    new_scene: NewScene, bucket: ObjectStore, stagers: int, point: str
) -> None:
    """The next one sends the files again; in the end the bucket has what the ledger names."""
    scene = new_scene(
        batch_max_records=200,
        batch_backoff_max_seconds=1e-6,
        stagers=stagers,
        lake_uri=bucket.lake_uri(),
    )
    scene.kill_at(point)
    assert scene.work_when_free() == 0
    scene.prove()
    assert in_the_bucket(bucket, scene.stack) == named_in_the_ledger(scene)


@pytest.mark.matrix("a run with stagers is killed")
def test_stagers_share_a_copy_of_the_index(
    new_scene: NewScene, bucket: ObjectStore, between: FaultyProxy
) -> None:
    """A run reads a key file once, for all their batches; what it leaves the next one deletes."""
    scene = new_scene(
        60,
        batch_max_records=100,
        batch_backoff_max_seconds=1e-6,
        stagers=2,
        lake_uri=bucket.lake_uri(),
    )
    assert scene.work() == 0
    first = named_in_the_ledger(scene)
    reads: list[str] = []

    def count(exchange: Exchange) -> Fault:
        if exchange.method == "GET" and any(exchange.target.endswith(name) for name in keys):
            reads.append(exchange.target)
        return Fault.NONE

    keys = {path.rpartition("/")[2] for path in first if path.startswith("keys/")}
    between.plan = count
    scene.send_more(300)
    assert scene.work() == 0
    scene.prove()
    assert len(scene.stack.batches()) > 3
    assert len(reads) == len(keys) > 0

    scene.send_more(300)
    scene.kill_at("begun")
    copies = scene.stack.settings.home / "key_copies" / scene.stack.settings.topic
    assert [path for path in copies.rglob("*.arrow") if path.is_file()] != []
    assert scene.work_when_free() == 0
    scene.prove()
    assert list(copies.iterdir()) == []
    assert in_the_bucket(bucket, scene.stack) == named_in_the_ledger(scene)


def refused(exchange: Exchange) -> Canned | None:
    """A store that takes no files."""
    return DENIED if exchange.method == "PUT" else None


@pytest.mark.matrix("the store takes no files")
def test_a_store_that_refuses_files(
    new_scene: NewScene,
    bucket: ObjectStore,
    between: FaultyProxy,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The worker ends at once and says what the store said; the next one stages the same."""
    scene = new_scene(60, lake_uri=bucket.lake_uri())
    between.answers = refused
    assert scene.work() == AGAIN
    assert "the store does not let these credentials do that" in capfd.readouterr().err
    assert [batch.state for batch in scene.stack.batches()] == [State.PLANNED]
    between.answers = lambda exchange: None
    assert scene.work() == 0
    scene.prove()
    assert in_the_bucket(bucket, scene.stack) == named_in_the_ledger(scene)


@pytest.mark.matrix("the store goes away while files are sent")
@pytest.mark.parametrize("fault", [Fault.RESET_BEFORE, Fault.HOLD])
def test_a_store_that_goes_away_in_the_middle(
    new_scene: NewScene,
    bucket: ObjectStore,
    between: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
) -> None:
    """Gone or silent after the first file: the run ends by itself, and with it its lease."""
    monkeypatch.setattr(object_store, "SILENT_S", 1.0)
    monkeypatch.setattr(object_store, "TRIES", 1)
    scene = new_scene(60, lake_uri=bucket.lake_uri())
    puts: list[Exchange] = []

    def after_the_first(exchange: Exchange) -> Fault:
        if exchange.method == "PUT":
            puts.append(exchange)
        return fault if len(puts) > 1 else Fault.NONE

    between.plan = after_the_first
    with pytest.raises(TransientError, match="the store does not answer"):
        stage_batches(scene.stack.worker())
    assert len(puts) > 1
    between.plan = lambda exchange: Fault.NONE
    between.let_go()
    assert scene.work() == 0
    scene.prove()
    assert in_the_bucket(bucket, scene.stack) == named_in_the_ledger(scene)


@pytest.mark.matrix("the store is away")
def test_a_store_that_is_away_for_long(
    new_scene: NewScene, bucket: ObjectStore, between: FaultyProxy
) -> None:
    """No file is taken for lost: nothing is staged again, and what waits is loaded afterwards."""
    scene = new_scene(60, lake_uri=bucket.lake_uri(), batch_backoff_max_seconds=1e-6)
    scene.kill_at("after-register")
    [before] = scene.stack.batches()
    between.plan = lambda exchange: Fault.RESET_BEFORE
    assert scene.work() == WAITS
    between.plan = lambda exchange: Fault.NONE
    assert scene.work() == 0
    scene.prove()
    [after] = scene.stack.batches()
    assert after.staged == before.staged
