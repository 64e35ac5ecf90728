"""The demo: start everything, send, wait for the scheduled runs, prove, show, clean up.

    stack ─▶ project ─▶ SDK sends 10,000 events, some of them twice ─▶ wait ─▶ proof ─▶ tables

It works in a home of its own, on free ports, so it runs beside a stack that is up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from assets.pipeline.batch import State
from assets.pipeline.errors import BatchError
from local_stack.errors import StackError
from local_stack.ports import free_port
from local_stack.processes import AlreadyRunning, Foreground, Service, locked, stop_all
from local_stack.stack import START_LIMIT_S, start_stack
from orchestration.demo.proof import Account, records_in_kafka, take_account
from orchestration.demo.report import show
from orchestration.demo.sending import send
from orchestration.demo.visitors import demo_events
from orchestration.ledger.batches import all_batches, states
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import create_project
from orchestration.settings import Settings

RESENT_OF = 200
"""One event in so many is sent a second time, as an SDK does when it missed an answer."""

BROKEN_RECORDS = (b'{"v":1,"uuid":"cut off in the mid', b"\xff\xfe not text at all", b"[1, 2, 3]")
"""What a broken producer puts into the topic beside the events."""

MARK = ".tidemark-demo"
"""The file that tells a home of the demo's own: no other folder is ever removed."""

_LOAD_LIMIT_S = 300.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """How the demo ended: whether it balanced, and if not, why."""

    account: Account
    problems: tuple[str, ...]


def demo_settings(cadence: str) -> Settings:
    """The settings of the demo: those given, but with a home and ports of its own."""
    given = Settings()
    own = {
        "home": given.home / "demo",
        "kafka_bootstrap_servers": "",
        "clickhouse_url": "",
        "lake_uri": "",
        "ledger_url": "",
        "kafka_options": {},
        "clickhouse_user": "default",
        "clickhouse_password": "",
        "cadence": cadence,
    }
    ports = {
        name: free_port(getattr(given, name))
        for name in ("kafka_port", "clickhouse_port", "capture_port", "dagster_port")
    }
    return Settings(**(given.model_dump() | own | ports))


def run_demo(settings: Settings, events: int, console: Console, keep: bool) -> Outcome:
    """Run it; with `keep`, stay until Ctrl-C after the result is shown.

    The demo's home is removed at the end, unless something went wrong: then it tells what.
    """
    clear_away(settings.home)
    _mark(settings.home)
    outcome: Outcome | None = None
    try:
        with Foreground(settings.home, "tidemark demo") as foreground:
            _mark(settings.home)  # again: another demo's end may just have taken the folder away
            with _told(console, "starting Kafka, ClickHouse, the capture API and Dagster") as tell:

                def wait(service: Service) -> None:
                    foreground.wait_ready(service, START_LIMIT_S)
                    tell(f"{service.name} is ready")

                start_stack(settings, foreground.launch, wait)
            outcome = send_and_prove(settings, events, console)
            if keep:
                console.print("The stack stays up. Ctrl-C stops it and removes the demo's data.")
                foreground.wait()
        return outcome
    finally:
        if outcome is not None and not outcome.problems:
            with contextlib.suppress(AlreadyRunning):  # the next demo clears it away itself
                clear_away(settings.home)


def clear_away(home: Path) -> None:
    """Remove what an earlier demo left behind, and stop what still runs of it.

    Raises AlreadyRunning for a live one, StackError for a folder that no demo made.
    """
    if not home.exists():
        return
    if not (home / MARK).exists():
        if not home.is_dir() or any(home.iterdir()):
            raise StackError(
                f"{home} was not made by the demo (it has no {MARK}): move it away, "
                "or set TIDEMARK_HOME to another folder"
            )
        return
    aside = home.with_name(f"{home.name}-removed-{os.getpid()}")
    with locked(home, "tidemark demo"):
        stop_all(home)
        home.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _mark(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / MARK).touch()


def send_and_prove(settings: Settings, count: int, console: Console) -> Outcome:
    """Send so many events to a stack that is up, wait until they are loaded, and show the proof."""
    project = create_project(open_ledger(settings.ledger), "demo")
    events = list(demo_events(count))
    resent = events[::RESENT_OF]

    with _bar(console) as bar:
        task = bar.add_task("the posthog SDK sends", total=len(events) + len(resent))
        begun = time.monotonic()
        sent = send(
            settings.capture_address,
            project.token,
            [*events, *resent],
            lambda number: bar.update(task, completed=number),
        )
        bar.update(task, completed=sent.taken)
        seconds = time.monotonic() - begun
    for error in sent.errors:
        console.print(f"[red]the SDK reports: {error}")
    console.print(
        f"{sent.acknowledged:,} of {sent.taken:,} events answered 200 in {seconds:.1f} s; "
        f"{len(resent):,} of them were sent twice on purpose"
    )
    _write_broken_records(settings)

    with _bar(console) as bar:
        _wait_until_loaded(settings, bar)
    account = take_account(settings, sent, events)
    show(console, settings, account)
    return Outcome(account, account.problems())


def _write_broken_records(settings: Settings) -> None:
    """What the capture API would never write: the batch has to cope with it all the same."""
    producer = Producer({**settings.kafka_client, "acks": "all"})
    for value in BROKEN_RECORDS:
        producer.produce(settings.topic, value, b"broken-producer")
    producer.flush(30)


def _wait_until_loaded(settings: Settings, bar: Progress) -> None:
    """Follow the scheduled runs until every record in Kafka is in a committed batch."""
    ledger = open_ledger(settings.ledger)
    total = records_in_kafka(settings)
    task = bar.add_task(f"Dagster loads it, every {settings.cadence}", total=total)
    end = time.monotonic() + _LOAD_LIMIT_S
    while True:
        done = sum(
            batch.offsets
            for batch in all_batches(ledger, *settings.topics)
            if batch.state is State.COMMITTED and batch.dead_letters_loaded_at is not None
        )
        bar.update(task, completed=done)
        if done >= total:
            return
        if time.monotonic() > end:
            standing = ", ".join(
                f"{n} {state}" for state, n in states(ledger, *settings.topics).items()
            )
            raise BatchError(
                f"after {_LOAD_LIMIT_S:.0f} s only {done:,} of {total:,} records are loaded "
                f"(batches: {standing or 'none'}); the logs are in {settings.home / 'logs'}"
            )
        time.sleep(_LOOK_EVERY_S)


@contextmanager
def _told(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    begun = time.monotonic()
    console.print(title)

    def tell(line: str) -> None:
        console.print(f"  {time.monotonic() - begun:5.1f} s  {line}")

    yield tell


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
