"""Remaking: the new files of a rebuild, from their making until what they replaced is let go of.

                 new file                        old file
    noted        remade/events/…-r7.parquet      events/….parquet                the old one counts
    placed       the same, and events/…-r7       the same, and replaced/events/…
    in use       events/…-r7.parquet             replaced/events/….parquet       the new one counts
    returned     –                               events/…-b7.parquet             the old one counts
    let go of    events/…-r7.parquet             –                               the new one counts

So whoever reads all of events/ meets each event once, but between `place` and the end of `tidy`,
and after a kill there until somebody goes on: then old and new files both stand in it. Placing
gives files a second name, and only then does the ledger say, in one transaction with the rebuild's
state, which of them count: it never names a file that is not there. What a crash leaves besides is
found by its name, and deleted by `tidy`: what counts is never deleted, nor what can be brought
back. No name is given twice, so that a worker which was paused over a deletion deletes nothing
that came to count meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import PurePosixPath

from sqlalchemy import Connection

from assets.pipeline.batch import Batch, KeyFile, Kind, Making, Staged, StagedFile
from assets.pipeline.failpoints import failpoint
from assets.pipeline.lake import lake_path
from assets.pipeline.mirror import mirror_whole
from assets.pipeline.reenrich import reenriched
from assets.pipeline.replay import NotReplayed, lost_kinds, registered_kinds, replayed
from assets.pipeline.version import TRANSFORM_VERSION
from assets.pipeline.worker import Worker
from orchestration.ledger import remakes as ledger_remakes
from orchestration.ledger.batches import batches_named
from orchestration.ledger.leases import Lease, assert_held
from orchestration.ledger.rebuilds import OPEN, Rebuild, RebuildState, Way, all_rebuilds
from orchestration.ledger.remakes import Remake, making_of

_COPIES_AT_ONCE = 16

_NOTHING_MOVED = (RebuildState.FILLING, RebuildState.CANCELLED)
"""States of a rebuild that leave what an earlier one has replaced as it is."""


@dataclass
class Asked:
    """What was asked of a rebuild besides its way; and what could not be done, by batch.

    With `all_files` a replay makes all files anew, and not those alone that are lost.
    """

    drop_strangers: bool = False
    all_files: bool = False
    left: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Remakes:
    """What a rebuild has made of batches, by batch; those that came out the same left out."""

    made: Mapping[str, Remake]

    def __bool__(self) -> bool:
        return bool(self.made)

    def still_used(self, batches: Sequence[Batch]) -> Remakes:
        """Those whose new files count for one of these batches."""
        now = {batch.batch_id: batch for batch in batches}
        used = {id_: each for id_, each in self.made.items() if id_ in now}
        return Remakes({id_: each for id_, each in used.items() if each.is_used(now[id_])})

    def in_place(self, batches: Sequence[Batch]) -> list[Batch]:
        """These batches as they will be: with their new files, where these are before use."""
        return [
            _with(batch, each.after, made_path)
            if (each := self.made.get(batch.batch_id)) and each.after
            else batch
            for batch in batches
        ]

    def as_before(self, batches: Sequence[Batch]) -> list[Batch]:
        """These batches as they were: with their old files, where these are kept."""
        return [
            _with(batch, each.before, kept_path)
            if (each := self.made.get(batch.batch_id))
            else batch
            for batch in batches
        ]


def made_path(path: str) -> str:
    """Where a new file lies before it is in use."""
    return f"remade/{path}"


def kept_path(path: str) -> str:
    """Where an old file lies while it can be brought back."""
    return f"replaced/{path}"


def remakes_of(worker: Worker, rebuild: Rebuild) -> Remakes:
    """What a rebuild has made."""
    found = ledger_remakes.remakes_of(worker.ledger, rebuild.rebuild_id)
    return Remakes({batch_id: each for batch_id, each in found.items() if each.after})


def remake(
    worker: Worker, lease: Lease, rebuild: Rebuild, batches: Sequence[Batch], asked: Asked
) -> Remakes:
    """What a rebuild makes of these batches; what is not made yet is made now.

    A batch that was staged since the rebuild began, with today's code, keeps its files; so does one
    that cannot be replayed, which `asked` then knows. Raises StagedFileDamaged where files are to
    be enriched again that the lake has not.
    """
    if not rebuild.makes_files:
        return Remakes({})
    known = ledger_remakes.remakes_of(worker.ledger, rebuild.rebuild_id)
    due = [
        batch
        for batch in batches
        if not _is_known(known.get(batch.batch_id), batch)
        and not _is_fresh(rebuild, batch)
        and batch.batch_id not in asked.left
    ]
    for number, batch in enumerate(due, 1):
        try:
            made, key_file = _made(worker, lease, rebuild, batch, asked)
        except NotReplayed as error:
            asked.left[batch.batch_id] = str(error)
            worker.say(f"{rebuild.arrival_date}: left as it is, {error}")
            continue
        failpoint("remade")
        ledger_remakes.note_remake(worker.ledger, lease, made, key_file)
        worker.say(
            f"{rebuild.arrival_date}: batch {batch.batch_id} "
            f"{'made anew' if made.after else 'stays the same'}, {number:,} of {len(due):,}"
        )
        known[batch.batch_id] = made
        failpoint("remake-noted")
    found = {batch.batch_id: known.get(batch.batch_id) for batch in batches}
    return Remakes(
        {
            batch.batch_id: each
            for batch in batches
            if (each := found[batch.batch_id]) and each.after and each.stands(batch)
        }
    )


def _is_known(made: Remake | None, batch: Batch) -> bool:
    return made is not None and made.stands(batch)


def _is_fresh(rebuild: Rebuild, batch: Batch) -> bool:
    since = (batch.staged_at or 0) > rebuild.begun_at
    return since and batch.code_version == TRANSFORM_VERSION


def _made(
    worker: Worker, lease: Lease, rebuild: Rebuild, batch: Batch, asked: Asked
) -> tuple[Remake, KeyFile | None]:
    if rebuild.way is Way.REPLAY:
        return _replayed(worker, lease, rebuild, batch, asked)
    before = making_of(batch, [Kind.EVENTS])
    (file,) = before.files
    path = _renamed(file, f"r{rebuild.rebuild_id}")
    new = reenriched(
        worker.lake,
        file,
        made_path(path),
        rebuild.generation or 0,
        may_publish=lambda: assert_held(worker.ledger, lease),
    )
    after = None
    if new is not None:
        after = Making(
            (replace(new, path=path),),
            before.fingerprints,  # no row comes, goes or moves
            rebuild.generation or 0,
            TRANSFORM_VERSION,
        )
    return Remake(rebuild.rebuild_id, batch.batch_id, before, after), None


def _replayed(
    worker: Worker, lease: Lease, rebuild: Rebuild, batch: Batch, asked: Asked
) -> tuple[Remake, KeyFile | None]:
    """The same from Kafka: of the files that are lost, or of all."""
    kinds = registered_kinds(batch) if asked.all_files else lost_kinds(worker.lake, batch).keys()
    before = making_of(batch, kinds or registered_kinds(batch))
    if not kinds:
        return Remake(rebuild.rebuild_id, batch.batch_id, before, None), None

    def path_of(kind: str, suffix: str) -> str:
        name = f"{batch.batch_id}-r{rebuild.rebuild_id}.{suffix}"
        path = lake_path(kind, batch.arrival_date, name)
        return path if kind == "keys" else made_path(path)

    staged, key_file = replayed(worker, batch, path_of, lambda: assert_held(worker.ledger, lease))
    for file in staged.files:
        if file.kind not in kinds:
            worker.lake.delete(file.path)
    after = Making(
        tuple(
            replace(file, path=file.path.removeprefix(made_path("")))
            for file in staged.files
            if file.kind in kinds
        ),
        before.fingerprints,  # else it would not be replayed
        batch.generation,  # it is the lost file that is back
        TRANSFORM_VERSION if Kind.EVENTS in kinds else batch.code_version,
    )
    return Remake(rebuild.rebuild_id, batch.batch_id, before, after), key_file


def _renamed(file: StagedFile, mark: str) -> str:
    """The path of a batch's file that a rebuild has marked: none that staging writes to."""
    path = PurePosixPath(file.path)
    batch_id = path.stem.partition("-")[0]
    return str(path.with_name(f"{batch_id}-{mark}{path.suffix}"))


