"""The failure matrix: what can break, who mends it, and which tests break it for real.

    ROWS ──@pytest.mark.matrix("fault")──▶ tests ──▶ outcome of each row, at the end of a run
                                            └──────▶ docs/failure-matrix.md

`python -m tests.faults.matrix` prints the page, with `--write` it writes it. Invariant: every row
has a test, and no test names a row that is not here.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "failure-matrix.md"
PROPERTY = "matrix"
"""The property of a test's report that names a row: it goes with the report between processes."""


@dataclass(frozen=True)
class Row:
    """A fault, what the next run does about it, and how it ends."""

    fault: str
    recovery: str
    result: str


ROWS = (
    Row("before the plan is stored", "plans again from the old end", "once"),
    Row("two planners at once", "the lease lets one in, the other tries again", "one range, once"),
    Row("after the plan, before reading", "stages the same ranges", "once"),
    Row("while staging", "removes what is half-written, reads again", "once"),
    Row("files published, not registered", "stages again, removes the earlier files", "once"),
    Row("disk full while staging", "stages again once there is room", "once"),
    Row("registered, before the insert", "the proof says nothing is there: inserts", "once"),
    Row("between the topics of one run", "loads the staged topic, plans the others", "once"),
    Row("insert sent, connection lost", "the proof decides; the token covers a late one", "once"),
    Row("server killed in mid-insert", "the proof decides: nothing or all is there", "once"),
    Row("insert done, answer lost", "the proof says all is there: inserts nothing", "once"),
    Row("proved, before the ledger knows", "the proof says all is there", "once"),
    Row("loaded, before the group's commit", "commits the group's offsets", "once"),
    Row("committed, dead letters not reported", "proves and mirrors them again", "once"),
    Row("deduplication window gone", "the proof, not the token, decides", "once"),
    Row("settings changed between attempts", "ranges from the plan, the proof decides", "once"),
    Row("a run's process is killed", "Dagster fails the run and starts it again", "once"),
    Row(
        "a run is killed with the process that forked it",
        "run monitoring notices, a new one forks the retry",
        "once",
    ),
    Row(
        "the process that forks runs is killed", "its runs go on; a new one forks the next", "once"
    ),
    Row("a paused worker wakes", "the fence refuses it, the token drops its insert", "once"),
    Row(
        "one uuid in two partitions that are staged at once", "compared again, staged again", "once"
    ),
    Row("a stager is killed", "its batch waits by itself, the others go on", "once"),
    Row("a run with stagers is killed", "its stagers end; stages the same ranges again", "once"),
    Row("a stager falls silent", "its run ends it; its batch is staged again", "once"),
    Row("a stager wakes when its run is gone", "it ends; nothing of it is registered", "once"),
    Row("too many parts", "tries again when the server takes inserts", "once"),
    Row("ClickHouse away for long", "stages on; one probe an interval, the oldest first", "once"),
    Row("as much is staged as may wait", "plans no more until loading has caught up", "told, once"),
    Row("a batch is too much for ClickHouse", "it waits alone, the others are loaded", "once"),
    Row("a batch never gets through to ClickHouse", "others are the probe; it waits alone", "once"),
    Row("ClickHouse refuses what is in a batch", "`failed`: a person, `retry`", "told, once"),
    Row(
        "an error that nobody knows", "a few tries, then `failed`: a person, `retry`", "told, once"
    ),
    Row("the proof finds something else", "`suspect`: a person clears it, `retry`", "once, seen"),
    Row("Kafka killed while it is read", "waits or ends; the next run goes on", "once"),
    Row("Kafka away when batches are staged", "loads them; reads when it is back", "told, once"),
    Row(
        "Kafka refuses us when batches are staged",
        "loads them; a person mends the access",
        "told, once",
    ),
    Row("Kafka lost records before they were read", "`gap`: a person, `gaps accept`", "told"),
    Row("topic deleted and made anew", "old plan is a `gap`; the new one from 0", "told, once"),
    Row("partitions increased", "a new lane from its first offset", "once"),
    Row("transactions, aborts and markers", "counted as absent", "once"),
    Row("tombstones, empty and broken values", "counted, or dead letters", "once"),
    Row("staged file damaged or deleted, Kafka has it", "stages the batch again", "once"),
    Row("a file of the lake cannot be read", "its batch waits alone, others are loaded", "once"),
    Row("the lake is away", "two batches in a row show it: loading waits", "once"),
    Row("the store takes no files", "stages again once it takes them", "told, once"),
    Row("the store goes away while files are sent", "gives up, stages the batch again", "once"),
    Row("the store is away", "takes no file for lost; loads it when it is back", "once"),
    Row("staged file gone, Kafka has nothing", "`gap` until the file is back", "told, once"),
    Row("staged file lost for good", "`gap`: a person, `gaps accept`", "told, counted as lost"),
    Row("redrive: before its plan is stored", "its letters can be chosen again", "once"),
    Row("redrive: planned, or being staged", "stages the same letters, from the lake", "once"),
    Row("redrive: registered, before the insert", "the proof says nothing is there", "once"),
    Row("redrive: inserted, the ledger does not know", "the proof says all is there", "once"),
    Row(
        "redrive: loaded, old batches not brought up to date",
        "mirrors it and the batches whose letters it carried",
        "once",
    ),
    Row(
        "redrive: paused, another worker has finished it",
        "the fence refuses it, the token drops its insert",
        "once",
    ),
    Row("import: begun, or its plan not stored", "said again, plans from the old end", "once"),
    Row("import: planned, or being staged", "said again, stages the same rows", "once"),
    Row("import: registered, before the insert", "the proof says nothing is there", "once"),
    Row("import: inserted, the ledger does not know", "the proof says all is there", "once"),
    Row("import: loaded, its dead letters are not", "loads, proves and mirrors them", "once"),
    Row("import: paused, others have gone on", "the fence refuses it", "once"),
    Row("import: its file is gone, or changed, half way", "said again, goes on", "told, once"),
    Row("import: thrown away, its files are not gone yet", "said again, deletes them", "nothing"),
    Row("a rebuild is killed", "the next one goes on from what it finds proved", "once"),
    Row("a paused rebuild wakes", "the fences refuse it; another has done its work", "once"),
    Row("a rebuild's swap arrives late", "what it was to move is dropped: refused", "once"),
    Row("a re-enrich is killed", "the next one goes on with the files that it has made", "once"),
    Row("a paused re-enrich wakes", "the fences refuse it; no file that counts is touched", "once"),
    Row("a replay is killed", "the next one goes on with the files that it has made", "once"),
    Row("housekeeping is killed", "the next one deletes what was marked, and nothing else", "once"),
    Row("ledger restored from an older backup", "refuses to plan", "told, nothing doubled"),
    Row("ClickHouse restored from an older state", "told; `reconcile --repair` loads it", "once"),
    Row("anything, in any order", "a model says what must come out", "once"),
    Row("anything, at random, for a while", "the next run goes on", "once"),
)

