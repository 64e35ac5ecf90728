"""`tidemark reconcile`: batches are proved again, and what ClickHouse has lost is loaded again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from assets.pipeline import repair as repair_module
from assets.pipeline.audit import Trouble
from assets.pipeline.batch import Balance, Batch, Kind, State
from assets.pipeline.errors import ClickHouseAway, LeaseHeld, StagedFileDamaged
from assets.pipeline.lake import Lake
from assets.pipeline.load import insert
from assets.pipeline.staging import stage_batches
from orchestration import reconcile as reconcile_module
from orchestration.cli import tidemark
from orchestration.ledger.audits import HOLDS, audits_of, due_for_audit
from orchestration.ledger.backoffs import note_failure, table_name
from orchestration.ledger.tables import batches
from tests.records import delete_before, value_of
from tests.stack import ROOT, Stack

NewStack = Callable[..., Stack]


def run(stack: Stack, *arguments: str) -> Result:
    """`tidemark reconcile`, as it is typed."""
    return CliRunner().invoke(tidemark, ["reconcile", *arguments], env=stack.settings.environment())


def document(stack: Stack, *arguments: str, exit_code: int = 0) -> dict[str, Any]:
    """What `--json` prints."""
    result = run(stack, *arguments, "--json")
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def sql(stack: Stack, statement: str) -> None:
    """Change the tables, and return when they are changed."""
    settings = " SETTINGS mutations_sync = 2" if statement.startswith("ALTER") else ""
    stack.client.command(statement.replace("{database}", stack.database) + settings)


def outcomes(stack: Stack) -> list[str]:
    """The outcome of each batch's last proof, in the order of planning; - for none."""
    ids = [batch.batch_id for batch in stack.batches()]
    known = {audit.batch_id: audit.outcome for audit in audits_of(stack.ledger, ids)}
    return [known.get(batch_id, "-") for batch_id in ids]


def test_what_holds_is_proved_over_all_topics(new_stack: NewStack) -> None:
    """Exit code 0, counts over all topics and both tables, and the proof on record."""
    stack = new_stack().make_topics()
    for number, topic in enumerate(stack.settings.topics):
        stack.send(value_of(number), b"no event", topic=topic)
    stack.run()
    stage_after = stack.send(value_of(50))
    stage_batches(stack.worker())
    assert len(stage_after) == 1
    found = document(stack, "--rows")
    assert (found["holds"], found["batches_proved"], found["batches_not_loaded"]) == (True, 3, 1)
    assert (found["offsets"], found["ok"], found["rejected"]) == (6, 3, 3)
    assert outcomes(stack) == [HOLDS, HOLDS, HOLDS, "-"]
    told = run(stack)
    assert told.exit_code == 0
    assert "every balance closes" in told.stdout
    assert f"balance {Balance(ok=3, rejected=3)}" in " ".join(told.stdout.split())
    assert "waiting   1 batches are not loaded" in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 100


def test_the_equation_that_is_printed_closes() -> None:
    """Whoever adds up what stands right of the sign gets what stands left of it."""
    balance = Balance(ok=1, rejected=20, duplicate=300, tombstone=4_000, absent=50_000)
    printed = str(balance + Balance(lost=600_000, redriven=15))
    offsets, addends = re.sub(r"\(.*?\)|,", "", printed).split(" offsets = ")
    assert int(offsets) == sum(int(addend.split()[0]) for addend in addends.split(" + "))
    assert "20 rejected (of these 15 redriven)" in printed


@pytest.mark.parametrize(
    ("scope", "proved"), [([], 2), (["--all"], 2), (["--date"], 2), (["--batch"], 1)]
)
def test_the_scope_is_the_newest_a_date_a_batch_or_all(
    new_stack: NewStack, scope: list[str], proved: int
) -> None:
    """Each option proves what it names."""
    stack = new_stack(batch_max_records=5).make_topic()
    stack.send_numbers(range(10))
    first, _ = stack.run()
    if scope == ["--date"]:
        scope = [*scope, first.arrival_date.isoformat()]
    if scope == ["--batch"]:
        scope = [*scope, first.batch_id]
    assert document(stack, *scope)["batches_proved"] == proved


