"""What a query is, and where it has to be cut: nothing is rewritten that does not have to be.

    text ──▶ load()  INSERT with data behind it: the head, the format, and where the data begins
         └─▶ parse() everything else: rows (SELECT) or other; the FORMAT clause

A Load becomes `INSERT ... FROM INFILE '<file>' ... FORMAT X`, a Rows becomes `SELECT ... INTO
OUTFILE '<pipe>' FORMAT X`. Syntax is the engine's to judge: what is not understood here is passed
on as it is.
"""

from dataclasses import dataclass

from local_stack.clickhouse.errors import ClickHouseError
from local_stack.clickhouse.lexer import Kind, Token, tokens

# Statements that change nothing but, with SET and USE, their own session.
_READING = (b"CHECK", b"DESC", b"DESCRIBE", b"EXISTS", b"EXPLAIN", b"SET", b"SHOW", b"USE")

# Beside these, FORMAT is the name of a column or a table: ORDER BY format DESC.
_BEFORE_A_NAME = (
    *(b"AND", b"AS", b"BETWEEN", b"BY", b"DISTINCT", b"EXCEPT", b"FROM", b"HAVING", b"ILIKE"),
    *(b"IN", b"JOIN", b"LIKE", b"NOT", b"ON", b"OR", b"PREWHERE", b"SELECT", b"THEN", b"USING"),
    *(b"WHEN", b"WHERE"),
)
_AFTER_A_NAME = (b"ASC", b"ASCENDING", b"DESC", b"DESCENDING", b"FINAL")


@dataclass(frozen=True)
class Load:
    """An INSERT whose data come with the request, from `data_at` of the parsed text on."""

    before: bytes
    after: bytes
    format: str
    data_at: int
    structure: bytes | None = None

    def render(self, path: str, compression: str = "none") -> bytes:
        """The statement that loads this file."""
        if self.structure is not None:
            source = f"file({quote(path)}, {quote(self.format)}, ".encode() + self.structure
            return self.before + source + f", {quote(compression)})".encode() + self.after
        source = f" FROM INFILE {quote(path)} COMPRESSION {quote(compression)} ".encode()
        return self.before + source + self.after + f" FORMAT {self.format}".encode()


@dataclass(frozen=True)
class Rows:
    """A query whose rows can leave the engine through a file."""

    before: bytes
    after: bytes
    format: str | None

    def render(self, path: str, compression: str, fallback: str) -> tuple[bytes, bytes]:
        """The statement that writes its rows there, and the clause that was added to it."""
        # On a line of its own: the query may end in a comment.
        clause = f"\nINTO OUTFILE {quote(path)} TRUNCATE COMPRESSION {quote(compression)}".encode()
        clause += f" FORMAT {self.format or fallback}".encode()
        return self.before + clause + b" " + self.after, clause


@dataclass(frozen=True)
class Other:
    """Any other statement: DDL, SET, SHOW, INSERT ... SELECT."""

    text: bytes
    format: str | None
    reads: bool
    changes_session: bool