ELSEWHERE = """\
Rows that other designs need and this one has no state for: an insert over several partitions (a
batch has one arrival date, so one insert is one block of one partition), and a materialized view
that fails (there is none).

What no run mends by itself: rows of loaded batches that ClickHouse has lost (the audit names the
batches, and [`tidemark reconcile --repair`](audit.md) loads them from the lake when a person says
so).
"""


@dataclass(eq=False)  # a plugin is looked up by what it is, not by what it holds
class Registry:
    """A pytest plugin: knows which tests stand for a row, and how they came out."""

    tests: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, str] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the rows of every test."""
        known = {row.fault for row in ROWS}
        for item in items:
            for mark in item.iter_markers("matrix"):
                for fault in mark.args:
                    if fault not in known:
                        raise pytest.UsageError(f"{item.nodeid}: no row {fault!r} in the matrix")
                    if item.nodeid not in self.tests[fault]:
                        self.tests[fault].append(item.nodeid)
                        item.user_properties.append((PROPERTY, fault))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test came out, wherever it ran; what went wrong stays."""
        for name, fault in report.user_properties:
            if name == PROPERTY and report.nodeid not in self.tests[str(fault)]:
                self.tests[str(fault)].append(report.nodeid)
        counts = report.when == "call" or report.outcome != "passed"
        if counts and self.outcomes.get(report.nodeid, "passed") == "passed":
            self.outcomes[report.nodeid] = report.outcome

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line for each row of which a test ran."""
        lines = list(self.lines())
        if lines:
            terminalreporter.section("failure matrix")
            for line in lines:
                terminalreporter.write_line(line)

    def lines(self) -> Iterable[str]:
        """Row, outcome, tests."""
        for row in ROWS:
            ran = [test for test in self.tests[row.fault] if test in self.outcomes]
            if ran:
                outcomes = {self.outcomes[test] for test in ran}
                worst = next(o for o in ("failed", "skipped", "passed") if o in outcomes)
                names = ", ".join(test.rpartition("::")[2] for test in ran)
                yield f"{worst:8}{row.fault}: {row.result} ({names})"


def page(tests: dict[str, list[str]]) -> str:
    """docs/failure-matrix.md for these tests."""
    lines = [
        "# The failure matrix",
        "",
        "What can break on the way from Kafka to ClickHouse, and what becomes of it. The tests of",
        "a row kill or break the part for real, let the next run recover, and then prove by",
        "offsets what is in ClickHouse and in the lake: *once* means nothing lost and nothing",
        "doubled, *told* that somebody is shown exactly what is missing. `make test",
        "ARGS=tests/faults` prints each row's outcome; `python -m tests.faults.soak` breaks things",
        "at random for as long as you like. This page is written by",
        "`python -m tests.faults.matrix --write`.",
        "",
        "| fault | what the next run does | result | tests |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        cells = ", ".join(_linked(tests[row.fault])) or "**none**"
        lines.append(f"| {row.fault} | {row.recovery} | {row.result} | {cells} |")
    return "\n".join([*lines, "", ELSEWHERE])


def _linked(tests: Iterable[str]) -> Iterable[str]:
    cases: dict[tuple[str, str], list[str]] = defaultdict(list)
    for test in tests:
        path, _, name = test.rpartition("::")
        function, _, case = name.partition("[")
        cases[path, function].append(case.rstrip("]"))
    for (path, function), found in cases.items():
        said = f" ({', '.join(found)})" if any(found) else ""
        yield f"[{function.removeprefix('test_').replace('_', ' ')}](../{path}){said}"


def collected() -> dict[str, list[str]]:
    """Each row's tests, without running them."""
    registry = Registry()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        folder = str(Path(__file__).parent)
        code = pytest.main(["--collect-only", "-q", folder], plugins=[registry])
    assert code == 0, said.getvalue()
    return registry.tests


def main() -> None:
    """Print the page, or write it."""
    text = page(collected())
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
