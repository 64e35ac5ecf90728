"""Audits: when each batch, loaded or given up, was last proved, and how that came out.

One row a batch, the last proof of it. From here the rotation takes what to prove next: what was
found wrong and is not mended yet, and what was never proved or longest ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, and_, func, select

from assets.pipeline.batch import LOADED, Batch, State
from orchestration.ledger.batches import batches_named, in_parts
from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.of_topics import of_topics
from orchestration.ledger.tables import audits, batches
from orchestration.ledger.upsert import INSERTS

HOLDS = "holds"
"""The outcome of a batch of which ClickHouse holds exactly what was staged."""

AUDITED = (*LOADED, State.SUPERSEDED)
"""States in which a batch has its turn: what was given up must never come to be loaded."""

_DETAIL_CHARACTERS = 2_000


@dataclass(frozen=True)
class Audit:
    """The last proof of a batch. `proved_at` is µs; `detail` is empty when it holds."""

    batch_id: str
    proved_at: int
    outcome: str
    detail: str


@dataclass(frozen=True)
class AuditSummary:
    """How loaded batches stand: how many, how many were ever proved, and the oldest proof (µs).

    `failed` are those that did not hold, given-up ones included.
    """

    loaded: int
    proved: int
    oldest_proof: int | None
    failed: tuple[Audit, ...]


def record_audits(ledger: Engine, outcomes: Iterable[tuple[str, str, str]]) -> None:
    """Note a proof of each of these batches, made now: (batch_id, outcome, detail)."""
    now = now_us()
    rows = [
        {
            "batch_id": batch_id,
            "proved_at": now,
            "outcome": outcome,
            "detail": detail[:_DETAIL_CHARACTERS],
        }
        for batch_id, outcome, detail in sorted(outcomes)  # in one order: no two wait for another
    ]
    if not rows:
        return
    adding = INSERTS[ledger.dialect.name](audits)
    adding = adding.on_conflict_do_update(
        index_elements=[audits.c.batch_id],
        set_={name: adding.excluded[name] for name in ("proved_at", "outcome", "detail")},
    )
    with ledger.begin() as connection:
        connection.execute(adding, rows)


def due_for_audit(ledger: Engine, limit: int, *topics: str) -> list[Batch]:
    """At most so many batches that are loaded or given up, the least recently proved first.

    Those that did not hold the last time come before all others, but take half of the places at
    most: however many they are, the rotation goes on.
    """
    least_recent = (
        select(batches.c.batch_id)
        .outerjoin(audits, audits.c.batch_id == batches.c.batch_id)
        .where(of_topics(topics), batches.c.state.in_(AUDITED))
        .order_by(func.coalesce(audits.c.proved_at, 0), batches.c.planned_at)
    )
    with reading(ledger, snapshot=True) as connection:
        failed = connection.scalars(
            least_recent.where(audits.c.outcome != HOLDS).limit(limit // 2)
        ).all()
        others = connection.scalars(
            least_recent.where(func.coalesce(audits.c.outcome, HOLDS) == HOLDS).limit(
                limit - len(failed)
            )
        ).all()
    return batches_named(ledger, [*failed, *others])


def audits_of(ledger: Engine, batch_ids: Sequence[str]) -> list[Audit]:
    """The last proofs of these batches; those never proved are missing."""
    rows: list[Any] = []
    with reading(ledger) as connection:
        for some in in_parts(batch_ids):
            rows += connection.execute(select(audits).where(audits.c.batch_id.in_(some))).all()
    return [Audit(**row._mapping) for row in rows]


def audit_summary(ledger: Engine, *topics: str) -> AuditSummary:
    """How the loaded batches of these topics stand."""
    loaded = and_(of_topics(topics), batches.c.state.in_(LOADED))
    proofs = audits.join(batches, audits.c.batch_id == batches.c.batch_id)
    with reading(ledger, snapshot=True) as connection:
        count = connection.scalar(select(func.count()).select_from(batches).where(loaded))
        proved, oldest = connection.execute(
            select(func.count(), func.min(audits.c.proved_at)).select_from(proofs).where(loaded)
        ).one()
        failed = connection.execute(
            select(audits)
            .select_from(proofs)
            .where(
                of_topics(topics),
                batches.c.state.in_(AUDITED),
                audits.c.outcome != HOLDS,
            )
            .order_by(batches.c.planned_at)
        ).all()
    return AuditSummary(
        int(count or 0), proved, oldest, tuple(Audit(**row._mapping) for row in failed)
    )
