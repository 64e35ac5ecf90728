"""Redrive: dead letters become events once the code or the projects are mended; once each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
from sqlalchemy import delete

from assets.pipeline import redrive as redrive_module
from assets.pipeline import validate
from assets.pipeline.audit import balance_of, reprove, unbalanced, untiled
from assets.pipeline.batch import Balance, Batch, Kind, StagedFile, State
from assets.pipeline.errors import BatchError, ProofFailed
from assets.pipeline.failpoints import VARIABLE
from assets.pipeline.loading import load_batches
from assets.pipeline.redrive import (
    CUT_OFF,
    NO_PROJECT,
    NO_TOKEN,
    SETTLED,
    TOO_LARGE,
    TRIED,
    Wanted,
    preview,
    redrive,
)
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import accept_gap, give_up_redrive, retry_batch
from assets.pipeline.worker import Worker
from orchestration.ledger.attempts import last_failures
from orchestration.ledger.batches import loaded_ends, planned_ends
from orchestration.ledger.gaps import accept_lost_file, all_gaps, gap_found
from orchestration.ledger.keys import KeySwap
from orchestration.ledger.projects import create_project, revoke_project
from orchestration.ledger.redrives import Outcome
from orchestration.ledger.tables import redrive_counts, redrive_letters, redrives
from orchestration.settings import Settings
from tests.records import Sent, delete_before, too_large, uuid_of, value_of, value_with
from tests.stack import ROOT, Place, Stack, cannot_be_read

NewStack = Callable[..., Stack]

UNKNOWN = ("unknown_project",)
EVERYTHING = Wanted()


def early(number: int, token: str, partition: int = 0) -> Sent:
    """A record that came in before its project was there."""
    return Sent(value_of(number, project_id=0), partition, key=f"{token}:person".encode())


@pytest.fixture
def waiting(new_stack: NewStack) -> tuple[Stack, str, list[Place]]:
    """A stack with two batches of events, of which 6 have a token that a project has by now."""
    stack = new_stack().make_topic(2)
    project = create_project(stack.ledger, "shop")
    stack.send_numbers(range(10), 2)
    letters = stack.send(*(early(n, project.token, n % 2) for n in range(100, 104)))
    stack.send(b"no json")
    stack.run()
    letters += stack.send(*(early(n, project.token, n % 2) for n in range(104, 106)))
    stack.send_numbers(range(10, 12), 2)
    stack.run()
    return stack, project.token, letters


def is_sound(stack: Stack) -> bool:
    """Whether the audit finds nothing: balances, lanes, rows in ClickHouse."""
    batches = stack.batches()
    kinds = (Kind.EVENTS, Kind.DEAD_LETTERS)
    found = unbalanced(batches) + untiled(batches)
    return not found + reprove(stack.client, stack.database, batches, kinds)


def test_events_whose_project_is_there_by_now(waiting: tuple[Stack, str, list[Place]]) -> None:
    """They become rows with their own places, under a batch of their own that is proved."""
    stack, _, letters = waiting
    ends = planned_ends(stack.ledger, *incarnation(stack))
    before = {batch.batch_id: batch for batch in stack.batches()}
    done = redrive(stack.worker("redriver"), Wanted(UNKNOWN))
    assert done.results == {("unknown_project", Outcome.EVENT, ""): 6}
    [batch] = done.batches
    assert (batch.state, batch.letters, batch.ranges) == (State.COMMITTED, 6, ())
    rows = stack.rows(
        "SELECT _partition, _offset, project_id, _run_id FROM {database}.events "
        "WHERE _batch_id = {id:String}",
        id=batch.batch_id,
    )
    assert sorted((partition, offset) for partition, offset, *_ in rows) == sorted(letters)
    assert {tuple(rest) for _, _, *rest in rows} == {(1, "redriver")}

    old = [one for one in stack.batches() if one.batch_id in before]
    assert [one.staged.balance.redriven for one in old if one.staged] == [4, 2]
    assert [one.staged.balance.rejected for one in old if one.staged] == [5, 2]
    assert balance_of(stack.batches()) == Balance(ok=12, rejected=7, redriven=6)
    assert stack.rows("SELECT sum(ok), sum(rejected), sum(redriven) FROM {database}.batches FINAL")
    assert stack.rows(
        "SELECT sum(ok), sum(rejected), sum(redriven), sum(letters) FROM {database}.batches FINAL"
    ) == [(18, 7, 6, 6)]
    assert len(stack.account().events) == 18
    assert is_sound(stack)
    assert planned_ends(stack.ledger, *incarnation(stack)) == ends
    assert loaded_ends(stack.ledger, *incarnation(stack)) == ends


def test_what_was_redriven_is_never_redriven_again(
    waiting: tuple[Stack, str, list[Place]],
) -> None:
    """Not by the same choice, nor with --again; and the next batches are planned as ever."""
    stack, token, letters = waiting
    redrive(stack.worker(), Wanted(UNKNOWN))
    for again in (False, True):
        done = redrive(stack.worker(), Wanted(UNKNOWN, again=again))
        assert (done.letters, done.batches) == (0, ())
        assert done.left_out == {("unknown_project", SETTLED["event"]): 6}
    more = stack.send(early(200, token), value_of(201))
    stack.run()
    assert Counter(stack.account().events)[more[1]] == 1
    assert redrive(stack.worker(), Wanted(UNKNOWN)).letters == 1
    assert set(Counter(stack.account().events).values()) == {1}
    assert len(stack.account().events) == 12 + len(letters) + 2
    assert is_sound(stack)


def test_a_dry_run_says_the_same_and_does_nothing(
    waiting: tuple[Stack, str, list[Place]],
) -> None:
    """What would come of it, by reason; neither the ledger nor ClickHouse knows of it."""
    stack, _, letters = waiting
    before = stack.batches()
    seen = preview(stack.worker(), EVERYTHING)
    assert seen.dry_run
    assert seen.results == {
        ("unknown_project", Outcome.EVENT, ""): 6,
        ("not_json", Outcome.REJECTED, "not_json"): 1,
    }
    assert stack.batches() == before
    assert len(stack.account().events) == 12
    assert redrive(stack.worker(), EVERYTHING).results == seen.results
    assert len(stack.account().events) == 12 + len(letters)


def test_records_that_mended_code_understands(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layout that the code did not know becomes events once it does, long after Kafka forgot."""
    stack = new_stack().make_topic()
    sent = stack.send(*(value_with(n, v=3) for n in range(5)), value_of(9))
    [batch] = stack.run()
    delete_before(stack.kafka, stack.settings.topic, {0: 6})
    assert redrive(stack.worker(), EVERYTHING).count(Outcome.REJECTED) == 5
    monkeypatch.setattr(validate, "RECORD_VERSION", 3)
    done = redrive(stack.worker(), Wanted(batch_id=batch.batch_id))
    assert done.results == {("unknown_version", Outcome.EVENT, ""): 5}
    assert sorted(stack.account().events) == sent
    assert is_sound(stack)


