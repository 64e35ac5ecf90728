"""Imports: the events of a file come in as those of a topic of their own, batch by batch.

    file ─look through─▶ begun in the ledger ─┬─▶ planned ─▶ staged ─▶ loading ─▶ loaded ─┐
                                              └─── more rows? ◀─── one batch, one lease ──┘

The file is named by what is in it: a topic id made of its SHA-256 and the project. Its one
partition has the rows as offsets, counted from 1, so a row of `events` names file and line. All
rows of an import are of one arrival date, the day on which it was begun unless somebody says
another.

What a crash leaves, and what the same `tidemark import`, said again, does about it:

    hashed, not begun           begins
    begun, or planned           the same SHA-256 finds the same lane: stages what is planned
    staged, or at its insert    the next micro-batch loads it, or this does: the proof decides
    all is loaded               does nothing, and says so
    discarded (discard.py)      begins anew: the same file has another lane from then on
    the file is gone, changed   what is loaded stays; the same file at another place goes on, a
                                changed one is another import

Only an import reads its file: it may be on a host that no other worker is on. Micro-batches load
what is staged of it, and go first: the lease on all topics is taken for one batch at a time, and
given to whoever has asked for a turn meanwhile.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

from assets.pipeline.audit import balance_of
from assets.pipeline.batch import (
    IMPORT_PREFIX,
    LOADED,
    WAITING,
    Balance,
    Batch,
    Range,
    State,
    batch_id,
)
from assets.pipeline.circuit import STAGE
from assets.pipeline.errors import (
    BatchError,
    LeaseHeld,
    LedgerBehind,
    StagingPaused,
    TransientError,
)
from assets.pipeline.failpoints import failpoint
from assets.pipeline.import_file import Contents, ImportFile
from assets.pipeline.key_upkeep import keep_index
from assets.pipeline.loading import finish_these, load_these
from assets.pipeline.mirror import mirrored_ends
from assets.pipeline.registering import stage_one
from assets.pipeline.room import why_no_room
from assets.pipeline.sources import appended_at_ms
from assets.pipeline.version import TRANSFORM_VERSION
from assets.pipeline.worker import PutAside, Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger.connection import now_us
from orchestration.ledger.imports import (
    CLUSTER,
    FIRST_ROW,
    Import,
    begin_import,
    import_named,
    times_discarded,
)
from orchestration.ledger.leases import Lease, held_lease, is_held, is_turn_asked_for
from orchestration.ledger.projects import Project, find_project

_NAME_CHARACTERS = 180
_INDEX_KEPT_EVERY = 32
_POLL_S = 0.2
_GRACE_S = 2.0
"""How long the lease has to be free after others had it: a micro-batch takes it several times."""
_TOLD_EVERY_S = 60.0


@dataclass(frozen=True)
class Imported:
    """How far an import has come: `rows` of the file are planned, its batches hold them.

    `is_old` when there was nothing left to do.
    """

    one: Import
    rows: int
    batches: tuple[Batch, ...]
    is_old: bool = False

    @property
    def balance(self) -> Balance:
        """Over all its batches, but redrives, whose rows count where they were read."""
        return balance_of(self.batches)

    @property
    def is_done(self) -> bool:
        """Whether all of the file is loaded, with its dead letters; whatever redrives came to."""
        own = [batch for batch in self.batches if not batch.is_redrive]
        done = all(b.state is State.COMMITTED and b.dead_letters_loaded_at for b in own)
        return done and self.rows == self.one.rows


def import_file(worker: Worker, uri: str, project: str, day: date | None = None) -> Imported:
    """Import a file into a project (an id or a token), or go on with it; gives how it stands.

    `day` is the arrival date; None: today, or that with which it was begun. Raises ImportTrouble
    when the file is not to be read; TransientError, with what is staged left to the next
    micro-batch, when ClickHouse is not there; BatchError when one of its batches waits for a
    person.
    """
    into = find_project(worker.ledger, project)
    _check(into, day)
    file = ImportFile(uri)
    settings = worker.settings
    contents = file.look_through(settings.batch_max_records, settings.batch_max_bytes, worker.say)
    worker = replace(worker, gives_way=True)
    with held_lease(worker.ledger, worker.import_lease_name, settings.lease_seconds) as own:
        one = _begun(worker, own, file, contents, into, day)
        file.appended_at = appended_at_ms(one)
        worker.files[one.name] = file
        _check_ledger(worker, one)
        before = standing(worker, one)
        if before.is_done:
            return replace(before, is_old=True)
        staged = 0
        try:
            while _in_turn(worker, lambda lease: _carry_on(worker, lease, one, contents.cuts)):
                staged += 1
                if staged % _INDEX_KEPT_EVERY == 0:
                    keep_index(worker.ledger, worker.lake, [one.arrival_date])
        finally:
            if staged:
                keep_index(worker.ledger, worker.lake, [one.arrival_date])
        return standing(worker, one)


def standing(worker: Worker, one: Import) -> Imported:
    """How an import stands now."""
    return Imported(
        one,
        _planned_end(worker, one) - FIRST_ROW,
        tuple(ledger_batches.all_batches(worker.ledger, one.name)),
    )


def _check(project: Project, day: date | None) -> None:
    if project.revoked_at is not None:
        raise BatchError(f"project {project.project_id} ({project.name}) is revoked")
    today = datetime.now(UTC).date()
    if day is not None and day > today:
        raise BatchError(f"nothing can have arrived on {day}: today is {today}, in UTC")


def _begun(
    worker: Worker,
    own: Lease,
    file: ImportFile,
    contents: Contents,
    project: Project,
    day: date | None,
) -> Import:
    deployment, into = worker.settings.topic, project.project_id
    spelled = f"{deployment}/{into}/{contents.sha256}"
    if times := times_discarded(worker.ledger, deployment, into, contents.sha256):
        spelled += f"/{times}"
    topic_id = hashlib.sha256(spelled.encode()).hexdigest()[:40]
    named = "".join(sign if sign.isprintable() else "_" for sign in file.file_name)
    one = begin_import(
        worker.ledger,
        own,
        worker.run_id,
        topic=deployment,
        name=f"{IMPORT_PREFIX}{named[-_NAME_CHARACTERS:]}@{topic_id[:10]}",
        topic_id=topic_id,
        uri=file.uri,
        form=contents.form,
        sha256=contents.sha256,
        bytes=contents.bytes,
        rows=contents.rows,
        project_id=into,
        arrival_date=day or datetime.now(UTC).date(),
    )
    if day not in (None, one.arrival_date):
        raise BatchError(
            f"{file.uri} was begun as {one.name} with the arrival date {one.arrival_date}: a file "
            "has one, so go on without a date"
        )
    worker.say(
        f"{file.uri}: import {one.import_id}, {one.rows:,} rows of {one.form}, as {one.name} into "
        f"project {project.project_id} ({project.name}), arrival date {one.arrival_date}"
    )
    return one


def _check_ledger(worker: Worker, one: Import) -> None:
    """Raise LedgerBehind when ClickHouse knows of batches of the file that the ledger does not."""
    database = worker.settings.clickhouse_database
    mirrored = mirrored_ends(worker.clickhouse, database, one.topic_id).get(0, FIRST_ROW)
    planned = _planned_end(worker, one)
    if mirrored > planned:
        raise LedgerBehind(
            f"the ledger has planned {one.uri} up to row {planned - 1:,}, but ClickHouse holds "
            f"batches up to row {mirrored - 1:,}: this is an older or another ledger, and from it "
            "those rows would be loaded twice. Point TIDEMARK_LEDGER_URL to the right one"
        )


def _planned_end(worker: Worker, one: Import) -> int:
    ends = ledger_batches.planned_ends(worker.ledger, CLUSTER, one.topic_id)
    return ends.get(0, FIRST_ROW)


def _in_turn(worker: Worker, do: Callable[[Lease], bool]) -> bool:
    """Do it under the topics' lease, when nobody else has it or has asked for it."""
    ledger, name = worker.ledger, worker.lease_name
    free_at, tell_at = 0.0, time.monotonic() + _TOLD_EVERY_S
    while True:
        now = time.monotonic()
        if is_turn_asked_for(ledger, name) or is_held(ledger, name):
            free_at = now + _GRACE_S
        elif now >= free_at:
            with ExitStack() as stack:
                try:
                    lease = stack.enter_context(worker.lease())
                except LeaseHeld:
                    continue
                return do(lease)
        if now > tell_at:
            worker.say("the import waits for its turn: others are at work")
            tell_at = now + _TOLD_EVERY_S
        time.sleep(_POLL_S)


