"""The server as a process: what it keeps, what it holds in memory, how it starts and stops."""

import io
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from local_stack.clickhouse.runner import _MAX_STREAMS

ROOT = Path(__file__).parents[2]
MIB = 1 << 20

# One insert, one block, one part: however the file is laid out inside.
ONE_BLOCK = {
    "max_insert_block_size": "1000000",
    "min_insert_block_size_rows": "1000000",
    "min_insert_block_size_bytes": "0",
    "max_insert_threads": "1",
    "input_format_parquet_max_block_size": "1000000",
    "input_format_parquet_prefer_block_bytes": str(1 << 40),
    "max_block_size": "1000000",
}


def start_fails(*options: str) -> str:
    """The one line of a start that must fail."""
    command = [sys.executable, "-m", "local_stack.clickhouse", *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_a_parquet_file_of_half_a_million_rows_is_one_part_once(
    clickhouse_server: Any, clickhouse_table: str
) -> None:
    """With settings for one block, an insert makes one part; its token, again, adds nothing."""
    rows = 500_000
    sink = io.BytesIO()
    table = pa.table({"a": pa.array(range(rows), pa.uint64()), "s": ["some text"] * rows})
    pq.write_table(table, sink, row_group_size=65_536)
    with clickhouse_server.client() as client:
        for token, expected_rows, expected_parts in (
            ("first", rows, 1),
            ("first", rows, 1),
            ("second", 2 * rows, 2),
        ):
            client.raw_insert(
                clickhouse_table,
                insert_block=sink.getvalue(),
                fmt="Parquet",
                settings={**ONE_BLOCK, "insert_deduplication_token": token},
            )
            parts = client.query(
                "SELECT count(), sum(rows) FROM system.parts WHERE database = currentDatabase()"
                f" AND table = '{clickhouse_table}' AND level = 0"
            )
            assert parts.first_row == (expected_parts, expected_rows)


def test_what_was_acknowledged_survives_a_kill(start_clickhouse: Any, tmp_path: Path) -> None:
    """Every insert answered before kill -9 is there after a restart, while inserts are running."""
    data = tmp_path / "data"
    server = start_clickhouse(data=data)
    server.rows("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
    acknowledged: list[int] = []
    enough = threading.Event()

    def insert() -> None:
        for number in range(100_000):
            try:
                answer = server.post(f"INSERT INTO t VALUES ({number})")
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                acknowledged.append(number)
            if number == 50:
                enough.set()

    thread = threading.Thread(target=insert)
    thread.start()
    assert enough.wait(60)
    server.process.send_signal(signal.SIGKILL)
    thread.join()
    server.process.wait()
    again = start_clickhouse(data=data)
    found = {int(row[0]) for row in again.rows("SELECT a FROM t")}
    assert set(acknowledged) <= found
    assert len(found) <= len(acknowledged) + 1
    assert not list((data / "spool").iterdir())


def test_a_second_owner_is_refused(start_clickhouse: Any) -> None:
    """The data folder has one owner; the second start says who it is."""
    server = start_clickhouse()
    line = start_fails("--data", str(server.data), "--port", "0")
    assert "is in use by another ClickHouse" in line
    assert str(server.process.pid) in line


def test_a_port_in_use_is_told(clickhouse_server: Any, tmp_path: Path) -> None:
    """A taken port is one line that says what to do."""
    line = start_fails("--data", str(tmp_path), "--port", str(clickhouse_server.port))
    assert f"cannot listen on 127.0.0.1:{clickhouse_server.port}" in line
    assert "--port" in line


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com"])
def test_it_listens_on_loopback_only(tmp_path: Path, host: str) -> None:
    """Other addresses are refused."""
    line = start_fails("--data", str(tmp_path), "--port", "0", "--host", host)
    assert "is not a loopback address" in line


def test_a_stop_lets_the_query_finish(start_clickhouse: Any) -> None:
    """SIGTERM: the running insert is answered, the exit code is 0, and the folder is free."""
    server = start_clickhouse()
    server.rows("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
    query = "INSERT INTO t SELECT number + sleepEachRow(0.5) FROM numbers(4)"
    query += " SETTINGS max_block_size = 1"
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(server.post, query)
        wait_until_runs(server, "sleepEachRow")
        assert server.stop() == 0
        assert answer.result().status_code == 200
    again = start_clickhouse(data=server.data)
    assert again.rows("SELECT count() FROM t") == [["4"]]
    assert again.stop() == 0


def running(server: Any, text: str) -> int:
    """How many running statements hold the text."""
    query = (
        f"SELECT count() FROM system.processes WHERE position(query, '{text}') > 0"
        " AND position(query, 'system.processes') = 0"
    )
    return int(server.rows(query)[0][0])


def wait_until_runs(server: Any, text: str, count: int = 1) -> None:
    """Until as many statements with this text run."""
    while running(server, text) != count:
        assert server.process.poll() is None


def test_results_and_bodies_are_not_held_in_memory(start_clickhouse: Any) -> None:
    """Half a gigabyte and more goes out in each format, and in; the process grows by far less."""
    server = start_clickhouse()
    server.rows("CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    # The engine gathers row groups and blocks; small ones let what this server adds be seen.
    small = {
        "output_format_arrow_compression_method": "none",
        "output_format_parquet_compression_method": "none",
        "output_format_parquet_row_group_size": "100000",
        "max_insert_block_size": "100000",
        "min_insert_block_size_rows": "100000",
    }
    plain = {"Accept-Encoding": "identity"}
    peak = Peak(psutil.Process(server.process.pid))
    through = 0
    with (
        peak,
        httpx.Client(base_url=server.url, params=small, headers=plain, timeout=120) as client,
    ):
        for fmt in ("Native", "CSV", "JSON", "ArrowStream", "Parquet"):
            rows = "SELECT number, toString(number) || repeat('x', 100) FROM numbers(5000000)"
            with client.stream("POST", "/", content=f"{rows} FORMAT {fmt}") as answer:
                size = sum(len(piece) for piece in answer.iter_raw())
            assert size > 500 * MIB
            through += size
        lines = b"".join(b"%d,%s\n" % (at, b"y" * 100) for at in range(50_000))

        def body() -> Iterator[bytes]:
            yield b"INSERT INTO t FORMAT CSV\n"
            for _ in range(100):
                yield lines

        loaded = client.post("/", content=body())
        assert loaded.status_code == 200, loaded.text
        through += 100 * len(lines)
    assert server.rows("SELECT count() FROM t") == [["5000000"]]
    assert peak.growth < through / 4


class Peak:
    """The most that a process's resident memory grew while this was open."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.growth = 0

    def __enter__(self) -> None:
        self._start = self._process.memory_info().rss
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.growth = max(self.growth, self._process.memory_info().rss - self._start)


def test_a_client_that_leaves_stops_its_query(clickhouse_server: Any) -> None:
    """Whether it left amid the rows or before the first of them, nothing goes on running."""
    endless = "SELECT number AS left_amid FROM system.numbers FORMAT CSV"
    silent = "SELECT count() AS left_before FROM system.numbers WHERE NOT ignore(number)"
    with httpx.stream("POST", clickhouse_server.url, content=endless) as answer:
        # Kept: when the iterator goes, so does the connection.
        pieces = answer.iter_raw()
        next(pieces)
        wait_until_runs(clickhouse_server, "left_amid")
    with socket.create_connection(("127.0.0.1", clickhouse_server.port)) as connection:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(silent)}\r\n\r\n"
        connection.sendall((head + silent).encode())
        wait_until_runs(clickhouse_server, "left_before")
    wait_until_runs(clickhouse_server, "left_amid", 0)
    wait_until_runs(clickhouse_server, "left_before", 0)
    assert clickhouse_server.rows("SELECT 1") == [["1"]]


def test_a_body_that_never_ends_leaves_nothing_behind(
    clickhouse_server: Any, clickhouse_table: str
) -> None:
    """A client that leaves amid its insert has inserted nothing, and its spool file goes."""
    with socket.create_connection(("127.0.0.1", clickhouse_server.port)) as connection:
        head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        connection.sendall((head + f"INSERT INTO {clickhouse_table} FORMAT CSV\n1,x\n").encode())
        spool = clickhouse_server.data / "spool"
        while not list(spool.iterdir()):
            assert clickhouse_server.process.poll() is None
    while list(spool.iterdir()):
        assert clickhouse_server.process.poll() is None
    assert clickhouse_server.rows(f"SELECT count() FROM {clickhouse_table}") == [["0"]]


def test_others_are_served_while_a_query_runs(clickhouse_server: Any) -> None:
    """A long query and a client that does not read hold up neither a ping nor another query."""
    slow = "SELECT sleepEachRow(3) AS slow_one FROM numbers(20) SETTINGS max_block_size = 1"
    with socket.create_connection(("127.0.0.1", clickhouse_server.port)) as stalled:
        rows = "SELECT number AS stalled_one FROM system.numbers"
        stalled.sendall(
            f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(rows)}\r\n\r\n{rows}".encode()
        )
        wait_until_runs(clickhouse_server, "stalled_one")
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(httpx.post, clickhouse_server.url, content=slow, timeout=5)
            wait_until_runs(clickhouse_server, "slow_one")
            assert httpx.get(clickhouse_server.url + "/ping").text == "Ok.\n"
            assert clickhouse_server.rows("SELECT 1") == [["1"]]
            assert not waiting.done()
            with pytest.raises(httpx.ReadTimeout):
                waiting.result()
    wait_until_runs(clickhouse_server, "slow_one", 0)
    wait_until_runs(clickhouse_server, "stalled_one", 0)


def test_many_clients_at_once(clickhouse_server: Any, clickhouse_table: str) -> None:
    """Inserts, queries, errors and DDL from many clients: all right, and every row there once."""

    def work(worker: int) -> int:
        inserted = 0
        with httpx.Client(base_url=clickhouse_server.url, timeout=60) as client:

            def ask(query: str, **params: str) -> httpx.Response:
                return client.post("/", params=params, content=query)

            for turn in range(12):
                values = ",".join(f"({worker * 1000 + turn}, 'w')" for _ in range(10))
                insert = ask(f"INSERT INTO {clickhouse_table} VALUES {values}")
                assert insert.status_code == 200, insert.text
                inserted += 10
                own = str(100 + worker)
                assert (
                    ask("SELECT getSetting('max_block_size')", max_block_size=own).text
                    == f"{own}\n"
                )
                assert ask("SELECT * FROM nothing_here").status_code == 404
                assert len(ask("SELECT number FROM numbers(100000) FORMAT CSV").content) == 588_890
                table = f"own_{worker}"
                assert (
                    ask(f"CREATE TABLE {table} (a Int8) ENGINE = MergeTree ORDER BY a").text == ""
                )
                assert ask(f"INSERT INTO {table} FORMAT CSV\n1\n").text == ""
                assert ask(f"DROP TABLE {table} SYNC").text == ""
        return inserted

    with ThreadPoolExecutor(12) as threads:
        total = sum(threads.map(work, range(12)))
    assert clickhouse_server.rows(f"SELECT count() FROM {clickhouse_table}") == [[str(total)]]


def test_the_summary_counts_a_load(clickhouse_server: Any, clickhouse_table: str) -> None:
    """Rows written are counted, and the rows of the body as rows read."""
    answer = clickhouse_server.post(f"INSERT INTO {clickhouse_table} FORMAT CSV\n1,a\n2,b\n")
    summary = json.loads(answer.headers["X-ClickHouse-Summary"])
    assert (summary["read_rows"], summary["written_rows"]) == ("2", "2")


def test_an_insert_does_not_wait_behind_unread_answers(start_clickhouse: Any) -> None:
    """However many clients leave their rows unread, what changes data gets its turn."""
    server = start_clickhouse()
    server.rows("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
    query = b"SELECT number FROM system.numbers SETTINGS max_threads = 1"
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(query)
    readers = []
    try:
        for _ in range(_MAX_STREAMS):
            reader = socket.create_connection(("127.0.0.1", server.port), 60)
            readers.append(reader)
            reader.sendall(request + query)
        for reader in readers:
            assert reader.recv(12) == b"HTTP/1.1 200"
        assert server.post("INSERT INTO t VALUES (1)").status_code == 200
    finally:
        for reader in readers:
            reader.close()
    assert server.rows("SELECT count() FROM t") == [["1"]]


@pytest.mark.parametrize("sign", ["?", "*", "{a}"])
def test_a_folder_that_reads_as_a_pattern_is_refused(tmp_path: Path, sign: str) -> None:
    """An INSERT below such a folder would load nothing and say it did: the start fails instead."""
    line = start_fails("--data", str(tmp_path / f"data{sign}"), "--port", "0")
    assert "must not contain" in line
