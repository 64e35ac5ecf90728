"""Resends of lost records: another batch counted them as duplicates, so their events are nowhere.

    gap: records of a batch are lost ─▶ files of duplicates around its date ─▶ how many, by batch

While the batch waited, its events counted as stored. Once their loss is accepted a resend is stored
again, but not one that came before: it is named, with the batch whose file of duplicates has its
place in Kafka.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.pipeline.batch import Batch, Kind, Range
from assets.pipeline.lake import UNREADABLE
from assets.pipeline.staged_files import told_let_go
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import batches_between

_RANGE = re.compile(r"(\d+):\[(\d+),(\d+)\)")
_NAMED = 10


def resends_of(worker: Worker, batch: Batch, lost: Sequence[Range] = ()) -> Counter[str]:
    """How many duplicates each other batch has of records of a batch: all, or those in `lost`.

    A batch of which that is not known is passed over, and said.
    """
    found: Counter[str] = Counter()
    for other, originals in originals_near(
        worker, batch.arrival_date, {batch.batch_id}, worker.say
    ):
        places = originals.filter(pc.equal(originals["first_batch_id"], batch.batch_id))
        at = zip(
            places["first_partition"].to_pylist(), places["first_offset"].to_pylist(), strict=True
        )
        count = sum(not lost or any(_is_in(place, range_) for range_ in lost) for place in at)
        if count:
            found[other] = count
    return found


def originals_near(
    worker: Worker, day: date, but: Collection[str], unknown: Callable[[str], None]
) -> Iterator[tuple[str, pa.Table]]:
    """Of what each batch but these has duplicates (`first_batch_id`, …), around an arrival date.

    A batch of which that is not known is told to `unknown`.
    """
    reach = timedelta(days=worker.settings.duplicate_window_days - 1)
    first, last = day - reach, day + reach
    for other in batches_between(worker.ledger, first, last, *worker.settings.topics):
        file = other.staged.file(Kind.DUPLICATES) if other.staged else None
        if file is None or other.batch_id in but:
            continue
        if file.let_go_at is not None:
            unknown(f"resends in batch {other.batch_id} are not known: {told_let_go(file)}")
            continue
        try:
            with worker.lake.open_file(file.path) as source:
                originals = pq.read_table(
                    source, columns=["first_batch_id", "first_partition", "first_offset"]
                )
        except UNREADABLE as error:
            unknown(f"duplicates of batch {other.batch_id} cannot be read: {error}")
            continue
        yield other.batch_id, originals


def told(resends: Mapping[str, int]) -> str:
    """In words; empty when there are none."""
    if not resends:
        return ""
    named = [f"{count:,} in batch {batch_id}" for batch_id, count in resends.items()]
    more = [f"and in {len(named) - _NAMED:,} more"] if len(named) > _NAMED else []
    return (
        f"{sum(resends.values()):,} resends of what is lost were counted as duplicates and are "
        f"stored nowhere: {', '.join(named[:_NAMED] + more)}"
    )


def ranges_in(text: str) -> list[Range]:
    """The ranges that a gap of Kafka's says are lost."""
    return [Range(*map(int, numbers)) for numbers in _RANGE.findall(text)]


def _is_in(place: tuple[int, int], range_: Range) -> bool:
    partition, offset = place
    return partition == range_.partition and range_.start <= offset < range_.end
