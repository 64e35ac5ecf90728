"""What is old goes when it is proved to be loaded, stays when it is not, and everybody knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from sqlalchemy import func, select, update

from assets.pipeline import redrive as redrive_module
from assets.pipeline.audit import reprove, unbalanced, untiled
from assets.pipeline.batch import Batch, Kind, State
from assets.pipeline.date_anew import rebuild_lease
from assets.pipeline.errors import BatchError, PlanConflict, StagedFileLetGo, TransientError
from assets.pipeline.imports import import_file
from assets.pipeline.rebuild import cancel, rebuild
from assets.pipeline.rebuild_preview import preview
from assets.pipeline.redrive import Wanted, redrive
from assets.pipeline.redrive import preview as look_at_redrive
from assets.pipeline.remaking import Asked
from assets.pipeline.repair import repair
from assets.pipeline.resends import resends_of
from assets.pipeline.staging import stage_batches
from orchestration.cli import tidemark
from orchestration.definitions import definitions
from orchestration.explain.explanation import explain
from orchestration.explain.record import Verdict
from orchestration.explain.wanted import wanted
from orchestration.housekeeping import judge
from orchestration.housekeeping.deleting import NOT_DELETED
from orchestration.housekeeping.keep_house import keep_house
from orchestration.housekeeping.keys import let_go_of_index
from orchestration.housekeeping.letters import let_go_of_letters
from orchestration.housekeeping.records import BEHIND, FILES_KEPT, ROWS_KEPT, forget_batches
from orchestration.housekeeping.replaced import REBUILT
from orchestration.housekeeping.rows import STRANGERS, let_go_of_events
from orchestration.housekeeping.staged import let_go_of_staged
from orchestration.ledger.audits import record_audits
from orchestration.ledger.batches import planned_ends
from orchestration.ledger.keys import key_files_let_go, live_key_files
from orchestration.ledger.projects import create_project
from orchestration.ledger.rebuilds import RebuildState, Way, begin
from orchestration.ledger.redrives import Outcome
from orchestration.ledger.tables import alarms, batches, metadata, rebuilds
from orchestration.reconcile import everything, reconcile
from orchestration.settings import Settings
from tests.exports import line, write_lines
from tests.records import Sent, uuid_of, value_of
from tests.stack import Stack

NewStack = Callable[..., Stack]

CREATE_TIME = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
KEEP = 5  # days
AGO = 10
TODAY = datetime.now(UTC).date()
OLD = TODAY - timedelta(days=AGO)
TABLES = (Kind.EVENTS, Kind.DEAD_LETTERS)


def sent(number: int, days_ago: int = AGO, **head: Any) -> Sent:
    """A sound record that arrived so many days ago."""
    at = datetime.now(UTC) - timedelta(days=days_ago)
    return Sent(value_of(number, **head), timestamp=int(at.timestamp() * 1000))


def broken(days_ago: int = AGO) -> Sent:
    """A record that is rejected."""
    at = datetime.now(UTC) - timedelta(days=days_ago)
    return Sent(b"no json", timestamp=int(at.timestamp() * 1000))


def age(stack: Stack) -> None:
    """As if everything had been loaded when it arrived."""
    loaded_at = int((datetime.now(UTC) - timedelta(days=AGO)).timestamp() * 1e6)
    with stack.ledger.begin() as connection:
        connection.execute(
            update(batches)
            .where(batches.c.dead_letters_loaded_at.is_not(None))
            .values(dead_letters_loaded_at=loaded_at)
        )


def old_stack(new_stack: NewStack, *between: Sent, **values: object) -> Stack:
    """Two batches of an old date, with duplicates and a dead letter, and one of today.

    `between` are records of dates between them: arrival dates only ever grow.
    """
    stack = new_stack(**values).make_topic(1, **CREATE_TIME)
    stack.send(*map(sent, range(5)), broken())
    stack.run()
    stack.send(*map(sent, range(3, 8)))
    stack.run()
    if between:
        stack.send(*between)
        stack.run()
    stack.send(*(sent(n, 0) for n in range(100, 103)))
    stack.run()
    age(stack)
    return stack


def on_disk(stack: Stack, kind: str, day: date = OLD) -> set[str]:
    """The files of a kind and a date in the lake."""
    folder = stack.lake_file(f"{kind}/arrival_date={day}")
    return {path.name for path in folder.glob("*")} if folder.exists() else set()


def wrong(stack: Stack) -> list[str]:
    """What an audit of everything finds, by sums and by rows."""
    found = reconcile(stack.worker(), everything(stack.worker()), by_rows=True)
    return [str(finding) for finding in found.findings]


def lose_rows(stack: Stack, batch: Batch, table: str = "events") -> None:
    """Somebody deletes a batch's rows."""
    stack.client.command(
        f"ALTER TABLE {stack.database}.{table} DELETE WHERE _batch_id = '{batch.batch_id}' "
        "SETTINGS mutations_sync = 2"
    )


