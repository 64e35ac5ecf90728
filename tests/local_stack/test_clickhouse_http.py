"""ClickHouse's HTTP protocol, spoken by curl and by hand."""

import gzip
import json
import shutil
import subprocess
import zlib
from typing import Any

import httpx
import lz4.frame
import pytest
import zstandard


def curl(*arguments: str, data: bytes = b"") -> str:
    """What curl prints."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "--max-time", "60", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode()


def test_health_checks(clickhouse_server: Any) -> None:
    """/ping, /replicas_status and / without a query answer Ok."""
    for path in ("/ping", "/replicas_status", "/"):
        answer = httpx.get(clickhouse_server.url + path)
        assert (answer.status_code, answer.text) == (200, "Ok.\n")
    assert httpx.get(clickhouse_server.url + "/nothing").status_code == 404


def test_a_query_in_the_url_in_the_body_and_in_both(clickhouse_server: Any) -> None:
    """The URL's query and the body are one text."""
    url = clickhouse_server.url
    assert curl(f"{url}/?query=SELECT+1") == "1\n"
    assert curl(url, "-d", "SELECT 1") == "1\n"
    assert curl(f"{url}/?query=SELECT+1,", "-d", "2") == "1\t2\n"
    assert curl("-X", "POST", f"{url}/?query=SELECT+1") == "1\n"


def test_curl_loads_in_every_way(clickhouse_server: Any, clickhouse_table: str) -> None:
    """Data in the body behind the query, in the body alone, in the URL, chunked and compressed."""
    url, table = clickhouse_server.url, clickhouse_table
    insert = f"{url}/?query=INSERT+INTO+{table}+FORMAT+"
    curl(url, "--data-binary", f"INSERT INTO {table} VALUES (1, 'a'), (1 + 1, concat('b', 'c'));")
    curl(url, "--data-binary", f'INSERT INTO {table} FORMAT JSONEachRow {{"a": 3, "s": "d"}}')
    curl(insert + "CSV", "--data-binary", "@-", data=b"4,e\n5,f\n")
    curl(insert + "TSV", "-T", "-", data=b"6\tg\n")
    curl("-X", "POST", f"{url}/?query=INSERT+INTO+{table}+VALUES+(7,'h')")
    curl(
        insert + "CSV",
        "-H",
        "Content-Encoding: gzip",
        "--data-binary",
        "@-",
        data=gzip.compress(b"8,i\n"),
    )
    curl(url, "-d", f"INSERT INTO {table} SELECT 9, 'j'")
    curl(insert + "CSV", "--data-binary", "")
    assert clickhouse_server.rows(f"SELECT a, s FROM {table} ORDER BY a") == [
        ["1", "a"],
        ["2", "bc"],
        *([str(3 + at), letter] for at, letter in enumerate("defghij")),
    ]


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("lz4", lz4.frame.compress),
        ("zstd", zstandard.compress),
    ],
)
def test_bodies_come_compressed(
    clickhouse_server: Any, clickhouse_table: str, encoding: str, compress: Any
) -> None:
    """Query and data in one compressed body of several frames; one cut short is refused."""
    rows = b"".join(b"%d,x\n" % at for at in range(50_000))
    body = compress(b"INSERT INTO %s FORMAT CSV\n" % clickhouse_table.encode()) + compress(rows)
    headers = {"Content-Encoding": encoding}
    answer = httpx.post(clickhouse_server.url, content=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.headers["X-ClickHouse-Summary"])["written_rows"] == "50000"
    short = httpx.post(clickhouse_server.url, content=body[:-20], headers=headers, timeout=60)
    assert (short.status_code, short.headers["X-ClickHouse-Exception-Code"]) == (500, "271")
    assert clickhouse_server.rows(f"SELECT count() FROM {clickhouse_table}") == [["50000"]]


