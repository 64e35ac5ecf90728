"""Decisions: what became of gaps, by a person's word or by what is done with their batch."""

from __future__ import annotations

import getpass
from enum import StrEnum

from sqlalchemy import Connection, update

from orchestration.ledger.connection import now_us
from orchestration.ledger.tables import gaps


class Decision(StrEnum):
    """What became of a gap."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    RETRIED = "retried"
    DISCARDED = "discarded"
    GIVEN_UP = "given up"


def decide_open_gaps(connection: Connection, batch_id: str, decision: Decision) -> None:
    """Decide a gap of a batch, if there is one, by what is done with the batch."""
    connection.execute(
        update(gaps)
        .where(gaps.c.batch_id == batch_id, gaps.c.decision.is_(None))
        .values(decision=decision, decided_by=getpass.getuser(), decided_at=now_us())
    )