def command(stack: Stack, *arguments: str) -> str:
    """What a command of `tidemark` prints."""
    result = CliRunner().invoke(tidemark, arguments, env=stack.settings.environment())
    assert result.exit_code == 0, result.output
    return result.stdout


def test_staged_files_of_an_old_date_go_and_everybody_knows(new_stack: NewStack) -> None:
    """Proved by sums they hold still; what needs the files says when they went."""
    stack = old_stack(new_stack)
    first, second, today = stack.batches()
    said = let_go_of_staged(stack.worker(), KEEP, dry_run=True)
    assert (said.count, said.kept, len(on_disk(stack, "events"))) == (3, {}, 2)
    gone = let_go_of_staged(stack.worker(), KEEP)
    assert (gone.count, gone.bytes, gone.kept) == (3, said.bytes, {})
    assert said.bytes > 0
    assert [on_disk(stack, kind) for kind in ("events", "duplicates")] == [set(), set()]
    assert len(on_disk(stack, "dead_letters")) == 1
    assert on_disk(stack, "events", TODAY) == {f"{today.batch_id}.parquet"}
    assert let_go_of_staged(stack.worker(), KEEP).count == 0

    assert wrong(stack) == []
    told = json.loads(command(stack, "reconcile", "--all", "--rows", "--json"))
    assert [text.split(" was")[1] for text in told["not_compared"]] == [
        f" let go on {TODAY} (TIDEMARK_KEEP_STAGED_DAYS)"
    ] * 2
    assert "2 files are proved by sums only" in command(stack, "reconcile", "--all", "--rows")
    assert f"let go on {TODAY}" in command(stack, "batch", first.batch_id)

    seen = preview(stack.worker(), OLD)
    assert {name for name, why in seen.damaged.items() if "was let go on" in why} == {
        first.batch_id,
        second.batch_id,
    }
    for way in (Way.REBUILD, Way.REENRICH):
        with pytest.raises(StagedFileLetGo, match="TIDEMARK_KEEP_STAGED_DAYS"):
            rebuild(stack.worker(), OLD, way)
        cancel(stack.worker(), OLD)
    replay = rebuild(stack.worker(), OLD, Way.REPLAY)
    assert replay.state is RebuildState.CANCELLED  # what was let go of is not lost
    said_of_resends: list[str] = []
    worker = stack.worker()
    worker.say = said_of_resends.append
    assert resends_of(worker, first) == {}
    assert [line for line in said_of_resends if second.batch_id in line] != []

    lose_rows(stack, first)
    repairs = repair(stack.worker(), [first.batch_id])
    assert "only a backup of ClickHouse" in repairs.left[first.batch_id]
    assert {batch.state for batch in stack.batches()} == {State.COMMITTED}
    told = (
        CliRunner()
        .invoke(tidemark, ["reconcile", "--all"], env=stack.settings.environment())
        .stdout
    )
    assert "only a backup of ClickHouse has these rows" in " ".join(told.split())


