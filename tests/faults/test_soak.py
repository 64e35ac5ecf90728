"""A short soak; `python -m tests.faults.soak --minutes 10 --seed 2` is a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import Soak

SECONDS = 25.0
SEED, LIVES = 85, 3
"""Kills ClickHouse, the broker and a worker first, each before a worker can have done its work."""


@pytest.mark.matrix("anything, at random, for a while")
def test_a_short_soak_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Records at a steady rate into three topics, while workers and servers are killed."""
    soak = Soak(tmp_path, seed=SEED)
    try:
        soak.run(SECONDS, LIVES)
    finally:
        soak.close()
    assert soak.is_well, str(soak)
    assert soak.offsets > 1_000
    assert soak.kills.keys() == {"ClickHouse", "broker", "worker"}, str(soak)
