"""Redrive: dead letters are tried again with the code and the projects of now.

    lake's dead letters ─choose─▶ letters ─┬─ dry run ─▶ judged, compared ─▶ Redriven
                                           └─▶ planned ─▶ staged ─▶ loading ─▶ loaded ─▶ Redriven

A redrive is a batch of its own, with its own token and proof, of one topic and one arrival date. It
goes through the states of any batch; what dies on the way is taken up by the next micro-batch.
Invariants: a letter keeps its topic, partition and offset; one that became an event, or was found
to be a duplicate, is never tried again; the ledger knows each try.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from assets.pipeline.batch import LOADED, Batch, Kind, State
from assets.pipeline.duplicates import SeenKeys, key_columns
from assets.pipeline.errors import BatchError, LakeTrouble, StagedFileDamaged, TransientError
from assets.pipeline.failpoints import failpoint
from assets.pipeline.key_upkeep import keep_index
from assets.pipeline.letters import as_chunk, judge_letters, places_in, read_letters
from assets.pipeline.loading import finish_these, load_these
from assets.pipeline.read import Chunk
from assets.pipeline.reasons import Reason
from assets.pipeline.record_head import read_head
from assets.pipeline.sources import import_of
from assets.pipeline.staged_files import told_let_go
from assets.pipeline.staging import stage_these
from assets.pipeline.version import TRANSFORM_VERSION
from assets.pipeline.worker import PutAside, Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger import redrives as ledger_redrives
from orchestration.ledger.access import read_access
from orchestration.ledger.connection import now_us
from orchestration.ledger.imports import Import
from orchestration.ledger.leases import Lease
from orchestration.ledger.projects import find_project, list_retired_tokens
from orchestration.ledger.redrives import Letter, Outcome, Past, Results

LETTERS_A_BATCH = 50_000
BYTES_A_BATCH = 256 << 20
"""Dead letters, or bytes of their values, with which a redrive is full: then another is begun."""

TOO_LARGE = "never: only evidence of it was kept"
CUT_OFF = "never: only the first 64 KiB of it were kept"
NO_TOKEN = "never: its record has no key, so its token is not known"
NO_PROJECT = "no project has its token yet"
TRIED = "failed too often, --again tries it once more"
UNDER_WAY = "is being redriven"
SETTLED = {
    Outcome.EVENT.value: "is an event since an earlier redrive",
    Outcome.DUPLICATE.value: "was found to be a duplicate by an earlier redrive",
    ledger_redrives.UNDER_WAY: UNDER_WAY,
}


@dataclass(frozen=True)
class Wanted:
    """Which dead letters are asked for. `project` is an id or a token; nothing said: all."""

    reasons: tuple[str, ...] = ()
    project: str | None = None
    date: date | None = None
    batch_id: str | None = None
    limit: int | None = None
    again: bool = False

    @property
    def says_nothing(self) -> bool:
        """Whether nothing was said that chooses some."""
        return self == Wanted(again=self.again)

    def in_words(self) -> str:
        """What was asked for, for the ledger."""
        return json.dumps({k: v for k, v in asdict(self).items() if v}, default=str)


@dataclass(frozen=True)
class Redriven:
    """What came, or would come, of the letters that were chosen; and why others were left out.

    `damaged` are the files of dead letters that cannot be read.
    """

    dry_run: bool
    results: Results = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    batches: tuple[Batch, ...] = ()
    damaged: tuple[str, ...] = ()

    @property
    def letters(self) -> int:
        """How many letters were chosen."""
        return sum(self.results.values())

    def count(self, outcome: Outcome) -> int:
        """How many of them came to that."""
        return sum(n for (_, came_to, _), n in self.results.items() if came_to is outcome)


def preview(worker: Worker, wanted: Wanted) -> Redriven:
    """What would come of a redrive now. Nothing is written, and nobody is kept waiting.

    Where the index of duplicates was let go, `say` is told, and duplicates count as events.
    """
    choice = _Choice(worker, wanted)
    results: Results = Counter()
    seen: dict[date, SeenKeys] = {}
    for batch, letters, chunk in choice.chunks():
        day = batch.arrival_date
        if day not in seen:
            seen[day] = worker.index_for(_as_redrive(batch, letters, "preview"), only_looks=True)
        of = import_of(worker, batch)
        results += _would_become(letters, chunk, seen[day], of)
    return Redriven(True, results, choice.left_out, damaged=tuple(choice.damaged))


def redrive(worker: Worker, wanted: Wanted, runs: Iterable[str] = ()) -> Redriven:
    """Try the wanted dead letters again, and load what has become an event.

    Each redrive is planned before any is staged. What an earlier one has left on the way is carried
    on, too. One that cannot be carried on holds up no other; the first such error is raised last.
    `runs` have asked for the same before, and failed: what they have planned counts as chosen, and
    no letter of it is chosen again.
    """
    aside = PutAside()
    ledger = worker.ledger
    with worker.lease() as lease:
        earlier = [
            batch
            for run_id in runs
            for batch in ledger_batches.batches_of_run(ledger, run_id)
            if batch.is_redrive
        ]
        choice = _Choice(worker, wanted, earlier)
        begun = [batch for batch in worker.unfinished() if batch.is_redrive]
        planned = _plan(worker, lease, choice)
        ids = list(dict.fromkeys(batch.batch_id for batch in (*earlier, *begun, *planned)))
        to_stage = [batch for batch in (*begun, *planned) if batch.state is State.PLANNED]
        staged = stage_these(worker, lease, to_stage, aside)
        keep_index(ledger, worker.lake, {batch.arrival_date for batch in staged})
        staged += [batch for batch in begun if batch.state is not State.PLANNED]
        if staged:  # else ClickHouse may be away
            _load(worker, lease, staged, aside)
    aside.raise_first()
    return Redriven(
        False,
        ledger_redrives.results_of(ledger, ids),
        choice.left_out,
        tuple(_now(worker, batch_id) for batch_id in ids),
        tuple(choice.damaged),
    )


def _load(worker: Worker, lease: Lease, staged: list[Batch], aside: PutAside) -> None:
    try:
        load_these(worker, lease, staged, aside)
        finish_these(worker, lease, [_now(worker, batch.batch_id) for batch in staged], aside)
    except TransientError:
        worker.say("what is staged stays so: the next micro-batch loads it")
        raise


def _now(worker: Worker, batch_id: str) -> Batch:
    return ledger_batches.read_batch(worker.ledger, batch_id)


class _Choice:
    """Goes through the dead letters and chooses; knows at the end what was left out, and why."""

    def __init__(self, worker: Worker, wanted: Wanted, earlier: Sequence[Batch] = ()) -> None:
        """`earlier` are redrives whose letters were chosen before, and count as such."""
        self._worker = worker
        self._wanted = wanted
        self._tokens = read_access(worker.ledger).tokens
        self._project: int | None = None
        self._project_tokens: frozenset[str] = frozenset()
        if wanted.project is not None:
            project = find_project(worker.ledger, wanted.project)
            retired = list_retired_tokens(worker.ledger)
            self._project = project.project_id
            self._project_tokens = frozenset(
                {project.token, *(t.token for t in retired if t.project_id == self._project)}
            )
        self._chosen = {
            (batch.topic_id, letter.place)
            for batch in earlier
            for letter in ledger_redrives.letters_of(worker.ledger, batch.batch_id)
        }
        self._left = wanted.limit and max(0, wanted.limit - len(self._chosen))
        self.left_out: Counter[tuple[str, str]] = Counter()
        self.damaged: list[str] = []

    def chunks(self) -> Iterator[tuple[Batch, list[Letter], Chunk]]:
        """The chosen letters, some at a time, and their records; the oldest batches first."""
        for batch in self._batches():
            try:
                for letters in read_letters(self._worker.lake, batch):
                    chosen, rows = self._choose(batch, letters)
                    if rows:
                        yield batch, chosen, as_chunk(letters, rows)
                    if self._left == 0:
                        return
            except (StagedFileDamaged, LakeTrouble) as error:
                self.damaged.append(str(error))
                self._worker.say(f"dead letters of batch {batch.batch_id} are left out: {error}")

    def _batches(self) -> Iterable[Batch]:
        wanted, ledger = self._wanted, self._worker.ledger
        if wanted.batch_id is None:
            topics = self._worker.settings.topics
            found = ledger_batches.batches_with_dead_letters(ledger, wanted.date, *topics)
        else:
            batch = ledger_batches.read_batch(ledger, wanted.batch_id)
            _check_has_letters(self._worker, batch)
            found = [batch] if wanted.date in (None, batch.arrival_date) else []
        reasons = set(wanted.reasons)
        for batch in found:
            known = batch.staged.reasons.keys() if batch.staged else set()
            if not reasons or not known or reasons & known:
                yield batch

    def _choose(self, batch: Batch, letters: pa.RecordBatch) -> tuple[list[Letter], list[int]]:
        places = places_in(letters)
        one = import_of(self._worker, batch)
        past = ledger_redrives.past_of(self._worker.ledger, batch.topic_id, places)
        kept = pc.binary_length(letters.column("value")).to_pylist()
        lengths = letters.column("value_length").to_pylist()
        chosen: list[Letter] = []
        rows: list[int] = []
        for row, reason in enumerate(letters.column("reason").to_pylist()):
            if self._left == 0:
                break
            if self._wanted.reasons and reason not in self._wanted.reasons:
                continue
            if (batch.topic_id, places[row]) in self._chosen:
                continue
            token = _token(letters.column("key")[row].as_py())
            if one is not None:
                if self._project not in (None, one.project_id):
                    continue
            elif not self._is_of_project(token, letters.column("value"), row):
                continue
            before = past.get(places[row], Past())
            project_id = self._tokens.get(token) if token is not None else None
            if one is not None:
                project_id = one.project_id
            why = self._why_not(reason, before, token, project_id)
            if not why and kept[row] < lengths[row]:
                why = CUT_OFF
            if why:
                self.left_out[reason, why] += 1
                continue
            chosen.append(Letter(places[row], batch.batch_id, reason, before.last + 1, project_id))
            rows.append(row)
            if self._left is not None:
                self._left -= 1
        return chosen, rows

    def _is_of_project(self, token: str | None, values: pa.Array, row: int) -> bool:
        if self._project is None or token in self._project_tokens:
            return True
        said = read_head(values[row].as_py()).fields.get("project_id")
        return said is not True and said == self._project

    def _why_not(self, reason: str, before: Past, token: str | None, project_id: int | None) -> str:
        if before.settled:
            return SETTLED[before.settled]
        if reason == Reason.TOO_LARGE:
            return TOO_LARGE
        if reason == Reason.UNKNOWN_PROJECT and project_id is None:
            return NO_TOKEN if token is None else NO_PROJECT
        if before.tries >= self._worker.settings.redrive_tries and not self._wanted.again:
            return TRIED
        return ""


def _check_has_letters(worker: Worker, batch: Batch) -> None:
    """Raise BatchError, with what to do instead, unless dead letters of it can be tried again."""
    one = import_of(worker, batch)
    topics = worker.settings.topics
    if batch.topic not in topics and (one is None or one.topic not in topics):
        raise BatchError(
            f"batch {batch.batch_id} is of topic {batch.topic}, which workers with these settings "
            "do not carry: see TIDEMARK_TOPIC"
        )
    if batch.is_redrive:
        raise BatchError(
            f"batch {batch.batch_id} is a redrive itself: what it could not mend is still a dead "
            "letter of its old batch"
        )
    if batch.state is State.HELD:
        raise BatchError(
            f"batch {batch.batch_id} is held: nothing of it is published yet, so there is nothing "
            f"to redrive. {batch.note}"
        )
    file = batch.staged.file(Kind.DEAD_LETTERS) if batch.staged else None
    if file is not None and file.let_go_at is not None:
        raise BatchError(f"the dead letters of batch {batch.batch_id}: {told_let_go(file)}")
    if batch.state not in LOADED:
        raise BatchError(
            f"batch {batch.batch_id} is {batch.state}: its dead letters can be redriven once it is "
            "loaded"
        )


def _would_become(
    letters: Sequence[Letter], chunk: Chunk, seen: SeenKeys, of: Import | None
) -> Results:
    judged = judge_letters(chunk, {letter.place: letter.project_id for letter in letters}, of)
    results: Results = Counter()
    for row, rejection in judged.rejections.items():
        results[letters[row].reason, Outcome.REJECTED, rejection.reason.value] += 1
    if len(judged.rows):
        places = chunk.records.take(pa.array(judged.rows))
        found = seen.mark(
            *key_columns(judged.uuids, judged.columns.column("project_id").to_numpy()),
            places.column("partition").to_numpy(),
            places.column("offset").to_numpy(),
        )
        duplicate = found.mask(len(judged.rows))
        for row, again in zip(judged.rows.tolist(), duplicate.tolist(), strict=True):
            outcome = Outcome.DUPLICATE if again else Outcome.EVENT
            results[letters[row].reason, outcome, ""] += 1
    return results


def _plan(worker: Worker, lease: Lease, choice: _Choice) -> list[Batch]:
    """Plan redrives of all that is chosen: of one topic and arrival date each, none too large."""
    planned: list[Batch] = []
    waiting: dict[tuple[str, date], tuple[Batch, list[Letter], int]] = {}

    def plan(day: tuple[str, date]) -> None:
        old, letters, _ = waiting.pop(day)
        batch = _as_redrive(old, letters, worker.run_id)
        failpoint("before-plan")
        asked = choice._wanted.in_words()
        ledger_redrives.record_redrive(worker.ledger, lease, batch, letters, asked)
        worker.say(
            f"batch {batch.batch_id}: planned to redrive {len(letters):,} dead letters of "
            f"{batch.topic}, {batch.arrival_date}"
        )
        failpoint("after-plan")
        planned.append(_now(worker, batch.batch_id))

    for batch, letters, chunk in choice.chunks():
        day = (batch.topic_id, batch.arrival_date)
        _, before, size = waiting.get(day, (batch, [], 0))
        size += pc.sum(pc.binary_length(chunk.records.column("value"))).as_py() or 0
        waiting[day] = (batch, [*before, *letters], size)
        if len(before) + len(letters) >= LETTERS_A_BATCH or size >= BYTES_A_BATCH:
            plan(day)
    for day in list(waiting):
        plan(day)
    return planned


def _as_redrive(old: Batch, letters: Sequence[Letter], run_id: str) -> Batch:
    """The batch that carries these letters; the same ones, tried as often, give the same name."""
    tries = ",".join(
        f"{letter.place.partition}:{letter.place.offset}#{letter.number}"
        for letter in sorted(letters, key=lambda letter: letter.place)
    )
    text = f"redrive/{old.cluster_id}/{old.topic_id}/0/{tries}"
    return Batch(
        batch_id=hashlib.blake2b(text.encode(), digest_size=12).hexdigest(),
        topic=old.topic,
        cluster_id=old.cluster_id,
        topic_id=old.topic_id,
        arrival_date=old.arrival_date,
        generation=0,
        code_version=TRANSFORM_VERSION,
        run_id=run_id,
        planned_at=now_us(),
        ranges=(),
        letters=len(letters),
    )


def _token(key: bytes | None) -> str | None:
    """The token in a record's key, `token:distinct_id`."""
    if key is None or b":" not in key:
        return None
    return key.partition(b":")[0].decode(errors="replace")