def test_what_became_of_a_record_is_told_without_its_file(new_stack: NewStack) -> None:
    """A row is found as before; of a duplicate Kafka knows the batch, and that its file is gone."""
    stack = old_stack(new_stack)
    let_go_of_staged(stack.worker(), KEEP)
    found = explain(stack.settings, stack.ledger, wanted(uuid_of(0)))
    assert [record.verdict for record in found.records] == [Verdict.LOADED]
    found = explain(stack.settings, stack.ledger, wanted(uuid_of(4)))
    assert any("were let go" in line for line in found.search.bounded)
    assert f"let go on {TODAY}" in command(stack, "explain", uuid_of(0))
    document = json.loads(command(stack, "explain", uuid_of(0), "--json"))
    [batch] = document["batches"]
    assert [file["let_go_at"][:10] for file in batch["files"] if "events" in file["path"]] == [
        str(TODAY)
    ]


@contextmanager
def being_rebuilt(stack: Stack) -> Iterator[None]:
    """Somebody is at it."""
    with rebuild_lease(stack.worker(), OLD):
        yield


def in_state(state: State) -> Callable[[Stack], None]:
    """One of the old batches stands in that state."""

    def bring(stack: Stack) -> None:
        with stack.ledger.begin() as connection:
            connection.execute(
                update(batches)
                .where(batches.c.batch_id == stack.batches()[1].batch_id)
                .values(state=state)
            )

    return bring


def half_of_a_batch_is_deleted(stack: Stack) -> None:
    """In ClickHouse."""
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE "
        f"WHERE _batch_id = '{stack.batches()[0].batch_id}' AND _offset % 2 = 0 "
        "SETTINGS mutations_sync = 2"
    )


def an_audit_found_altered_rows(stack: Stack) -> None:
    """Which sums do not show."""
    record_audits(stack.ledger, [(stack.batches()[0].batch_id, "altered", "in columns")])


def a_rebuild_stands_open(stack: Stack) -> None:
    """It was killed, say."""
    with rebuild_lease(stack.worker(), OLD) as lease:
        begin(stack.ledger, lease, stack.settings.topic, OLD, "run")


def it_was_rebuilt(stack: Stack) -> None:
    """And what was there before can be brought back."""
    rebuild(stack.worker(), OLD)


def a_batch_was_loaded_now(stack: Stack) -> None:
    """It was put aside for long."""
    now = int(datetime.now(UTC).timestamp() * 1e6)
    with stack.ledger.begin() as connection:
        connection.execute(
            update(batches)
            .where(batches.c.batch_id == stack.batches()[1].batch_id)
            .values(dead_letters_loaded_at=now)
        )


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        *((in_state(state), judge.WAITS) for state in (State.SUSPECT, State.GAP, State.HELD)),
        (in_state(State.FAILED), judge.WAITS),
        (in_state(State.LOADED), judge.UNFINISHED),
        (half_of_a_batch_is_deleted, judge.DIFFERS),
        (an_audit_found_altered_rows, judge.DIFFERS),
        (a_rebuild_stands_open, REBUILT),
        (it_was_rebuilt, judge.REPLACED),
        (a_batch_was_loaded_now, judge.JUST_LOADED),
    ],
)
def test_a_date_stays_as_a_whole(
    new_stack: NewStack, happens: Callable[[Stack], None], why: str
) -> None:
    """Its files, its dead letters and its batches: the report says why, dry or not."""
    stack = old_stack(new_stack)
    happens(stack)
    for dry_run in (True, False):
        staged = let_go_of_staged(stack.worker(), KEEP, dry_run=dry_run)
        assert (staged.count, staged.kept) == (0, {why: 3})
        letters = let_go_of_letters(stack.worker(), KEEP, dry_run=dry_run)
        assert (letters.count, letters.kept) == (0, {why: 1})
        assert forget_batches(stack.worker(), KEEP, dry_run=dry_run).count == 0
    assert len(on_disk(stack, "events")) == 2
    assert stack.rows("SELECT count() FROM {database}.dead_letters") == [(1,)]


