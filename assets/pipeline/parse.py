"""Parse: the values of a chunk become typed columns.

    values ─┬─ heads ──────▶ all at once, by Arrow's CSV reader ──▶ HEAD
            └─ properties ─▶ as they are ─────────────────────────▶ text of `properties`
                    └──────▶ all at once, by msgspec ─────────────▶ PROMOTED
            what is of another form, or refused there:
              one by one, field by field ──▶ the same columns, or a rejection

The head of a record is a line of CSV as well as of JSON, but for escapes in its texts that CSV
does not have. Which way a value goes, and so what it gives, hangs on that value alone, never on
its neighbours. Records of layout 1 are read one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
from msgspec.structs import astuple

from assets.pipeline.columns import HEAD, PROMOTED
from assets.pipeline.reasons import Reason, Rejection
from capture_api.events.record import RECORD_VERSION
from capture_api.events.refused import TOO_LARGE

PARSED = pa.schema(
    [
        *HEAD,
        pa.field("properties", pa.string()),
        *(pa.field(column, pa.string()) for column in PROMOTED),
    ]
)
"""What parsing gives: the head, the client's text of `properties`, the promoted properties."""

# How every value begins and ends that our edge writes, and where its head ends.
_OPENING = b'[%d,"' % RECORD_VERSION
_CLOSING = b"}"
_BREAK = b"\n"

_CSV_FORM = pv.ParseOptions(double_quote=False, escape_char="\\", ignore_empty_lines=False)
_CSV_TYPES = pv.ConvertOptions(
    column_types=HEAD,
    null_values=["null"],
    strings_can_be_null=True,
    quoted_strings_can_be_null=False,
)

# What JSON escapes and CSV does not, or what would be two lines of CSV.
_OTHER_ESCAPE = re.compile(rb'\\[^"\\]|\r')
_TEXTS = [field.name for field in HEAD if field.type == pa.string()]
_NO_HEAD = pa.Table.from_pylist([{}], schema=HEAD)

# What the edge writes in place of an event that is too large for a record says so in `refused`.
_TOO_LARGE = f'"{TOO_LARGE}"'.encode()

_INT64 = range(-(1 << 63), 1 << 63)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Parsed:
    """The values that could be parsed, a row of PARSED each, and why the others could not.

    `rows` says which value each row of `columns` is, in ascending order; rejections go by the
    value's number.
    """

    columns: pa.Table
    rows: npt.NDArray[np.int64]
    rejections: dict[int, Rejection]


def parse_values(values: pa.BinaryArray) -> Parsed:
    """Parse record values, none of them null."""
    good = _of_usual_form(values)
    columns, read = _read_together(values if good.all() else values.filter(pa.array(good)))
    good[good] = read
    rows = np.flatnonzero(good)
    if len(rows) == len(values):
        return Parsed(columns, rows, {})
    odd = _read_one_by_one(values, np.flatnonzero(~good))
    if len(odd.rows):
        rows = np.concatenate([rows, odd.rows])
        order = np.argsort(rows)
        columns = pa.concat_tables([columns, odd.columns]).take(pa.array(order))
        rows = rows[order]
    return Parsed(columns, rows, odd.rejections)


def _of_usual_form(values: pa.BinaryArray) -> Mask:
    """Which values begin and end as our edge writes them."""
    return _mask(pc.and_(pc.starts_with(values, _OPENING), pc.ends_with(values, _CLOSING)))


def _read_together(values: pa.BinaryArray) -> tuple[pa.Table, Mask]:
    """The rows of those values of the usual form that can be read so; and which these are."""
    if not len(values):
        return PARSED.empty_table(), np.ones(0, bool)
    pairs = pc.split_pattern(values, _BREAK, max_splits=1)
    lines = pairs.flatten()
    if len(lines) < 2 * len(values):
        return _read_some(values, _mask(pc.equal(pc.list_value_length(pairs), 2)))
    heads = lines.take(pa.array(np.arange(0, len(lines), 2)))
    properties = lines.take(pa.array(np.arange(1, len(lines), 2)))
    shaped = _mask(pc.and_(pc.ends_with(heads, b"]"), pc.starts_with(properties, b"{")))
    if not shaped.all():
        return _read_some(values, shaped)
    head, head_read = _read_heads(pc.binary_slice(heads, 1, -1))
    text, is_text = _as_text(properties)
    promoted, promoted_read = _read_promoted(properties)
    columns = pa.table([*head.columns, text, *promoted], schema=PARSED)
    good = head_read & is_text & promoted_read
    return (columns if good.all() else columns.filter(pa.array(good))), good