def test_what_fails_again_and_again_is_left_out(new_stack: NewStack) -> None:
    """After as many tries as the settings say, unless somebody wants it once more."""
    stack = new_stack(redrive_tries=2).make_topic()
    stack.send(b"no json", value_of(0))
    stack.run()
    tried = [redrive(stack.worker(), EVERYTHING) for _ in range(3)]
    assert [one.count(Outcome.REJECTED) for one in tried] == [1, 1, 0]
    assert tried[2].left_out == {("not_json", TRIED): 1}
    assert redrive(stack.worker(), Wanted(again=True)).count(Outcome.REJECTED) == 1
    assert [batch.state for batch in stack.batches()] == [State.COMMITTED] * 4
    assert len(stack.account().dead_letters) == 1  # a try that fails adds none
    assert is_sound(stack)


def test_what_can_never_become_an_event_is_not_tried(new_stack: NewStack) -> None:
    """Evidence, values that were cut off, and tokens that are not known or not good."""
    stack = new_stack().make_topic()
    revoked = create_project(stack.ledger, "closed")
    revoke_project(stack.ledger, revoked.project_id)
    stack.send(
        too_large(1),
        b"x" * 70_000,
        Sent(value_of(2, project_id=0), key=None),
        early(3, "phc_nobody"),
        early(4, revoked.token),
    )
    stack.run()
    for _ in range(5):
        done = redrive(stack.worker(), EVERYTHING)
        assert done.letters == 0
        assert done.left_out == {
            ("too_large", TOO_LARGE): 1,
            ("not_json", CUT_OFF): 1,
            ("unknown_project", NO_TOKEN): 1,
            ("unknown_project", NO_PROJECT): 2,
        }
    assert len(stack.batches()) == 1