def test_nothing_goes_while_a_rebuild_works_or_the_date_changes(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was proved is held against the ledger once more, in the transaction that marks."""
    stack = old_stack(new_stack)
    with being_rebuilt(stack):
        assert let_go_of_staged(stack.worker(), KEEP).kept == {REBUILT: 3}
    look = judge.Judge.judge

    def meanwhile(self: judge.Judge, day: date) -> judge.Judgement:
        found = look(self, day)
        in_state(State.LOADING)(stack)
        return found

    monkeypatch.setattr(judge.Judge, "judge", meanwhile)
    assert let_go_of_staged(stack.worker(), KEEP).kept == {judge.CHANGED: 3}
    assert len(on_disk(stack, "events")) == 2


def test_what_cannot_be_deleted_now_is_deleted_by_the_next_run(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads it meanwhile."""
    stack = old_stack(new_stack)
    worker = stack.worker()

    def refuse(path: str) -> None:
        raise TransientError(path)

    with monkeypatch.context() as patched:
        patched.setattr(worker.lake, "delete", refuse)
        assert let_go_of_staged(worker, KEEP).kept == {NOT_DELETED: 3}
    assert len(on_disk(stack, "events")) == 2
    assert wrong(stack) == []
    assert let_go_of_staged(stack.worker(), 0).count == 3  # what is marked goes in any case
    assert on_disk(stack, "events") == set()


def test_dead_letters_go_with_their_rows(new_stack: NewStack) -> None:
    """Redriving them is refused, nothing is missed, and rows of events can be repaired still."""
    stack = old_stack(new_stack)
    stack.send(broken(0))
    stack.run()
    first, *_ = stack.batches()
    assert let_go_of_letters(stack.worker(), KEEP, dry_run=True).count == 1
    assert let_go_of_letters(stack.worker(), KEEP).count == 1
    assert on_disk(stack, "dead_letters") == set()
    assert stack.rows("SELECT DISTINCT arrival_date FROM {database}.dead_letters") == [(TODAY,)]
    assert wrong(stack) == []
    with pytest.raises(BatchError, match="TIDEMARK_KEEP_DEAD_LETTERS_DAYS"):
        redrive(stack.worker(), Wanted(batch_id=first.batch_id))
    assert redrive(stack.worker(), Wanted(date=OLD)).letters == 0

    lose_rows(stack, first)
    assert repair(stack.worker(), [first.batch_id]).given_back == (first.batch_id,)
    assert wrong(stack) == []
    assert {batch.state for batch in stack.batches()} == {State.COMMITTED}
    assert stack.batches()[0].dead_letters_loaded_at is not None


def test_dates_of_events_are_dropped_and_can_be_rebuilt(new_stack: NewStack) -> None:
    """No audit misses them; a repair leaves them; made anew, they are kept for their days again."""
    stack = old_stack(new_stack)
    first, *_ = stack.batches()
    assert let_go_of_events(stack.worker(), KEEP, dry_run=True).count == 8
    gone = let_go_of_events(stack.worker(), KEEP)
    assert (gone.count, gone.kept) == (8, {})
    assert stack.rows("SELECT arrival_date, count() FROM {database}.events GROUP BY 1") == [
        (TODAY, 3)
    ]
    assert wrong(stack) == []
    told = json.loads(command(stack, "reconcile", "--all", "--json"))
    assert (told["batches_let_go"], told["batches_not_loaded"]) == (2, 0)
    assert "2 batches, whose dates" in command(stack, "reconcile", "--all")
    assert "was let go of" in repair(stack.worker(), [first.batch_id]).left[first.batch_id]
    assert let_go_of_events(stack.worker(), KEEP).count == 0

    assert rebuild(stack.worker(), OLD).rows == 8
    assert wrong(stack) == []
    again = rebuild(stack.worker(), OLD, Way.REENRICH)
    assert again.state is RebuildState.CANCELLED  # none changes: the rebuild before is the last
    assert let_go_of_events(stack.worker(), KEEP).kept == {judge.REBUILT_LATELY: 8}
    with stack.ledger.begin() as connection:
        connection.execute(update(rebuilds).values(moved_at=1))
    assert let_go_of_events(stack.worker(), KEEP).count == 8
    assert let_go_of_staged(stack.worker(), KEEP).count == 3  # their rows were proved then
    with pytest.raises(StagedFileLetGo):
        rebuild(stack.worker(), OLD)
    assert wrong(stack) == []


def test_a_row_that_was_let_go_is_told_from_the_lake(new_stack: NewStack) -> None:
    """By an id that says when it was made."""
    made_at = int((datetime.now(UTC) - timedelta(days=AGO)).timestamp() * 1000)
    uuid = str(UUID(int=made_at << 80 | 7 << 76 | 2 << 62 | 1))
    stack = new_stack().make_topic(1, **CREATE_TIME)
    stack.send(sent(0, uuid=uuid))
    stack.run()
    age(stack)
    assert let_go_of_events(stack.worker(), KEEP).count == 1
    [record] = explain(stack.settings, stack.ledger, wanted(uuid)).records
    assert (record.verdict, "let go on" in record.note) == (Verdict.LET_GO, True)
    assert let_go_of_staged(stack.worker(), KEEP).count == 1
    [record] = explain(stack.settings, stack.ledger, wanted(uuid)).records  # Kafka has it
    assert (record.verdict, "was let go on" in record.note) == (Verdict.LET_GO, True)


def test_a_date_with_rows_of_others_is_not_dropped(new_stack: NewStack) -> None:
    """Of batches that this ledger does not know; nor while one waits."""
    stack = old_stack(new_stack)
    stack.client.command(
        f"INSERT INTO {stack.database}.events (uuid, arrival_date, _batch_id) "
        f"VALUES (generateUUIDv4(), '{OLD}', 'strange')"
    )
    for dry_run in (True, False):
        kept = let_go_of_events(stack.worker(), KEEP, dry_run=dry_run).kept
        assert kept == {STRANGERS: 9}
    in_state(State.HELD)(stack)
    assert let_go_of_events(stack.worker(), KEEP).kept == {judge.WAITS: 9}
    assert {batch.rows_let_go_at for batch in stack.batches()} == {None}


def test_letters_that_are_let_go_just_then_are_not_redriven(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two comes first, the other sees it."""
    stack = old_stack(new_stack)
    with stack.ledger.begin() as connection:
        connection.execute(update(batches).where(batches.c.arrival_date == OLD).values(retries=0))

    def housekeeping(point: str) -> None:
        if point == "before-plan":
            assert let_go_of_letters(stack.worker(), KEEP).count == 1

    monkeypatch.setattr(redrive_module, "failpoint", housekeeping)
    with pytest.raises(PlanConflict, match="let go just now"):
        redrive(stack.worker(), Wanted(date=OLD))
    assert not any(batch.is_redrive for batch in stack.batches())


@pytest.mark.parametrize("files_go_too", [False, True])
def test_an_index_that_was_let_go_is_made_anew_for_a_redrive(
    new_stack: NewStack, files_go_too: bool
) -> None:
    """From the staged files, or from ClickHouse's rows: a resend is still found."""
    stack = new_stack().make_topic(1, **CREATE_TIME)
    project = create_project(stack.ledger, "shop")

    def early(number: int) -> Sent:
        record = sent(number, project_id=0)
        return Sent(record.value, timestamp=record.timestamp, key=f"{project.token}:p".encode())

    stack.send(*(sent(n, project_id=project.project_id) for n in range(5)), early(3), early(9))
    stack.run()
    age(stack)
    said = let_go_of_index(stack.worker(), KEEP, dry_run=True)
    assert (said.count, said.bytes) == (1, 5 * 32)
    assert let_go_of_index(stack.worker(), KEEP).count == 1
    assert on_disk(stack, "keys") == set()
    assert len(key_files_let_go(stack.ledger, OLD, OLD)) == 1
    assert let_go_of_index(stack.worker(), KEEP).count == 0
    if files_go_too:
        assert let_go_of_staged(stack.worker(), KEEP).count == 1

    told: list[str] = []
    worker = stack.worker()
    worker.say = told.append
    assert look_at_redrive(worker, Wanted(date=OLD)).count(Outcome.EVENT) == 2
    assert told == [
        f"the duplicate index of {OLD} was let go: its duplicates would count as events"
    ]
    assert on_disk(stack, "keys") == set()
    assert len(key_files_let_go(stack.ledger, OLD, OLD)) == 1

    done = redrive(stack.worker(), Wanted(date=OLD))
    came_to = sorted(outcome.value for (_, outcome, _) in done.results)
    assert came_to == ["duplicate", "event"]
    assert key_files_let_go(stack.ledger, OLD, OLD) == []
    assert sum(file.rows for file in live_key_files(stack.ledger, OLD, OLD)) == 6
    assert stack.rows("SELECT count() FROM {database}.events") == [(6,)]


def test_a_replay_makes_an_index_that_was_let_go_anew_from_the_rows(new_stack: NewStack) -> None:
    """The date before has no staged file any more: its events are still known when they return."""
    stack = new_stack().make_topic(1, **CREATE_TIME)
    for days_ago, numbers in ((KEEP + 1, range(5)), (KEEP, range(10, 13))):
        stack.send(*(sent(number, days_ago) for number in numbers))
        stack.run()
    age(stack)
    assert let_go_of_index(stack.worker(), KEEP).count == 1
    assert let_go_of_staged(stack.worker(), KEEP).count == 1
    first = TODAY - timedelta(days=KEEP + 1)
    rebuild(stack.worker(), first + timedelta(days=1), Way.REPLAY, Asked(all_files=True))
    assert key_files_let_go(stack.ledger, first, first) == []
    assert sum(file.rows for file in live_key_files(stack.ledger, first, first)) == 5
    stack.send(sent(4, KEEP), sent(50, KEEP))
    *_, batch = stage_batches(stack.worker())
    assert batch.staged is not None
    assert (batch.staged.balance.ok, batch.staged.balance.duplicate) == (1, 1)


def test_the_index_stays_while_a_batch_near_it_is_open(new_stack: NewStack) -> None:
    """Or its date was loaded lately. One planned afterwards finds it gone, and makes it anew."""
    stack = new_stack().make_topic(1, **CREATE_TIME)
    for numbers in (range(5), range(5, 8)):
        stack.send(*map(sent, numbers))
        stack.run()
    for dry_run in (True, False):
        found = let_go_of_index(stack.worker(), KEEP, dry_run=dry_run)
        assert (found.count, found.kept) == (0, {judge.JUST_LOADED: 2})
    age(stack)
    in_state(State.HELD)(stack)
    assert let_go_of_index(stack.worker(), KEEP, dry_run=True).kept == {judge.UNFINISHED: 2}
    assert let_go_of_index(stack.worker(), KEEP).kept == {judge.UNFINISHED: 2}
    in_state(State.COMMITTED)(stack)
    assert let_go_of_index(stack.worker(), KEEP).count == 2
    stack.send(sent(4, AGO - 1), sent(50, AGO - 1))  # a day later, within the window
    *_, batch = stage_batches(stack.worker())
    assert batch.staged is not None
    assert (batch.staged.balance.ok, batch.staged.balance.duplicate) == (1, 1)


def test_the_ledger_forgets_what_has_no_file(new_stack: NewStack) -> None:
    """Lanes, and ClickHouse's copies, stay; what is planned next follows what was forgotten."""
    stack = old_stack(new_stack, sent(60, AGO - 1))
    worker, names = stack.worker(), {batch.batch_id for batch in stack.batches()}
    assert forget_batches(worker, KEEP).kept == {FILES_KEPT: 2, f"{BEHIND}, {OLD}": 1}
    redrive(worker, Wanted(date=OLD))
    age(stack)
    for let_go in (let_go_of_staged, let_go_of_letters, let_go_of_index):
        let_go(worker, KEEP)
    before = planned_ends(stack.ledger, *stack_incarnation(stack))
    assert forget_batches(worker, KEEP, dry_run=True).count == forget_batches(worker, KEEP).count
    left = stack.batches()
    assert {batch.arrival_date for batch in left} == {TODAY}
    assert hanging(stack, {batch.batch_id for batch in left}) == 0
    assert planned_ends(stack.ledger, *stack_incarnation(stack)) == before
    assert {name for (name,) in stack.rows("SELECT DISTINCT batch_id FROM {database}.batches")} >= (
        names
    )

    stack.send(*(sent(n, 0) for n in range(300, 303)))
    stack.run()
    batches_now = stack.batches()
    kinds = reprove(stack.client, stack.database, batches_now, TABLES)
    assert unbalanced(batches_now) + untiled(batches_now) + kinds == []
    assert stack.rows("SELECT count() FROM {database}.events") == [(8 + 1 + 3 + 3,)]


def nothing(stack: Stack) -> None:
    """But its rows are there still."""


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (nothing, ROWS_KEPT),
        (a_batch_was_loaded_now, judge.JUST_LOADED),
        (half_of_a_batch_is_deleted, judge.DIFFERS),
    ],
)
def test_the_ledger_keeps_a_date_that_is_not_done_with(
    new_stack: NewStack, happens: Callable[[Stack], None], why: str
) -> None:
    """Although none of its files is left: else nobody could tell whose rows these are."""
    stack = old_stack(new_stack, keep_events_days=KEEP)
    worker = stack.worker()
    for let_go in (let_go_of_staged, let_go_of_letters, let_go_of_index):
        let_go(worker, KEEP)
    happens(stack)
    for dry_run in (True, False):
        found = forget_batches(worker, KEEP, dry_run=dry_run)
        assert (found.count, found.kept) == (0, {why: 2})
    if happens is nothing:
        assert let_go_of_events(worker, KEEP).count == 8
        assert forget_batches(worker, KEEP).count == 2


