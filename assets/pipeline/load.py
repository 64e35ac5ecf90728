"""Load: one staged file becomes one insert of one block into one partition of one table.

Only that shape is all or nothing in ClickHouse. The token is the batch and the content of the
file, so a repeated insert is dropped within the server's window; beyond the window, and for
everything else, the proof is asked before any insert, and again after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import IO

from clickhouse_connect.driver.client import Client

from assets.pipeline.batch import Batch, Fingerprint, Kind, StagedFile
from assets.pipeline.clickhouse import known_settings, named_errors
from assets.pipeline.clock import StageClock
from assets.pipeline.columns import DEAD_LETTERS, EVENTS
from assets.pipeline.errors import ProofFailed
from assets.pipeline.failpoints import failpoint
from assets.pipeline.lake import Lake
from assets.pipeline.prove import Proof, compare, describe_difference, read_fingerprints
from assets.pipeline.staged_files import check_staged

_SEND_BYTES = 1 << 20
_COLUMNS = {Kind.EVENTS: EVENTS.names, Kind.DEAD_LETTERS: DEAD_LETTERS.names}


def load(
    client: Client,
    database: str,
    lake: Lake,
    batch: Batch,
    kind: Kind,
    run_id: str,
    clock: StageClock,
    may_insert: Callable[[], None] = lambda: None,
) -> bool:
    """Bring a staged file into its table and prove it. False when it was there already.

    `may_insert` is asked last before the insert, and raises when another worker has taken over.
    Raises ProofFailed when the table holds something else than nothing or all of the file,
    before or after the insert; StagedFileDamaged when the file is not what was registered.
    """
    assert batch.staged is not None
    file = batch.staged.file(kind)
    if file is None:
        return False
    staged = batch.staged.fingerprints[kind]
    table = kind.value

    with clock.stage("prove"):
        before = read_fingerprints(client, database, table, batch.batch_id)
    proof = compare(staged, before)
    if proof is Proof.ALL:
        return False
    if proof is Proof.OTHER:
        raise _suspect(batch, table, staged, before, "before the insert")

    failpoint("before-check")
    with clock.stage("load"):
        check_staged(lake, file)
        may_insert()
        failpoint("before-send")
        insert(client, database, table, lake, file, batch, run_id)
        failpoint("after-send")

    with clock.stage("prove"):
        after = read_fingerprints(client, database, table, batch.batch_id)
    if compare(staged, after) is not Proof.ALL:
        raise _suspect(batch, table, staged, after, "after the insert")
    return True


def insert(
    client: Client,
    database: str,
    table: str,
    lake: Lake,
    file: StagedFile,
    batch: Batch,
    run_id: str,
    named: str = "",
) -> None:
    """Send the file as it is, as one block. It is remembered as `named`, by default as `token`."""
    with lake.open(file.path) as body, named_errors(f"loading {file.path}"):
        client.raw_insert(
            f"{database}.{table}",
            # Named, because a column that the table lacks would else be left out in silence.
            column_names=_COLUMNS[file.kind],
            insert_block=_blocks(body),
            fmt="Parquet",
            settings={
                **known_settings(client, one_block(file.rows)),
                "insert_deduplication_token": named or token(batch, file),
                "log_comment": json.dumps(
                    {"tidemark": "load", "run_id": run_id, "batch_id": batch.batch_id}
                ),
            },
        )


def token(batch: Batch, file: StagedFile) -> str:
    """What an insert is remembered by: a file of a batch, since a person last gave it back.

    Rows that somebody deleted could else not come back while the server remembers the token.
    """
    return f"{batch.batch_id}:{file.sha256[:16]}:{batch.retries}"


def _blocks(body: IO[bytes]) -> Generator[bytes, None, None]:
    while block := body.read(_SEND_BYTES):
        yield block


def one_block(rows: int) -> dict[str, str]:
    """Settings under which an insert of so many rows is one block, whatever their size."""
    ample = str(max(rows, 1) * 2)
    return {
        "async_insert": "0",
        "insert_deduplicate": "1",
        "max_insert_threads": "1",
        "max_insert_block_size": ample,
        "max_insert_block_size_bytes": "0",
        "min_insert_block_size_rows": ample,
        "min_insert_block_size_bytes": "0",
        "input_format_parquet_max_block_size": ample,
        "input_format_parquet_prefer_block_bytes": "0",
        "input_format_parquet_preserve_order": "1",
        "max_partitions_per_insert_block": "1",
        "deduplicate_blocks_in_dependent_materialized_views": "1",
    }


def _suspect(
    batch: Batch,
    table: str,
    staged: tuple[Fingerprint, ...],
    found: tuple[Fingerprint, ...],
    when: str,
) -> ProofFailed:
    return ProofFailed(
        f"batch {batch.batch_id} does not balance in {table} {when}: "
        f"{describe_difference(staged, found)}. It is left as it is and marked suspect; "
        "see what is there with SELECT … WHERE _batch_id = "
        f"'{batch.batch_id}'"
    )
