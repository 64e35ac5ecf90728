"""Reconcile: hold loaded batches against ClickHouse again, and keep on record how that came out.

    choose ─▶ balances, lanes ─▶ sums of each batch ─▶ rows, where asked or where sums differ
                                                                │
                                        audits in the ledger ◀──┴──▶ findings, each with a remedy
                                                                ▲
    all of a date, or everything ─▶ rows of batches that nobody knows

By sums a proof costs a granule of a projection, so the newest batches are proved every time and
all others in turn. What only rows can show stays found until rows, or a repair, say otherwise.

No lease is taken, so a date may be swapped, loaded again or let go of while it is looked at. What
is found of a batch counts only if the ledger says of it then what it had said before; else it is
looked at once more, and left to the next time when it has changed again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from clickhouse_connect.driver.binding import format_str

from assets.pipeline.audit import (
    LOADED_STATES,
    Finding,
    Trouble,
    compare,
    reprove,
    unbalanced,
    untiled,
)
from assets.pipeline.batch import Batch, Kind, StagedFile, State
from assets.pipeline.staged_files import told_let_go
from assets.pipeline.strangers import strangers
from assets.pipeline.worker import Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger.audits import AUDITED, HOLDS, audits_of, due_for_audit, record_audits
from orchestration.ledger.rebuilds import MOVING, last_rebuild

NEWEST_PROVED = 50
"""Batches of each topic that are proved every time."""

ROTATION = 100
"""Older batches that are proved in one go, of all topics together."""

_COMPARED_BY_ROWS = 20
"""Batches that differ by sums and are looked at row by row, so that offsets can be named."""

_TABLES = (Kind.EVENTS, Kind.DEAD_LETTERS)
_ONLY_ROWS_SHOW = frozenset({Trouble.ALTERED, Trouble.FILE})
_STILL = "its records are dead letters still"
_OF_CONTENT = frozenset(
    {
        Trouble.UNBALANCED,
        Trouble.MISSING,
        Trouble.DIFFERENT,
        Trouble.ALTERED,
        Trouble.UNEXPECTED,
        Trouble.FILE,
    }
)


@dataclass(frozen=True)
class Chosen:
    """Batches to prove. `runs` are those of which each topic's follow each other without a hole.

    With all of a `day`, or `everything`, rows of batches that nobody knows are looked for, too.
    """

    scope: str
    batches: tuple[Batch, ...]
    runs: tuple[Batch, ...] = ()
    day: date | None = None
    everything: bool = False


@dataclass(frozen=True)
class Reconciliation:
    """What was proved, what is not loaded yet, and what is wrong."""

    chosen: Chosen
    by_rows: bool
    findings: tuple[Finding, ...]

    @property
    def proved(self) -> list[Batch]:
        """The batches that were held against ClickHouse."""
        return [
            batch
            for batch in self.chosen.batches
            if batch.state in LOADED_STATES and batch.rows_let_go_at is None
        ]

    @property
    def let_go(self) -> list[Batch]:
        """The batches whose rows housekeeping let go of: there is nothing to prove."""
        return [batch for batch in self.chosen.batches if batch.rows_let_go_at is not None]

    @property
    def not_compared(self) -> list[StagedFile]:
        """Files that rows would be compared with, and that housekeeping let go of."""
        files = [
            file
            for batch in self.proved
            for kind in _TABLES
            if (file := _let_go(batch, kind)) is not None
        ]
        return files if self.by_rows else []

    @property
    def to_repair(self) -> list[str]:
        """Batches of which ClickHouse has lost all rows of a table, or has what must not be."""
        return list(
            dict.fromkeys(
                finding.batch_id
                for finding in self.findings
                if finding.trouble in (Trouble.MISSING, Trouble.UNEXPECTED) and finding.batch_id
            )
        )


@dataclass(frozen=True)
class Remedy:
    """What to do about a finding: a sentence, and commands to copy. Empty where none is known."""

    sentence: str = ""
    commands: tuple[str, ...] = ()


def newest_and_due(worker: Worker) -> Chosen:
    """The newest of each topic, those that wait for a person, and older ones in turn."""
    ledger, topics = worker.ledger, worker.settings.topics_by_urgency
    newest = [
        batch
        for topic in topics
        for batch in ledger_batches.newest_batches(ledger, topic, NEWEST_PROVED)
    ]
    waiting = ledger_batches.waiting_for_a_person(ledger, *topics)
    due = due_for_audit(ledger, ROTATION, *topics)
    by_id = {batch.batch_id: batch for batch in [*newest, *waiting, *due]}
    scope = f"the newest {NEWEST_PROVED} of each topic, and {ROTATION} others in turn"
    return Chosen(scope, tuple(by_id.values()), tuple(newest))


def in_turn(worker: Worker) -> Chosen:
    """Those that did not hold the last time, and the least recently proved."""
    due = due_for_audit(worker.ledger, ROTATION, *worker.settings.topics)
    return Chosen(f"{ROTATION} at most, the least recently proved first", tuple(due))


def of_date(worker: Worker, day: date) -> Chosen:
    """All batches of an arrival date."""
    found = ledger_batches.batches_of_date(worker.ledger, day, *worker.settings.topics)
    return Chosen(f"all of {day}", tuple(found), tuple(found), day=day)


def everything(worker: Worker) -> Chosen:
    """All batches there are."""
    found = ledger_batches.all_batches(worker.ledger, *worker.settings.topics)
    return Chosen("all batches", tuple(found), tuple(found), everything=True)


def of_names(worker: Worker, batch_ids: Sequence[str]) -> Chosen:
    """These batches. Raises BatchError for one that the ledger does not know."""
    found = [ledger_batches.read_batch(worker.ledger, batch_id) for batch_id in batch_ids]
    by_id = {batch.batch_id: batch for batch in found}
    return Chosen("what was asked for", tuple(by_id.values()))


def reconcile(
    worker: Worker, chosen: Chosen, *, by_rows: bool = False, name_offsets: bool = True
) -> Reconciliation:
    """Prove the chosen batches and note the outcome in the ledger. Changes nothing else.

    By sums; with `by_rows` row by row as well. With `name_offsets`, rows are compared of some
    batches that differ by sums.
    """
    differing = _differences(worker, chosen.batches, by_rows, name_offsets)
    left: Collection[str] = ()
    if moved := _moved(worker, chosen.batches, differing):
        now = tuple(moved.get(batch.batch_id, batch) for batch in chosen.batches)
        chosen = replace(chosen, batches=now)
        anew = _differences(worker, list(moved.values()), by_rows, name_offsets)
        left = _moved(worker, moved.values(), anew)
        for batch_id in left:
            worker.say(f"batch {batch_id} is changed by somebody now: it is left to the next time")
        differing = [
            *(finding for finding in differing if finding.batch_id not in moved),
            *(finding for finding in anew if finding.batch_id not in left),
        ]
    batches = chosen.batches
    findings = [*unbalanced(batches), *untiled(chosen.runs), *differing]
    if chosen.day or chosen.everything:
        findings += _strange(worker, chosen.day)
    if not by_rows:
        findings += _found_before(worker, batches, findings)
    _record(worker, [batch for batch in batches if batch.batch_id not in left], findings)
    return Reconciliation(chosen, by_rows, tuple(findings))


def _differences(
    worker: Worker, batches: Sequence[Batch], by_rows: bool, name_offsets: bool
) -> list[Finding]:
    """How ClickHouse, and the lake where rows are compared, differ from these batches."""
    client, database = worker.clickhouse, worker.settings.clickhouse_database
    differing = reprove(client, database, batches, _TABLES)
    by_sums = {finding.batch_id for finding in differing}
    looked_at = [batch for batch in batches if by_rows or batch.batch_id in by_sums]
    if not by_rows:
        looked_at = looked_at[: _COMPARED_BY_ROWS if name_offsets else 0]
    return _merged(differing, compare(client, database, worker.lake, looked_at, _TABLES))


def _strange(worker: Worker, day: date | None) -> list[Finding]:
    database = worker.settings.clickhouse_database
    return [
        Finding(
            one.batch_id,
            Trouble.STRANGE,
            f"{database}.{one.kind} has {one.rows:,} rows of {one.arrival_date} that name it, and "
            "neither the ledger nor lineage has such a batch",
            one.kind,
        )
        for one in strangers(worker, day)
    ]


def _moved(
    worker: Worker, batches: Iterable[Batch], findings: Sequence[Finding]
) -> dict[str, Batch]:
    """Those of which something was found and which are not what they were, as they are now.

    So is a batch with other columns than its file has while its date is being swapped: the ledger
    names the new file right after ClickHouse has its rows.
    """
    found = {finding.batch_id for finding in findings}
    before = {batch.batch_id: batch for batch in batches if batch.batch_id in found}
    altered = {f.batch_id for f in findings if f.trouble is Trouble.ALTERED}
    days = {batch.arrival_date for id_, batch in before.items() if id_ in altered}
    swapped = {day for day in days if _is_moving(worker, day)}  # asked before the batches are
    return {
        batch.batch_id: batch
        for batch in ledger_batches.batches_named(worker.ledger, list(before))
        if _standing(batch) != _standing(before[batch.batch_id])
        or (batch.batch_id in altered and batch.arrival_date in swapped)
    }


def _is_moving(worker: Worker, day: date) -> bool:
    rebuild = last_rebuild(worker.ledger, worker.settings.topic, day)
    return rebuild is not None and rebuild.makes_files and rebuild.state in MOVING


def _standing(batch: Batch) -> tuple[object, ...]:
    """What has to be the same for a finding to count."""
    files = batch.staged.files if batch.staged else ()
    return batch.state, batch.dead_letters_loaded_at, batch.rows_let_go_at, files


def again(worker: Worker, before: Reconciliation) -> Reconciliation:
    """The same batches as they are now."""
    ids = [batch.batch_id for batch in before.chosen.batches]
    runs = [batch.batch_id for batch in before.chosen.runs]
    chosen = replace(
        before.chosen,
        batches=tuple(ledger_batches.batches_named(worker.ledger, ids)),
        runs=tuple(ledger_batches.batches_named(worker.ledger, runs)),
    )
    return reconcile(worker, chosen, by_rows=before.by_rows)


def remedy(finding: Finding, batch: Batch | None, database: str) -> Remedy:
    """What a person does about it."""
    if finding.trouble is Trouble.STRANGE:
        return Remedy(
            "find out who inserts them, and delete them",
            (_deleting(database, finding),),
        )
    if batch is None:
        return Remedy()
    if finding.trouble is Trouble.HELD and batch.state is State.HELD:
        return Remedy(
            "publish it as it is, or stage it again with the code of now",
            (f"tidemark release {batch.batch_id}", f"tidemark retry {batch.batch_id} --restage"),
        )
    if finding.trouble is Trouble.HELD and batch.state is State.GAP:
        return Remedy(
            "bring back what is lost, or decide about the loss",
            (f"tidemark retry {batch.batch_id}", "tidemark gaps"),
        )
    if finding.trouble is Trouble.HELD:
        return Remedy("when the cause is mended", (f"tidemark retry {batch.batch_id}",))
    if finding.trouble is Trouble.FILE:
        return Remedy(
            "read its records again, if Kafka has them; or bring the file back from a copy of the "
            "lake: it is what proves the batch",
            (f"tidemark backfill replay {batch.arrival_date}",),
        )
    if batch.state is State.SUSPECT or finding.trouble not in _OF_CONTENT:
        return Remedy()
    load_again = f"tidemark reconcile --batch {batch.batch_id} --repair"
    delete = _deleting(database, finding)
    if finding.trouble is Trouble.UNEXPECTED and batch.state is State.SUPERSEDED:
        why = "its import was discarded" if batch.is_import and not batch.is_redrive else _STILL
        return Remedy(f"delete them: {why}", (load_again,))
    if finding.trouble is Trouble.UNEXPECTED:
        return Remedy("a worker that had slept has inserted them: delete them", (delete,))
    if (file := _let_go(batch, finding.kind)) is not None:
        return Remedy(f"{told_let_go(file)}: only a backup of ClickHouse has these rows")
    if finding.trouble is Trouble.MISSING:
        return Remedy("load it again from its staged file", (load_again,))
    if finding.kind is None:
        show = f"tidemark reconcile --batch {batch.batch_id} --rows"
        return Remedy("compare its rows, which says what to do", (show,))
    return Remedy(
        "find out who changed the rows; then delete them in ClickHouse and load the batch again",
        (delete, load_again),
    )


def _deleting(database: str, finding: Finding) -> str:
    return (
        f"ALTER TABLE {database}.{finding.kind} "
        f"DELETE WHERE _batch_id = {format_str(finding.batch_id or '')} "
        "SETTINGS mutations_sync = 2"
    )


def _let_go(batch: Batch | None, kind: Kind | None) -> StagedFile | None:
    """The file that housekeeping let go of, if it did."""
    file = batch.staged.file(kind) if batch and batch.staged and kind else None
    return file if file is not None and file.let_go_at is not None else None


def _merged(by_sums: Sequence[Finding], by_rows: Sequence[Finding]) -> list[Finding]:
    """One finding for a table of a batch: what sums say, with the offsets that rows name."""
    rows = {(f.batch_id, f.kind): f for f in by_rows if f.trouble is not Trouble.FILE}
    merged = []
    for finding in by_sums:
        named = rows.pop((finding.batch_id, finding.kind), None)
        merged.append(replace(finding, partitions=named.partitions) if named else finding)
    return [*merged, *rows.values(), *(f for f in by_rows if f.trouble is Trouble.FILE)]


def _found_before(
    worker: Worker, batches: Sequence[Batch], findings: Sequence[Finding]
) -> list[Finding]:
    """What rows have shown before, of batches whose sums hold: sums cannot say that it is over."""
    told = {finding.batch_id for finding in findings}
    ids = [batch.batch_id for batch in batches if batch.batch_id not in told]
    return [
        Finding(audit.batch_id, Trouble(audit.outcome), audit.detail)
        for audit in audits_of(worker.ledger, ids)
        if audit.outcome in _ONLY_ROWS_SHOW
    ]


def _record(worker: Worker, batches: Collection[Batch], findings: Sequence[Finding]) -> None:
    troubles: dict[str, Finding] = {}
    for finding in findings:
        if finding.batch_id and finding.trouble in _OF_CONTENT:
            troubles.setdefault(finding.batch_id, finding)
    record_audits(
        worker.ledger,
        [
            (batch.batch_id, trouble.trouble.value, trouble.text)
            if (trouble := troubles.get(batch.batch_id))
            else (batch.batch_id, HOLDS, "")
            for batch in batches
            if batch.state in AUDITED
        ],
    )