def test_an_older_date_of_imports_alone_holds_up_no_other(
    new_stack: NewStack, tmp_path: Path
) -> None:
    """Each file has lanes of its own, and one date."""
    stack = old_stack(new_stack)
    create_project(stack.ledger, "shop")
    for let_go in (let_go_of_staged, let_go_of_letters, let_go_of_index):
        let_go(stack.worker(), KEEP)
    file = write_lines(tmp_path / "old.jsonl", [line(500)])
    import_file(stack.worker("importer"), file, "1", OLD - timedelta(days=3))
    found = forget_batches(stack.worker(), KEEP)
    assert (found.count, found.kept) == (2, {FILES_KEPT: 1})


def stack_incarnation(stack: Stack) -> tuple[str, str]:
    """The cluster's and the topic's id."""
    identity = stack.topic.identity()
    return identity.cluster_id, identity.topic_id


def hanging(stack: Stack, known: set[str]) -> int:
    """Rows of the ledger that name a batch which is not known."""
    with stack.ledger.connect() as connection:
        return sum(
            connection.scalar(
                select(func.count()).select_from(table).where(table.c.batch_id.not_in(known))
            )
            or 0
            for table in metadata.tables.values()
            if "batch_id" in table.c
        )


def test_a_dry_run_knows_what_goes_first(new_stack: NewStack) -> None:
    """What a rebuild has replaced long ago goes first, and then its date: both are said."""
    stack = old_stack(new_stack, keep_staged_days=KEEP, keep_events_days=KEEP)
    rebuild(stack.worker(), OLD)
    with stack.ledger.begin() as connection:
        connection.execute(update(rebuilds).values(moved_at=1))
    said = keep_house(stack.worker(), None, dry_run=True)
    done = keep_house(stack.worker(), None)
    counts = {tally.what: tally.count for tally in said.tallies}
    assert counts == {tally.what: tally.count for tally in done.tallies}
    assert (counts["replaced dates"], counts["rows of events"]) == (1, 8)


