"""Where a query is cut: INSERT heads, FORMAT clauses, strings and comments."""

import pytest

from local_stack.clickhouse import statement
from local_stack.clickhouse.errors import ClickHouseError, from_engine
from local_stack.clickhouse.lexer import tokens
from local_stack.clickhouse.statement import Other, Rows


@pytest.mark.parametrize(
    ("text", "rendered", "data"),
    [
        (
            b"INSERT INTO t FORMAT CSV\n1,2",
            b"INSERT INTO t<IN> FORMAT CSV",
            b"1,2",
        ),
        (
            b'insert into db.`t x` (a, `b)`) format JSONEachRow {"a": 1}',
            b"insert into db.`t x` (a, `b)`)<IN> FORMAT JSONEachRow",
            b'{"a": 1}',
        ),
        (
            b"INSERT INTO t (a) SETTINGS x = 1, schema = 'FORMAT' VALUES (1), (2)",
            b"INSERT INTO t (a)<IN>SETTINGS x = 1, schema = 'FORMAT' FORMAT Values",
            b" (1), (2)",
        ),
        (
            b"/* FORMAT x */ INSERT -- VALUES\n INTO t FORMAT  TSV \r\n\n1",
            b"/* FORMAT x */ INSERT -- VALUES\n INTO t<IN> FORMAT TSV",
            b"\n1",
        ),
        (
            b"INSERT INTO values FORMAT Native\n\x00'\xff(",
            b"INSERT INTO values<IN> FORMAT Native",
            b"\x00'\xff(",
        ),
        (
            b"INSERT INTO TABLE FUNCTION file('a FORMAT b', 'CSV') VALUES (1)",
            b"INSERT INTO TABLE FUNCTION file('a FORMAT b', 'CSV')<IN> FORMAT Values",
            b" (1)",
        ),
        (
            b"INSERT INTO db.format (* EXCEPT(values)) FORMAT Parquet PAR1",
            b"INSERT INTO db.format (* EXCEPT(values)) FROM INFILE 'f' COMPRESSION 'none'"
            b"  FORMAT Parquet",
            b"PAR1",
        ),
        (
            b"INSERT INTO {t:Identifier} VALUES (1)",
            b"INSERT INTO {t:Identifier}<IN> FORMAT Values",
            b" (1)",
        ),
        (
            b"INSERT INTO t SELECT x FROM input('x Int8') FORMAT CSV\n1",
            b"INSERT INTO t SELECT x FROM file('f', 'CSV', 'x Int8', 'none') ",
            b"1",
        ),
    ],
)
def test_an_insert_is_cut_where_its_data_begin(text: bytes, rendered: bytes, data: bytes) -> None:
    """The head becomes a load of a file, and the data are every byte behind it."""
    load = statement.load(text)
    assert load is not None
    infile = b" FROM INFILE 'f' COMPRESSION 'none' "
    assert load.render("f") == rendered.replace(b"<IN>", infile)
    assert text[load.data_at :] == data


@pytest.mark.parametrize(
    "text",
    [
        b"INSERT INTO t SELECT 'FORMAT', 'VALUES'",
        b"INSERT INTO t WITH 1 AS x SELECT x",
        b"INSERT INTO t (a) SELECT a FROM u SETTINGS max_threads = 1",
        b"INSERT INTO t",
        b"INSERT INTO t (a, b",
        b"INSERT INTO t FORMAT",
        b"SELECT 1 FORMAT CSV",
        b"",
        b"-- INSERT INTO t VALUES (1)",
    ],
)
def test_what_brings_no_data_is_no_load(text: bytes) -> None:
    """INSERT ... SELECT, unfinished heads and other statements are left to the engine."""
    assert statement.load(text) is None


