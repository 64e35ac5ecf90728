"""Imports: a file's events come in once, with the verdicts, proofs and balance of any others."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from assets.pipeline import exported_lines
from assets.pipeline.audit import balance_of
from assets.pipeline.batch import Balance, State
from assets.pipeline.errors import (
    BatchError,
    ImportTrouble,
    LeaseHeld,
    LedgerBehind,
    StagedFileDamaged,
)
from assets.pipeline.imports import import_file
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.rebuild import rebuild
from assets.pipeline.rebuild_preview import preview as look_at_rebuild
from assets.pipeline.redrive import Wanted, preview, redrive
from assets.pipeline.room import why_no_room
from assets.pipeline.waiting import (
    accept_gap,
    give_up_import,
    give_up_redrive,
    release_batch,
    restage_batch,
)
from capture_api.refusal import bad_request
from orchestration.ledger.batches import set_state
from orchestration.ledger.errors import UnknownProject
from orchestration.ledger.gaps import all_gaps
from orchestration.ledger.leases import held_lease, is_turn_asked_for
from orchestration.ledger.projects import create_project, revoke_project
from orchestration.ledger.redrives import Outcome
from orchestration.reconcile import everything, reconcile
from orchestration.settings import Settings
from tests.exports import line, lines_of, write_parquet
from tests.imports import LONG_AGO, TODAY, Scene
from tests.records import uuid_of, value_of
from tests.stack import Stack

MIXED = [
    *lines_of(range(20)),
    b"",
    b"no json",
    line(3),
    b'{"uuid": "cut off',
    line(21, uuid="not one"),
    line(22, timestamp=None),
    b"\xff\xfe",
    b'["not", "an", "object"]',
    line(23, properties="[1]"),
    line(24, properties={"a": "x" * 1_000_000}),
    line(25),
]


def test_every_line_gets_a_verdict_and_a_place(scene: Scene) -> None:
    """Rows name file and line, dead letters keep the line, and the balance closes."""
    done = scene.take(scene.lines("mixed.jsonl", *MIXED))
    assert done.is_done
    assert done.balance == Balance(ok=21, rejected=8, duplicate=1, absent=1)
    assert [each.offsets for each in done.batches] == [10, 10, 10, 1]
    assert {each.state for each in done.batches} == {State.COMMITTED}
    assert {each.arrival_date for each in done.batches} == {TODAY}
    topic = done.one.name
    assert topic.startswith("import:mixed.jsonl@")
    wanted = [*((topic, n + 1, uuid_of(n)) for n in range(20)), (topic, 31, uuid_of(25))]
    assert [(t, offset, str(uuid)) for t, offset, uuid in scene.rows()] == wanted
    letters = scene.stack.rows(
        "SELECT _offset, reason, value, stage FROM {database}.dead_letters ORDER BY _offset"
    )
    assert [(offset, reason) for offset, reason, *_ in letters] == [
        (22, "not_json"),
        (24, "not_json"),
        (25, "invalid_uuid"),
        (26, "missing_field"),
        (27, "not_utf8"),
        (28, "not_an_object"),
        (29, "not_an_object"),
        (30, "too_large"),
    ]
    assert letters[0][2] in ("no json", b"no json")
    scene.prove()
    assert (
        reconcile(scene.stack.worker(), everything(scene.stack.worker()), by_rows=True).findings
        == ()
    )


def test_a_row_is_what_the_edge_would_have_made(scene: Scene) -> None:
    """Its time is the event's, its receipt PostHog's, its arrival that of the import."""
    scene.take(scene.lines("one.jsonl", line(0, elements_chain="a:b")))
    columns = "project_id, event, distinct_id, timestamp, received_at, ip, lib, arrival_date, flags"
    [(*row, properties)] = scene.rows(f"{columns}, properties")
    at = datetime(2023, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    times = [each.replace(tzinfo=UTC) for each in row[3:5]]
    assert row[:3] == [1, "$pageview", "person-0"]
    assert times == [at, at + timedelta(seconds=2)]
    assert row[5:] == ["203.0.113.9", "web", TODAY, 1]
    properties = json.loads(properties) if isinstance(properties, str) else properties
    assert properties["$elements_chain"] == "a:b"
    assert properties["$exported"]["person_properties"] == {"plan": "free"}


@pytest.mark.parametrize("form", ["gzip", "zstd", "parquet"])
def test_each_form_gives_the_same_rows(scene: Scene, form: str) -> None:
    """But for their places; each file is an import of its own, so give it a date of its own."""
    columns = "uuid, event, distinct_id, timestamp, received_at, ip, url_host, _offset"
    scene.take(scene.lines("plain", *lines_of(range(25))), LONG_AGO)
    wanted = scene.rows(columns)
    if form == "parquet":
        file = write_parquet(scene.folder / "other", range(25), row_group=7)
    else:
        file = scene.lines("other", *lines_of(range(25)), compression=form)
    done = scene.take(file, LONG_AGO + timedelta(days=10))
    assert done.balance == Balance(ok=25)
    found = scene.stack.rows(
        f"SELECT {columns} FROM {{database}}.events WHERE _topic = {{topic:String}} "
        "ORDER BY _offset",
        topic=done.one.name,
    )
    assert len(wanted) == 25
    assert found == wanted
    scene.prove()


def test_the_same_file_again_does_nothing(scene: Scene) -> None:
    """Also under another name; into another project it is another import."""
    first = scene.take(scene.lines("a.jsonl", *lines_of(range(15))))
    again = scene.take(scene.lines("b.jsonl", *lines_of(range(15))))
    assert (first.is_old, again.is_old) == (False, True)
    assert again.one.import_id == first.one.import_id
    assert len(scene.rows()) == 15
    with pytest.raises(BatchError, match="a file has one"):
        scene.take(scene.lines("a.jsonl", *lines_of(range(15))), LONG_AGO)
    create_project(scene.stack.ledger, "other")
    other = scene.take(scene.lines("a.jsonl", *lines_of(range(15))), project="2")
    assert other.balance == Balance(ok=15)
    assert len(scene.rows()) == 30


def test_duplicates_are_found_within_the_window(scene: Scene) -> None:
    """Within a file, between files, and between files and what came in live, either way."""
    scene.stack.send(value_of(5))
    scene.stack.run()
    first = scene.take(scene.lines("a", *lines_of([1, 2, 1, *range(3, 12)])))
    assert first.balance == Balance(ok=10, duplicate=2)
    second = scene.take(scene.lines("b", *lines_of([9, 10, 11, 12])))
    assert second.balance == Balance(ok=1, duplicate=3)
    scene.stack.send(value_of(12), value_of(13))
    scene.stack.run()
    assert balance_of(scene.stack.batches()) == Balance(ok=13, duplicate=6)
    elsewhere = scene.take(scene.lines("c", *lines_of([9, 10, 14])), LONG_AGO)
    assert elsewhere.balance == Balance(ok=3)
    scene.prove()


def test_a_date_of_its_own_keeps_an_import_apart(scene: Scene) -> None:
    """All rows in one partition, whatever their own time; they arrived within that day."""
    scene.take(scene.lines("a", *lines_of(range(25))), LONG_AGO)
    assert set(scene.rows("arrival_date, toDate(_appended_at)")) == {(LONG_AGO, LONG_AGO)}
    parts = scene.stack.rows(
        "SELECT DISTINCT partition FROM system.parts "
        "WHERE database = '{database}' AND table = 'events' AND active"
    )
    assert parts == [(LONG_AGO.isoformat(),)]
    with pytest.raises(BatchError, match="nothing can have arrived"):
        scene.take(scene.lines("b", line(1)), TODAY + timedelta(days=2))


def test_a_file_that_vanishes_half_way(scene: Scene) -> None:
    """What is loaded stays; found again at another place, it goes on where it stood."""
    path = Path(scene.lines("a", *lines_of(range(35))))
    away = path.with_name("moved")
    worker = replace(
        scene.stack.worker(), say=lambda said: "10 of 35" in said and path.rename(away)
    )
    with pytest.raises(ImportTrouble, match="is not there"):
        import_file(worker, str(path), "1")
    assert len(scene.rows()) == 10
    assert [each.state for each in scene.stack.batches()] == [State.COMMITTED, State.PLANNED]
    scene.stack.run()  # a micro-batch has nothing to do with what is only planned of a file
    assert len(scene.rows()) == 10
    done = scene.take(str(away))
    assert done.is_done
    assert done.balance == Balance(ok=35)
    assert [offset for _, offset, _ in scene.rows()] == list(range(1, 36))
    assert [each.offsets for each in done.batches] == [10, 10, 10, 5]
    scene.prove()


def test_what_is_planned_of_a_file_that_is_gone_is_decided(scene: Scene) -> None:
    """Given up it is a gap; accepted as lost, a micro-batch carries it on, without the file."""
    path = Path(scene.lines("a", *lines_of(range(25))))
    gone = lambda said: "10 of 25" in said and path.rename(f"{path}.away")  # noqa: E731
    with pytest.raises(ImportTrouble):
        import_file(replace(scene.stack.worker(), say=gone), str(path), "1")
    loaded, planned = scene.stack.batches()
    Path(f"{path}.away").rename(path)
    with pytest.raises(BatchError, match="is there: `tidemark import"):
        give_up_import(scene.stack.worker(), planned.topic)
    content = path.read_bytes()
    path.unlink()
    [gap] = give_up_import(scene.stack.worker(), planned.topic)
    assert (gap.batch_id, gap.records, gap.cause) == (planned.batch_id, 10, "import")
    assert scene.stack.batches()[1].state is State.GAP
    with pytest.raises(BatchError, match=r"nothing of import:a@.* waits for its file"):
        give_up_import(scene.stack.worker(), planned.topic)
    path.write_bytes(content)
    with pytest.raises(BatchError, match="is gap"):
        scene.take(str(path))
    path.unlink()
    accept_gap(scene.stack.worker(), gap.gap_id, "the disk is gone")
    scene.stack.run()
    assert {batch.state for batch in scene.stack.batches()} == {State.COMMITTED}
    assert balance_of(scene.stack.batches()) == Balance(ok=10, lost=10)
    scene.prove()
    path.write_bytes(content)
    done = scene.take(str(path))
    assert done.is_done
    assert done.balance == Balance(ok=15, lost=10)
    assert loaded.batch_id == done.batches[0].batch_id
    scene.prove()


def test_a_file_that_is_changed_half_way(scene: Scene) -> None:
    """Nothing of what it is now comes in under its old name; it is another import."""
    path = scene.lines("a", *lines_of(range(25)))
    change = lambda said: "10 of 25" in said and scene.lines("a", *lines_of(range(50, 90)))  # noqa: E731
    with pytest.raises(ImportTrouble, match="somebody has changed it"):
        import_file(replace(scene.stack.worker(), say=change), path, "1")
    assert len(scene.rows()) == 10
    other = scene.take(path)
    assert other.balance == Balance(ok=40)
    path = scene.lines("a", *lines_of(range(25)))
    assert scene.take(path).balance == Balance(ok=25)
    assert len(scene.rows()) == 65
    scene.prove()


def test_a_file_that_is_something_else_is_held(new_scene: Callable[..., Scene]) -> None:
    """The import stops at the first batch; released or staged again, it goes on when asked."""
    scene = new_scene(batch_max_records=20, hold_over_records=5)
    path = scene.lines("persons", *(b'{"person_id": 1}' for _ in range(30)))
    with pytest.raises(BatchError, match="is held: 20 of 20 records"):
        scene.take(path)
    [batch] = scene.stack.batches()
    with pytest.raises(BatchError, match="is held"):
        scene.take(path)
    assert restage_batch(scene.stack.worker(), batch.batch_id).state is State.HELD
    release_batch(scene.stack.worker(), batch.batch_id)
    with pytest.raises(BatchError, match="is held: 10 of 10 records"):
        scene.take(path)
    assert scene.stack.rows("SELECT count() FROM {database}.dead_letters") == [(20,)]


def test_dead_letters_are_redriven_to_their_lines(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the code of now, into the project of the import; what is no event stays one."""
    sound = exported_lines.exported_value

    def misread(text: bytes, *rest: int) -> bytes:
        if uuid_of(13).encode() in text or uuid_of(14).encode() in text:
            raise bad_request("the code of then")
        return sound(text, *rest)

    monkeypatch.setattr(exported_lines, "exported_value", misread)
    done = scene.take(scene.lines("a", *lines_of(range(15)), b"{", line(14)), LONG_AGO)
    assert done.balance == Balance(ok=13, rejected=4)
    monkeypatch.setattr(exported_lines, "exported_value", sound)
    wanted = Wanted(project="1", date=LONG_AGO)
    create_project(scene.stack.ledger, "other")
    assert preview(scene.stack.worker(), Wanted(project="2")).letters == 0
    seen = preview(scene.stack.worker(), wanted)
    assert seen.count(Outcome.EVENT) == 2
    redriven = redrive(scene.stack.worker(), wanted)
    assert redriven.results == seen.results
    assert redriven.results["not_taken", Outcome.DUPLICATE, ""] == 1
    assert [offset for _, offset, _ in scene.rows()] == list(range(1, 16))
    assert {str(uuid) for _, _, uuid in scene.rows()} == {uuid_of(n) for n in range(15)}
    again = scene.take(scene.folder.joinpath("a").as_posix())
    assert (again.is_old, again.balance.redriven) == (True, 2)
    scene.prove()


