"""Tables that come with a query, as parts of a multipart form.

    form on disk ──▶ read_form() ──▶ values: the query, its parameters
                             └─▶ files  ──▶ create(): a temporary table of the query's connection

The form is spooled as it is sent and read through a memory map, so a table may be larger than
memory.
"""

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from local_stack.clickhouse.errors import ClickHouseError
from local_stack.clickhouse.lexer import tokens
from local_stack.clickhouse.request import format_name
from local_stack.clickhouse.spool import MakeFile
from local_stack.clickhouse.statement import quote, quote_name

_BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)
_FIELD = re.compile(r'(?:^|[;\s])(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Form:
    """What a form holds: plain values, and files by the name of their table."""

    values: Mapping[str, str]
    files: Mapping[str, Path]


def read_form(content_type: str, body: Path, make: MakeFile) -> Form:
    """Take a form apart; each of its files becomes a file of its own."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise ClickHouseError(36, "BAD_ARGUMENTS", "multipart/form-data without a boundary")
    values: dict[str, str] = {}
    files: dict[str, Path] = {}
    if body.stat().st_size == 0:
        return Form(values, files)
    with body.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for fields, start, end in _parts(view, found.group(1).strip().encode()):
            name = fields.get("name", "")
            if "filename" not in fields:
                values[name] = view[start:end].decode("utf-8", "surrogateescape")
                continue
            file, path = make()
            raw.seek(start)
            while start < end:
                piece = raw.read(min(_COPY_BYTES, end - start))
                file.write(piece)
                start += len(piece)
            file.close()
            files[name] = path
    return Form(values, files)


def create(form: Form, described: Mapping[str, str]) -> tuple[bytes, ...]:
    """The statements that make the form's files temporary tables, as the URL describes them."""
    statements = []
    for name, path in form.files.items():
        structure = described.get(f"{name}_structure") or _numbered(
            described.get(f"{name}_types", "")
        )
        if not structure:
            raise ClickHouseError(
                36,
                "BAD_ARGUMENTS",
                f"The external table {name} needs {name}_structure or {name}_types in the URL",
            )
        fmt = format_name(described.get(f"{name}_format", "")) or "TabSeparated"
        table = quote_name(name)
        statements.append(f"CREATE TEMPORARY TABLE {table} ({structure})".encode())
        source = f"FROM INFILE {quote(str(path))} COMPRESSION 'none'"
        statements.append(f"INSERT INTO {table} {source} FORMAT {fmt}".encode())
    return tuple(statements)


def drop(form: Form) -> tuple[bytes, ...]:
    """The statements that take them away again from a connection that outlives the query."""
    names = (quote_name(name) for name in form.files)
    return tuple(f"DROP TEMPORARY TABLE IF EXISTS {name}".encode() for name in names)


def _parts(view: mmap.mmap, boundary: bytes) -> Iterator[tuple[dict[str, str], int, int]]:
    """Each part: the fields of its Content-Disposition, and where its content begins and ends."""
    line = b"--" + boundary
    at = view.find(line)
    while at >= 0:
        head = at + len(line)
        if view[head : head + 2] == b"--":
            return
        start = view.find(b"\r\n\r\n", head)
        end = view.find(b"\r\n" + line, start + 2)
        if start < 0 or end < 0:
            raise ClickHouseError(
                36, "BAD_ARGUMENTS", "the multipart form ends before its last boundary"
            )
        header = view[head:start].decode("utf-8", "surrogateescape")
        yield (
            {key.lower(): value for key, value in _FIELD.findall(header)},
            min(start + 4, end),
            end,
        )
        at = end + 2


def _numbered(types: str) -> str:
    """`Int8,String` as a structure: `_1 Int8, _2 String`."""
    text = types.encode()
    cuts = [token.start for token in tokens(text) if token.depth == 0 and token.is_mark(b",")]
    edges = [-1, *cuts, len(text)]
    pieces = [text[a + 1 : b].decode().strip() for a, b in pairwise(edges)]
    return ", ".join(f"_{at} {piece}" for at, piece in enumerate(pieces, 1) if piece)
