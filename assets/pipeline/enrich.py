"""What Tidemark makes of an event beyond what its client sent: text for text's sake, URL, UTM.

    parsed ─▶ promoted columns, null → ""
           ─▶ current_url ─distinct─▶ without fragment ─▶ base ─distinct─▶ url_host, url_path
                                                        └▶ query ─▶ pairs ─distinct─▶ utm_*

Everything is done once per distinct value (URL, base, authority, `utm_x=y` pair) and spread
over the rows by index, so a chunk costs by what is new in it. Arrow's own kernels do the rest;
only distinct authorities and distinct pairs are seen by Python.

Invariant: a pure function of its input. No clock, no look-up outside the table: the same rows
give the same rows, however they are cut into chunks.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_plus

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.pipeline.columns import PROMOTED

UTM = tuple(name for name in PROMOTED if name.startswith("utm_"))
"""Promoted columns that fall back to the query of `current_url`."""

_HIERARCHICAL = r"(?s)^[A-Za-z][A-Za-z0-9+.\-]*://(?P<authority>[^/]*)(?P<path>.*)$"
# `about:blank`, `mailto:…`; a blank tells prose ("note: see below") from an address.
_OPAQUE = r"^[A-Za-z][A-Za-z0-9+.\-]*:(?P<path>[^\s]+)$"

Indices = npt.NDArray[np.int32]


def enrich(parsed: pa.Table) -> pa.Table:
    """The same rows with `PROMOTED` free of nulls and `DERIVED` added, one chunk a column.

    Needs: `current_url`, the `utm_*` columns and the other promoted ones (text or null).
    Adds: `url_host` (lower case, no port, no user) and `url_path` (as sent, "/" when empty);
    both empty when `current_url` is no absolute URL. An empty `utm_*` takes the parameter of
    that name from the URL's query, percent-decoded; what the client set itself wins.
    """
    rows = parsed.num_rows
    columns = {name: _text(parsed, name, rows) for name in PROMOTED}
    urls = columns["current_url"].dictionary_encode()
    where = urls.indices.to_numpy()
    base, query, asked = _split(urls.dictionary)
    host, path = _host_and_path(base)
    columns["url_host"] = host.take(urls.indices)
    columns["url_path"] = path.take(urls.indices)
    for name, (codes, values) in _utm(query, asked, len(base)).items():
        columns[name] = _fill_empty(columns[name], codes[where], values)

    made = {name: pa.field(name, pa.string(), nullable=False) for name in columns}
    fields = {field.name: field for field in parsed.schema} | made
    arrays = [columns[name] if name in made else parsed[name] for name in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(list(fields.values())))


def _text(table: pa.Table, name: str, rows: int) -> pa.StringArray:
    """A column as one array of text without nulls."""
    column = table.column(name)
    if column.null_count == rows:
        return _empty(rows)
    if column.type != pa.string():
        column = column.cast(pa.string())
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return array.fill_null("") if array.null_count else array


def _empty(rows: int) -> pa.StringArray:
    """That many empty texts: no bytes, and offsets that are all nought."""
    offsets = pa.py_buffer(bytes(4 * (rows + 1)))
    return pa.StringArray.from_buffers(rows, offsets, pa.py_buffer(b""))


def _split(urls: pa.StringArray) -> tuple[pa.StringArray, pa.StringArray, Indices]:
    """Cuts URLs at "#" and "?": every base; the queries; and which URL each query is of."""
    base, _, _ = _cut(urls, "#")
    return _cut(base, "?")


def _cut(texts: pa.StringArray, mark: str) -> tuple[pa.StringArray, pa.StringArray, Indices]:
    """What stands before the first `mark`; what stands after it; and in which texts it stood."""
    pieces = pc.split_pattern(texts, mark, max_splits=1)
    starts = pieces.offsets.to_numpy()
    values = pieces.values
    if len(values) == len(texts):
        return values, values.slice(0, 0), np.empty(0, np.int32)
    cut = np.flatnonzero(np.diff(starts) == 2).astype(np.int32)
    return (
        values.take(pa.array(starts[:-1])),
        values.take(pa.array(starts[cut] + 1)),
        cut,
    )


def _host_and_path(bases: pa.StringArray) -> tuple[pa.StringArray, pa.StringArray]:
    """Host and path of URLs that have neither query nor fragment."""
    distinct = bases.dictionary_encode()
    known = distinct.dictionary
    parts = pc.extract_regex(known, pattern=_HIERARCHICAL)
    authority, path = _group(parts, "authority"), _group(parts, "path")
    if parts.null_count:
        path = pc.coalesce(path, _group(pc.extract_regex(known, pattern=_OPAQUE), "path"), "")
        authority = authority.fill_null("")
    authorities = authority.dictionary_encode()
    hosts = pa.array([_host(each) for each in authorities.dictionary.to_pylist()], pa.string())
    host = hosts.take(authorities.indices)
    path = pc.if_else(pc.and_(pc.equal(path, ""), pc.not_equal(host, "")), "/", path)
    return host.take(distinct.indices), path.take(distinct.indices)


def _group(matches: pa.StructArray, name: str) -> pa.StringArray:
    """One group of a pattern; null, not empty, where the pattern did not match."""
    return pc.struct_field(matches, name)


def _host(authority: str) -> str:
    """`user:secret@Host:8443` → `host`; an IPv6 address keeps its brackets."""
    host = authority.rpartition("@")[2].lower()
    if host.startswith("["):
        inside, bracket, _ = host.partition("]")
        return inside + bracket
    name, colon, port = host.rpartition(":")
    return name if colon and (not port or port.isdecimal()) else host


def _utm(
    queries: pa.StringArray, asked: Indices, urls: int
) -> dict[str, tuple[Indices, pa.StringArray]]:
    """Column → for each of `urls` the place of its value (-1: none), and the distinct values.

    A parameter that stands twice counts the first time. Only columns that some query names.
    """
    marked = np.flatnonzero(pc.match_substring(queries, "utm_").to_numpy(zero_copy_only=False))
    if not len(marked):
        return {}
    pieces = pc.split_pattern(queries.take(pa.array(marked)), "&")
    of_url = np.repeat(asked[marked], np.diff(pieces.offsets.to_numpy()))
    ours = pc.starts_with(pieces.values, "utm_").to_numpy(zero_copy_only=False)
    pairs = pieces.values.filter(pa.array(ours)).dictionary_encode()
    # Backwards, so that of two assignments to one place the first parameter's stays.
    of_url = of_url[ours][::-1]
    code = pairs.indices.to_numpy()[::-1]

    names, values = [], []
    for pair in pairs.dictionary.to_pylist():
        name, _, value = pair.partition("=")
        names.append(UTM.index(name) if name in UTM else -1)
        values.append(unquote_plus(value, errors="replace"))
    column_of_pair = np.array(names, np.int8)
    decoded = pa.array(values, pa.string())

    found: dict[str, tuple[Indices, pa.StringArray]] = {}
    for number in np.unique(column_of_pair[column_of_pair >= 0]):
        mine = column_of_pair[code] == number
        codes = np.full(urls, -1, np.int32)
        codes[of_url[mine]] = code[mine]
        found[UTM[number]] = (codes, decoded)
    return found


def _fill_empty(column: pa.StringArray, codes: Indices, values: pa.StringArray) -> Any:
    """`column`, its empty places filled with `values[codes]` where a code is not -1."""
    offered = values.take(pa.array(codes, mask=codes < 0)).fill_null("")
    if pc.max(pc.binary_length(column)).as_py() == 0:
        return offered
    return pc.if_else(pc.equal(column, ""), offered, column)