def test_a_redrive_that_was_given_up_leaves_its_import_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its letters are dead letters still; of the file there is nothing to do."""
    path = scene.lines("a", *lines_of(range(5)), b"{")
    assert scene.take(path).is_done

    def stop(point: str) -> None:
        if point == "after-plan":
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("assets.pipeline.redrive.failpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            redrive(scene.stack.worker(), Wanted(project="1"))
    [planned] = [batch for batch in scene.stack.batches() if batch.is_redrive]
    with scene.stack.worker().lease() as lease:
        set_state(scene.stack.ledger, lease, planned.batch_id, State.FAILED)
    assert give_up_redrive(scene.stack.worker(), planned.batch_id).state is State.SUPERSEDED
    again = scene.take(path)
    assert (again.is_old, again.is_done) == (True, True)


def test_a_rebuild_keeps_what_was_imported(scene: Scene) -> None:
    """A date of both live and imported events is swapped with all of them, and none is strange."""
    scene.stack.send_numbers(range(100, 120))
    scene.stack.run()
    scene.take(scene.lines("a", *lines_of(range(25))))
    before = scene.stack.rows("SELECT _topic, _offset, uuid FROM {database}.events ORDER BY ALL")
    assert len(before) == 45
    seen = look_at_rebuild(scene.stack.worker(), TODAY)
    assert (seen.rows, seen.rows_now, seen.strangers) == (45, 45, {})
    done = rebuild(scene.stack.worker(), TODAY)
    assert done.rows == 45
    after = scene.stack.rows("SELECT _topic, _offset, uuid FROM {database}.events ORDER BY ALL")
    assert after == before
    scene.prove()


def test_micro_batches_go_first(scene: Scene) -> None:
    """One that comes while a batch is imported has its turn when that batch is through."""
    scene.stack.send_numbers(range(100, 110))
    at_work, go_on = threading.Event(), threading.Event()

    def say(said: str) -> None:
        if "planned 10 rows" in said and not at_work.is_set():
            at_work.set()
            assert go_on.wait(60)

    path = scene.lines("a", *lines_of(range(40)))
    worker = replace(scene.stack.worker("importer"), say=say)
    importer = threading.Thread(target=import_file, args=(worker, path, "1"))
    live = threading.Thread(target=scene.stack.run)
    importer.start()
    assert at_work.wait(60)
    live.start()
    name = scene.stack.worker().lease_name
    while not is_turn_asked_for(scene.stack.ledger, name):
        assert live.is_alive(), "it did not wait"
    go_on.set()
    for each in (live, importer):
        each.join(120)
        assert not each.is_alive()
    planned = [each.is_import for each in scene.stack.batches()]
    assert planned == [True, False, True, True, True]
    assert len(scene.rows()) == 40
    assert len(scene.stack.account().events) == 10
    scene.prove()


def test_one_import_at_a_time(scene: Scene) -> None:
    """A second one is told who is at work; nothing of it is begun."""
    worker = scene.stack.worker()
    with (
        held_lease(scene.stack.ledger, worker.import_lease_name, 60),
        pytest.raises(LeaseHeld, match="at work on import"),
    ):
        scene.take(scene.lines("a", line(1)))
    assert scene.stack.batches() == []


def test_what_an_import_has_staged_any_worker_loads(scene: Scene) -> None:
    """It needs neither the file nor the import for that."""
    path = Path(scene.lines("a", *lines_of(range(25))))

    def stop(said: str) -> None:
        if "staged 10 ok" in said:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(replace(scene.stack.worker(), say=stop), str(path), "1")
    assert scene.rows() == []
    content = path.read_bytes()
    path.unlink()
    load_batches(scene.stack.worker())
    load_dead_letters(scene.stack.worker())
    assert len(scene.rows()) == 10
    path.write_bytes(content)
    assert scene.take(str(path)).balance == Balance(ok=25)
    scene.prove()


@pytest.mark.parametrize("is_file_there", [True, False])
def test_a_staged_file_is_harmed(scene: Scene, is_file_there: bool) -> None:
    """The rows are read from the import's file again; without that it is a gap, and decided."""
    path = Path(scene.lines("a", *lines_of(range(15)), b"{"))

    def stop(said: str) -> None:
        if "staged 10 ok" in said:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(replace(scene.stack.worker(), say=stop), str(path), "1")
    [batch] = scene.stack.batches()
    assert batch.staged is not None
    scene.stack.lake_file(batch.staged.files[0].path).unlink()
    content = path.read_bytes()
    if not is_file_there:
        path.unlink()
    with pytest.raises(StagedFileDamaged):
        load_batches(scene.stack.worker())
    path.write_bytes(content)
    if is_file_there:
        assert scene.take(str(path)).balance == Balance(ok=15, rejected=1)
    else:
        with pytest.raises(BatchError, match="is gap"):
            scene.take(str(path))
        [gap] = all_gaps(scene.stack.ledger, *scene.stack.settings.topics)
        with pytest.raises(BatchError, match=f"{path} has the records"):
            accept_gap(scene.stack.worker(), gap.gap_id, "it is not")
        path.unlink()
        accept_gap(scene.stack.worker(), gap.gap_id, "it is")
        path.write_bytes(content)
        assert scene.take(str(path)).balance == Balance(ok=5, rejected=1, lost=10)
    scene.prove()


