"""What the capture benchmark prints: one line a workload and server, with the ratio to the peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.capture_servers import PEER
from bench.figures import Spread, spread, table

if TYPE_CHECKING:
    from bench.capture import Window


def summary(windows: Sequence[Window]) -> dict[str, Any]:
    """Per workload and server: the spread of each figure over the repeats."""
    found: dict[str, Any] = {}
    for workload, server in dict.fromkeys((each.workload, each.server) for each in windows):
        own = _of(windows, workload, server)
        figures = {
            "cpu_us_an_event": spread(each.cpu_us for each in own),
            "requests_s": spread(each.driven.requests / each.driven.seconds for each in own),
            "events_s": spread(each.events / each.driven.seconds for each in own),
            "p50_ms": spread(each.driven.p50_ms for each in own),
            "p99_ms": spread(each.driven.p99_ms for each in own),
            "resident_mb": spread(each.resident_bytes / 1e6 for each in own),
        }
        ratio = _times_the_peer(windows, workload, server)
        if ratio is not None:
            figures["cpu_times_the_peer"] = ratio
        found.setdefault(workload, {})[server] = {name: vars(s) for name, s in figures.items()}
    return found


def show(console: Console, windows: Sequence[Window]) -> None:
    """Print the table."""
    made = table(
        "CPU of a server's processes for one event, and how it answered",
        "workload, server",
        "CPU µs an event",
        "times the peer",
        "requests/s",
        "events/s",
        "p50 ms",
        "p99 ms",
        "resident MB",
    )
    for workload, servers in summary(windows).items():
        for server, figures in servers.items():
            spreads = {name: Spread(**values) for name, values in figures.items()}
            ratio = spreads.get("cpu_times_the_peer")
            made.add_row(
                f"{workload} {server}",
                spreads["cpu_us_an_event"].show(),
                ratio.show(2) if ratio else "",
                f"{spreads['requests_s'].median:,.0f}",
                f"{spreads['events_s'].median:,.0f}",
                spreads["p50_ms"].show(),
                spreads["p99_ms"].show(),
                f"{spreads['resident_mb'].most:,.0f}",
            )
        made.add_section()
    console.print(made)
    console.print(
        "Resident: the most that one process of the server held at a window's end.", highlight=False
    )


def _of(windows: Sequence[Window], workload: str, server: str) -> list[Window]:
    return [each for each in windows if (each.workload, each.server) == (workload, server)]


def _times_the_peer(windows: Sequence[Window], workload: str, server: str) -> Spread | None:
    peer = {each.repeat: each.cpu_us for each in _of(windows, workload, PEER)}
    if server == PEER or not peer:
        return None
    return spread(each.cpu_us / peer[each.repeat] for each in _of(windows, workload, server))
