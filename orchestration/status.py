"""Status: what runs, how far loading has come, and what needs a person, asked of every part.

A part that is away is told as such; the others are told all the same. No ClickHouse is asked: what
it holds is known by its proofs, which stand in the ledger.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Engine

from assets.pipeline.batch import Batch
from assets.pipeline.circuit import trouble_now
from assets.pipeline.errors import KafkaAway
from assets.pipeline.topic import LOOK_PATIENCE_S, topics_of
from local_stack.processes import Record, died, running
from orchestration.ledger.attempts import Attempt, last_failures
from orchestration.ledger.audits import AuditSummary, audit_summary
from orchestration.ledger.batches import states, waiting_for_a_file, waiting_for_a_person
from orchestration.ledger.imports import lease_of_imports
from orchestration.ledger.leases import is_held
from orchestration.settings import Settings
from orchestration.standing import Completeness, Standing, stand

FAILURES_TOLD = 5


@dataclass(frozen=True)
class Status:
    """The state of one Tidemark. `standing` is None when Kafka does not answer.

    `trouble` is what is wrong with settings, and what is waited for: tables of ClickHouse, single
    batches, room, files of imports.
    """

    services: tuple[Record, ...]
    died: tuple[Record, ...]
    kafka: str
    standing: Standing | None
    batches: dict[str, int]
    audits: AuditSummary
    failures: tuple[Attempt, ...]
    waiting_for_a_person: tuple[Batch, ...]
    trouble: tuple[str, ...]

    @property
    def complete(self) -> Completeness:
        """Up to when everything is loaded."""
        return self.standing.complete if self.standing else Completeness(None, held_by=self.kafka)


def look(settings: Settings, ledger: Engine, trouble: str = "") -> Status:
    """Ask every part. `trouble` is what is wrong with the settings that are written."""
    standing: Standing | None = None
    kafka = settings.bootstrap_servers
    try:
        topics = topics_of(settings.kafka_client, settings.topics_by_urgency, LOOK_PATIENCE_S)
        standing = stand(topics.values(), ledger, settings.kafka_client)
    except KafkaAway as error:
        kafka = str(error)
    return Status(
        services=tuple(running(settings.home)),
        died=tuple(died(settings.home)),
        kafka=kafka,
        standing=standing,
        batches={state.value: count for state, count in states(ledger, *settings.topics).items()},
        audits=audit_summary(ledger, *settings.topics),
        failures=tuple(last_failures(ledger, FAILURES_TOLD, *settings.topics)),
        waiting_for_a_person=tuple(waiting_for_a_person(ledger, *settings.topics)),
        trouble=(
            *([trouble] if trouble else []),
            *trouble_now(settings, ledger),
            *_imports_left(settings, ledger),
        ),
    )


def _imports_left(settings: Settings, ledger: Engine) -> list[str]:
    """Imports that nobody is at, and of which something is planned that needs their file."""
    if is_held(ledger, lease_of_imports(settings.topic)):
        return []
    rows: Counter[str] = Counter()
    for batch in waiting_for_a_file(ledger, *settings.topics):
        rows[batch.topic] += batch.offsets
    return [
        f"{name}: {count:,} rows are planned and wait for their file. The same `tidemark import` "
        f"goes on with it; if it is gone for good, `tidemark import --give-up {name}`"
        for name, count in rows.items()
    ]
