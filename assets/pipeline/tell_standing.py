"""Tell how the topics stand: at the end of a micro-batch, for who asks ClickHouse in SQL.

Nothing is loaded by it, so nothing fails for it: what keeps it from being told is said.
"""

from __future__ import annotations

from assets.pipeline.circuit import loading_paused
from assets.pipeline.errors import BatchError
from assets.pipeline.mirror import note_standing
from assets.pipeline.worker import Worker
from orchestration.standing import stand


def tell_standing(worker: Worker) -> None:
    """Look at Kafka and the ledger, and note what was seen in ClickHouse."""
    settings = worker.settings
    if loading_paused(settings, worker.ledger):
        worker.say("how the topics stand is not noted in ClickHouse: it is being waited for")
        return
    try:
        standing = stand(worker.topics.values(), worker.ledger, settings.kafka_client)
        note_standing(worker.clickhouse, settings.clickhouse_database, standing)
    except BatchError as error:
        worker.say(f"how the topics stand is not noted in ClickHouse: {error}")