def test_alarms_and_rebuilds_that_are_over_are_forgotten(new_stack: NewStack) -> None:
    """What stands, what nobody was told of and what can be brought back stay."""
    stack = old_stack(new_stack)
    rebuild(stack.worker(), OLD)
    with stack.ledger.begin() as connection:
        for name, over_told_at in (("over", 1), ("stands", None)):
            connection.execute(
                alarms.insert().values(
                    name=name, text="", raised_at=1, seen_at=1, over_told_at=over_told_at
                )
            )
        connection.execute(update(rebuilds).values(moved_at=1))
    settings = stack.settings
    object.__setattr__(stack, "settings", settings.model_copy(update={"keep_ledger_days": KEEP}))
    keep_house(stack.worker(), None, dry_run=True)
    report = keep_house(stack.worker(), None)
    gone = {tally.what: tally.count for tally in report.tallies}
    assert gone["replaced dates"] == 1
    assert gone["alarms and rebuilds that are over"] == 2
    with stack.ledger.connect() as connection:
        assert connection.scalars(select(alarms.c.name)).all() == ["stands"]


def test_the_daily_asset_and_the_command_report(
    new_stack: NewStack, instance: dg.DagsterInstance
) -> None:
    """With the same figures; a dry run changes nothing."""
    days = dict.fromkeys(("keep_staged_days", "keep_dead_letters_days", "keep_keys_days"), KEEP)
    stack = old_stack(new_stack, keep_ledger_days=KEEP, **days)
    report = json.loads(command(stack, "housekeeping", "--dry-run", "--json"))
    assert report["dry_run"]
    would = {each["what"]: each["count"] for each in report["let_go"]}
    assert (would["staged files"], would["dead letters"]) == (3, 1)
    assert "would go  3 staged files" in command(stack, "housekeeping", "--dry-run")
    assert len(on_disk(stack, "events")) == 2

    job = definitions(stack.settings).resolve_job_def("daily_housekeeping")
    dry = {"ops": {"housekeeping": {"config": {"dry_run": True}}}}
    ran = job.execute_in_process(instance=instance, run_config=dry)
    (told,) = ran.asset_materializations_for_node("housekeeping")
    assert told.metadata["staged_files_would_go"].value == 3
    ran = job.execute_in_process(instance=instance)
    (told,) = ran.asset_materializations_for_node("housekeeping")
    assert told.metadata["staged_files_let_go"].value == 3
    assert told.metadata["staged_files_bytes_let_go"].value > 0
    assert told.metadata["batches_of_the_ledger_let_go"].value == 2
    assert [batch.arrival_date for batch in stack.batches()] == [TODAY]
    assert wrong(stack) == []
    assert "let go    0 staged files" in command(stack, "housekeeping")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"keep_staged_days": 1}, "TIDEMARK_DUPLICATE_WINDOW_DAYS, 2"),
        ({"keep_keys_days": 3, "duplicate_window_days": 4}, "TIDEMARK_DUPLICATE_WINDOW_DAYS, 4"),
        ({"keep_ledger_days": 90}, "TIDEMARK_KEEP_STAGED_DAYS is 0"),
        ({"keep_ledger_days": 90, "keep_staged_days": 60}, "KEEP_DEAD_LETTERS_DAYS is 0"),
        (
            {"keep_ledger_days": 30, "keep_staged_days": 20, "keep_dead_letters_days": 40},
            "30 is below TIDEMARK_KEEP_DEAD_LETTERS_DAYS, 40",
        ),
        ({"keep_events_days": 1}, "TIDEMARK_DUPLICATE_WINDOW_DAYS, 2"),
        (
            dict.fromkeys(("keep_staged_days", "keep_dead_letters_days"), 30)
            | {"keep_events_days": 90, "keep_ledger_days": 60},
            "60 is below TIDEMARK_KEEP_EVENTS_DAYS",
        ),
    ],
)
def test_days_that_make_no_sense_together_are_refused(
    settings: Callable[..., Settings], values: dict[str, int], told: str
) -> None:
    """By the name of the setting that is too short."""
    with pytest.raises(ValidationError, match=told):
        settings(**values)