def test_the_engine_reads_what_python_cannot(clickhouse_server: Any, clickhouse_table: str) -> None:
    """Brotli is left to the engine, for an INSERT in the URL."""
    with httpx.Client() as client:
        request = client.build_request(
            "POST",
            clickhouse_server.url,
            params={"enable_http_compression": "1"},
            headers={"Accept-Encoding": "br"},
            content="SELECT number, 'x' FROM numbers(1000) FORMAT CSV",
        )
        answer = client.send(request, stream=True)
        raw = b"".join(answer.iter_raw())
    loaded = httpx.post(
        clickhouse_server.url,
        params={"query": f"INSERT INTO {clickhouse_table} FORMAT CSV"},
        headers={"Content-Encoding": "br"},
        content=raw,
    )
    assert loaded.status_code == 200, loaded.text
    assert clickhouse_server.rows(f"SELECT count() FROM {clickhouse_table}") == [["1000"]]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br"])
@pytest.mark.parametrize("wait", ["0", "1"])
def test_answers_go_compressed(clickhouse_server: Any, encoding: str, wait: str) -> None:
    """An answer is compressed as the client accepts, if it also asks for compression."""
    url = clickhouse_server.url
    query = f"{url}/?wait_end_of_query={wait}&enable_http_compression="
    accept = ("-H", f"Accept-Encoding: {encoding}", "-d", "SELECT * FROM numbers(300000)")
    plain = "".join(f"{at}\n" for at in range(300_000))
    assert curl("--compressed", query + "1", *accept) == plain
    assert f"content-encoding: {encoding}" in curl(
        "-o", "/dev/null", "-D", "-", query + "1", *accept
    )
    assert curl(query + "0", *accept) == plain


def test_formats_by_clause_header_and_url(clickhouse_server: Any) -> None:
    """FORMAT in the query wins over X-ClickHouse-Format, and that over default_format."""
    url = clickhouse_server.url

    def formats(query: str, **options: Any) -> tuple[str, str]:
        answer = httpx.post(url, content=query, **options)
        return answer.headers["X-ClickHouse-Format"], answer.headers["Content-Type"].split(";")[0]

    header = {"X-ClickHouse-Format": "JSON"}
    param = {"default_format": "CSV"}
    assert formats("SELECT 1") == ("TabSeparated", "text/tab-separated-values")
    assert formats("SELECT 1", params=param) == ("CSV", "text/csv")
    assert formats("SELECT 1", params=param, headers=header) == ("JSON", "application/json")
    assert formats("SELECT 1 FORMAT Native", params=param, headers=header) == (
        "Native",
        "application/octet-stream",
    )
    assert formats("SHOW TABLES FORMAT JSONEachRow") == ("JSONEachRow", "application/x-ndjson")


def test_headers_of_an_answer(clickhouse_server: Any) -> None:
    """The query's id, the time zone, the server's name and true figures."""
    answer = httpx.post(
        clickhouse_server.url,
        params={"query_id": "my-own-id", "session_timezone": "Asia/Tokyo"},
        content="SELECT count() FROM numbers(1000) WHERE number % 2 = 0",
    )
    assert answer.headers["X-ClickHouse-Query-Id"] == "my-own-id"
    assert answer.headers["X-ClickHouse-Timezone"] == "Asia/Tokyo"
    assert answer.headers["X-ClickHouse-Server-Display-Name"]
    summary = json.loads(answer.headers["X-ClickHouse-Summary"])
    assert (summary["read_rows"], summary["result_rows"]) == ("1000", "1")


