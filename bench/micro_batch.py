"""One micro-batch, and what it costs beside the usual ways of carrying the same records.

    fill a topic once ─▶ for each repeat, in turn: Tidemark, the peers
                             each with a fresh ClickHouse and in a process of its own
                         ─▶ processor seconds of both, peak memory of both, medians

A run counts only when ClickHouse holds exactly the rows that were to come of the records. The
server is measured until its background merges are done: many small inserts leave work behind.
With --backlog so many times as much waits, and memory must not grow with it; with --stagers that is
staged by several processes, too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from clickhouse_connect.driver.client import Client

from assets.pipeline.clickhouse import connect, make_tables
from bench import options
from bench.children import Carried, Deadline, run_child
from bench.errors import BenchFailed, run_command
from bench.figures import write_json
from bench.fill import Filled
from bench.micro_batch_report import show, summary
from bench.parts import Part, local_clickhouse, local_kafka, temporary_home
from bench.peers import PEERS
from bench.plain_table import TABLE, make_plain_table
from bench.usage import require_proc, usage_of
from local_stack.kafka.topics import ensure_topic

PARTITIONS = 8
OURS = "tidemark"
TOPIC = "events"
FORM_OF = {OURS: "record", "loop": "flat", "arrow": "flat", "jsoneachrow": "columns"}
"""What each arm reads, from a topic of its own: see `FORMS` in fill.py."""
TOPIC_OF = {"record": TOPIC, "flat": "events_flat", "columns": "events_columns"}
BACKLOG_TOPIC = "backlog"

_QUIET_S = 1.5  # no merge for so long: the server has done all that the inserts left behind
_QUIET_LIMIT_S = 60.0
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True)
class Run:
    """One arm, once: what the carrying process and the server used for it."""

    arm: str
    carried: Carried
    server_cpu_s: float  # until the last row was in, and merged
    server_merging_cpu_s: float  # of that, what came after the last row
    server_peak_bytes: int
    kafka_cpu_s: float
    parts: int  # in the table, when everything was quiet
    stagers: int = 1  # that it might have


@click.command()
@click.option(
    "--events",
    default=500_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Records in the micro-batch.",
)
@click.option(
    "--malformed",
    default=1000,
    show_default=True,
    type=click.IntRange(min=0),
    help="One record in so many is malformed; 0: none.",
)
@click.option(
    "--repeat",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Runs of each arm, interleaved.",
)
@click.option(
    "--peers",
    default=",".join(PEERS),
    show_default=True,
    help="What to measure beside Tidemark: loop (json.loads and row inserts), arrow "
    "(msgspec and insert_arrow), jsoneachrow (ClickHouse parses), with commas between, or none.",
)
@click.option(
    "--backlog",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Also carry so many times the records in one go, to show that memory stays the same.",
)
@click.option(
    "--stagers",
    default="1",
    show_default=True,
    help="TIDEMARK_STAGERS when so much waits; several, with commas between: --repeat runs of "
    "each, interleaved.",
)
@options.limit(900.0)
@options.json_file
def main(
    events: int,
    malformed: int,
    repeat: int,
    peers: str,
    backlog: int,
    stagers: str,
    limit: float,
    json_file: Path | None,
) -> None:
    """Measure one micro-batch on a real Kafka and ClickHouse, beside the usual Python loop."""
    require_proc()
    arms = [OURS, *_chosen(peers)]
    facts, console = options.introduced()
    deadline = Deadline(limit)
    runs: list[Run] = []
    waited: list[Run] = []
    counts = _counts(stagers)
    with temporary_home() as home, local_kafka(home) as kafka:
        forms = dict.fromkeys(FORM_OF[arm] for arm in arms)  # the same events
        topics = {
            form: _fill(
                kafka,
                home,
                TOPIC_OF[form],
                events,
                0 if form == "columns" else malformed,
                deadline,
                form,
            )
            for form in forms
        }
        filled = topics[FORM_OF[OURS]]
        console.print(
            f"{filled.records:,} records of {filled.value_bytes / filled.records:,.0f} bytes "
            f"in {PARTITIONS} partitions, {filled.malformed:,} of them malformed",
            highlight=False,
        )
        for number in range(repeat):
            for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                form = FORM_OF[arm]
                runs.append(
                    _measure(arm, kafka, home, TOPIC_OF[form], topics[form], events, deadline)
                )
                console.print(f"  {_told(runs[-1])}", highlight=False)
        if backlog > 1:
            more = _fill(kafka, home, BACKLOG_TOPIC, events * backlog, malformed, deadline)
            rounds = repeat if len(counts) > 1 else 1
            for count in (count for _ in range(rounds) for count in counts):
                waited.append(
                    _measure(OURS, kafka, home, BACKLOG_TOPIC, more, events, deadline, count)
                )
                console.print(f"  backlog, {count}: {_told(waited[-1])}", highlight=False)
    show(console, runs, waited, OURS)
    write_json(
        json_file,
        {
            "benchmark": "micro_batch",
            "machine": facts,
            "filled": asdict(filled),
            "summary": summary(runs, OURS),
            "runs": [asdict(run) for run in runs],
            "backlog": [asdict(run) for run in waited],
        },
    )


def _chosen(peers: str) -> Sequence[str]:
    names = [name for name in peers.replace(" ", "").split(",") if name and name != "none"]
    for name in names:
        if name not in PEERS:
            raise BenchFailed(f"there is no peer {name!r}: {', '.join(PEERS)} or none")
    return names


def _counts(stagers: str) -> Sequence[int]:
    try:
        return [int(count) for count in stagers.split(",")]
    except ValueError:
        raise BenchFailed(f"--stagers {stagers!r}: write numbers, 1,2") from None


def _fill(
    kafka: Part,
    home: Path,
    topic: str,
    count: int,
    malformed: int,
    deadline: Deadline,
    form: str = "record",
) -> Filled:
    servers = kafka.settings.bootstrap_servers
    ensure_topic(servers, topic, PARTITIONS)
    printed = run_child(
        "bench.fill",
        *("--bootstrap-servers", servers, "--topic", topic),
        *("--events", str(count), "--malformed", str(malformed), "--form", form),
        log=home / "fill.log",
        deadline=deadline,
    )
    return Filled(**printed)


def _measure(
    arm: str,
    kafka: Part,
    home: Path,
    topic: str,
    filled: Filled,
    batch_records: int,
    deadline: Deadline,
    stagers: int = 1,
) -> Run:
    """Run one arm against a fresh server, whose data are removed afterwards."""
    own = {"topic": topic, "batch_max_records": batch_records, "stagers": stagers}
    with (
        tempfile.TemporaryDirectory(prefix=f"{arm}-", dir=home) as folder,
        local_clickhouse(Path(folder), kafka.settings.bootstrap_servers, **own) as server,
    ):
        settings = server.settings
        client = connect(settings.clickhouse_address, settings.clickhouse_user, "")
        make_tables(client, settings.clickhouse_database)
        make_plain_table(client, settings.clickhouse_database)
        before, kafka_before = usage_of(server.pid), usage_of(kafka.pid)
        carried = _carry(arm, server, filled.records, Path(folder) / "run.log", deadline)
        loaded, kafka_after = usage_of(server.pid), usage_of(kafka.pid)
        _wait_until_quiet(client)
        after = usage_of(server.pid)
        table = TABLE if arm in PEERS else f"{settings.clickhouse_database}.events"
        _require_all_rows(client, table, carried, filled)
        parts = _number(client, f"SELECT count() FROM system.parts WHERE active AND {_is(table)}")
        client.close()
    return Run(
        arm=arm,
        carried=carried,
        server_cpu_s=after.cpu_s - before.cpu_s,
        server_merging_cpu_s=after.cpu_s - loaded.cpu_s,
        server_peak_bytes=after.peak_bytes,
        kafka_cpu_s=kafka_after.cpu_s - kafka_before.cpu_s,
        parts=parts,
        stagers=stagers,
    )


def _carry(arm: str, server: Part, records: int, log: Path, deadline: Deadline) -> Carried:
    settings = server.settings
    if arm == OURS:
        printed = run_child("bench.carry", log=log, deadline=deadline, env=settings.environment())
    else:
        printed = run_child(
            "bench.peers",
            *(arm, "--bootstrap-servers", settings.bootstrap_servers, "--topic", settings.topic),
            *("--records", str(records), "--clickhouse", settings.clickhouse_address),
            log=log,
            deadline=deadline,
        )
    return Carried(**printed)


def _require_all_rows(client: Client, table: str, carried: Carried, filled: Filled) -> None:
    rows = _number(client, f"SELECT count() FROM {table}")
    if (carried.records, carried.rows, rows) != (filled.records, filled.fine, filled.fine):
        raise BenchFailed(
            f"{table} holds {rows:,} rows of {carried.records:,} records, "
            f"and {filled.fine:,} of {filled.records:,} were to be there: no figure for that"
        )


def _wait_until_quiet(client: Client) -> None:
    end = time.monotonic() + _QUIET_LIMIT_S
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < _QUIET_S:
        if _number(client, "SELECT count() FROM system.merges"):
            quiet_since = time.monotonic()
        if time.monotonic() > end:
            raise BenchFailed(f"ClickHouse still merges after {_QUIET_LIMIT_S:.0f} s")
        time.sleep(_LOOK_EVERY_S)


def _is(table: str) -> str:
    database, _, name = table.partition(".")
    return f"database = '{database}' AND table = '{name}'"


def _number(client: Client, query: str) -> int:
    return int(str(client.command(query)))


def _told(run: Run) -> str:
    carried = run.carried
    cpu = (carried.cpu_s + run.server_cpu_s) / carried.records * 1e6
    return f"{run.arm:10} {carried.wall_s:6.2f} s, {cpu:6.1f} CPU seconds a million events"


if __name__ == "__main__":
    run_command(main, "bench.micro_batch")
