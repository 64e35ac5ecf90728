"""One worker's numbers at one moment, gathered from its parts for /metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from capture_api.exposition import Reading, Sample, process_samples
from capture_api.kafka.configuration import QUEUE_MESSAGES
from capture_api.kafka.producer import RecordProducer
from capture_api.leaving import Leaving
from capture_api.metrics import Metrics
from capture_api.projects import Projects
from capture_api.protection.guard import Guard
from capture_api.protection.routing import Why
from capture_api.turns import Turns
from capture_api.wire.body import Budget
from capture_api.wire.connections import ENDED

_DROPS = frozenset({Why.RULE_DROP})


@dataclass(frozen=True, slots=True)
class Worker:
    """The parts of a worker that know numbers."""

    metrics: Metrics
    projects: Projects
    guard: Guard
    producer: RecordProducer
    budget: Budget
    turns: Turns
    leaving: Leaving

    def read(self) -> Reading:
        """All its samples."""
        return [
            *self._of_requests(),
            *self._of_events(),
            *self._of_protection(),
            *self._of_kafka(),
            *process_samples(),
        ]

    def defect(self) -> str | None:
        """What is wrong with the process so that only a new one helps, or None."""
        return self.producer.defect() or self.projects.defect()

    def problems(self) -> list[str]:
        """Why the worker is not ready for events; empty when it is."""
        parts = (self.leaving, self.projects, self.producer)
        return [text for part in parts if (text := part.problem())]

    def _of_requests(self) -> Reading:
        metrics = self.metrics
        return [
            *(
                Sample("http_requests", [path, str(status)], count)
                for (path, status), count in metrics.answers.items()
            ),
            *(
                Sample("http_request_duration_seconds", [path], timing.sum, list(timing.counts))
                for path, timing in metrics.durations.items()
            ),
            *(Sample("capture_requests_refused", [code], n) for code, n in metrics.refused.items()),
            *(Sample("capture_connections_ended", [cause], n) for cause, n in ENDED.items()),
            Sample("capture_in_flight_bytes", [], self.budget.held),
            Sample("capture_in_flight_bytes_limit", [], self.budget.limit),
            Sample("capture_long_turns", [], self.turns.taken),
            Sample("capture_long_requests", [], self.turns.waiting),
            Sample("capture_ready", [], float(not self.problems())),
        ]

    def _of_events(self) -> Reading:
        metrics, seen = self.metrics, self.guard.router.seen
        dropped = metrics.dropped.copy()
        rerouted: Counter[Why] = Counter()
        for (why, _, dry_run), count in seen.items():
            if dry_run:
                continue
            if why in _DROPS:
                dropped[why] += count
            else:
                rerouted[why] += count
        return [
            Sample("capture_events_received", [], metrics.received),
            Sample("capture_events_ingested", [], metrics.ingested),
            *(Sample("capture_events_dropped", [cause], n) for cause, n in dropped.items()),
            *(Sample("capture_events_rerouted", [why], n) for why, n in rerouted.items()),
        ]

    def _of_protection(self) -> Reading:
        return [
            *(
                Sample(
                    "capture_event_restrictions_applied",
                    [why, str(rule_id or ""), _said(dry_run)],
                    count,
                )
                for (why, rule_id, dry_run), count in self.guard.router.seen.items()
            ),
            *(
                Sample("capture_limits_reached", [limit, _said(dry_run)], count)
                for (limit, dry_run), count in self.guard.reached.items()
            ),
            Sample("capture_limits_unshared", [], float(self.guard.sharing_fails)),
            *self._of_projects(),
        ]

    def _of_projects(self) -> Reading:
        projects = self.projects
        age = projects.age_seconds()
        return [
            Sample("capture_unknown_tokens", [projects.mode], projects.unknown_tokens),
            *(
                Sample("capture_unjudged_tokens", [fate], count)
                for fate, count in projects.unjudged_tokens.items()
            ),
            *([] if age is None else [Sample("capture_projects_age_seconds", [], age)]),
        ]

    def _of_kafka(self) -> Reading:
        metrics, producer = self.metrics, self.producer
        ack = metrics.ack
        return [
            Sample("capture_kafka_produce_ack_duration_seconds", [], ack.sum, list(ack.counts)),
            *(
                Sample("capture_kafka_produce_errors", [code], count)
                for code, count in metrics.produce_errors.items()
            ),
            Sample("capture_kafka_produce_bytes", [], metrics.produce_bytes),
            Sample("capture_kafka_producer_queue_depth", [], producer.queue_depth),
            Sample("capture_kafka_producer_queue_depth_limit", [], QUEUE_MESSAGES),
            Sample("capture_kafka_requests_given_up", [], producer.requests_given_up),
            *(
                Sample("capture_kafka_records_failed", [code], count)
                for code, count in producer.records_failed.items()
            ),
            Sample("capture_kafka_away", [], float(producer.health.is_away)),
            *self._of_spool(),
        ]

    def _of_spool(self) -> Reading:
        spool = self.producer.spool
        if spool is None:
            return []
        return [
            Sample("capture_spool_records", [], spool.records),
            Sample("capture_spool_bytes", [], spool.bytes),
            Sample("capture_spool_oldest_seconds", [], spool.oldest_seconds),
            Sample("capture_spool_stored", [], spool.records_stored),
            Sample("capture_spool_drained", [], spool.records_drained),
            Sample("capture_spool_set_aside", [], spool.records_refused),
        ]


def _said(dry_run: bool) -> str:
    return "true" if dry_run else "false"