def test_scopes_exclude_each_other_and_an_unknown_batch_is_said(new_stack: NewStack) -> None:
    """Misspelt commands end with 2; a batch that nobody knows is one clear error."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    assert run(stack, "--all", "--date", "2026-03-05").exit_code == 2
    assert run(stack, "--date", "yesterday").exit_code == 2
    unknown = run(stack, "--batch", "nonsense")
    assert unknown.exit_code == 1
    assert "knows no batch nonsense" in str(unknown.exception)


def test_what_differs_is_named(new_stack: NewStack) -> None:
    """Exit code 3, with batch, table, partition, offsets and what to do; other batches hold."""
    stack = new_stack(batch_max_records=20).make_topic(2)
    stack.send_numbers(range(40), 2)
    one, other = stack.run()
    sql(stack, f"ALTER TABLE {{database}}.events DELETE WHERE _batch_id = '{one.batch_id}' "
        "AND _offset IN (2, 4) AND _partition = 1")  # fmt: skip
    found = document(stack, exit_code=3)
    [finding] = found["findings"]
    assert {name: finding[name] for name in ("batch_id", "topic", "table", "trouble")} == {
        "batch_id": one.batch_id,
        "topic": stack.settings.topic,
        "table": "events",
        "trouble": "different",
    }
    [partition] = finding["partitions"]
    assert (partition["partition"], partition["missing"]) == (1, {"count": 2, "first": [2, 4]})
    told = run(stack)
    assert told.exit_code == 3
    assert "partition 1: missing 2 (2, 4)" in told.stdout
    *prose, delete, repair, _ = told.stdout.splitlines()
    assert delete.strip().startswith(f"ALTER TABLE {stack.database}.events DELETE WHERE ")
    assert repair.strip() == f"tidemark reconcile --batch {one.batch_id} --repair"
    assert max(map(len, prose)) <= 100  # commands stand whole, to be copied
    assert outcomes(stack) == ["different", HOLDS]
    assert other.batch_id not in told.stdout


def test_what_only_rows_show_stays_found(new_stack: NewStack) -> None:
    """Sums cannot see an altered row, so they do not clear it either; rows do."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    stack.run()
    sql(stack, "ALTER TABLE {database}.events UPDATE sdk = 'x' WHERE _offset = 3")
    assert document(stack)["holds"]
    [finding] = document(stack, "--rows", exit_code=3)["findings"]
    assert finding["partitions"][0]["altered"] == {"count": 1, "first": [3]}
    assert finding["partitions"][0]["columns"] == ["sdk"]
    [again] = document(stack, exit_code=3)["findings"]
    assert (again["trouble"], "altered 1 (3) in sdk" in again["text"]) == ("altered", True)
    sql(stack, "ALTER TABLE {database}.events UPDATE sdk = 'tests/1' WHERE _offset = 3")
    assert document(stack, "--rows")["holds"]
    assert document(stack)["holds"]


