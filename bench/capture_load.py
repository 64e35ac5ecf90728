"""The load on a capture server: requests as SDKs send them, driven by wrk.

    events of an SDK ─▶ a few hundred different bodies in files ─▶ wrk with capture.lua ─▶ `Driven`

wrk is closed-loop: a connection sends its next request when the last one is answered. So few
connections measure how long an answer takes, and many of them what the processor can do.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.errors import BenchFailed

BODIES = 400
"""Different bodies of a workload; wrk goes round."""

_SCRIPT = Path(__file__).with_name("capture.lua")
_TIMEOUT_S = 10
_DISTINCT_IDS = 5_000
_NAMES = ("order placed", "$pageview", "plan changed", "report opened", "invite sent")
_CURRENCIES = ("EUR", "USD", "BRL", "JPY")


@dataclass(frozen=True)
class Workload:
    """What is sent: so many events a request over so many connections."""

    name: str
    path: str
    events: int  # in one request
    gzipped: bool
    connections: int


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("W1x64", "/i/v0/e/", 1, False, 64),
        Workload("W1x256", "/i/v0/e/", 1, False, 256),
        Workload("W2", "/batch/", 50, False, 64),
        Workload("W3", "/batch/", 50, True, 64),
    )
}


@dataclass(frozen=True)
class Driven:
    """What wrk saw. `refused` are answers of 400 and more."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int
    timed_out: int


def chosen_workloads(names: str) -> Sequence[Workload]:
    """The workloads of these names, with commas between. Raises BenchFailed for another name."""
    found = []
    for name in names.replace(" ", "").split(","):
        if name not in WORKLOADS:
            raise BenchFailed(f"there is no workload {name!r}: {', '.join(WORKLOADS)}")
        found.append(WORKLOADS[name])
    return found


def require_wrk() -> None:
    """Raise BenchFailed where wrk is not installed."""
    if shutil.which("wrk") is None:
        raise BenchFailed("wrk makes the load: install it (Debian, Ubuntu: apt install wrk)")


def write_bodies(workload: Workload, token: str, folder: Path) -> float:
    """Write the bodies of a workload into a folder; gives their mean size in bytes."""
    folder.mkdir()
    chance = random.Random(workload.name)
    size = 0
    for number in range(1, BODIES + 1):
        body = json.dumps(_request(workload.events, token, chance), separators=(",", ":")).encode()
        if workload.gzipped:
            body = gzip.compress(body, 6)
        size += len(body)
        (folder / str(number)).write_bytes(body)
    return size / BODIES


def drive(workload: Workload, url: str, bodies: Path, seconds: float) -> Driven:
    """Send for so many seconds to the server at this address."""
    done = subprocess.run(
        [
            "wrk",
            *("--threads", "1", "--connections", str(workload.connections)),
            *("--duration", f"{max(1, round(seconds))}s", "--timeout", f"{_TIMEOUT_S}s"),
            *("--latency", "--script", str(_SCRIPT), url, "--"),
            *(str(bodies), str(BODIES), workload.path, "1" if workload.gzipped else "0"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        raise BenchFailed(f"wrk failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return Driven(**json.loads(lines[-1]))


def _request(events: int, token: str, chance: random.Random) -> dict[str, Any]:
    if events == 1:
        return {"api_key": token, **_event(chance)}
    sent_at = datetime.now(UTC).isoformat()
    batch = [_event(chance) for _ in range(events)]
    return {"api_key": token, "historical_migration": False, "sent_at": sent_at, "batch": batch}


def _event(chance: random.Random) -> dict[str, Any]:
    """One event of some 550 bytes, as posthog-python sends it."""
    at = datetime.now(UTC) - timedelta(seconds=chance.random() * 60)
    user = chance.randrange(_DISTINCT_IDS)
    return {
        "event": chance.choice(_NAMES),
        "uuid": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "distinct_id": f"user-{user:05d}@example.org",
        "timestamp": at.isoformat(),
        "properties": {
            "$lib": "posthog-python",
            "$lib_version": "6.7.5",
            "$geoip_disable": True,
            "$python_runtime": "CPython",
            "$python_version": "3.13.1",
            "$os": "Linux",
            "$os_version": "6.1.0",
            "$session_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            "$current_url": f"https://shop.example.org/orders/{chance.randrange(10**6)}",
            "amount": chance.randrange(100_000) / 100,
            "currency": chance.choice(_CURRENCIES),
            "items": chance.randrange(1, 12),
            "coupon": None,
            "account_id": chance.randrange(10**9, 10**10),
            "plan": "scale",
            "source": "checkout",
        },
    }