def place(worker: Worker, lease: Lease, rebuild: Rebuild, remakes: Remakes) -> None:
    """Let every file stand where it will be when the new ones are in use."""
    assert_held(worker.ledger, lease)
    made = list(remakes.made.values())
    if rebuild.way.keeps_files:
        olds = [old.path for each in made for old in each.before.files]
        _copy(worker, [(path, kept_path(path)) for path in olds])
    _copy(worker, [(made_path(new.path), new.path) for each in made for new in _new(each)])
    if remakes:
        failpoint("remakes-placed")


def _new(each: Remake) -> tuple[StagedFile, ...]:
    return each.after.files if each.after else ()


def _copy(worker: Worker, names: Sequence[tuple[str, str]]) -> None:
    """Many at once: an object store takes its time for each."""
    with ThreadPoolExecutor(_COPIES_AT_ONCE, "copy") as threads:
        for copied in [threads.submit(worker.lake.copy, *pair) for pair in names]:
            copied.result()


def into_use(remakes: Remakes) -> Callable[[Connection], None]:
    """What makes the new files those that count, in a transaction of the ledger."""

    def write(connection: Connection) -> None:
        for each in remakes.made.values():
            if each.after:
                ledger_remakes.use(connection, each.batch_id, each.before, each.after)

    return write