def quote(text: str) -> str:
    """A string literal of SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def quote_name(name: str) -> str:
    """An identifier of SQL."""
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def is_insert(text: bytes) -> bool:
    """Whether the text begins as an INSERT does."""
    first = next(tokens(text), None)
    return first is not None and first.is_word(b"INSERT")


def load(text: bytes) -> Load | None:
    """The INSERT at the head of the text, if it is one that expects data and its head is whole."""
    found = _target(text)
    if found is None:
        return None
    cut, keyword = found
    if keyword.is_word(b"VALUES"):
        return Load(text[:cut], _between(text, cut, keyword), "Values", keyword.end)
    if keyword.is_word(b"FORMAT"):
        name = next(tokens(text, keyword.end), None)
        if name is None or name.kind not in (Kind.WORD, Kind.QUOTED):
            return None
        data_at = _data_start(text, name.end)
        return Load(text[:cut], _between(text, cut, keyword), _name(name), data_at)
    if keyword.is_word(b"SELECT", b"WITH"):
        return _input(text, keyword)
    return None


def parse(text: bytes) -> Rows | Other:
    """What a whole text is that is no INSERT with data."""
    # Only the outermost level is kept: long lists of values stand in brackets, and tell nothing.
    opening: Token | None = None
    parts = []
    for token in tokens(text):
        if opening is None and not token.is_mark(b"("):
            opening = token
        if token.depth == 0:
            parts.append(token)
    while parts and parts[-1].is_mark(b";"):
        parts.pop()
    if not parts or opening is None:
        raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error: Empty query")
    if any(token.is_mark(b";") for token in parts):
        raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error (Multi-statements are not allowed)")
    end = parts[-1].end
    at = _format_clause(parts)
    name = _name(parts[at + 1]) if at is not None else None
    reads = opening.is_word(b"SELECT", b"FROM", b"WITH")
    if reads and not any(token.is_word(b"INSERT") for token in parts):
        _refuse_outfile(parts)
        if at is None:
            return Rows(text[:end], b"", None)
        return Rows(text[: parts[at].start], text[parts[at + 1].end : end], name)
    return Other(text[:end], name, opening.is_word(*_READING), _changes_session(parts))


def _target(text: bytes) -> tuple[int, Token] | None:
    """Where FROM INFILE has to stand in an INSERT, and the keyword before its rows."""
    stream = tokens(text)
    first = next(stream, None)
    if first is None or not first.is_word(b"INSERT"):
        return None
    previous = first
    cut: int | None = None
    for token in stream:
        named = previous.is_mark(b".") or previous.is_word(
            b"INTO", b"TABLE", b"FUNCTION", b"INSERT"
        )
        if named and token.is_word(b"INTO", b"TABLE", b"FUNCTION") and not previous.is_mark(b"."):
            previous = token
            continue
        # A table or a setting's value may be called like a keyword; a name in quotes is never a
        # WORD.
        if token.depth == 0 and not named and not previous.is_mark(b"="):
            if token.is_word(b"SETTINGS"):
                cut = previous.end if cut is None else cut
            elif token.is_word(b"VALUES", b"FORMAT", b"SELECT", b"WITH", b"FROM", b"WATCH"):
                return (previous.end if cut is None else cut), token
        previous = token
    return None


def _input(text: bytes, keyword: Token) -> Load | None:
    """INSERT ... SELECT ... FROM input('structure') FORMAT X: the data are a table to read from."""
    window: list[Token] = []
    source: tuple[int, int, bytes] | None = None
    for token in tokens(text, keyword.start):
        window = [*window[-3:], token]
        if source is None and len(window) == 4 and window[0].is_word(b"INPUT"):
            name, opening, structure, closing = window
            if opening.is_mark(b"(") and structure.kind is Kind.STRING and closing.is_mark(b")"):
                source = (name.start, closing.end, structure.text)
        elif source is not None and token.depth == 0 and len(window) > 1:
            clause = window[-2]
            if clause.is_word(b"FORMAT") and token.kind is Kind.WORD:
                start, end, shape = source
                return Load(
                    before=text[:start],
                    after=text[end : clause.start],
                    format=_name(token),
                    data_at=_data_start(text, token.end),
                    structure=shape,
                )
    return None


def _between(text: bytes, cut: int, keyword: Token) -> bytes:
    """The SETTINGS clause of an INSERT's head, if there is one."""
    return text[cut : keyword.start].strip()


def _data_start(text: bytes, at: int) -> int:
    """Data begin after the line of the format's name, or on it."""
    while at < len(text) and text[at : at + 1] in (b" ", b"\t", b"\f"):
        at += 1
    if text[at : at + 1] == b"\r":
        at += 1
    if text[at : at + 1] == b"\n":
        at += 1
    return at


def _format_clause(parts: list[Token]) -> int | None:
    """Which token of the outermost query begins the FORMAT clause: only SETTINGS may follow it."""
    for at in range(len(parts) - 2, 0, -1):
        if parts[at].is_word(b"FORMAT"):
            if _wants_a_name(parts[:at]) or parts[at + 1].is_word(*_AFTER_A_NAME):
                return None  # a column or a table that is called so
            named = parts[at + 1].kind in (Kind.WORD, Kind.QUOTED)
            last = at + 2 == len(parts) or parts[at + 2].is_word(b"SETTINGS")
            return at if named and last else None
    return None


def _wants_a_name(before: list[Token]) -> bool:
    """Whether a query that was cut here would need a name next: it cannot end so."""
    last = before[-1]
    named = len(before) > 1 and (before[-2].is_word(b"AS") or before[-2].is_mark(b"."))
    if last.kind is Kind.WORD:
        return last.is_word(*_BEFORE_A_NAME) and not named
    return any(last.is_mark(mark) for mark in (b",", b".", b"=", b"<", b">", b"+", b"-", b"/"))


def _refuse_outfile(parts: list[Token]) -> None:
    for at, token in enumerate(parts[:-1]):
        if token.is_word(b"INTO") and parts[at + 1].is_word(b"OUTFILE"):
            raise ClickHouseError(
                48,
                "NOT_IMPLEMENTED",
                "INTO OUTFILE is not allowed over HTTP: write the answer to a file",
            )


def _changes_session(parts: list[Token]) -> bool:
    """Whether the statement leaves something behind that only its own session sees."""
    words = [token.text.upper() for token in parts[:4]]
    return words[0] in (b"SET", b"USE") or b"TEMPORARY" in words


def _name(token: Token) -> str:
    text = token.text.decode("utf-8", "replace")
    return text[1:-1] if token.kind is Kind.QUOTED else text
