"""What the capture API counts, for Prometheus: every metric's name, labels and meaning stand here.

The hot path only adds to plain numbers in `Metrics`. They become Prometheus' text when somebody
asks for /metrics (`exposition.py`), together with what other parts of the worker know by then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histograms' buckets, in seconds."""


class Kind(StrEnum):
    """What a metric's value is."""

    COUNTER = "counter"  # only grows
    GAUGE = "gauge"  # stands for now; over workers: the sum
    LARGEST = "largest"  # a gauge; over workers: the largest
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_C, _G, _L, _H = Kind.COUNTER, Kind.GAUGE, Kind.LARGEST, Kind.HISTOGRAM

METRICS: tuple[Metric, ...] = (
    Metric("http_requests", _C, "Requests answered.", ("path", "status")),
    Metric("http_request_duration_seconds", _H, "From a request's head to its answer.", ("path",)),
    Metric("capture_requests_refused", _C, "Requests refused, by the answer's code.", ("code",)),
    Metric(
        "capture_connections_ended",
        _C,
        "Connections that were too many, too slow or too greedy.",
        ("cause",),
    ),
    Metric("capture_events_received", _C, "Events in requests that could be read."),
    Metric("capture_events_ingested", _C, "Events that Kafka has acknowledged."),
    Metric("capture_events_dropped", _C, "Events left out on purpose.", ("cause",)),
    Metric("capture_events_rerouted", _C, "Events sent to another topic.", ("cause",)),
    Metric(
        "capture_event_restrictions_applied",
        _C,
        "Events that a rule or a hot key concerned.",
        ("cause", "rule", "dry_run"),
    ),
    Metric("capture_limits_reached", _C, "Requests that met a limit.", ("limit", "dry_run")),
    Metric("capture_limits_unshared", _L, "1 while rate limits should be shared and are not."),
    Metric("capture_unknown_tokens", _C, "Requests with a token of no project.", ("mode",)),
    Metric("capture_unjudged_tokens", _C, "Requests whose token nobody could judge.", ("fate",)),
    Metric("capture_projects_age_seconds", _L, "Age of the copy of the projects."),
    Metric("capture_in_flight_bytes", _G, "Bytes of requests held now."),
    Metric("capture_in_flight_bytes_limit", _G, "Bytes of requests that may be held."),
    Metric("capture_long_turns", _C, "Turns of requests too large to be worked on at once."),
    Metric("capture_long_requests", _G, "Such requests, waiting for their turn or having it."),
    Metric(
        "capture_kafka_produce_ack_duration_seconds",
        _H,
        "From producing a request's records to Kafka's acknowledgement of the last.",
    ),
    Metric("capture_kafka_produce_errors", _C, "Requests not acknowledged by Kafka.", ("code",)),
    Metric("capture_kafka_produce_bytes", _C, "Bytes of record values handed to the producer."),
    Metric("capture_kafka_producer_queue_depth", _G, "Records that wait for Kafka."),
    Metric("capture_kafka_producer_queue_depth_limit", _G, "Records that may wait for Kafka."),
    Metric("capture_kafka_requests_given_up", _C, "Requests answered before Kafka could say."),
    Metric("capture_kafka_records_failed", _C, "Records that Kafka did not take.", ("code",)),
    Metric("capture_kafka_away", _L, "1 while Kafka does not answer."),
    Metric("capture_spool_records", _G, "Acknowledged records on disk, on their way to Kafka."),
    Metric("capture_spool_bytes", _G, "Bytes of the disk spool."),
    Metric("capture_spool_oldest_seconds", _L, "Age of the oldest record in the disk spool."),
    Metric("capture_spool_stored", _C, "Records that went into the disk spool."),
    Metric("capture_spool_drained", _C, "Records that went from the disk spool to Kafka."),
    Metric("capture_spool_set_aside", _C, "Records of the spool that Kafka will never take."),
    Metric("capture_ready", _G, "Workers that are ready for events."),
    Metric("capture_resident_memory_bytes", _G, "Memory of the workers."),
    Metric("capture_cpu_seconds", _C, "CPU time of the workers, user and system."),
)
"""All metrics. Counters get `_total` at their end, as Prometheus has it."""


class Timing:
    """A histogram: how many observations fell below each bound, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Add one."""
        self.counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.sum += seconds


class Metrics:
    """The numbers of one worker that the hot path adds to; on one event loop."""

    __slots__ = (
        "ack",
        "answers",
        "dropped",
        "durations",
        "ingested",
        "produce_bytes",
        "produce_errors",
        "received",
        "refused",
    )

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], int] = {}  # by path and status
        self.durations: dict[str, Timing] = {}
        self.refused: Counter[str] = Counter()
        self.received = 0
        self.ingested = 0
        self.dropped: Counter[str] = Counter()
        self.ack = Timing()
        self.produce_errors: Counter[str] = Counter()
        self.produce_bytes = 0

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request was answered. `path` is one of a fixed set."""
        kind = (path, status)
        self.answers[kind] = self.answers.get(kind, 0) + 1
        timing = self.durations.get(path)
        if timing is None:
            timing = self.durations[path] = Timing()
        timing.observe(seconds)