def place_back(worker: Worker, lease: Lease, remakes: Remakes) -> None:
    """Let the old files stand beside the new ones again."""
    assert_held(worker.ledger, lease)
    _copy(
        worker,
        [
            (kept_path(old.path), returned.path)
            for each in remakes.made.values()
            for old, returned in zip(each.before.files, _returned(each).files, strict=True)
        ],
    )
    if remakes:
        failpoint("remakes-placed")


def out_of_use(remakes: Remakes) -> Callable[[Connection], None]:
    """What makes the old files those that count, in a transaction of the ledger."""

    def write(connection: Connection) -> None:
        for each in remakes.made.values():
            if each.after:
                ledger_remakes.use(connection, each.batch_id, each.after, _returned(each))

    return write


def _returned(each: Remake) -> Making:
    """What a batch had before, under the names that its files have when they are back."""
    mark = f"b{each.rebuild_id}"
    files = (replace(file, path=_renamed(file, mark)) for file in each.before.files)
    return replace(each.before, files=tuple(files))


def tell(worker: Worker, remakes: Remakes) -> None:
    """Copy the batches whose files have changed to the mirror of the ledger."""
    if remakes:
        batches = batches_named(worker.ledger, list(remakes.made))
        mirror_whole(worker.clickhouse, worker.settings.clickhouse_database, worker.ledger, batches)


def tidy(worker: Worker, lease: Lease, day: date, *, can_be_returned: bool) -> None:
    """Delete the files of a date's rebuilds that do not count and cannot be brought back.

    `can_be_returned` says whether ClickHouse still has what the last rebuild has replaced. The
    caller holds the rebuild's lease.
    """
    ledger = worker.ledger
    rebuilds = [
        each for each in all_rebuilds(ledger, worker.settings.topic) if each.arrival_date == day
    ]
    moved = [each for each in rebuilds if each.state not in _NOTHING_MOVED]
    # The others' was overwritten when the last one kept the partition aside.
    returnable = {each.rebuild_id for each in moved[:1] if can_be_returned}
    for rebuild in rebuilds:
        made = ledger_remakes.remakes_of(ledger, rebuild.rebuild_id)
        if not made or (rebuild.state in OPEN and rebuild is rebuilds[0]):
            continue
        is_kept = rebuild.state is RebuildState.SWAPPED and rebuild.rebuild_id in returnable
        _delete(worker, made, keeps_old=is_kept)
        if not is_kept:
            ledger_remakes.forget_remakes(ledger, lease, rebuild.rebuild_id)


def _delete(worker: Worker, made: Mapping[str, Remake], *, keeps_old: bool) -> None:
    """Delete what does not count of these files, under whatever name it stands."""
    now = {batch.batch_id: batch for batch in batches_named(worker.ledger, list(made))}
    due: set[str] = set()
    for batch_id, each in made.items():
        staged = now[batch_id].staged
        counts = {file.path for file in staged.files} if staged else set()
        old = [file.path for file in each.before.files] if each.after else []
        new = [file.path for file in _new(each)]
        paths = {*old, *new, *map(made_path, new)}
        if not keeps_old:
            paths |= set(map(kept_path, old))
        due |= paths - counts
    # Of what is kept for days, most is gone since the first time: asked for by the folder.
    for path in sorted(worker.lake.there(due)):
        worker.lake.delete(path)


def _with(batch: Batch, making: Making, path_of: Callable[[str], str]) -> Batch:
    assert batch.staged is not None
    kinds = {file.kind for file in making.files}
    others = tuple(file for file in batch.staged.files if file.kind not in kinds)
    files = tuple(replace(file, path=path_of(file.path)) for file in making.files)
    staged: Staged = replace(
        batch.staged,
        files=(*files, *others),
        fingerprints={**batch.staged.fingerprints, **making.fingerprints},
    )
    return replace(batch, staged=staged)