def _carry_on(worker: Worker, lease: Lease, one: Import, cuts: Sequence[int]) -> bool:
    """Take the next batch through its stages, with what was left of others; False at the end."""
    if import_named(worker.ledger, one.name).discarded_at is not None:
        raise BatchError(f"{one.name} was discarded meanwhile: nothing more of it is imported")
    begun = ledger_batches.unfinished_batches(worker.ledger, one.name)
    _load(worker, lease, [each for each in begun if each.state is not State.PLANNED])
    _refuse_waiting(worker, one)
    batch = next(iter(_planned(worker, one)), None) or _plan_next(worker, lease, one, cuts)
    if batch is None:
        return False
    batch = stage_one(worker, lease, worker.circuit(lease, STAGE), batch)
    if batch.state is State.HELD:
        _refuse_waiting(worker, one)
    _load(worker, lease, [batch])
    done = batch.ranges[-1].end - FIRST_ROW
    worker.say(f"{one.name}: {done:,} of {one.rows:,} rows, {done / one.rows:.0%}")
    return True


def _planned(worker: Worker, one: Import) -> list[Batch]:
    found = ledger_batches.batches_in(worker.ledger, one.name, State.PLANNED)
    return [batch for batch in found if not batch.is_redrive]


def _refuse_waiting(worker: Worker, one: Import) -> None:
    """Raise BatchError when a batch waits for a person: more of the same would join it."""
    found = ledger_batches.batches_in(worker.ledger, one.name, *WAITING)
    waiting = [batch for batch in found if not batch.is_redrive]
    if waiting:
        batch = waiting[0]
        raise BatchError(
            f"the import of {one.uri} stops: batch {batch.batch_id}, rows "
            f"{' '.join(map(str, batch.ranges))}, is {batch.state}: {batch.note}. When that is "
            "decided, the same `tidemark import` goes on"
        )