def _read_some(values: pa.BinaryArray, some: Mask) -> tuple[pa.Table, Mask]:
    columns, read = _read_together(values.filter(pa.array(some)))
    some[some] = read
    return columns, some


def _read_heads(heads: pa.BinaryArray) -> tuple[pa.Table, Mask]:
    """A row of HEAD for each head, without its brackets; and which are more than nulls."""
    text = _joined(heads).to_pybytes()
    if not (b"\\" in text or b"\r" in text) or not _OTHER_ESCAPE.search(text):
        table = _read_csv(text, len(heads))
        if table is not None:
            return table, np.ones(len(heads), bool)
    alone = [
        None if _OTHER_ESCAPE.search(head) else _read_csv(head, 1) for head in heads.to_pylist()
    ]
    read = np.array([table is not None for table in alone])
    return pa.concat_tables([_NO_HEAD if table is None else table for table in alone]), read


def _read_csv(text: bytes, rows: int) -> pa.Table | None:
    """Lines of CSV as rows of HEAD; None when one of them is no such row."""
    options = pv.ReadOptions(use_threads=False, column_names=HEAD.names, block_size=len(text) + 1)
    try:
        table = pv.read_csv(pa.BufferReader(text), options, _CSV_FORM, _CSV_TYPES)
    except pa.ArrowInvalid:
        return None
    # Texts are in quotes, and nothing else is: CSV does not mind, JSON does.
    quotes = text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text
    texts = sum(rows - table.column(name).null_count for name in _TEXTS)
    return table if len(table) == rows and quotes.count(b'"') == 2 * texts else None


def _as_text(texts: pa.BinaryArray) -> tuple[pa.StringArray, Mask]:
    """The texts as such, null for what is not UTF-8; and which these are not."""
    try:
        return texts.cast(pa.string()), np.ones(len(texts), bool)
    except pa.ArrowInvalid:
        is_text = np.array([_is_utf8(text) for text in texts.to_pylist()])
        return pc.if_else(pa.array(is_text), texts, None).cast(pa.string()), is_text


def _read_promoted(properties: pa.BinaryArray) -> tuple[list[pa.Array], Mask]:
    """The promoted properties of each text, nulls for what is no JSON; and which these are not.

    Every text begins with a brace and ends with one. No string may hold a line break, and behind
    a text's last brace the next text's first is an error within an object: so no text swallows
    its neighbour, each is an object at least, and as many objects as texts mean one of each.
    """
    try:
        found = _promoted_text.decode_lines(_joined(properties))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        found = []
    if len(found) == len(properties):
        rows, read = [astuple(each) for each in found], np.ones(len(properties), bool)
    else:
        alone = [_promoted_or_none(text) for text in properties.to_pylist()]
        rows = [(None,) * len(PROMOTED) if row is None else row for row in alone]
        read = np.array([row is not None for row in alone])
    return [pa.array(column, pa.string()) for column in zip(*rows, strict=True)], read


def _promoted_or_none(properties: bytes) -> tuple[str | None, ...] | None:
    try:
        return _promoted_texts(properties)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _promoted_texts(properties: bytes) -> tuple[str | None, ...]:
    """The promoted properties as text: scalars as the client wrote them, null for the deeper."""
    try:
        return _promoted_of(_promoted_text.decode(properties))
    except msgspec.ValidationError:
        return tuple(_as_written(raw) for raw in _promoted_of(_promoted_raw.decode(properties)))


def _as_written(raw: msgspec.Raw) -> str | None:
    written = bytes(raw).strip()
    if written.startswith(b'"'):
        return _text.decode(written)
    return None if written == b"null" or written[:1] in b"{[" else written.decode()


def _joined(lines: pa.BinaryArray) -> pa.Buffer:
    """All lines in one text, with line breaks between them."""
    whole = pa.ListArray.from_arrays(pa.array([0, len(lines)], pa.int32()), lines)
    return pc.binary_join(whole, _BREAK)[0].as_buffer()


def _mask(truths: pa.BooleanArray) -> Mask:
    return np.array(truths.to_numpy(zero_copy_only=False))


