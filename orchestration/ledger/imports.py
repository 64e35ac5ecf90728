"""Imports in the ledger: each file that was ever imported into a project, by what is in it.

    file + project ─▶ topic_id ─▶ one row for ever: name, lines, arrival date, when it was begun
       └── one that is discarded counts no more: the same file has another topic_id from then on

Invariant: what staging takes from an import (its arrival date, when it was begun, its project) is
written once, before its first batch is planned, and never changed. How far an import has come
stands in its lane and its batches, as of any topic.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Engine, func, insert, select, update

from assets.pipeline.batch import Batch
from assets.pipeline.errors import BatchError
from orchestration.ledger.batches import supersede
from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.decisions import Decision
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.tables import imports

CLUSTER = "file"
"""What stands for a cluster's id in the lanes and batches of imports."""

FIRST_ROW = 1
"""Rows, and so offsets, are counted from here: as editors count lines."""


def lease_of_imports(topic: str) -> str:
    """The name of the lease that an import beside that topic has from its beginning to its end."""
    return f"import/{topic}"


@dataclass(frozen=True)
class Import:
    """A file that is imported. `topic` is the deployment's main one, `name` that of its batches.

    `uri` is where it was when it was imported last. Times are µs; `discarded_at` is when a person
    has thrown it away.
    """

    import_id: int
    topic: str
    name: str
    topic_id: str
    uri: str
    form: str
    sha256: str
    bytes: int
    rows: int
    project_id: int
    arrival_date: date
    run_id: str
    begun_at: int
    discarded_at: int | None = None
    discarded_by: str | None = None

    @property
    def end(self) -> int:
        """The offset behind the last row."""
        return FIRST_ROW + self.rows


def begin_import(ledger: Engine, lease: Lease, run_id: str, **values: Any) -> Import:
    """The import of that `topic_id`: as it was begun once, and is at this `uri` now; else a new
    one."""
    with ledger.begin() as connection:
        check_fence(connection, lease)
        row = connection.execute(
            update(imports)
            .where(imports.c.topic_id == values["topic_id"])
            .values(uri=values["uri"])
            .returning(*imports.c)
        ).one_or_none()
        if row is None:
            row = connection.execute(
                insert(imports)
                .values(run_id=run_id, begun_at=now_us(), **values)
                .returning(*imports.c)
            ).one()
    return Import(**row._mapping)


def import_named(ledger: Engine, name: str) -> Import:
    """The import whose batches have that topic. Raises BatchError when there is none."""
    with reading(ledger) as connection:
        row = connection.execute(select(imports).where(imports.c.name == name)).one_or_none()
    if row is None:
        raise BatchError(f"the ledger knows no import {name}: see `tidemark import --list`")
    return Import(**row._mapping)


def import_beside(ledger: Engine, topic: str, name: str) -> Import:
    """The same of a deployment, which is known by its main topic."""
    one = import_named(ledger, name)
    if one.topic != topic:
        raise BatchError(f"{name} was imported beside topic {one.topic}: see TIDEMARK_TOPIC")
    return one


def times_discarded(ledger: Engine, topic: str, project_id: int, sha256: str) -> int:
    """How often a file was begun to be imported into a project, and thrown away."""
    columns = imports.c
    with reading(ledger) as connection:
        return connection.execute(
            select(func.count()).where(
                columns.topic == topic,
                columns.project_id == project_id,
                columns.sha256 == sha256,
                columns.discarded_at.is_not(None),
            )
        ).scalar_one()


def discard(ledger: Engine, leases: Sequence[Lease], one: Import, of_it: Iterable[Batch]) -> Import:
    """Throw away an import: all its batches are superseded, and what was staged is forgotten."""
    with ledger.begin() as connection:
        for lease in leases:
            check_fence(connection, lease)
        for batch in of_it:
            note = f"discarded; {batch.note}"
            supersede(connection, leases[-1], batch.batch_id, Decision.DISCARDED, note)
        row = connection.execute(
            update(imports)
            .where(imports.c.import_id == one.import_id)
            .values(discarded_at=now_us(), discarded_by=getpass.getuser())
            .returning(*imports.c)
        ).one()
    return Import(**row._mapping)


def all_imports(ledger: Engine, *topics: str) -> list[Import]:
    """Every import beside one of these topics, the oldest first."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(imports).where(imports.c.topic.in_(topics)).order_by(imports.c.import_id)
        ).all()
    return [Import(**row._mapping) for row in rows]
