"""Metadata: a batch as Dagster shows it, on each materialization and on the assets themselves.

Numbers stand under names of their own, because the UI plots them; what a person wants to follow
(file, rows in ClickHouse) is a link. Everything comes from the ledger and the staged files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any
from urllib.parse import quote_plus

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.column_texts import COLUMN_TEXTS
from assets.pipeline.batch import Balance, Batch, Kind, State
from assets.pipeline.clickhouse import named_errors
from assets.pipeline.declared_tables import declared_tables
from assets.pipeline.lake import UNREADABLE, Lake
from assets.pipeline.reasons import SENTENCES, Reason
from assets.pipeline.worker import Worker
from orchestration.addresses import public_address
from orchestration.ledger.attempts import Attempt, attempts_of
from orchestration.ledger.batches import staged_rows_of_date
from orchestration.settings import Settings
from orchestration.times import utc

Metadata = dict[str, dg.MetadataValue[Any]]

STAGE_TIMINGS = ("plan", "read", "validate", "deduplicate", "enrich", "stage")
"""Stages that end with the staged file; the others belong to loading."""


def staged_metadata(worker: Worker, batch: Batch) -> Metadata:
    """What staging a batch gave."""
    assert batch.staged is not None
    balance = batch.staged.balance
    seconds = {
        stage: timing.wall for stage, timing in batch.timings.items() if stage in STAGE_TIMINGS
    }
    of_date = staged_rows_of_date(
        worker.ledger, batch.arrival_date, Kind.EVENTS, *worker.settings.topics
    )
    held: Metadata = (
        {"held": dg.MetadataValue.text(batch.note)} if batch.state is State.HELD else {}
    )
    return {
        **_identity(worker, batch, "stage"),
        **held,
        "offsets": dg.MetadataValue.int(batch.offsets),
        **{name: dg.MetadataValue.int(count) for name, count in vars(balance).items()},
        "dagster/partition_row_count": dg.MetadataValue.int(of_date),
        **_waited(worker.lake, batch, batch.staged_at),
        **_seconds(seconds, balance.delivered),
        "bytes_read": dg.MetadataValue.int(batch.staged.bytes_read),
        "bytes_staged": dg.MetadataValue.int(sum(file.bytes for file in batch.staged.files)),
        **_file(worker.lake, batch, Kind.EVENTS),
        **_carried(batch),
    }


def loaded_metadata(worker: Worker, batch: Batch) -> Metadata:
    """What loading a batch gave."""
    assert batch.staged is not None
    seconds = {
        stage: timing.wall for stage, timing in batch.timings.items() if stage not in STAGE_TIMINGS
    }
    return {
        **_identity(worker, batch, "load"),
        "rows": dg.MetadataValue.int(batch.staged.balance.ok),
        **table_rows(worker, Kind.EVENTS, batch.arrival_date),
        **_waited(worker.lake, batch, batch.loaded_at),
        **_seconds(seconds, batch.staged.balance.ok),
        **_file(worker.lake, batch, Kind.EVENTS),
        "in_clickhouse": _query_link(worker.settings, batch, Kind.EVENTS),
        **_carried(batch),
    }


def dead_letter_metadata(worker: Worker, batch: Batch) -> Metadata:
    """Which records of a batch were rejected, and why."""
    assert batch.staged is not None
    found: Metadata = {
        **_identity(worker, batch, "dead_letters"),
        "rows": dg.MetadataValue.int(batch.staged.balance.rejected),
        **table_rows(worker, Kind.DEAD_LETTERS, batch.arrival_date),
    }
    if batch.staged.file(Kind.DEAD_LETTERS) is not None:
        found |= {
            **_file(worker.lake, batch, Kind.DEAD_LETTERS),
            "in_clickhouse": _query_link(worker.settings, batch, Kind.DEAD_LETTERS),
            "reasons": table_of(
                [
                    (reason, count, SENTENCES[Reason(reason)])
                    for reason, count in _reasons(worker.lake, batch)
                ],
                *(("reason", "string"), ("records", "int"), ("meaning", "string")),
            ),
        }
    return found


def no_batch_metadata(kind: Kind, there: Sequence[Batch], note: str) -> Metadata:
    """What is said of a date that a run was started for but brought nothing new to.

    `there` are the batches that the asset has of it. ClickHouse is not asked: it may be away.
    """
    files = [batch.staged.file(kind) for batch in there if batch.staged]
    rows = sum(file.rows for file in files if file)
    found: Metadata = {
        "note": dg.MetadataValue.text(note),
        "batches": dg.MetadataValue.int(0),
        "batches_there_already": dg.MetadataValue.int(len(there)),
        "rows": dg.MetadataValue.int(0),
        "dagster/partition_row_count": dg.MetadataValue.int(rows),
    }
    if there:
        found["newest_batch_id"] = dg.MetadataValue.text(there[-1].batch_id)
    return found


def table_rows(worker: Worker, kind: Kind, day: date) -> Metadata:
    """How many rows the table holds now, in all and of one arrival date. ClickHouse looks it up."""
    table = f"{worker.settings.clickhouse_database}.{kind.value}"
    with named_errors("counting rows"):
        [(rows, of_date)] = worker.clickhouse.query(
            f"SELECT (SELECT count() FROM {table}), "
            f"(SELECT count() FROM {table} WHERE arrival_date = {{day:Date}})",
            parameters={"day": day},
        ).result_rows
    return {
        "dagster/row_count": dg.MetadataValue.int(rows),
        "dagster/partition_row_count": dg.MetadataValue.int(of_date),
    }


def appended_between(lake: Lake, batch: Batch) -> tuple[datetime, datetime] | None:
    """When the broker appended the oldest and the newest record of a batch's files.

    None when there is no file, or none that can be read: to prove files is up to loading.
    """
    assert batch.staged is not None
    times: list[datetime] = []
    for kind in (Kind.EVENTS, Kind.DEAD_LETTERS):
        file = batch.staged.file(kind)
        if file is None:
            continue
        try:
            with lake.open_file(file.path) as source:
                footer = pq.ParquetFile(source).metadata
        except UNREADABLE:
            return None
        column = footer.schema.names.index("_appended_at")
        for group in range(footer.num_row_groups):
            statistics = footer.row_group(group).column(column).statistics
            times += [statistics.min, statistics.max]
    return (min(times), max(times)) if times else None


def arrow_schema(schema: pa.Schema) -> dg.TableSchema:
    """The columns of a Parquet file, for an asset's page."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                field.name,
                str(field.type),
                COLUMN_TEXTS[field.name],
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def clickhouse_schema(table: str) -> dg.TableSchema:
    """The columns of a table as tables.sql declares them."""
    columns = declared_tables()[table].columns
    return dg.TableSchema(
        [dg.TableColumn(name, column.type, COLUMN_TEXTS[name]) for name, column in columns.items()]
    )


