"""Where a batch's records are read from, and how they are judged: Kafka, or a file of an import.

All that comes before (the plan) and after (staging, loading, proving) is one and the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from assets.pipeline.batch import Batch
from assets.pipeline.errors import Gap, ImportTrouble, TopicReplaced
from assets.pipeline.exported_lines import judge_lines
from assets.pipeline.import_file import ImportFile
from assets.pipeline.read import Chunk, check_readable, lost_below, read_ranges
from assets.pipeline.topic import midnight_ms
from assets.pipeline.validate import Judged, judge
from assets.pipeline.worker import Worker
from orchestration.ledger.imports import Import, import_named

GONE = (Gap, TopicReplaced, ImportTrouble)
"""What `check_source` raises when a batch's records cannot be read any more."""


def check_source(worker: Worker, batch: Batch) -> None:
    """Raise one of GONE when the batch's records cannot be read whole any more."""
    if not batch.is_import:
        check_readable(worker.topic_of(batch), batch.topic_id, batch.readable)
    elif any(map(len, batch.readable)):
        one = import_named(worker.ledger, batch.topic)
        file_of(worker, one).check_is(one.sha256, worker.say)


def chunks_of(worker: Worker, batch: Batch) -> Iterator[Chunk]:
    """The batch's records."""
    if not batch.is_import:
        yield from read_ranges(worker.settings.kafka_client, batch.topic, batch.readable)
        return
    for range_ in filter(len, batch.readable):
        file = file_of(worker, import_named(worker.ledger, batch.topic))
        yield from file.chunks(range_.start, range_.end)


def check_unchanged(worker: Worker, batch: Batch) -> None:
    """Raise ImportTrouble when what was read may be of other contents than were planned."""
    if batch.is_import and batch.topic in worker.files:
        worker.files[batch.topic].check_unchanged()


def import_of(worker: Worker, batch: Batch) -> Import | None:
    """The import that the batch is of, if it is of one."""
    return import_named(worker.ledger, batch.topic) if batch.is_import else None


def judge_of(worker: Worker, batch: Batch) -> Callable[[Chunk], Judged]:
    """How the batch's records are judged."""
    one = import_of(worker, batch)
    if one is None:
        return lambda chunk: judge(chunk.records.column("value"))
    return lambda chunk: judge_lines(chunk, one)


def lost_of(worker: Worker, batch: Batch) -> dict[int, int]:
    """Per partition, the offset of its range below which nothing can be read any more."""
    if not batch.is_import:
        return lost_below(worker.topic_of(batch), batch.topic_id, batch.ranges)
    try:
        check_source(worker, batch)
    except ImportTrouble:
        return {range_.partition: range_.end for range_ in batch.ranges}
    return {range_.partition: range_.start for range_ in batch.ranges}


def file_of(worker: Worker, one: Import) -> ImportFile:
    """The file of an import, opened once by a worker."""
    if one.name not in worker.files:
        worker.files[one.name] = ImportFile(one.uri, appended_at_ms(one))
    return worker.files[one.name]


def appended_at_ms(one: Import) -> int:
    """When its rows count as having arrived: within its arrival date, as Kafka's do."""
    midnight = midnight_ms(one.arrival_date)
    begun = one.begun_at // 1000
    return begun if midnight <= begun < midnight + 86_400_000 else midnight