@pytest.mark.parametrize(
    ("text", "fmt", "rendered"),
    [
        (b"SELECT 1", None, b"SELECT 1{} FORMAT TSV "),
        (b"SELECT 1 FORMAT JSON;", "JSON", b"SELECT 1 {} FORMAT JSON "),
        (b"select 1 format JSON settings a=1", "JSON", b"select 1 {} FORMAT JSON  settings a=1"),
        (b"SELECT 1 SETTINGS a=1", None, b"SELECT 1 SETTINGS a=1{} FORMAT TSV "),
        (b"SELECT 'x FORMAT JSON' -- FORMAT CSV", None, b"SELECT 'x FORMAT JSON'{} FORMAT TSV "),
        (
            b"SELECT format('{}', 1) AS format",
            None,
            b"SELECT format('{}', 1) AS format{} FORMAT TSV ",
        ),
        (
            b"(SELECT 1) UNION ALL (SELECT 2) FORMAT CSV",
            "CSV",
            b"(SELECT 1) UNION ALL (SELECT 2) {} FORMAT CSV ",
        ),
        (b"WITH 1 AS x SELECT x FORMAT `CSV`", "CSV", b"WITH 1 AS x SELECT x {} FORMAT CSV "),
        (
            b"SELECT 'it''s \\' -- ', \"a--b\" FORMAT CSV",
            "CSV",
            b"SELECT 'it''s \\' -- ', \"a--b\" {} FORMAT CSV ",
        ),
        (b"SELECT $x$ ' FORMAT CSV $x$", None, b"SELECT $x$ ' FORMAT CSV $x${} FORMAT TSV "),
        (b"FROM t SELECT a /* FORMAT CSV", None, b"FROM t SELECT a{} FORMAT TSV "),
    ],
)
def test_the_format_clause_of_a_select(text: bytes, fmt: str | None, rendered: bytes) -> None:
    """Only a FORMAT at the end of the outermost query is one; the outfile goes before it."""
    rows = statement.parse(text)
    assert isinstance(rows, Rows)
    assert rows.format == fmt
    out, _ = rows.render("p", "none", "TSV")
    assert out == rendered.replace(
        b"{} FORMAT", b"\nINTO OUTFILE 'p' TRUNCATE COMPRESSION 'none' FORMAT"
    )


@pytest.mark.parametrize(
    ("text", "reads", "changes_session"),
    [
        (b"SHOW TABLES FORMAT JSON", True, False),
        (b"SET max_threads = 1;", True, True),
        (b"USE db", True, True),
        (b"CREATE TEMPORARY TABLE t (a Int8)", False, True),
        (b"CREATE TABLE t (a Int8) ENGINE = Memory", False, False),
        (b"WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", False, False),
        (b"INSERT INTO t SELECT 1", False, False),
        (b"EXPLAIN SELECT 1", True, False),
    ],
)
def test_other_statements(text: bytes, reads: bool, changes_session: bool) -> None:
    """What else a statement does is told from its first words."""
    other = statement.parse(text)
    assert isinstance(other, Other)
    assert (other.reads, other.changes_session) == (reads, changes_session)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", 62),
        (b" ; -- nothing", 62),
        (b"SELECT 1; SELECT 2", 62),
        (b"SELECT 1 INTO OUTFILE 'x' FORMAT CSV", 48),
    ],
)
def test_what_is_refused(text: bytes, code: int) -> None:
    """Empty queries, several at once, and files on the server's side."""
    with pytest.raises(ClickHouseError) as refused:
        statement.parse(text)
    assert refused.value.code == code


def test_every_byte_is_in_at_most_one_token() -> None:
    """Tokens are in order and do not overlap, also over broken text."""
    text = b'SELECT \'open, `x` /* y */ \xff\x00 "z" $a$ b'
    end = 0
    for token in tokens(text):
        assert token.start >= end
        assert text[token.start : token.end] == token.text
        end = token.end


@pytest.mark.parametrize(
    ("text", "code", "name", "message"),
    [
        (
            "Code: 60. DB::Exception: No table x. (UNKNOWN_TABLE)",
            60,
            "UNKNOWN_TABLE",
            "No table x.",
        ),
        (
            "Code: 27. DB::Exception: Code: 27. DB::Exception: Bad (at row 1). "
            "(CANNOT_PARSE_INPUT_ASSERTION_FAILED) (version 26.9.2.1). "
            "(CANNOT_PARSE_INPUT_ASSERTION_FAILED)",
            27,
            "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
            "Bad (at row 1).",
        ),
        ("something else", 1002, "UNKNOWN_EXCEPTION", "something else"),
    ],
)
def test_an_engines_message_is_read(text: str, code: int, name: str, message: str) -> None:
    """Code and name come out of the text, wrappers do not stay in it."""
    error = from_engine(text)
    assert (error.code, error.name, error.message) == (code, name, message)


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT a FROM t ORDER BY format DESC",
        b"SELECT a FROM t ORDER BY a, format desc",
        b"SELECT a FROM t GROUP BY format SETTINGS max_threads = 1",
        b"SELECT a FROM format final",
        b"SELECT t.format alias",
    ],
)
def test_a_column_called_format_begins_no_clause(text: bytes) -> None:
    """Where a name is due, FORMAT is one, and the query stays whole."""
    assert statement.parse(text) == Rows(text, b"", None)


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT * FORMAT CSV",
        b"SELECT 1 AS by FORMAT CSV",
        b"SELECT a FROM t ORDER BY a DESC FORMAT CSV",
        b"SELECT a FROM t FINAL FORMAT CSV",
    ],
)
def test_a_format_clause_is_found_behind_a_whole_query(text: bytes) -> None:
    """After what may end a query, FORMAT is the clause."""
    parsed = statement.parse(text)
    assert isinstance(parsed, Rows)
    assert (parsed.before, parsed.format) == (text.removesuffix(b"FORMAT CSV"), "CSV")