def table_of(rows: Sequence[Sequence[Any]], *columns: tuple[str, str]) -> dg.MetadataValue[Any]:
    """A table of these rows. A column is its name and its type: string, int, float."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord({name: cell for (name, _), cell in zip(columns, row, strict=True)})
            for row in rows
        ],
        schema=dg.TableSchema([dg.TableColumn(name, type_) for name, type_ in columns]),
    )


def _identity(worker: Worker, batch: Batch, stage: str) -> Metadata:
    attempts = [
        attempt for attempt in attempts_of(worker.ledger, batch.batch_id) if attempt.stage == stage
    ]
    found: Metadata = {
        "batch_id": dg.MetadataValue.text(batch.batch_id),
        "topic": dg.MetadataValue.text(batch.topic),
        "attempt": dg.MetadataValue.int(len(attempts)),
    }
    if len(attempts) > 1:
        found["attempts"] = _attempts(attempts)
    if batch.generation:
        found["generation"] = dg.MetadataValue.int(batch.generation)
    return found


def _carried(batch: Batch) -> Metadata:
    """What a batch was made of: ranges of offsets, or dead letters that were tried again."""
    if batch.is_redrive:
        return {"letters_redriven": dg.MetadataValue.int(batch.letters)}
    return {"ranges": _ranges(batch)}


def _ranges(batch: Batch) -> dg.MetadataValue[Any]:
    names = tuple(vars(Balance()))
    balances = batch.staged.balances if batch.staged else {}
    return table_of(
        [
            (
                range_.partition,
                range_.start,
                range_.end,
                *vars(balances.get(range_.partition, Balance())).values(),
            )
            for range_ in batch.ranges
        ],
        *((name, "int") for name in ("partition", "start", "end", *names)),
    )


def _attempts(attempts: Sequence[Attempt]) -> dg.MetadataValue[Any]:
    return table_of(
        [
            (
                attempt.number,
                f"{utc(attempt.started_at):%Y-%m-%d %H:%M:%S}",
                attempt.outcome or "did not end",
                attempt.run_id,
                f"{attempt.error_class}: {attempt.error_text}" if attempt.error_class else "",
            )
            for attempt in attempts
        ],
        ("attempt", "int"),
        ("started", "string"),
        ("outcome", "string"),
        ("run", "string"),
        ("error", "string"),
    )


def _seconds(seconds: Mapping[str, float], rows: int) -> Metadata:
    total = sum(seconds.values())
    found: Metadata = {
        f"seconds_{stage}": dg.MetadataValue.float(round(took, 4))
        for stage, took in seconds.items()
    }
    if total:
        found["rows_per_second"] = dg.MetadataValue.float(round(rows / total, 1))
    return found


def _waited(lake: Lake, batch: Batch, until_us: int | None) -> Metadata:
    between = appended_between(lake, batch)
    if between is None or until_us is None:
        return {}
    until = utc(until_us)
    oldest, newest = between
    return {
        "appended": dg.MetadataValue.text(f"{oldest:%Y-%m-%d %H:%M:%S} – {newest:%H:%M:%S} UTC"),
        "lag_seconds_oldest": dg.MetadataValue.float(round((until - oldest).total_seconds(), 3)),
        "lag_seconds_newest": dg.MetadataValue.float(round((until - newest).total_seconds(), 3)),
    }


def _file(lake: Lake, batch: Batch, kind: Kind) -> Metadata:
    assert batch.staged is not None
    file = batch.staged.file(kind)
    if file is None:
        return {}
    if lake.is_local:
        return {"file": dg.MetadataValue.path(lake.full_path(file.path))}
    return {"file": dg.MetadataValue.url(f"{lake.uri}/{file.path}")}


def _query_link(settings: Settings, batch: Batch, kind: Kind) -> dg.MetadataValue[Any]:
    query = (
        f"SELECT * FROM {settings.clickhouse_database}.{kind.value} "
        f"WHERE arrival_date='{batch.arrival_date}' AND _batch_id='{batch.batch_id}' "
        "LIMIT 100 FORMAT Vertical"
    )
    address = public_address(settings.clickhouse_address)
    # The UI breaks lines at hyphens only: what stands between two must fit its column.
    safe = quote_plus(query, safe="*='")
    return dg.MetadataValue.url(f"{address}/?query={safe}")


def _reasons(lake: Lake, batch: Batch) -> list[tuple[str, int]]:
    assert batch.staged is not None
    file = batch.staged.file(Kind.DEAD_LETTERS)
    assert file is not None
    try:
        with lake.open_file(file.path) as source:
            reasons = pq.ParquetFile(source).read(["reason"]).column("reason")
    except UNREADABLE:
        return []
    counts = pc.value_counts(reasons.cast(pa.string())).to_pylist()
    return sorted((count["values"], count["counts"]) for count in counts)