@pytest.mark.parametrize(
    ("query", "params", "status", "code"),
    [
        ("SELECT * FROM no_such_table", {}, 404, "60"),
        ("SELEC 1", {}, 400, "62"),
        ("SELECT 1; SELECT 2", {}, 400, "62"),
        ("SELECT 1 WHERE x =", {}, 400, "62"),
        ("", {}, 400, "62"),
        ("SELECT 1", {"no_such_setting": "1"}, 404, "115"),
        ("SELECT 1", {"max_threads = 1; --": "1"}, 404, "115"),
        ("SELECT 1", {"database": "nowhere"}, 404, "81"),
        ("SELECT 1 FORMAT NoSuchFormat", {}, 404, "73"),
        ("SELECT {x:Int8}", {}, 500, "456"),
        ("SELECT toInt8('x')", {}, 400, "6"),
        ("SELECT sleep(3)", {"max_execution_time": "1"}, 408, "159"),
        ("SELECT throwIf(1)", {}, 500, "395"),
        ("SELECT 1", {"compress": "1"}, 501, "48"),
    ],
)
def test_errors_have_code_text_and_status(
    clickhouse_server: Any, query: str, params: dict[str, str], status: int, code: str
) -> None:
    """As a server answers them, with wait_end_of_query and without."""
    for wait in ("0", "1"):
        answer = clickhouse_server.post(query, **params, wait_end_of_query=wait)
        assert answer.headers["X-ClickHouse-Exception-Code"] == code
        assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
        assert answer.text.rstrip().endswith(f"(version {_version(clickhouse_server)})")
        assert answer.status_code == status


def _version(server: Any) -> str:
    version: str = server.rows("SELECT version()")[0][0]
    return version


def test_get_may_only_read(clickhouse_server: Any, clickhouse_table: str) -> None:
    """A GET cannot change data; a SELECT with settings is fine."""
    url = clickhouse_server.url
    insert = httpx.get(url, params={"query": f"INSERT INTO {clickhouse_table} VALUES (1, 'a')"})
    assert insert.headers["X-ClickHouse-Exception-Code"] == "164"
    drop = httpx.get(url, params={"query": f"DROP TABLE {clickhouse_table}"})
    assert drop.headers["X-ClickHouse-Exception-Code"] == "164"
    select = httpx.get(
        url, params={"query": f"SELECT count() FROM {clickhouse_table}", "max_threads": 1}
    )
    assert select.text == "0\n"


def test_nothing_of_a_request_is_left_for_the_next(clickhouse_server: Any) -> None:
    """Settings, parameters, the database and SET are gone with their request, or its error."""
    ask = "SELECT getSetting('max_block_size'), currentDatabase()"
    before = clickhouse_server.rows(ask)
    own = {"max_block_size": "123", "database": "system", "param_x": "1"}
    assert clickhouse_server.rows(ask, **own) == [["123", "system"]]
    assert clickhouse_server.post("SELECT throwIf(1)", **own).status_code == 500
    assert clickhouse_server.post("SET max_block_size = 77").status_code == 200
    assert clickhouse_server.post("USE system").status_code == 200
    assert clickhouse_server.rows(ask) == before
    assert clickhouse_server.post("SELECT {x:Int8}").status_code == 500


def test_settings_of_the_protocol_are_no_error(clickhouse_server: Any) -> None:
    """What only an HTTP server knows is taken or ignored."""
    assert clickhouse_server.rows(
        "SELECT 1",
        buffer_size="1",
        wait_end_of_query="0",
        http_zlib_compression_level="3",
        send_progress_in_http_headers="1",
        cancel_http_readonly_queries_on_client_close="1",
        quota_key="x",
        session_timeout="10",
        client_protocol_version="54405",
        role="none",
        stacktrace="1",
        decompress="0",
    ) == [["1"]]


def test_log_comment_reaches_defaults(clickhouse_server: Any) -> None:
    """A column's DEFAULT sees the request's log_comment, as text and as JSON."""
    table = "with_run_id"
    clickhouse_server.rows(
        f"CREATE OR REPLACE TABLE {table} (a Int8, c String DEFAULT getSetting('log_comment'), "
        "r String DEFAULT JSONExtractString(getSetting('log_comment'), 'run_id')) "
        "ENGINE = MergeTree ORDER BY a"
    )
    comment = json.dumps({"run_id": "it's run 1"})
    clickhouse_server.rows(f"INSERT INTO {table} (a) FORMAT CSV\n1\n", log_comment=comment)
    assert clickhouse_server.rows(f"SELECT c, r FROM {table} FORMAT TSVRaw") == [
        [comment, "it's run 1"]
    ]
    clickhouse_server.rows(f"DROP TABLE {table} SYNC")


