"""clickhouse-connect, as it is, against the local server."""

import asyncio
import io
from datetime import UTC, datetime
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

COMPRESSIONS = [False, "lz4", "zstd", "gzip"]


@pytest.fixture(params=COMPRESSIONS, ids=str)
def client(clickhouse_server: Any, request: pytest.FixtureRequest) -> Any:
    """A client, once for each way it compresses both directions."""
    with clickhouse_server.client(compress=request.param) as made:
        yield made


def test_it_connects_and_reads_version_and_time_zone(client: Any) -> None:
    """The first questions of the client are answered by the engine."""
    assert client.server_version.startswith("26.")
    assert client.server_tz == UTC
    assert client.ping()


def test_native_rows_go_in_and_come_out(client: Any, clickhouse_table: str) -> None:
    """A Native insert says how many rows it wrote, and a query gives them back with their types."""
    rows = [[at, f"row {at}"] for at in range(1000)]
    summary = client.insert(clickhouse_table, rows, column_names=["a", "s"])
    assert summary.written_rows == 1000
    result = client.query(f"SELECT a, s FROM {clickhouse_table} ORDER BY a")
    assert result.result_rows == [tuple(row) for row in rows]
    assert result.summary["read_rows"] == "1000"
    assert result.query_id


def test_no_rows_are_no_error(client: Any, clickhouse_table: str) -> None:
    """An empty result, of a query and of a probe for its columns."""
    assert client.query(f"SELECT * FROM {clickhouse_table}").result_rows == []
    probe = client.query(f"SELECT * FROM {clickhouse_table} LIMIT 0")
    assert probe.column_names == ("a", "s")


def test_arrow_goes_in_and_comes_out(client: Any, clickhouse_table: str) -> None:
    """insert_arrow and query_arrow carry a table there and back."""
    table = pa.table({"a": pa.array(range(5000), pa.uint64()), "s": ["x"] * 5000})
    client.insert_arrow(clickhouse_table, table)
    back = client.query_arrow(f"SELECT a, s FROM {clickhouse_table} ORDER BY a", use_strings=True)
    assert back.column("a").to_pylist() == list(range(5000))
    with client.query_arrow_stream(f"SELECT a FROM {clickhouse_table}") as stream:
        assert sum(len(batch) for batch in stream) == 5000


def test_a_data_frame_goes_in_and_comes_out(client: Any, clickhouse_table: str) -> None:
    """insert_df and query_df, where pandas is installed."""
    pandas = pytest.importorskip("pandas")
    client.insert_df(clickhouse_table, pandas.DataFrame({"a": [1, 2], "s": ["x", "y"]}))
    assert client.query_df(f"SELECT * FROM {clickhouse_table} ORDER BY a")["s"].tolist() == [
        "x",
        "y",
    ]


@pytest.mark.parametrize("compression", [None, "gzip", "lz4", "zstd"])
def test_raw_parquet_goes_in(
    clickhouse_server: Any, clickhouse_table: str, compression: Any
) -> None:
    """raw_insert of a Parquet file, as bytes with the query before them or compressed behind it."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.uint64()), "s": ["x", "y"]}), sink)
    body = sink.getvalue()
    if compression is not None:
        body = pa.Codec(compression if compression != "lz4" else "lz4").compress(body).to_pybytes()
    with clickhouse_server.client() as client:
        summary = client.raw_insert(
            clickhouse_table, ["a", "s"], body, fmt="Parquet", compression=compression
        )
        assert summary.written_rows == 2
        assert client.query(f"SELECT sum(a) FROM {clickhouse_table}").first_item == {"sum(a)": 3}


def test_rows_are_streamed_in_blocks(client: Any) -> None:
    """A result of many blocks is read block by block, all of it."""
    with client.query_row_block_stream("SELECT number FROM numbers(1000000)") as stream:
        blocks = [len(block) for block in stream]
    assert len(blocks) > 1
    assert sum(blocks) == 1_000_000


def test_parameters_are_bound_by_the_server(client: Any) -> None:
    """Strings with quotes and backslashes, arrays, dates and identifiers arrive as they are."""
    text = 'it\'s a \\ "tab"\tand\nline {x:Int8}'
    result = client.query(
        "SELECT {s:String}, {a:Array(String)}, {d:DateTime('UTC')}, {n:Nullable(String)},"
        " {i:Identifier} FROM system.one",
        parameters={
            "s": text,
            "a": ["x'y", "z"],
            "d": datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
            "n": None,
            "i": "dummy",
        },
    )
    when = datetime(2024, 5, 6, 7, 8, 9)
    assert result.result_rows == [(text, ["x'y", "z"], when, None, 0)]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("SELECT * FROM no_such_table", 60),
        ("SELECT FROM WHERE", 62),
        ("SELECT no_such_column", 47),
        ("SELECT throwIf(1)", 395),
        ("SELECT * FROM no_such_db.t", 81),
    ],
)
def test_errors_carry_code_and_text(client: Any, query: str, code: int) -> None:
    """The client raises what ClickHouse said, without what this server added to the query."""
    with pytest.raises(DatabaseError, match=f"[Cc]ode:? {code}") as raised:
        client.query(query)
    assert "OUTFILE '" not in str(raised.value)
    assert "query_id:" not in str(raised.value)


def read_all(client: Any, query: str) -> None:
    """Read a streamed result to its end."""
    with client.query_row_block_stream(query) as stream:
        for _ in stream:
            pass


def test_an_error_amid_a_result_is_noticed(client: Any) -> None:
    """A query that fails after a million rows were sent does not look like a short result."""
    query = (
        "SELECT throwIf(number = 3000000, 'late') FROM numbers(4000000) SETTINGS max_threads = 1"
    )
    with pytest.raises((StreamFailureError, DatabaseError, OSError)):
        read_all(client, query)


def test_the_text_of_a_late_error_arrives(clickhouse_server: Any) -> None:
    """Without compression, the error's own text stands at the end of what was sent."""
    query = (
        "SELECT throwIf(number = 3000000, 'late') FROM numbers(4000000) SETTINGS max_threads = 1"
    )
    with clickhouse_server.client(compress=False) as client:
        with pytest.raises(StreamFailureError, match="late"):
            read_all(client, query)