def _plan_next(worker: Worker, lease: Lease, one: Import, cuts: Sequence[int]) -> Batch | None:
    start = _planned_end(worker, one)
    if start >= one.end:
        return None
    full = why_no_room(worker.settings, worker.ledger, worker.lake)
    if full is not None:
        raise StagingPaused(f"nothing more of {one.uri} is planned: {full}")
    ranges = (Range(0, start, next(cut for cut in cuts if cut > start)),)
    batch = Batch(
        batch_id=batch_id(CLUSTER, one.topic_id, ranges, 0),
        topic=one.name,
        cluster_id=CLUSTER,
        topic_id=one.topic_id,
        arrival_date=one.arrival_date,
        generation=0,
        code_version=TRANSFORM_VERSION,
        run_id=worker.run_id,
        planned_at=now_us(),
        ranges=ranges,
    )
    failpoint("before-plan")
    ledger_batches.record_plan(worker.ledger, lease, batch)
    worker.say(
        f"batch {batch.batch_id}: planned {batch.offsets:,} rows of {one.name}, "
        f"{batch.arrival_date}, {ranges[0]}"
    )
    failpoint("after-plan")
    return batch


def _load(worker: Worker, lease: Lease, begun: list[Batch]) -> None:
    if not begun:
        return
    aside = PutAside()
    try:
        load_these(worker, lease, begun, aside)
        now = [ledger_batches.read_batch(worker.ledger, each.batch_id) for each in begun]
        finish_these(worker, lease, [each for each in now if each.state in LOADED], aside)
        aside.raise_first()
    except TransientError:
        worker.say("what is staged stays so: the next micro-batch loads it")
        raise
