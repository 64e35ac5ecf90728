"""An import is killed between two steps; whoever comes next finishes it, every line once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import pytest

from assets.pipeline.audit import balance_of, reprove, unbalanced, untiled
from assets.pipeline.batch import Balance, Kind, State
from assets.pipeline.discard import discard_import
from assets.pipeline.errors import ImportTrouble
from assets.pipeline.failpoints import DISCARD_POINTS, POINTS, VARIABLE
from assets.pipeline.imports import import_file
from assets.pipeline.mirror import mirrored_states
from orchestration.ledger.batches import set_state
from orchestration.ledger.imports import all_imports
from orchestration.ledger.projects import create_project
from tests.exports import line, lines_of, write_lines
from tests.faults.conftest import WORKER_SECONDS
from tests.forks import Forked
from tests.stack import Stack

NewStack = Callable[..., Stack]

ROW_OF_POINT = {
    "before-plan": "import: begun, or its plan not stored",
    "after-plan": "import: planned, or being staged",
    "while-staging": "import: planned, or being staged",
    "half-published": "import: planned, or being staged",
    "after-stage": "import: planned, or being staged",
    "after-register": "import: registered, before the insert",
    "before-insert": "import: registered, before the insert",
    "before-check": "import: registered, before the insert",
    "before-send": "import: registered, before the insert",
    "after-send": "import: inserted, the ledger does not know",
    "after-insert": "import: inserted, the ledger does not know",
    "after-loaded": "import: loaded, its dead letters are not",
    "after-commit": "import: loaded, its dead letters are not",
    "after-dead-letters": "import: loaded, its dead letters are not",
    "after-mirror": "import: loaded, its dead letters are not",
}


@dataclass
class Exports:
    """A stack with files, of three batches each, that have lines of every kind."""

    stack: Stack
    folder: Path
    next_number: int = 0
    files: list[str] = field(default_factory=list)

    def come(self) -> str:
        """Another file: nine events, two that are broken, one that repeats, one blank line."""
        first, self.next_number = self.next_number, self.next_number + 9
        lines = [*lines_of(range(first, first + 9)), b"", line(first), b"{", b"no json"]
        name = self.folder / f"{len(self.files)}.jsonl"
        self.files.append(write_lines(name, lines, "gzip" if len(self.files) % 2 else None))
        return self.files[-1]

    def start(self, file: str, point: str) -> Forked:
        """`tidemark import`, which kills (or stops) itself at the point."""
        return self.say(point, "--project", "1", file)

    def say(self, point: str, *arguments: str) -> Forked:
        """The same with other arguments."""
        command = ["-c", "from orchestration.cli import main; main()", "import", *arguments]
        settings = self.stack.settings.environment()
        return Forked(command, {**os.environ, **settings, VARIABLE: point})

    def kill_at(self, file: str, point: str) -> None:
        """Let an import die there."""
        assert self.start(file, point).wait(WORKER_SECONDS) == -signal.SIGKILL, point

    def finish(self, file: str) -> None:
        """Say it again."""
        assert import_file(self.stack.worker(), file, "1").is_done

    def prove(self, after: str) -> None:
        """Each line is where it has to be, once, and every balance says the same."""
        stack, batches = self.stack, self.stack.batches()
        assert {batch.state for batch in batches} == {State.COMMITTED}, after
        assert all(batch.dead_letters_loaded_at for batch in batches), after
        found = all_imports(stack.ledger, stack.settings.topic)
        assert len(found) == len(self.files), after
        for one in found:
            account = stack.account_of(one.name)
            assert Counter(account.events) == Counter((0, row) for row in range(1, 10)), after
            assert Counter(account.duplicates) == Counter([(0, 11)]), after
            assert Counter(account.dead_letters) == Counter([(0, 12), (0, 13)]), after
        count = len(self.files)
        wanted = Balance(ok=9 * count, rejected=2 * count, duplicate=count, absent=count)
        assert balance_of(batches) == wanted, after
        sums = "sum(ok), sum(rejected), sum(duplicate), sum(absent)"
        mirrored = stack.rows(f"SELECT {sums} FROM {{database}}.batches FINAL")
        assert mirrored == [(wanted.ok, wanted.rejected, wanted.duplicate, wanted.absent)], after
        findings = unbalanced(batches) + untiled(batches)
        kinds = (Kind.EVENTS, Kind.DEAD_LETTERS)
        findings += reprove(stack.client, stack.database, batches, kinds)
        assert findings == [], after


@pytest.fixture
def exports(new_stack: NewStack, ledger_values: dict[str, object], tmp_path: Path) -> Exports:
    """On a ledger of either kind, with batches of five rows."""
    stack = new_stack(batch_max_records=5, **ledger_values).make_topic()
    create_project(stack.ledger, "shop")
    return Exports(stack, tmp_path)


@pytest.mark.matrix(*dict.fromkeys(ROW_OF_POINT.values()))
@pytest.mark.parametrize("ledger_values", ["sqlite"], indirect=True)
def test_imports_killed_at_each_point_are_finished(exports: Exports) -> None:
    """By the same command, in turns with a micro-batch between; nothing lost, nothing doubled."""
    assert {*ROW_OF_POINT, "between-topics"} == set(POINTS)
    for point, is_live_between in zip(ROW_OF_POINT, cycle([False, True]), strict=False):
        file = exports.come()
        exports.kill_at(file, point)
        if is_live_between:
            exports.stack.run()
        exports.finish(file)
        exports.prove(point)


@pytest.mark.matrix(*dict.fromkeys(ROW_OF_POINT.values()))
@pytest.mark.parametrize("ledger_values", ["postgresql"], indirect=True)
def test_one_import_killed_at_one_point_after_the_other_gets_through(exports: Exports) -> None:
    """Each command carries the same file one point further than the one before."""
    file = exports.come()
    for point in ROW_OF_POINT:
        exports.kill_at(file, point)
    exports.finish(file)
    exports.prove("all")
    assert len(exports.stack.batches()) == 3


@pytest.mark.matrix("import: paused, others have gone on")
@pytest.mark.parametrize(
    ("ledger_values", "point"),
    [("sqlite", "while-staging"), ("postgresql", "before-send"), ("sqlite", "after-send")],
    indirect=["ledger_values"],
)
def test_a_paused_import_is_refused_by_the_fence(exports: Exports, point: str) -> None:
    """It wakes when another import and a micro-batch have done its work."""
    file = exports.come()
    paused = exports.start(file, f"{point}:stop")
    try:
        assert paused.await_stop()
        with exports.stack.ledger.begin() as connection:
            connection.exec_driver_sql("UPDATE leases SET expires_at = 0")
        exports.finish(file)
        exports.stack.run()
        paused.send_signal(signal.SIGCONT)
        assert paused.wait(WORKER_SECONDS) == 1
    finally:
        paused.kill()
    exports.prove(point)


@pytest.mark.matrix("import: its file is gone, or changed, half way")
@pytest.mark.parametrize("ledger_values", ["sqlite"], indirect=True)
@pytest.mark.parametrize("becomes", ["gone", "changed"])
def test_the_file_of_a_killed_import_is_not_there_again(exports: Exports, becomes: str) -> None:
    """What is loaded stays; when the file is back, the rest of it comes in."""
    file = Path(exports.come())
    exports.kill_at(str(file), "after-loaded")
    content = file.read_bytes()
    if becomes == "gone":
        file.unlink()
        with pytest.raises(ImportTrouble, match="is not there"):
            exports.finish(str(file))
    else:
        write_lines(file, lines_of(range(100, 109)))
        other = import_file(exports.stack.worker(), str(file), "1")
        assert other.balance == Balance(ok=9)
    exports.stack.run()
    loaded = exports.stack.batches()[0]
    assert (loaded.state, loaded.is_import, loaded.offsets) == (State.COMMITTED, True, 5)
    assert len(exports.stack.account_of(loaded.topic).events) == 5
    file.write_bytes(content)
    exports.finish(str(file))
    assert len(exports.stack.account_of(loaded.topic).events) == 9


@pytest.mark.matrix("import: thrown away, its files are not gone yet")
def test_a_discard_killed_at_each_point_is_finished(exports: Exports) -> None:
    """By the same command: nothing of the file is left, and it can be imported."""
    stack = exports.stack
    for point in DISCARD_POINTS:
        file = exports.come()
        exports.kill_at(file, "before-insert" if point == DISCARD_POINTS[0] else "after-register")
        batch = stack.batches()[-1]
        if batch.state is State.LOADING:
            with stack.worker().lease() as lease:
                set_state(stack.ledger, lease, batch.batch_id, State.FAILED)
        discard = exports.say(point, "--discard", batch.topic)
        assert discard.wait(WORKER_SECONDS) == -signal.SIGKILL
        left = list(Path(stack.settings.lake).rglob(f"{batch.batch_id}*.parquet"))
        assert bool(left) == (point == "discarded")
        stack.run()
        assert discard_import(stack.worker(), batch.topic).is_old
        assert not any(path.exists() for path in left)
        found = mirrored_states(stack.client, stack.database, [batch.batch_id])
        assert found == {batch.batch_id: State.SUPERSEDED}
        exports.finish(file)
        assert stack.account_of(batch.topic).places == Counter()
    own = [batch for batch in stack.batches() if batch.state is not State.SUPERSEDED]
    assert balance_of(own) == Balance(ok=18, rejected=4, duplicate=2, absent=2)
    kinds = (Kind.EVENTS, Kind.DEAD_LETTERS)
    assert reprove(stack.client, stack.database, stack.batches(), kinds) == []