def test_external_data_become_tables(client: Any) -> None:
    """External tables, described by structure or by types, last for one query."""
    data = ExternalData(
        file_name="left.csv", fmt="CSV", structure="a Int32, s String", data=b"1,x\n2,y\n"
    )
    data.add_file(file_name="right.tsv", types=["Int32", "Array(String)"], data=b"2\t['z']\n")
    query = 'SELECT s, _2 FROM left JOIN "right" ON a = _1'
    assert client.query(query, external_data=data).result_rows == [("y", ["z"])]
    with pytest.raises(DatabaseError, match="60"):
        client.query("SELECT * FROM left")


def test_a_long_query_is_sent_as_a_form(clickhouse_server: Any) -> None:
    """Parameters too long for a URL come in a form, with the query."""
    with clickhouse_server.client(form_encode_query_params=True) as client:
        text = "x" * 100_000
        result = client.query("SELECT length({t:String})", parameters={"t": text})
        assert result.result_rows == [(100_000,)]


def test_a_session_remembers_what_was_set_in_it(clickhouse_server: Any) -> None:
    """SET, USE and temporary tables last in their session; a request's own settings do not."""
    with clickhouse_server.client(session_id="remembers") as client:
        client.command("SET max_block_size = 777")
        client.command("CREATE TEMPORARY TABLE mine (a Int8)")
        client.command("INSERT INTO mine VALUES (1), (2)")
        sizes = "SELECT getSetting('max_block_size')"
        assert client.query(sizes, settings={"max_block_size": 5}).first_row == (5,)
        assert client.query(sizes).first_row == (777,)
        assert client.query("SELECT count() FROM mine").first_row == (2,)
    with clickhouse_server.client(session_id="another") as client:
        assert client.query(sizes).first_row != (777,)
        with pytest.raises(DatabaseError, match="60"):
            client.query("SELECT count() FROM mine")


def test_the_asynchronous_client(clickhouse_server: Any, clickhouse_table: str) -> None:
    """The async client inserts, queries in parallel, streams and sees errors."""
    pytest.importorskip("aiohttp")

    async def use() -> None:
        client = await clickhouse_connect.get_async_client(
            host="127.0.0.1", port=clickhouse_server.port, autogenerate_session_id=False
        )
        async with client:
            await client.insert(clickhouse_table, [[1, "x"]], column_names=["a", "s"])
            queries = (
                client.query(f"SELECT {n} + sum(a) FROM {clickhouse_table}") for n in range(20)
            )
            results = await asyncio.gather(*queries)
            assert [result.first_row[0] for result in results] == [n + 1 for n in range(20)]
            rows = 0
            stream = await client.query_row_block_stream("SELECT number FROM numbers(500000)")
            async with stream:
                async for block in stream:
                    rows += len(block)
            assert rows == 500_000
            with pytest.raises(DatabaseError, match="60"):
                await client.query("SELECT * FROM no_such_table")

    asyncio.run(use())
