"""Records that the capture API keeps on disk while Kafka is away: acknowledged, and nowhere else.

Only read, never claimed: the folders belong to workers that write and drain them meanwhile, so a
record may be in Kafka by the time that it is looked for there. It is then shown from there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from capture_api.kafka.spool_folder import FIRST_FRAME, read_position
from capture_api.kafka.spool_frames import decode_frames
from orchestration.explain.record import Place, Record, Search, Verdict, with_head
from orchestration.explain.wanted import Wanted
from orchestration.settings import Settings

MOST_BYTES = 1 << 30
MOST_SECONDS = 10.0
"""What one look-up reads of the spool at most."""

_REFUSED = "refused.segment"
_SET_ASIDE = "Kafka has refused it for good, and the spool keeps it in {}: a person has to look"


def search_spool(settings: Settings, wanted: Wanted, search: Search) -> None:
    """Add what is in the spool of this machine and was not found elsewhere."""
    if not settings.capture_spool_dir:
        return
    known = {(record.uuid, record.request_id) for record in search.records.values()}
    found = read = 0
    end = time.monotonic() + MOST_SECONDS
    for segment, start in _segments(Path(settings.capture_spool_dir)):
        if read > MOST_BYTES or time.monotonic() > end:
            search.bounded.append(f"the spool was read up to {segment} only")
            break
        try:
            data = segment.read_bytes()
        except OSError:  # drained and removed meanwhile
            continue
        read += len(data)
        for topic, value, _key in decode_frames(data[start:]).records:
            if not any(text.encode() in value for text in wanted.spellings):
                continue
            head = wanted.head_of(value)
            if head is None or (head.get("uuid", ""), head.get("request_id", "")) in known:
                continue
            note = _SET_ASIDE.format(segment) if segment.name == _REFUSED else ""
            record = Record(Place(topic, -1, found), Verdict.SPOOLED, None, note=note)
            found += search.add(with_head(record, head))
    search.looked_at.append(
        f"spool of the capture API on this machine, {settings.capture_spool_dir}, {read:,} bytes: "
        f"{found:,} found"
    )


def _segments(spool: Path) -> Iterator[tuple[Path, int]]:
    """Every segment, and from where on Kafka does not have it."""
    for folder in sorted(spool.glob("worker-*")):
        _, position = read_position(folder)
        for segment in sorted(folder.glob("*.segment")):
            if segment.name == _REFUSED:
                yield segment, 0
            elif segment.stem.isdigit() and int(segment.stem) >= position.segment:
                here = int(segment.stem) == position.segment
                yield segment, max(FIRST_FRAME, position.offset if here else 0)