def test_large_events_of_unknown_tokens_come_whole(new_stack: NewStack) -> None:
    """Their dead letters were kept to the last byte."""
    stack = new_stack().make_topic()
    project = create_project(stack.ledger, "shop")
    text = b'{"text":"' + b"y" * 300_000 + b'"}'
    value = value_of(7, text, project_id=0)
    stack.send(Sent(value, key=f"{project.token}:p".encode()))
    stack.run()
    assert redrive(stack.worker(), EVERYTHING).count(Outcome.EVENT) == 1
    assert stack.rows("SELECT length(properties) FROM {database}.events") == [(len(text),)]


def test_a_resend_and_a_dead_letter_of_one_event_are_stored_once(
    waiting: tuple[Stack, str, list[Place]],
) -> None:
    """Whether the client's resend came before the redrive or after it, or the letter is twice."""
    stack, token, _ = waiting
    stack.send(early(104, token), value_of(100), value_of(9_000))
    stack.run()
    done = redrive(stack.worker(), Wanted(UNKNOWN))
    assert done.results == {
        ("unknown_project", Outcome.EVENT, ""): 5,
        ("unknown_project", Outcome.DUPLICATE, ""): 2,
    }
    stack.send(value_of(105))
    newest = stack.run()[-1]
    assert newest.staged is not None
    assert newest.staged.balance == Balance(duplicate=1)
    uuids = stack.rows("SELECT count(), uniqExact(project_id, uuid) FROM {database}.events")
    assert uuids == [(19, 19)]
    left = redrive(stack.worker(), Wanted(UNKNOWN)).left_out
    assert left == {
        ("unknown_project", SETTLED["event"]): 5,
        ("unknown_project", SETTLED["duplicate"]): 2,
    }
    assert is_sound(stack)


def test_a_choice_takes_what_it_says(waiting: tuple[Stack, str, list[Place]]) -> None:
    """By reason, project (id or token), date, batch and limit; together they narrow it down."""
    stack, token, _ = waiting
    first, second = stack.batches()
    other = create_project(stack.ledger, "other")
    day = first.arrival_date
    # Whose key does not tell: their heads do, whatever the client's own properties say.
    theirs = {"uuid": "none", "project_id": other.project_id}
    stack.send(
        Sent(value_of(50, b'{"project_id":1}', **theirs), key=None),
        Sent(value_with(51, properties={"project_id": 1}, **theirs), key=None),
    )
    stack.run()

    def chosen(**values: object) -> int:
        return preview(stack.worker(), Wanted(**values)).letters  # type: ignore[arg-type]

    assert chosen() == 9
    assert chosen(reasons=("not_json",)) == 1
    assert chosen(reasons=("not_json", "unknown_project")) == 7
    assert chosen(reasons=("not_utf8",)) == 0
    assert chosen(project="1") == chosen(project=token) == 6
    assert chosen(project=str(other.project_id)) == 2
    assert chosen(date=day) == 9
    assert chosen(date=day.replace(year=2020)) == 0
    assert chosen(batch_id=second.batch_id) == 2
    assert chosen(batch_id=second.batch_id, date=day.replace(year=2020)) == 0
    assert chosen(limit=3) == 3
    done = redrive(stack.worker(), Wanted(limit=1, project=token))
    assert done.letters == 1
    assert chosen(project=token) == 5
    assert len(stack.account().events) == 13
    with pytest.raises(BatchError, match="is a redrive itself"):
        chosen(batch_id=done.batches[0].batch_id)
    with pytest.raises(BatchError, match="knows no batch nothing"):
        chosen(batch_id="nothing")
    worker = changed(stack, topic="another")
    with pytest.raises(BatchError, match="these settings do not carry"):
        redrive(worker, Wanted(batch_id=first.batch_id))