def _read_one_by_one(values: pa.BinaryArray, numbers: npt.NDArray[np.int64]) -> Parsed:
    rows: list[tuple[Any, ...]] = []
    of_value: list[int] = []
    rejections: dict[int, Rejection] = {}
    for number in numbers.tolist():
        outcome = parse_one(values[number].as_py())
        if isinstance(outcome, Rejection):
            rejections[number] = outcome
        else:
            rows.append(outcome)
            of_value.append(number)
    columns = zip(*rows, strict=True) if rows else [()] * len(PARSED)
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, PARSED, strict=True)],
        schema=PARSED,
    )
    return Parsed(table, np.array(of_value, np.int64), rejections)


def parse_one(value: bytes) -> tuple[Any, ...] | Rejection:
    """One value as a row of PARSED, field by field, or why it cannot be one."""
    if not _is_utf8(value):
        return Rejection(Reason.NOT_UTF8, f"{len(value)} bytes")
    head, line_break, rest = value.partition(_BREAK)
    try:
        if line_break and head.lstrip().startswith(b"["):
            fields: Sequence[msgspec.Raw] = _list.decode(head)
            properties = rest.strip()
            if bytes(fields[0] if fields else b"") != b"%d" % RECORD_VERSION:
                return Rejection(Reason.UNKNOWN_VERSION, f"it begins with {value[:20]!r}")
            if len(fields) < len(HEAD):
                return Rejection(Reason.MISSING_FIELD, f"a head of {len(fields)} fields")
        else:
            wire = _layout_1.decode(value)
            fields, properties = _head_of(wire), bytes(wire.properties)
            if bytes(wire.refused) == _TOO_LARGE:
                size = bytes(wire.bytes).decode()[:20]
                return Rejection(Reason.TOO_LARGE, f"an event of {size} bytes")
    except msgspec.ValidationError as error:
        return Rejection(Reason.NOT_AN_OBJECT, str(error))
    except (msgspec.DecodeError, RecursionError) as error:
        return Rejection(Reason.NOT_JSON, str(error))

    row: list[Any] = []
    for field, raw in zip(HEAD, fields, strict=False):
        try:
            row.append(_decoders[field.type].decode(raw))
        except (msgspec.DecodeError, RecursionError):
            return Rejection(Reason.WRONG_TYPE, f"{field.name} is not {field.type}")
        if isinstance(row[-1], int) and row[-1] not in _INT64:
            return Rejection(Reason.NUMBER_OUT_OF_RANGE, f"{field.name} does not fit 64 bits")
    try:
        promoted = _promoted_texts(properties)
    except msgspec.ValidationError:
        return Rejection(Reason.NOT_AN_OBJECT, "properties is not an object")
    except (msgspec.DecodeError, RecursionError) as error:
        return Rejection(Reason.NOT_JSON, f"properties: {error}")
    return (*row, properties.decode(), *promoted)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


_Layout1 = msgspec.defstruct(
    "_Layout1",
    [(name, msgspec.Raw, msgspec.Raw(b"null")) for name in HEAD.names]
    + [
        ("properties", msgspec.Raw, msgspec.Raw(b"{}")),
        ("refused", msgspec.Raw, msgspec.Raw(b"null")),
        ("bytes", msgspec.Raw, msgspec.Raw(b"null")),
    ],
    gc=False,
)
_PromotedText = msgspec.defstruct(
    "_PromotedText",
    [
        (column, str | None, msgspec.field(name=name, default=None))
        for column, name in PROMOTED.items()
    ],
    gc=False,
)
_PromotedRaw = msgspec.defstruct(
    "_PromotedRaw",
    [
        (column, msgspec.Raw, msgspec.field(name=name, default=msgspec.Raw(b"null")))
        for column, name in PROMOTED.items()
    ],
    gc=False,
)
_list = msgspec.json.Decoder(list[msgspec.Raw])
_layout_1: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Layout1)
_promoted_text: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_PromotedText)
_promoted_raw: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_PromotedRaw)
_text = msgspec.json.Decoder(str)
_decoders: dict[pa.DataType, msgspec.json.Decoder[Any]] = {
    pa.int64(): msgspec.json.Decoder(int | None),
    pa.string(): msgspec.json.Decoder(str | None),
}
_head_of = attrgetter(*HEAD.names)
_promoted_of = attrgetter(*PROMOTED)
