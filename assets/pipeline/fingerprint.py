"""Fingerprints: the few numbers by which rows in ClickHouse are proved to be those staged.

Per partition: how many, the smallest and largest offset, the sum of offsets and of their squares
(both modulo 2**64). Two sets of offsets that agree in all five are, for every fault that can
happen here, the same set.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from assets.pipeline.batch import Fingerprint

_MODULO = 1 << 64


class FingerprintSum:
    """Adds up the fingerprints of a batch, a chunk of rows at a time."""

    def __init__(self) -> None:
        self._sums: dict[int, Fingerprint] = {}

    def add(self, partitions: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> None:
        """Count rows in, given where each one's record stands."""
        for partition in np.unique(partitions):
            of_partition = offsets[partitions == partition].astype(np.uint64)
            new = Fingerprint(
                int(partition),
                len(of_partition),
                int(of_partition.min()),
                int(of_partition.max()),
                int(of_partition.sum(dtype=np.uint64)),
                int((of_partition * of_partition).sum(dtype=np.uint64)),
            )
            before = self._sums.get(new.partition)
            self._sums[new.partition] = new if before is None else _added(before, new)

    def result(self) -> tuple[Fingerprint, ...]:
        """One fingerprint for each partition that had rows, in order."""
        return tuple(self._sums[partition] for partition in sorted(self._sums))


def _added(one: Fingerprint, other: Fingerprint) -> Fingerprint:
    return Fingerprint(
        one.partition,
        one.rows + other.rows,
        min(one.min_offset, other.min_offset),
        max(one.max_offset, other.max_offset),
        (one.offset_sum + other.offset_sum) % _MODULO,
        (one.offset_square_sum + other.offset_square_sum) % _MODULO,
    )