LOSSES = {
    "deleted": "ALTER TABLE {database}.events DELETE WHERE _batch_id = '{batch}'",
    "partition dropped": "ALTER TABLE {database}.events DROP PARTITION '{day}'",
    "truncated": "TRUNCATE TABLE {database}.events",
    "table dropped": "DROP TABLE {database}.events SYNC",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_lost_batches_are_loaded_again(new_stack: NewStack, loss: str) -> None:
    """From the staged file, once, also where the server still remembers the first insert."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    [batch] = stack.run()
    delete_before(stack.kafka, stack.settings.topic, {0: 10})  # only the file is left
    statement = LOSSES[loss].replace("{batch}", batch.batch_id)
    sql(stack, statement.replace("{day}", batch.arrival_date.isoformat()))
    [finding] = document(stack, exit_code=3)["findings"]
    assert finding["trouble"] == "missing"
    assert finding["partitions"][0]["missing"]["count"] == 10
    assert stack.batches() == [batch]  # to look changes nothing

    repaired = document(stack, "--repair")
    assert (repaired["holds"], repaired["repaired"]) == (True, [batch.batch_id])
    assert [each["trouble"] for each in repaired["findings_before_repair"]] == ["missing"]
    assert stack.account().places == dict.fromkeys(sent, 1)
    [loaded] = stack.batches()
    assert (loaded.state, loaded.retries) == (State.COMMITTED, 1)
    assert document(stack, "--rows")["holds"]
    assert document(stack, "--repair")["repaired"] == []  # and nothing is loaded twice
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_the_server_would_drop_the_same_insert(new_stack: NewStack) -> None:
    """Why a repair needs a token of its own: what was deleted does not come back under the old."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    [batch] = stack.run()
    sql(stack, "ALTER TABLE {database}.events DELETE WHERE 1")
    send_again(stack, batch)
    assert stack.account().events == []


def send_again(stack: Stack, batch: Batch) -> None:
    """The batch's insert, as it was made the first time."""
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    lake = Lake(stack.settings.lake)
    insert(stack.client, stack.database, "events", lake, file, batch, "run")


def test_a_lost_mirror_is_copied_again(new_stack: NewStack) -> None:
    """Lineage that ClickHouse has lost comes back with a repair, where no row was lost too."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(3))
    [batch] = stack.run()
    for table in ("batches", "batch_attempts"):
        sql(stack, f"TRUNCATE TABLE {{database}}.{table}")
    for _ in range(2):
        assert document(stack, "--repair")["repaired"] == []
        rows = stack.rows("SELECT batch_id, state FROM {database}.batches")
        assert rows == [(batch.batch_id, "committed")]
    assert stack.rows("SELECT count() > 0 FROM {database}.batch_attempts") == [(1,)]


def test_a_repair_waits_for_nothing(new_stack: NewStack) -> None:
    """Like every command, it tries a table at once that micro-batches still wait for."""
    stack = new_stack(load_attempts=1).make_topic()
    sent = stack.send_numbers(range(3))
    stack.run()
    sql(stack, "TRUNCATE TABLE {database}.events")
    table = table_name(stack.settings.topic, Kind.EVENTS)
    with stack.worker().lease() as lease:
        error = ClickHouseAway("Code: 252. too many parts", 252)
        note_failure(stack.ledger, lease, table, error, lambda failures: 3_600_000_000)
    assert document(stack, "--repair")["holds"]
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_lost_dead_letters_are_loaded_again(new_stack: NewStack) -> None:
    """Events that are there stay as they are; only the rejected records are inserted."""
    stack = new_stack().make_topic()
    sent = stack.send(value_of(1), b"no event", value_of(2))
    stack.run("first")
    sql(stack, "ALTER TABLE {database}.dead_letters DELETE WHERE 1")
    [finding] = document(stack, exit_code=3)["findings"]
    assert (finding["table"], finding["trouble"]) == ("dead_letters", "missing")
    assert document(stack, "--repair")["holds"]
    assert stack.account().places == dict.fromkeys(sent, 1)
    assert stack.rows("SELECT DISTINCT _run_id FROM {database}.events") == [("first",)]


def test_rows_that_are_left_are_not_repaired_until_they_are_deleted(new_stack: NewStack) -> None:
    """A part of a batch is left alone; the remedy that is printed works as it is printed."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    stack.run()
    sql(stack, "ALTER TABLE {database}.events DELETE WHERE _offset < 5")
    found = document(stack, "--repair", exit_code=3)
    assert (found["repaired"], len(stack.account().events)) == ([], 5)
    [finding] = found["findings"]
    delete, repair = finding["commands"]
    stack.client.command(delete)
    assert repair.split()[:2] == ["tidemark", "reconcile"]
    assert run(stack, *repair.split()[2:]).exit_code == 0
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_events_are_not_repaired_while_dead_letters_differ(new_stack: NewStack) -> None:
    """Of both tables, each must hold all or nothing of a batch; the reason is told."""
    stack = new_stack().make_topic()
    stack.send(value_of(1), b"no event", b"nor this")
    [batch] = stack.run()
    sql(stack, "TRUNCATE TABLE {database}.events")
    sql(stack, "ALTER TABLE {database}.dead_letters DELETE WHERE _offset = 1")
    found = document(stack, "--repair", exit_code=3)
    assert found["repaired"] == []
    assert "dead_letters holds rows of it" in found["not_repaired"][batch.batch_id]
    assert stack.batches() == [batch]


def test_a_batch_without_its_file_is_not_repaired(new_stack: NewStack) -> None:
    """A file that is not what was staged is not loaded; once it is back, it is."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    [batch] = stack.run()
    assert batch.staged is not None
    path = stack.lake_file(batch.staged.files[0].path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    sql(stack, "TRUNCATE TABLE {database}.events")
    result = run(stack, "--repair")
    assert result.exit_code == 3
    assert "bring the file back" in " ".join(result.stdout.split())
    assert stack.batches() == [batch]
    path.write_bytes(whole)
    assert run(stack, "--repair").exit_code == 0
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_a_repair_that_dies_is_finished_by_the_next_micro_batch(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between giving a batch back and loading it, nothing is lost, nor is it forgotten."""
    stack = new_stack().make_topic()
    sent = stack.send(*map(value_of, range(5)), b"no event")
    stack.run()
    sql(stack, "TRUNCATE TABLE {database}.events")
    sql(stack, "TRUNCATE TABLE {database}.dead_letters")

    def die(_worker: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repair_module, "load_batches", die)
    assert run(stack, "--repair").exit_code != 0
    [batch] = stack.batches()
    assert (batch.state, batch.loaded_at, batch.committed_at) == (State.LOADING, None, None)
    monkeypatch.undo()
    stack.run()
    assert stack.account().places == dict.fromkeys(sent, 1)
    assert document(stack, "--rows")["batches_proved"] == 1


def test_a_repair_does_not_cross_a_worker(new_stack: NewStack) -> None:
    """While a micro-batch is at work nothing is given back."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(5))
    [batch] = stack.run()
    sql(stack, "TRUNCATE TABLE {database}.events")
    with stack.worker().lease():
        held = run(stack, "--repair")
    assert isinstance(held.exception, LeaseHeld)
    assert stack.batches() == [batch]


def test_a_gap_is_told_with_its_commands(new_stack: NewStack) -> None:
    """What waits for a person does not hold, and a repair leaves it as it is."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(5))
    [batch] = stage_batches(stack.worker())
    assert batch.staged is not None
    stack.lake_file(batch.staged.files[0].path).unlink()
    delete_before(stack.kafka, stack.settings.topic, {0: 5})
    with pytest.raises(StagedFileDamaged):
        stack.run()
    found = document(stack, "--repair", exit_code=3)
    assert found["findings"][0]["commands"] == [
        f"tidemark retry {batch.batch_id}",
        "tidemark gaps",
    ]
    assert [each.state for each in stack.batches()] == [State.GAP]


def test_resends_of_what_is_lost_are_named(new_stack: NewStack) -> None:
    """Before a loss is accepted, and in its record: what else it has cost, and in which batches."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(5))
    [lost] = stage_batches(stack.worker())
    stack.send_numbers([1, 2, 3])
    [other] = stage_batches(stack.worker())
    assert lost.staged is not None
    stack.lake_file(lost.staged.files[0].path).unlink()
    delete_before(stack.kafka, stack.settings.topic, {0: 5})
    with pytest.raises(StagedFileDamaged):
        stack.run()

    def gaps(*arguments: str) -> str:
        found = CliRunner().invoke(tidemark, ["gaps", *arguments], env=stack.settings.environment())
        assert found.exit_code == 0
        return found.stdout

    told = f"counted as duplicates and are stored nowhere: 3 in batch {other.batch_id}"
    assert told in gaps()
    assert json.loads(gaps("--json"))[0]["resends"] == {other.batch_id: 3}
    assert told in gaps("accept", "1", "--why", "a fire")
    assert told in gaps()
    sent = stack.send_numbers([1, 2, 3])
    stack.run()
    assert sorted(stack.account().events) == sent


def test_rows_of_what_nobody_loads_are_told(new_stack: NewStack) -> None:
    """As a worker that had slept inserts them: nothing may be there of what is held or given up, no
    part of what failed or is a gap. A repair deletes those of what was given up."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    [batch] = stack.run()
    keeps = {
        "": {State.FAILED, State.GAP},
        "_offset < 5": set[State](),
        "1": {State.FAILED, State.GAP, State.HELD, State.SUPERSEDED},
    }
    for deleted, fine in keeps.items():
        if deleted:
            sql(stack, f"ALTER TABLE {{database}}.events DELETE WHERE {deleted}")
        for state in (State.FAILED, State.GAP, State.HELD, State.SUPERSEDED):
            with stack.ledger.begin() as connection:
                connection.execute(update(batches).values(state=state))
            found = reconcile_module.reconcile(
                stack.worker(), reconcile_module.newest_and_due(stack.worker())
            )
            told = [one for one in found.findings if one.trouble is Trouble.UNEXPECTED]
            assert len(told) == (state not in fine), (deleted, state)
            if state is State.SUPERSEDED:
                assert outcomes(stack) == [HOLDS if state in fine else "unexpected"]
                assert [one.batch_id for one in due_for_audit(stack.ledger, 9, batch.topic)]
            if told and state is State.SUPERSEDED and deleted:
                assert "5 rows of it, though it is superseded" in run(stack).stdout
                assert document(stack, "--repair")["deleted"] == [batch.batch_id]
    assert stack.account().events == []


def test_rows_of_batches_that_nobody_knows_are_told(new_stack: NewStack, tmp_path: Path) -> None:
    """Inserted by hand, say: of a date and of all, in both tables, with what deletes them. A batch
    that the ledger has forgotten is known to lineage; one that is being loaded, to the ledger."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    stack.send(b"no event")
    [batch] = stack.run()
    day = str(batch.arrival_date)
    stack.send_numbers(range(10, 15))
    [loading] = stage_batches(stack.worker())
    send_again(stack, loading)
    assert document(stack, "--date", day)["holds"]

    strange = "it's none"
    for table, name in (("events", "it\\'s none"), ("dead_letters", "")):
        copied = f"SELECT * REPLACE('{name}' AS _batch_id) FROM {{database}}.{table} LIMIT 1"
        sql(stack, f"INSERT INTO {{database}}.{table} {copied}")
    for scope in (["--date", day], ["--all"]):
        found = document(stack, *scope, exit_code=3)
        told = [(one["batch_id"], one["trouble"], one["table"]) for one in found["findings"]]
        assert told == [(strange, "strange", "events"), ("", "strange", "dead_letters")]
    assert document(stack, "--date", "2026-01-02")["holds"]
    assert document(stack, "--batch", batch.batch_id)["holds"]
    words = " ".join(run(stack, "--date", day, "--repair").stdout.split())
    assert f"events has 1 rows of {day} that name it" in words
    assert "batch (none): strange" in words
    for one in found["findings"]:
        stack.client.command(one["commands"][0])
    assert document(stack, "--all", "--rows")["holds"]

    stack.run()
    forgotten = {"TIDEMARK_LEDGER_URL": f"sqlite:///{tmp_path / 'empty.db'}"}
    env = stack.settings.environment() | forgotten
    told = CliRunner().invoke(tidemark, ["reconcile", "--all"], env=env)
    assert (told.exit_code, "nothing was proved" in told.stdout) == (0, True)


def test_older_batches_have_their_turn(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the newest, each run proves some others, until all were proved."""
    monkeypatch.setattr(reconcile_module, "NEWEST_PROVED", 1)
    monkeypatch.setattr(reconcile_module, "ROTATION", 2)
    stack = new_stack(batch_max_records=2).make_topic()
    stack.send_numbers(range(10))
    first, *_ = stack.run()
    proved = []
    for _ in range(2):
        document(stack)
        proved.append(outcomes(stack).count(HOLDS))
    assert proved == [3, 5]
    sql(stack, f"ALTER TABLE {{database}}.events DELETE WHERE _batch_id = '{first.batch_id}'")
    [finding] = document(stack, exit_code=3)["findings"]
    assert finding["batch_id"] == first.batch_id
    for _ in range(3):  # and it is not forgotten while others have their turn
        assert not document(stack, exit_code=3)["holds"]


def test_the_commands_of_the_page_work(new_stack: NewStack) -> None:
    """Every command of docs/audit.md does what it says, the last one after a loss."""
    page = (ROOT / "docs" / "audit.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("    .venv/bin/tidemark ")]
    assert len(lines) == 7
    assert "--repair" in lines[-1]
    stack = new_stack().make_topics()
    sent = stack.send(*map(value_of, range(10)), b"no event")
    [batch] = stack.run()
    for line in lines:
        if "--repair" in line:
            sql(stack, "TRUNCATE TABLE {database}.events")
        command = shlex.split(line, comments=True)[1:]
        given = {"BATCH_ID": batch.batch_id, "2026-11-23": batch.arrival_date.isoformat()}
        result = CliRunner().invoke(
            tidemark,
            [given.get(argument, argument) for argument in command],
            env=stack.settings.environment(),
        )
        assert result.exit_code == 0, (line, result.output, result.exception)
    assert stack.account().places == dict.fromkeys(sent, 1)
    query = re.search(r"-d '(SELECT .* FORMAT Vertical)'", page)
    assert query is not None
    told = stack.client.command(query[1].replace("FROM ", f"FROM {stack.database}."))
    assert stack.settings.topic in str(told)
