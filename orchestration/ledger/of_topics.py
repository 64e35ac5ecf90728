"""Which batches are of some topics: theirs, and those of the files imported beside them.

A deployment is known by the names of its topics. A file that is imported is a topic of its own with
a name of its own, and belongs to the deployment whose main topic it was imported beside; so whoever
asks for the batches of that topic among others is given the file's, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, String, and_, literal, not_, or_, select, union_all

from assets.pipeline.batch import IMPORT_PREFIX, State
from orchestration.ledger.tables import batches, imports, ranges, redrives


def of_topics(
    topics: Sequence[str], topic: ColumnElement[str] = batches.c.topic
) -> ColumnElement[bool]:
    """Batches of these topics, and of what was imported beside one of them."""
    if not topics:
        return topic.in_(())
    names = [select(literal(name, String)) for name in topics]
    beside = select(imports.c.name).where(imports.c.topic.in_(topics))
    return topic.in_(union_all(*names, beside))


def only_its_import_can_read() -> ColumnElement[bool]:
    """Batches planned from a file, which a worker on another host may not have.

    What is staged of them, redrives, which read the lake, and those of which all is accepted as
    lost, any worker carries on.
    """
    to_read = select(ranges.c.batch_id).where(
        or_(ranges.c.skip_to.is_(None), ranges.c.skip_to < ranges.c.end)
    )
    return and_(
        batches.c.topic.startswith(IMPORT_PREFIX, autoescape=True),
        batches.c.state == State.PLANNED,
        not_(batches.c.batch_id.in_(select(redrives.c.batch_id))),
        batches.c.batch_id.in_(to_read),
    )
