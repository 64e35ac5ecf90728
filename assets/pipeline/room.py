"""Room: how much may be staged before it is loaded.

While ClickHouse is away staging goes on, so that Kafka's retention takes nothing; but not until the
disk is full. What is loaded makes room in the budget; the floor of the free disk is for what else
lives there, the ledger and Kafka among it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from assets.pipeline.lake import Lake
from orchestration.ledger.batches import bytes_to_load
from orchestration.settings import Settings


@dataclass(frozen=True)
class NoRoom:
    """Why no more is staged, and whether loading what is staged helps."""

    text: str
    loading_helps: bool

    def __str__(self) -> str:
        return self.text


def why_no_room(settings: Settings, ledger: Engine, lake: Lake, coming: int = 0) -> NoRoom | None:
    """Why nothing more is to be staged now; None when there is room.

    `coming` are bytes of what is being staged, which count as if they were there.
    """
    budget, floor = settings.staged_max_bytes, settings.lake_min_free_bytes
    if budget and (waiting := bytes_to_load(ledger, *settings.topics) + coming) >= budget:
        return NoRoom(
            f"{waiting:,} bytes of staged files wait to be loaded, TIDEMARK_STAGED_MAX_BYTES is "
            f"{budget:,}: get them loaded, or raise it where the disk allows",
            loading_helps=True,
        )
    if lake.is_local and (free := _free_bytes(Path(lake.full_path(""))) - coming) < floor:
        return NoRoom(
            f"{free:,} bytes are free on the disk of the lake {lake.uri}, "
            f"TIDEMARK_LAKE_MIN_FREE_BYTES is {floor:,}: make room there",
            loading_helps=False,
        )
    return None


def _free_bytes(folder: Path) -> int:
    """What is free on a folder's disk; the folder itself may not be there yet."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(there).free