def test_another_ledger_is_refused(scene: Scene) -> None:
    """From it the same rows would be loaded twice, with other batches perhaps."""
    path = scene.lines("a", *lines_of(range(25)))
    scene.take(path)
    changed = {"ledger_url": f"sqlite:///{scene.folder}/other.db", "batch_max_records": 7}
    settings = scene.stack.settings
    other = Stack(Settings(**{**settings.model_dump(exclude_defaults=True), **changed}))
    create_project(other.ledger, "shop")
    with pytest.raises(LedgerBehind, match="up to row 25"):
        import_file(other.worker(), path, "1")
    assert len(scene.rows()) == 25


def test_settings_may_change_between_two_calls(scene: Scene) -> None:
    """What is planned stays as it is, the rest is cut anew."""
    path = scene.lines("a", *lines_of(range(35)))
    stop = lambda said: "10 of 35" in said and Path(path).rename(f"{path}.away")  # noqa: E731
    with pytest.raises(ImportTrouble):
        import_file(replace(scene.stack.worker(), say=stop), path, "1")
    settings = scene.stack.settings.model_copy(update={"batch_max_records": 7})
    done = import_file(Stack(settings).worker(), f"{path}.away", "1")
    assert [each.offsets for each in done.batches] == [10, 10, 1, 7, 7]
    assert Counter(offset for _, offset, _ in scene.rows()) == Counter(range(1, 36))
    scene.prove()


@pytest.fixture
def full(new_scene: Callable[..., Scene]) -> Scene:
    """A scene without room for more."""
    scene = new_scene(lake_min_free_bytes=1 << 62)
    assert why_no_room(scene.stack.settings, scene.stack.ledger, scene.stack.worker().lake)
    return scene


def test_who_and_whereto_are_checked_first(full: Scene) -> None:
    """An unknown or revoked project, a full disk: nothing is planned, nothing is loaded."""
    path = full.lines("a", line(1))
    with pytest.raises(UnknownProject):
        full.take(path, project="77")
    with pytest.raises(BatchError, match="TIDEMARK_LAKE_MIN_FREE_BYTES"):
        full.take(path)
    revoke_project(full.stack.ledger, 1)
    with pytest.raises(BatchError, match="is revoked"):
        full.take(path)
    assert full.stack.batches() == []
