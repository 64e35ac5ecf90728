"""`tidemark import`: what it prints, what it refuses, and how its events are explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from assets.pipeline.errors import BatchError, ImportTrouble
from orchestration.ledger.projects import create_project
from tests.cli.test_topics import run
from tests.exports import lines_of, write_lines
from tests.records import uuid_of
from tests.stack import Stack


@pytest.fixture
def stack(new_stack: Callable[..., Stack]) -> Stack:
    """A stack with project 1, whose batches have five rows."""
    stack = new_stack(batch_max_records=5).make_topic()
    create_project(stack.ledger, "shop")
    return stack


def test_files_are_imported_and_listed(stack: Stack, tmp_path: Path) -> None:
    """In words and as one document; said again, it says that there is nothing to do."""
    one = write_lines(tmp_path / "one.jsonl", lines_of(range(7)))
    two = write_lines(tmp_path / "two.jsonl.gz", [*lines_of([7, 8, 8]), b"{"], "gzip")
    assert run(stack, "import", "--list").stdout == "no file was ever imported\n"
    shown = run(stack, "import", "--project", "1", one, two)
    assert shown.exit_code == 0, shown.output
    assert f"import 1, {one}: imported; 2 batches of " in shown.stdout
    assert "4 offsets = 2 ok + 1 rejected + 1 duplicate" in shown.stdout
    assert "5 of 7 rows, 71%" in shown.stdout
    again = run(stack, "import", "--project", "1", two, "--json")
    [document] = json.loads(again.stdout)
    assert (document["done"], document["nothing_to_do"]) == (True, True)
    assert (document["rows"], document["ok"], document["duplicate"]) == (4, 2, 1)
    listed = json.loads(run(stack, "import", "--list", "--json").stdout)
    assert [(each["uri"], each["done"]) for each in listed] == [(one, True), (two, True)]
    assert run(stack, "import", "--list").stdout.count("imported;") == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("x.jsonl",), "--project is needed"),
        ((), "give FILES, or --list"),
        (("--list", "x.jsonl"), "--list goes with nothing"),
        (("--give-up", "x", "--json"), "--give-up goes with nothing"),
        (("--discard", "x", "--json"), "--discard goes with nothing"),
        (("--discard", "x", "--give-up", "x"), "goes with nothing"),
        (("--project", "1", "--date", "soon", "x.jsonl"), "soon"),
    ],
)
def test_what_is_misspelt_is_told(stack: Stack, arguments: tuple[str, ...], told: str) -> None:
    """With exit code 2, before anything is read."""
    shown = run(stack, "import", *arguments)
    assert shown.exit_code == 2
    assert told in shown.output


def test_a_file_that_is_not_there(stack: Stack, tmp_path: Path) -> None:
    """It fails in a sentence, after those before it are imported."""
    one = write_lines(tmp_path / "one.jsonl", lines_of(range(3)))
    shown = run(stack, "import", "--project", "1", one, str(tmp_path / "two"))
    assert isinstance(shown.exception, ImportTrouble)
    assert str(shown.exception) == f"{tmp_path / 'two'} is not there"
    assert f"{one}: imported" in shown.stdout


def test_an_empty_file(stack: Stack, tmp_path: Path) -> None:
    """It is not said to have been imported."""
    empty = write_lines(tmp_path / "empty", [])
    for arguments in ((empty, "--project", "1"), ("--list",)):
        shown = run(stack, "import", *arguments)
        assert f"{empty}: the file is empty, nothing to do; 0 batches" in shown.stdout
    assert stack.batches() == []


def test_a_wrong_file_is_thrown_away(
    new_stack: Callable[..., Stack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status says how; what was thrown away is said and listed, and can be imported again."""
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    stack = new_stack(batch_max_records=5, hold_over_records=1).make_topic()
    create_project(stack.ledger, "shop")
    file = write_lines(
        tmp_path / "persons", [*lines_of([1]), *(b'{"person_id": 1}' for _ in "12345")]
    )
    assert isinstance(run(stack, "import", "--project", "1", file).exception, BatchError)
    [batch] = stack.batches()
    [waits] = json.loads(run(stack, "status", "--json").stdout)["waiting_for_a_person"]
    assert f"`tidemark import --discard {batch.topic}`" in waits["note"]
    shown = run(stack, "import", "--discard", batch.topic)
    assert f"import 1, {file}: discarded; 5 of 6 rows were planned, in 1 batch;" in shown.stdout
    assert "; 2 staged files (" in shown.stdout
    assert "import 1, " in run(stack, "import", "--discard", batch.topic).stdout
    assert "was discarded " in run(stack, "import", "--discard", batch.topic).stdout
    status = json.loads(run(stack, "status", "--json").stdout)
    assert (status["batches"], status["waiting_for_a_person"]) == ({"superseded": 1}, [])
    assert f"{file}: discarded by ada, " in run(stack, "import", "--list").stdout
    [listed] = json.loads(run(stack, "import", "--list", "--json").stdout)
    assert (listed["discarded"], listed["done"]) == (True, False)
    assert json.loads(run(stack, "reconcile", "--all", "--json").stdout)["findings"] == []
    mended = write_lines(tmp_path / "persons", lines_of(range(7)))
    done = run(stack, "import", "--project", "1", mended)
    assert "import 2, " in done.stdout
    assert "7 offsets = 7 ok" in done.stdout
    refused = run(stack, "import", "--discard", stack.batches()[-1].topic)
    assert "is committed; what is loaded stays" in str(refused.exception)