def test_curl_sends_external_tables(clickhouse_server: Any, tmp_path: Any) -> None:
    """A form's file is a table for one query."""
    file = tmp_path / "ids.csv"
    file.write_text("1\n2\n3\n")
    url = f"{clickhouse_server.url}/?query=SELECT+sum(id)+FROM+ids"
    url += "&ids_structure=id+UInt8&ids_format=CSV"
    assert curl("-F", f"ids=@{file}", url) == "6\n"


@pytest.mark.parametrize(
    "fmt", ["Native", "Arrow", "ArrowStream", "Parquet", "ORC", "JSONEachRow", "TSV", "CSV"]
)
def test_a_format_that_goes_out_comes_in(
    clickhouse_server: Any, clickhouse_table: str, fmt: str
) -> None:
    """What a SELECT wrote in a format, an INSERT reads in it."""
    out = clickhouse_server.post(
        f"SELECT number AS a, toString(number) AS s FROM numbers(70000) FORMAT {fmt}"
    ).content
    insert = f"INSERT INTO {clickhouse_table} FORMAT {fmt}\n".encode()
    assert clickhouse_server.post(insert + out).status_code == 200
    assert clickhouse_server.rows(
        f"SELECT count(), sum(a), countIf(s = toString(a)) FROM {clickhouse_table}"
    ) == [["70000", str(sum(range(70000))), "70000"]]


def test_pages_from_elsewhere_are_refused(clickhouse_server: Any) -> None:
    """A browser says which page asks: only pages of this machine may."""
    for origin in ("https://example.com", "null", "http://127.0.0.1.example.com"):
        answer = httpx.post(clickhouse_server.url, content="SELECT 1", headers={"Origin": origin})
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (403, "497")
    for origin in ("http://localhost:3000", "http://127.0.0.1:8000"):
        answer = httpx.post(clickhouse_server.url, content="SELECT 1", headers={"Origin": origin})
        assert answer.text == "1\n"


def test_a_long_query(clickhouse_server: Any) -> None:
    """A list of values of megabytes is a query like another; one without end is refused."""
    values = ",".join(str(at) for at in range(200_000))
    query = f"SELECT count() FROM numbers(100) WHERE number IN ({values})"
    assert clickhouse_server.rows(query, max_query_size=str(16 << 20)) == [["100"]]
    refused = clickhouse_server.post("SELECT '" + "x" * (17 << 20) + "'")
    assert refused.status_code == 413


def test_only_the_user_comes_in(start_clickhouse: Any) -> None:
    """Basic credentials, headers and URL parameters all let the one user in, and nobody else."""
    server = start_clickhouse("--user", "tide", "--password", "s3cret")
    url = server.url + "/?query=SELECT+1"
    right: list[dict[str, Any]] = [
        {"auth": ("tide", "s3cret")},
        {"headers": {"X-ClickHouse-User": "tide", "X-ClickHouse-Key": "s3cret"}},
        {"params": {"query": "SELECT 1", "user": "tide", "password": "s3cret"}},
    ]
    wrong: list[dict[str, Any]] = [
        {},
        {"auth": ("tide", "")},
        {"auth": ("default", "s3cret")},
        {"headers": {"X-ClickHouse-User": "tide", "X-ClickHouse-Key": "S3cret"}},
        {"headers": {"Authorization": "Basic !!!"}},
        {"headers": {"Authorization": "Bearer x"}},
        {"params": {"query": "SELECT 1", "user": "tide"}},
    ]
    for way in right:
        assert httpx.get(url, **way).text == "1\n"
    for way in wrong:
        answer = httpx.get(url, **way)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (403, "516")
    assert httpx.get(server.url + "/ping").text == "Ok.\n"
    with server.client(username="tide", password="s3cret") as client:
        assert client.command("SELECT 1") == 1


def test_names_in_statements_and_headers_are_only_names(clickhouse_server: Any) -> None:
    """A format that is no name is refused before it can become part of anything."""
    for bad in ("CSV\r\nX-Evil: 1", "CSV SETTINGS max_threads = 1", "'"):
        answer = clickhouse_server.post("SELECT 1", default_format=bad)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (404, "73")
        assert "X-Evil" not in answer.headers
