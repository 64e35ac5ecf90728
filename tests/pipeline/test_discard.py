"""Discards: an import of the wrong file is thrown away, unless something of it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from assets.pipeline.audit import balance_of
from assets.pipeline.batch import LOADED, Balance, Batch, Kind, State
from assets.pipeline.discard import discard_import
from assets.pipeline.errors import BatchError, ImportTrouble, LeaseHeld
from assets.pipeline.imports import import_file, standing
from assets.pipeline.mirror import mirrored_states
from assets.pipeline.rebuild import rebuild
from assets.pipeline.repair import mirror_again
from assets.pipeline.waiting import give_up_import, release_batch
from orchestration.ledger.batches import set_state
from orchestration.ledger.gaps import all_gaps
from orchestration.ledger.imports import all_imports
from orchestration.ledger.leases import held_lease
from orchestration.ledger.tables import batches
from orchestration.ledger.tables import staged_files as staged_files_table
from orchestration.reconcile import everything, reconcile
from tests.exports import line, lines_of
from tests.imports import TODAY, Scene
from tests.records import value_of

WRONG = [line(1), b'{"person_id": 1}', line(2), *(b'{"person_id": 2}' for _ in range(20))]


@pytest.fixture
def scene(new_scene: Callable[..., Scene]) -> Scene:
    """One whose batches have ten rows, and are held when more than five of them are rejected."""
    return new_scene(batch_max_records=10, hold_over_records=5)


@pytest.fixture
def held(scene: Scene) -> Batch:
    """The first batch of a file that holds something else, two events besides."""
    with pytest.raises(BatchError, match="tidemark import --discard import:wrong@"):
        scene.take(scene.lines("wrong", *WRONG))
    [batch] = scene.stack.batches()
    assert batch.state is State.HELD
    return batch


def staged_files(scene: Scene, of: Batch) -> list[Path]:
    """What the lake has of a batch, besides its keys in the index."""
    found = Path(scene.stack.settings.lake).rglob(f"{of.batch_id}*")
    return [path for path in found if path.suffix != ".arrow"]


def audit(scene: Scene) -> None:
    """Nothing is found to be wrong, by sums and by rows."""
    scene.prove()
    worker = scene.stack.worker()
    assert reconcile(worker, everything(worker), by_rows=True).findings == ()


def mirrored(scene: Scene, of: Batch) -> str | None:
    """The state of a batch in the mirror; None when it is not there."""
    ids = [of.batch_id]
    return mirrored_states(scene.stack.client, scene.stack.database, ids).get(of.batch_id)


def test_nothing_of_a_wrong_file_is_left(scene: Scene, held: Batch) -> None:
    """No file, no row, no key that makes a duplicate; what it was, and who did it, is on record."""
    assert len(staged_files(scene, held)) == 2
    done = discard_import(scene.stack.worker(), held.topic)
    assert (done.rows, len(done.files), done.is_old) == (10, 2, False)
    [batch] = scene.stack.batches()
    assert (batch.state, batch.staged) == (State.SUPERSEDED, None)
    assert batch.note.startswith("discarded; 8 of 10 records (80%) were rejected")
    assert staged_files(scene, held) == []
    assert mirrored(scene, held) == "superseded"
    assert discard_import(scene.stack.worker(), held.topic).is_old
    [one] = all_imports(scene.stack.ledger, scene.stack.settings.topic)
    assert one.discarded_at is not None
    assert one.discarded_by
    assert not standing(scene.stack.worker(), one).is_done
    scene.stack.send(value_of(1), value_of(3))
    scene.stack.run()
    assert balance_of(scene.stack.batches()) == Balance(ok=2)
    assert scene.rows() == []
    assert scene.stack.rows("SELECT count() FROM {database}.dead_letters") == [(0,)]
    audit(scene)
    assert rebuild(scene.stack.worker(), TODAY).rows == 2
    audit(scene)


def test_the_same_file_and_a_mended_one_can_be_imported(scene: Scene, held: Batch) -> None:
    """Each is an import of its own, that of the same file as often as it is thrown away."""
    path = str(scene.folder / "wrong")
    seen = {held.topic}
    for _ in range(2):
        discard_import(scene.stack.worker(), held.topic)
        with pytest.raises(BatchError, match="is held"):
            scene.take(path)
        held = scene.stack.batches()[-1]
        assert held.topic not in seen
        seen.add(held.topic)
    mended = scene.take(scene.lines("wrong", *lines_of(range(5, 30))))
    assert mended.balance == Balance(ok=25)
    scene.lines("wrong", *WRONG)
    release_batch(scene.stack.worker(), held.batch_id)
    easy = scene.stack.settings.model_copy(update={"hold_over_records": 100})
    worker = replace(scene.stack.worker(), settings=easy)
    assert import_file(worker, path, "1").balance == Balance(ok=2, rejected=21)
    assert import_file(worker, path, "1").is_old
    audit(scene)


def test_the_audit_copies_what_the_mirror_lacks(
    scene: Scene, held: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a discard that was killed."""
    monkeypatch.setattr("assets.pipeline.discard.failpoint", _stop_at("discard-deleted"))
    with pytest.raises(KeyboardInterrupt):
        discard_import(scene.stack.worker(), held.topic)
    mirror_again(scene.stack.worker(), scene.stack.batches())
    assert mirrored(scene, held) == "superseded"