def test_an_import_whose_file_is_gone_is_named_and_given_up(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By status, until it is a gap, which waits for a person."""
    file = Path(write_lines(tmp_path / "one.jsonl", lines_of(range(7))))

    def stop(point: str) -> None:
        if point == "after-plan":
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("assets.pipeline.imports.failpoint", stop)
        run(stack, "import", "--project", "1", str(file))
    file.unlink()
    [batch] = stack.batches()
    [told] = json.loads(run(stack, "status", "--json").stdout)["trouble"]
    assert f"{batch.topic}: 5 rows are planned and wait for their file" in told
    shown = run(stack, "import", "--give-up", batch.topic)
    assert "gap 1, 5 rows: `tidemark gaps accept|refuse 1 --why …`" in shown.stdout
    status = json.loads(run(stack, "status", "--json").stdout)
    assert status["trouble"] == []
    assert [each["state"] for each in status["waiting_for_a_person"]] == ["gap"]
    assert "gap 1  batch" in run(stack, "gaps").stdout
    assert "5 offsets, 0:[1,6)" in run(stack, "gaps").stdout
    assert run(stack, "gaps", "accept", "1", "--why", "it is gone").exit_code == 0
    assert run(stack, "batch").exit_code == 0
    assert json.loads(run(stack, "status", "--json").stdout)["batches"] == {"committed": 1}


def test_explain_names_file_and_line(stack: Stack, tmp_path: Path) -> None:
    """Of an event, of a duplicate and of a dead letter; by any date that it was given."""
    broken = lines_of([3])[0].replace(b'"timestamp"', b'"when"')
    lines = [*lines_of([1, 2, 1]), broken]
    file = write_lines(tmp_path / "one.jsonl", lines)
    assert run(stack, "import", "--project", "1", "--date", "2024-02-29", file).exit_code == 0

    def explained(number: int) -> list[tuple[str, str, int]]:
        found = json.loads(run(stack, "explain", uuid_of(number), "--json").stdout)
        return [(each["verdict"], each["file"], each["line"]) for each in found["records"]]

    assert explained(1) == [("loaded", file, 1), ("duplicate", file, 3)]
    assert explained(3) == [("dead_letter", file, 4)]
    found = json.loads(run(stack, "explain", uuid_of(2), "--json").stdout)
    assert found["records"][0]["seconds"].keys() == {"to_stage", "to_load", "to_commit"}
    shown = run(stack, "explain", uuid_of(2)).stdout
    assert f"fileline2of{file}" in "".join(shown.split())  # a long path goes over lines
    today = datetime.now(UTC).date().isoformat()
    assert "import    begun 2024-02-29" in shown
    assert f"planned   {today}" in shown


def test_status_and_reconcile_know_of_imports(stack: Stack, tmp_path: Path) -> None:
    """Their batches count among the others; completeness is of what was received alone."""
    file = write_lines(tmp_path / "one.jsonl", lines_of(range(7)))
    assert run(stack, "import", "--project", "1", file).exit_code == 0
    status = json.loads(run(stack, "status", "--json").stdout)
    assert status["batches"]["committed"] == 2
    assert status["lag"] == 0
    document = json.loads(run(stack, "reconcile", "--all", "--json").stdout)
    assert document["findings"] == []
