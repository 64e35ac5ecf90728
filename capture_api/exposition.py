"""What /metrics shows: the worker's own numbers, what its parts know now, and the other workers'.

Several workers share one port, so whoever is asked answers for all. Each writes its numbers to a
file of its own every second; the one that is asked adds its own as they are now. Counters of a
worker that has died stay, gauges go with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from capture_api.metrics import METRICS, SECONDS_BOUNDS, Kind

CONTENT_TYPE = CONTENT_TYPE_LATEST
SAVE_SECONDS = 1.0


class Sample(msgspec.Struct, array_like=True):
    """One value of one metric; for a histogram, how many fell into each bucket, and the sum."""

    name: str
    labels: list[str]
    value: float = 0.0
    counts: list[int] = []


Reading = list[Sample]
"""All samples of one worker at one moment."""

_decoder = msgspec.json.Decoder(Reading)


class Exposition:
    """Shows the numbers of all workers that use the same folder; no folder: of this one alone."""

    def __init__(self, read: Callable[[], Reading], folder: Path | None = None) -> None:
        self._read = read
        self._file = folder / f"{os.getpid()}.json" if folder is not None else None
        self._registry = CollectorRegistry()
        self._registry.register(self)  # type: ignore[arg-type]

    def start(self) -> None:
        """Start saving, where there are other workers. Called on the event loop."""
        if self._file is not None:
            self._saving = asyncio.get_running_loop().create_task(self._save_for_ever())

    async def close(self) -> None:
        """Save a last time."""
        if self._file is not None:
            self._saving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._saving
            self._save(self._read())

    def text(self) -> bytes:
        """The numbers in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The numbers as the Prometheus library wants them."""
        samples = _added([self._read(), *self._others()])
        for metric in METRICS:
            found = [sample for (name, _), sample in samples.items() if name == metric.name]
            if metric.kind is Kind.COUNTER:
                counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
                for sample in found:
                    counter.add_metric(sample.labels, sample.value)
                yield counter
            elif metric.kind in _GAUGES:
                gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
                for sample in found:
                    gauge.add_metric(sample.labels, sample.value)
                yield gauge
            else:
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for sample in found:
                    histogram.add_metric(sample.labels, _buckets(sample.counts), sample.value)
                yield histogram

    def _others(self) -> Iterator[Reading]:
        if self._file is None:
            return
        for file in self._file.parent.glob("*.json"):
            if file == self._file:
                continue
            try:
                reading = _decoder.decode(file.read_bytes())
            except (OSError, msgspec.DecodeError):
                continue  # gone, or not written by us
            if not _alive(int(file.stem) if file.stem.isdigit() else 0):
                reading = [s for s in reading if _KINDS.get(s.name) not in _GAUGES]
            yield reading

    async def _save_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            self._save(self._read())

    def _save(self, reading: Reading) -> None:
        assert self._file is not None
        part = self._file.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk costs numbers, not events
            part.write_bytes(msgspec.json.encode(reading))
            part.replace(self._file)


_KINDS = {metric.name: metric.kind for metric in METRICS}
_GAUGES = (Kind.GAUGE, Kind.LARGEST)


def new_folder(folder: Path) -> Path:
    """The folder, empty: before the first worker starts."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.json"):
        file.unlink(missing_ok=True)
    return folder


def process_samples() -> Reading:
    """Memory and CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    resident = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * resource.getpagesize()
    return [
        Sample("capture_resident_memory_bytes", [], resident),
        Sample("capture_cpu_seconds", [], usage.ru_utime + usage.ru_stime),
    ]


def _added(readings: Iterable[Reading]) -> dict[tuple[str, tuple[str, ...]], Sample]:
    total: dict[tuple[str, tuple[str, ...]], Sample] = {}
    for reading in readings:
        for sample in reading:
            key = (sample.name, tuple(sample.labels))
            before = total.get(key)
            if before is None:
                total[key] = Sample(sample.name, sample.labels, sample.value, list(sample.counts))
            elif _KINDS.get(sample.name) is Kind.LARGEST:
                before.value = max(before.value, sample.value)
            else:
                before.value += sample.value
                before.counts = [a + b for a, b in zip(before.counts, sample.counts, strict=True)]
    return total


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus counts in each bucket what fell into the lower ones too."""
    below = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, SECONDS_BOUNDS), "+Inf"], counts, strict=True):
        below += count
        buckets.append((bound, below))
    return buckets


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