def _stop_at(wanted: str) -> Callable[[str], None]:
    def stop(point: str) -> None:
        if point == wanted:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("state", [State.PLANNED, State.STAGED, State.FAILED, State.GAP])
def test_a_sound_file_that_is_the_wrong_one(
    scene: Scene, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before it was loaded, wherever its batch stands; no micro-batch loads it later."""
    point = "after-plan" if state is State.PLANNED else "after-register"
    where = "imports" if state is State.PLANNED else "registering"
    path = Path(scene.lines("a", *lines_of(range(15))))
    with monkeypatch.context() as killed:
        killed.setattr(f"assets.pipeline.{where}.failpoint", _stop_at(point))
        with pytest.raises(KeyboardInterrupt):
            scene.take(str(path))
    [batch] = scene.stack.batches()
    if state is State.FAILED:
        with scene.stack.worker().lease() as lease:
            for each in (State.LOADING, State.FAILED):
                set_state(scene.stack.ledger, lease, batch.batch_id, each)
    elif state is State.GAP:
        with scene.stack.worker().lease() as lease:
            for each in (State.LOADING, State.PLANNED):
                set_state(scene.stack.ledger, lease, batch.batch_id, each)
        path.rename(f"{path}.away")
        give_up_import(scene.stack.worker(), batch.topic)
    assert scene.stack.batches()[0].state is state
    discard_import(scene.stack.worker(), batch.topic)
    assert [gap.decision for gap in all_gaps(scene.stack.ledger, batch.topic)] == (
        ["discarded"] if state is State.GAP else []
    )
    scene.stack.run()
    assert scene.rows() == []
    assert scene.stack.batches()[0].state is State.SUPERSEDED
    assert staged_files(scene, batch) == []
    if state is State.GAP:
        Path(f"{path}.away").rename(path)
    assert scene.take(str(path)).balance == Balance(ok=15)
    audit(scene)


def test_what_is_loaded_stays(scene: Scene) -> None:
    """Once a batch of it is, nothing of it can be thrown away."""
    path = Path(scene.lines("a", *lines_of(range(25))))
    gone = lambda said: "10 of 25" in said and path.rename(f"{path}.away")  # noqa: E731
    with pytest.raises(ImportTrouble):
        import_file(replace(scene.stack.worker(), say=gone), str(path), "1")
    before = scene.stack.batches()
    assert [batch.state for batch in before] == [State.COMMITTED, State.PLANNED]
    for state in (*LOADED, State.LOADING):
        _become(scene, before[0], state)
        with pytest.raises(BatchError, match=rf"rows 0:\[1,11\), is {state}; "):
            discard_import(scene.stack.worker(), before[0].topic)
    for state in (State.FAILED, State.SUSPECT, State.HELD):
        _become(scene, before[0], state)
        with pytest.raises(BatchError, match="has 10 rows of batch"):
            discard_import(scene.stack.worker(), before[0].topic)
    _become(scene, before[0], State.COMMITTED)
    assert scene.stack.batches() == before
    assert scene.take(f"{path}.away").balance == Balance(ok=25)
    audit(scene)


def _become(scene: Scene, batch: Batch, state: State) -> None:
    with scene.stack.ledger.begin() as connection:
        of_batch = batches.c.batch_id == batch.batch_id
        connection.execute(update(batches).where(of_batch).values(state=state))


def test_what_others_count_as_resends_of_it_is_not_lost(scene: Scene, held: Batch) -> None:
    """An event that came since would be stored nowhere; released, it is there."""
    scene.stack.send(value_of(2))
    live = scene.stack.run()[-1]
    assert live.staged is not None
    assert live.staged.balance == Balance(duplicate=1)
    with pytest.raises(BatchError, match=f"1 events that came since .*{live.batch_id}"):
        discard_import(scene.stack.worker(), held.topic)
    assert scene.stack.batches()[0].staged == held.staged
    assert len(staged_files(scene, held)) == 2
    release_batch(scene.stack.worker(), held.batch_id)
    scene.stack.run()
    assert len(scene.rows()) == 2
    audit(scene)


@pytest.mark.parametrize("why", ["lost", "let go"])
def test_what_may_count_as_a_resend_of_it_is_not_lost(scene: Scene, held: Batch, why: str) -> None:
    """Nobody can read any more of what a batch's duplicates are: it is not taken for none."""
    scene.stack.send(value_of(2))
    live = scene.stack.run()[-1]
    assert live.staged is not None
    file = live.staged.file(Kind.DUPLICATES)
    assert file is not None
    if why == "lost":
        (Path(scene.stack.settings.lake) / file.path).unlink()
    else:
        with scene.stack.ledger.begin() as connection:
            of_file = staged_files_table.c.path == file.path
            connection.execute(update(staged_files_table).where(of_file).values(let_go_at=1))
    with pytest.raises(BatchError, match=f"may count as duplicates .*batch {live.batch_id}"):
        discard_import(scene.stack.worker(), held.topic)
    assert scene.stack.batches()[0].state is State.HELD


def test_a_batch_that_is_to_be_staged_again_is_looked_at_too(scene: Scene, held: Batch) -> None:
    """It had been staged when the resend came, and the ledger has no files of it now."""
    scene.stack.send(value_of(2))
    live = scene.stack.run()[-1]
    with scene.stack.ledger.begin() as connection:
        of_batch = batches.c.batch_id == held.batch_id
        connection.execute(
            update(batches).where(of_batch).values(state=State.PLANNED, staged_at=None)
        )
    assert scene.stack.batches()[0].staged is None
    with pytest.raises(BatchError, match=f"1 events that came since .*{live.batch_id}"):
        discard_import(scene.stack.worker(), held.topic)


def test_it_waits_for_nobody(scene: Scene, held: Batch) -> None:
    """While an import is at work, or a name is wrong, it is told at once."""
    worker = scene.stack.worker()
    with (
        held_lease(scene.stack.ledger, worker.import_lease_name, 60),
        pytest.raises(LeaseHeld, match="at work on import"),
    ):
        discard_import(scene.stack.worker(), held.topic)
    with pytest.raises(BatchError, match="knows no import import:other"):
        discard_import(scene.stack.worker(), "import:other")
    elsewhere = scene.stack.settings.model_copy(update={"topic": "elsewhere"})
    with pytest.raises(BatchError, match="see TIDEMARK_TOPIC"):
        discard_import(replace(worker, settings=elsewhere), held.topic)
    assert scene.stack.batches()[0].state is State.HELD


def test_an_import_that_had_slept_goes_on_with_nothing(scene: Scene) -> None:
    """It was thrown away meanwhile, by somebody who had its leases."""

    def sleep(said: str) -> None:
        if "rows of jsonl" in said:
            with scene.stack.ledger.begin() as connection:
                connection.exec_driver_sql("UPDATE leases SET expires_at = 0")
            [one] = all_imports(scene.stack.ledger, scene.stack.settings.topic)
            discard_import(scene.stack.worker("other"), one.name)

    path = scene.lines("a", *lines_of(range(15)))
    with pytest.raises(BatchError, match="was discarded meanwhile"):
        import_file(replace(scene.stack.worker(), say=sleep), path, "1")
    assert scene.stack.batches() == []
    assert scene.take(path).balance == Balance(ok=15)