def test_letters_of_a_held_batch_wait_for_its_release(new_stack: NewStack) -> None:
    """They are not chosen, and who names the batch is told what to do."""
    stack = new_stack(hold_over_records=2).make_topic()
    stack.send(*[b"no json"] * 5)
    [batch] = stack.run()
    assert batch.state is State.HELD
    assert preview(stack.worker(), EVERYTHING).letters == 0
    with pytest.raises(BatchError, match=r"is held.*tidemark release"):
        redrive(stack.worker(), Wanted(batch_id=batch.batch_id))


def test_each_topic_and_date_has_a_redrive_of_its_own(new_stack: NewStack) -> None:
    """One insert goes into one partition, so letters of old batches are put together by these."""
    stack = new_stack().make_topics()
    project = create_project(stack.ledger, "shop")
    for number, topic in enumerate(stack.settings.topics):
        stack.send(*(early(100 * number + n, project.token) for n in range(3)), topic=topic)
    stack.run()
    stack.send(*(early(1_000 + n, project.token) for n in range(2)))
    stack.run()
    done = redrive(stack.worker(), EVERYTHING)
    main, historical, overflow = stack.settings.topics
    found = Counter((batch.topic, batch.letters) for batch in done.batches)
    assert found == {(main, 5): 1, (historical, 3): 1, (overflow, 3): 1}
    assert is_sound(stack)
    for topic in stack.settings.topics:
        assert len(stack.account_of(topic).events) == (5 if topic == main else 3)


