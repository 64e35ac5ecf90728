"""Rows and dead letters of ClickHouse that are wanted."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime, timedelta

from clickhouse_connect.driver.client import Client

from assets.pipeline.clickhouse import connect, named_errors
from assets.pipeline.errors import BatchError
from orchestration.addresses import public_address
from orchestration.explain.record import MOST_RECORDS, Place, Record, Search, Verdict, with_head
from orchestration.explain.wanted import Wanted
from orchestration.settings import Settings

_US = "toUnixTimestamp64Micro"
_APPENDED = "toUnixTimestamp64Milli(_appended_at) * 1000, _topic, _partition, _offset, _batch_id"

# Each of the two conditions has a skip index, which OR would keep from being used.
_EVENTS = f"""
SELECT {_APPENDED}, project_id, toString(uuid), event, distinct_id, request_id,
       {_US}(received_at), _run_id, toUnixTimestamp64Milli(_inserted_at) * 1000
FROM {{database:Identifier}}.events
WHERE {{condition}}
ORDER BY _appended_at, _topic, _partition, _offset
LIMIT {MOST_RECORDS + 1}
"""
_DEAD_LETTERS = f"""
SELECT {_APPENDED}, reason, detail, base64Encode(value), _run_id,
       toUnixTimestamp64Milli(_inserted_at) * 1000
FROM {{database:Identifier}}.dead_letters
WHERE arrival_date >= {{since:Date}}
  AND multiSearchAnyCaseInsensitive(value, {{spellings:Array(String)}})
ORDER BY _appended_at, _topic, _partition, _offset
LIMIT {MOST_RECORDS + 1}
"""
_SLACK = timedelta(days=1)


def search_clickhouse(settings: Settings, wanted: Wanted, search: Search) -> None:
    """Add what the tables hold."""
    address = public_address(settings.clickhouse_address)
    try:
        client = connect(
            settings.clickhouse_address, settings.clickhouse_user, settings.clickhouse_password
        )
        _events(client, settings.clickhouse_database, wanted, search)
        _dead_letters(client, settings.clickhouse_database, wanted, search)
    except BatchError as error:
        search.away["ClickHouse"] = str(error)
        search.looked_at.append(f"ClickHouse at {address}: not asked, {error}")


def _events(client: Client, database: str, wanted: Wanted, search: Search) -> None:
    found = 0
    conditions = ["request_id IN {spellings:Array(String)}"]
    if wanted.uuid is not None:
        conditions.append("uuid = {text:UUID}")
    for condition in conditions:
        with named_errors("looking for events"):
            rows = client.query(
                _EVENTS.replace("{condition}", condition),
                parameters={
                    "database": database,
                    "text": wanted.text,
                    "spellings": list(wanted.spellings),
                },
            ).result_rows
        for appended_at, topic, partition, offset, batch_id, *event, run_id, inserted_at in rows:
            project_id, uuid, name, distinct_id, request_id, received_at = event
            found += search.add(
                Record(
                    Place(topic, partition, offset),
                    Verdict.LOADED,
                    appended_at,
                    batch_id,
                    project_id,
                    uuid,
                    name,
                    distinct_id,
                    request_id,
                    received_at,
                    run_id=run_id,
                    inserted_at=inserted_at,
                )
            )
    search.looked_at.append(f"ClickHouse, table {database}.events: {found:,} found")


def _dead_letters(client: Client, database: str, wanted: Wanted, search: Search) -> None:
    since = datetime(1970, 1, 1, tzinfo=UTC)
    if wanted.made_at_ms is not None:
        since = max(since, datetime.fromtimestamp(wanted.made_at_ms / 1000, UTC) - _SLACK)
    with named_errors("looking for dead letters"):
        rows = client.query(
            _DEAD_LETTERS,
            parameters={
                "database": database,
                "spellings": list(wanted.spellings),
                "since": since.date(),
            },
        ).result_rows
    found = 0
    for appended_at, topic, partition, offset, batch_id, *letter in rows:
        reason, detail, value, run_id, inserted_at = letter
        head = wanted.head_of(b64decode(value))
        if head is not None:
            record = Record(
                Place(topic, partition, offset),
                Verdict.DEAD_LETTER,
                appended_at,
                batch_id,
                reason=reason,
                detail=detail,
                run_id=run_id,
                inserted_at=inserted_at,
            )
            found += search.add(with_head(record, head))
    days = f" since {since:%Y-%m-%d}" if wanted.made_at_ms is not None else ""
    search.looked_at.append(f"ClickHouse, table {database}.dead_letters{days}: {found:,} found")