def test_many_letters_are_redriven_in_several_batches(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redrive that has enough of them is planned, and another one begun; each is proved."""
    monkeypatch.setattr(redrive_module, "LETTERS_A_BATCH", 1_000)
    stack = new_stack().make_topic()
    project = create_project(stack.ledger, "shop")
    sent = stack.send(*(early(n, project.token) for n in range(2_500)))
    stack.run()
    done = redrive(stack.worker(), EVERYTHING)
    assert [batch.letters for batch in done.batches] == [1_000, 1_000, 500]
    assert sorted(stack.account().events) == sorted(sent)
    assert is_sound(stack)


def accept_loss(stack: Stack, batch: Batch, file: StagedFile) -> None:
    """Put up with the loss of a file of dead letters, which ClickHouse has not either."""
    with stack.worker().lease() as lease:
        gap_found(stack.ledger, lease, batch.batch_id, file.kind, file.path, file.rows, "gone")
        gap = all_gaps(stack.ledger, batch.topic)[-1]
        accept_lost_file(stack.ledger, lease, gap, KeySwap(), "the disk is gone", "gone")


def test_a_redrive_of_letters_accepted_as_lost_can_only_be_given_up(
    waiting: tuple[Stack, str, list[Place]],
) -> None:
    """It waits for a person, who is told so, and stops nothing."""
    stack, _, _ = waiting
    assert command(stack, "redrive", "--all", point="after-plan") == -signal.SIGKILL
    first = stack.batches()[0]
    assert first.staged is not None
    file = first.staged.file(Kind.DEAD_LETTERS)
    assert file is not None
    accept_loss(stack, first, file)
    more = stack.send(value_of(500))
    held: list[BatchError] = []
    stage_batches(stack.worker(), held)
    load_batches(stack.worker(), held)
    assert more[0] in stack.account().events
    (told,) = held
    [gap] = [batch for batch in stack.batches() if batch.state is State.GAP]
    assert gap.is_redrive
    for text in ("its loss was accepted", f"tidemark redrive --give-up {gap.batch_id}"):
        assert text in str(told)
        assert text in gap.note
    assert give_up_redrive(stack.worker(), gap.batch_id).state is State.SUPERSEDED


def test_letters_that_cannot_be_read_now_are_left_out(
    waiting: tuple[Stack, str, list[Place]],
) -> None:
    """As those of a damaged file; the others are tried, and these when their file can be read."""
    stack, _, letters = waiting
    first = stack.batches()[0]
    assert first.staged is not None
    file = first.staged.file(Kind.DEAD_LETTERS)
    assert file is not None
    path = stack.lake_file(file.path)
    whole = cannot_be_read(path)
    for ask in (preview, redrive):
        done = ask(stack.worker(), Wanted(UNKNOWN))
        assert [file.path in text for text in done.damaged] == [True]
        assert done.results == {("unknown_project", Outcome.EVENT, ""): 2}
    whole.replace(path)
    assert redrive(stack.worker(), Wanted(UNKNOWN)).letters == 4
    assert set(letters) <= set(stack.account().events)
    assert is_sound(stack)


@pytest.mark.parametrize("back", [True, False])
def test_letters_whose_file_is_gone_wait_for_a_person(
    waiting: tuple[Stack, str, list[Place]], back: bool
) -> None:
    """A redrive that was planned stands still until the file is back, or it is given up; it holds
    up no other batch. What is not planned yet is left out, with the file's name."""
    stack, _, letters = waiting
    assert command(stack, "redrive", "--all", point="after-plan") == -signal.SIGKILL
    first = stack.batches()[0]
    assert first.staged is not None
    file = first.staged.file(Kind.DEAD_LETTERS)
    assert file is not None
    path = stack.lake_file(file.path)
    away = path.rename(path.with_suffix(".away"))
    more = stack.send(value_of(500))
    with pytest.raises(BatchError, match="dead letters to redrive cannot be read"):
        stack.run()
    stack.run()
    [gap] = [batch for batch in stack.batches() if batch.state is State.GAP]
    assert gap.is_redrive
    assert more[0] in stack.account().events
    damaged = redrive(stack.worker(), EVERYTHING).damaged
    assert [file.path in text for text in damaged] == [True]
    found = all_gaps(stack.ledger, gap.topic)[-1]
    with pytest.raises(BatchError, match="dead letters still: give it up"):
        accept_gap(stack.worker(), found.gap_id, "no need")
    if back:
        away.rename(path)
        retry_batch(stack.worker(), gap.batch_id)
        stack.run()
        assert set(letters) <= set(stack.account().events)
        assert is_sound(stack)
        return
    (listed,) = all_gaps(stack.ledger, stack.settings.topic)
    assert listed.decision is None
    given_up = give_up_redrive(stack.worker(), gap.batch_id)
    assert given_up.state is State.SUPERSEDED
    (listed,) = all_gaps(stack.ledger, stack.settings.topic)
    assert (listed.decision, listed.decided_at is None) == ("given up", False)
    assert last_failures(stack.ledger, 5, stack.settings.topic) == []
    assert stack.rows(
        "SELECT state FROM {database}.batches FINAL WHERE batch_id = {id:String}",
        id=gap.batch_id,
    ) == [("superseded",)]
    with pytest.raises(BatchError, match="is superseded: it does not wait"):
        give_up_redrive(stack.worker(), gap.batch_id)
    redrive(stack.worker(), Wanted(UNKNOWN))  # those of the other batch, whose file is there
    assert letters[4:] == [place for place in letters if place in stack.account().events]
    assert is_sound(stack)


def test_a_staged_redrive_whose_file_is_lost_is_staged_again(
    waiting: tuple[Stack, str, list[Place]],
) -> None:
    """Its letters are still in the lake, so it needs neither Kafka nor a person."""
    stack, _, letters = waiting
    assert command(stack, "redrive", "--all", point="after-register") == -signal.SIGKILL
    [redriven] = [batch for batch in stack.batches() if batch.is_redrive]
    assert redriven.staged is not None
    file = redriven.staged.file(Kind.EVENTS)
    assert file is not None
    stack.lake_file(file.path).unlink()
    with pytest.raises(BatchError, match="is not in the lake"):
        stack.run()
    stack.run()
    assert set(letters) <= set(stack.account().events)
    assert set(Counter(stack.account().events).values()) == {1}
    assert is_sound(stack)


def test_a_ledger_that_has_forgotten_a_redrive_doubles_nothing(
    waiting: tuple[Stack, str, list[Place]],
) -> None:
    """ClickHouse has rows of these records: the redrive waits for a person and inserts nothing."""
    stack, _, _ = waiting
    redrive(stack.worker(), Wanted(UNKNOWN, limit=2))
    with stack.ledger.begin() as connection:
        [batch] = [batch for batch in stack.batches() if batch.is_redrive]
        for table in (redrive_counts, redrive_letters, redrives):
            connection.execute(delete(table))
        connection.exec_driver_sql("DELETE FROM fingerprints WHERE batch_id = ?", (batch.batch_id,))
        connection.exec_driver_sql("DELETE FROM staged_files WHERE batch_id = ?", (batch.batch_id,))
        connection.exec_driver_sql("DELETE FROM attempts WHERE batch_id = ?", (batch.batch_id,))
        connection.exec_driver_sql("DELETE FROM batches WHERE batch_id = ?", (batch.batch_id,))
        connection.exec_driver_sql(
            "DELETE FROM key_files WHERE path LIKE ?", (f"%{batch.batch_id}%",)
        )
    with pytest.raises(ProofFailed, match=r"2 of its records are rows of events already"):
        redrive(stack.worker(), Wanted(UNKNOWN))
    assert set(Counter(stack.account().events).values()) == {1}
    assert len(stack.account().events) == 14
    assert [batch.state for batch in stack.batches() if batch.is_redrive] == [State.SUSPECT]


def test_kafka_is_not_needed(waiting: tuple[Stack, str, list[Place]]) -> None:
    """The lake has the letters, so a redrive goes through while Kafka is away."""
    stack, _, letters = waiting
    worker = changed(stack, kafka_bootstrap_servers="127.0.0.1:9")
    assert worker.settings.kafka_client["bootstrap.servers"] == "127.0.0.1:9"
    assert redrive(worker, Wanted(UNKNOWN)).count(Outcome.EVENT) == len(letters)


def test_a_lost_index_has_redriven_events_again(
    waiting: tuple[Stack, str, list[Place]],
) -> None:
    """Made anew from the staged files, it still knows the uuids that a redrive brought."""
    stack, _, _ = waiting
    redrive(stack.worker(), Wanted(UNKNOWN))
    for path in stack.lake_file("keys").rglob("*.arrow"):
        path.unlink()
    stack.send(value_of(105))
    newest = stage_batches(stack.worker())[-1]
    assert newest.staged is not None
    assert newest.staged.balance == Balance(duplicate=1)
    assert stack.rows(
        "SELECT count() FROM {database}.events WHERE uuid = {id:UUID}", id=uuid_of(105)
    ) == [(1,)]


def changed(stack: Stack, **values: object) -> Worker:
    """A worker of the stack with other settings; made anew, for settings keep what they derive."""
    settings = Settings(**{**stack.settings.model_dump(exclude_defaults=True), **values})
    return Worker(settings, stack.ledger, "run", say=lambda line: None)


def command(stack: Stack, *arguments: str, point: str = "") -> int:
    """`tidemark …`, which kills itself at the point; gives its exit code."""
    return subprocess.run(
        [sys.executable, "-c", "from orchestration.cli import main; main()", *arguments],
        cwd=ROOT,
        env={**os.environ, **stack.settings.environment(), VARIABLE: point},
        check=False,
    ).returncode


def incarnation(stack: Stack) -> tuple[str, str]:
    """The cluster and the topic's id."""
    identity = stack.topic.identity()
    return identity.cluster_id, identity.topic_id
