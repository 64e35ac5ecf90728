"""Parse: the values of a chunk become typed columns.

    values ─shape?─┬─ heads ──────▶ all at once, by Arrow's CSV reader ──▶ HEAD
              │    └─ properties ─▶ as they are ─────────────────────────▶ text of `properties`
              │            └──────▶ many at once, by msgspec ────────────▶ PROMOTED
              └──▶ what has another shape, or is refused there:
                     one by one, field by field ──▶ the same columns, or a rejection

A head of the usual shape is a line of CSV as well as of JSON. Which way a value goes, and so what
it gives, hangs on that value alone, never on its neighbours. Records of layout 1 are read one by
one.
"""

from __future__ import annotations

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
from assets.pipeline.record_head import BROKEN, is_two_lines, take_apart
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

# The head of a value of the usual shape, and the brace behind it: what both JSON and CSV take for
# the same fields, and no other: of the escapes, those that mean the same in both; whole numbers
# that fit. What has another (a tab in a name, say) is read alone.
_TEXT = r'"(?:[^"\\\x00-\x1f]|\\["\\])*"'
_NUMBER = r"(?:0|-?[1-9][0-9]{0,17})"
_FIELDS = ",".join(
    f"(?:null|{_TEXT if field.type == pa.string() else _NUMBER})" for field in list(HEAD)[1:]
)
_SHAPE = rf"^\[{RECORD_VERSION},{_FIELDS}\]\n\{{"
_BREAK = b"\n"

_CSV_FORM = pv.ParseOptions(double_quote=False, escape_char="\\", ignore_empty_lines=False)
_CSV_TYPES = pv.ConvertOptions(
    column_types=HEAD,
    null_values=["null"],
    strings_can_be_null=True,
    quoted_strings_can_be_null=False,
    check_utf8=False,
)

_TRIED_ALONE = 4
_PARTS = 16
"""Texts that are too few to be parsed in parts, where one of them is broken; and how many parts."""

# What the edge writes in place of an event that is too large for a record says so in `refused`.
_TOO_LARGE = f'"{TOO_LARGE}"'.encode()

_NULL = msgspec.Raw(b"null")
_INT64 = range(-(1 << 63), 1 << 63)

Mask = npt.NDArray[np.bool_]
_Promoted = tuple[str | None, ...]


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
    texts = _as_text(values)
    good = _of_usual_shape(texts)
    columns, read = _read_together(texts, good)
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


def _as_text(values: pa.BinaryArray) -> pa.StringArray:
    """The values as text; those that are no UTF-8 are empty."""
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        is_text = pa.array([_is_utf8(value) for value in values.to_pylist()])
        return pc.if_else(is_text, values, b"").cast(pa.string())


def _of_usual_shape(texts: pa.StringArray) -> Mask:
    """Which values have a head of the usual shape, and properties that may be an object."""
    return _mask(pc.and_(pc.match_substring_regex(texts, _SHAPE), pc.ends_with(texts, "}")))


def _read_together(texts: pa.StringArray, shaped: Mask) -> tuple[pa.Table, Mask]:
    """The rows of the values of the usual shape whose properties are JSON; which of them these are.

    `shaped` says which of the values have that shape.
    """
    if not shaped.any():
        return PARSED.empty_table(), np.ones(0, bool)
    lines = pc.split_pattern(texts, _BREAK.decode(), max_splits=1)
    first = lines.offsets.to_numpy()[:-1][shaped]
    heads, properties = (lines.values.take(pa.array(at)) for at in (first, first + 1))
    promoted, read = _read_promoted(properties)
    columns = pa.table([*_read_heads(heads).columns, properties, *promoted], schema=PARSED)
    return (columns if read.all() else columns.filter(pa.array(read))), read


def _read_heads(heads: pa.StringArray) -> pa.Table:
    """A row of HEAD for each head."""
    text = _joined(pc.binary_slice(heads.cast(pa.binary()), 1, -1))
    options = pv.ReadOptions(use_threads=False, column_names=HEAD.names, block_size=text.size + 1)
    table = pv.read_csv(pa.BufferReader(text), options, _CSV_FORM, _CSV_TYPES)
    assert len(table) == len(heads), "a head of the usual shape is one line of CSV"
    return table


def promoted_again(properties: pa.StringArray) -> tuple[pa.Table, Mask]:
    """The promoted properties of texts that were parsed before; which of them can be today.

    Of those that cannot be, all are null.
    """
    shaped = _mask(pc.and_(pc.starts_with(properties, "{"), pc.ends_with(properties, "}")))
    if shaped.all():
        columns, read = _read_promoted(properties)
        return pa.table(columns, names=list(PROMOTED)), read
    rows = [_promoted_or_none(text.encode()) for text in properties.to_pylist()]
    return pa.table(_promoted_columns(rows), names=list(PROMOTED)), _are_read(rows)


def _read_promoted(properties: pa.StringArray) -> tuple[list[pa.Array], Mask]:
    """The promoted properties of each text, nulls for what is no JSON; and which these are not."""
    rows = _promoted_rows(properties)
    return _promoted_columns(rows), _are_read(rows)


def _promoted_columns(rows: Sequence[_Promoted | None]) -> list[pa.Array]:
    if None in rows:
        none = (None,) * len(PROMOTED)
        rows = [row or none for row in rows]
    return [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]


def _are_read(rows: Sequence[_Promoted | None]) -> Mask:
    return np.array([row is not None for row in rows])


def _promoted_rows(properties: pa.StringArray) -> list[_Promoted | None]:
    """The promoted properties of each text, None for what is no JSON: in parts, if one is broken.

    Every text begins with a brace and ends with one. No string may hold a line break, and behind
    a text's last brace the next text's first is an error within an object: so no text swallows
    its neighbour, each is an object at least, and as many objects as texts mean one of each.
    """
    try:
        found = _promoted_text.decode_lines(_joined(properties.cast(pa.binary())))
    except BROKEN:
        found = []
    if len(found) == len(properties):
        return [astuple(each) for each in found]
    if len(properties) <= _TRIED_ALONE:
        return [_promoted_or_none(text.encode()) for text in properties.to_pylist()]
    size = -(-len(properties) // _PARTS)
    parts = (properties.slice(at, size) for at in range(0, len(properties), size))
    return [row for part in parts for row in _promoted_rows(part)]


def _promoted_or_none(properties: bytes) -> _Promoted | None:
    try:
        return _promoted_texts(properties)
    except BROKEN:
        return None


def _promoted_texts(properties: bytes) -> _Promoted:
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
    try:
        fields, properties = take_apart(value)
    except msgspec.ValidationError as error:
        return Rejection(Reason.NOT_AN_OBJECT, str(error))
    except BROKEN as error:
        return Rejection(Reason.NOT_JSON, str(error))
    if is_two_lines(value):
        if bytes(fields.get("v", b"")) != b"%d" % RECORD_VERSION:
            return Rejection(Reason.UNKNOWN_VERSION, f"it begins with {value[:20]!r}")
        if len(fields) < len(HEAD):
            return Rejection(Reason.MISSING_FIELD, f"a head of {len(fields)} fields")
    elif bytes(fields.get("refused", b"")) == _TOO_LARGE:
        size = bytes(fields.get("bytes", b"null")).decode()[:20]
        return Rejection(Reason.TOO_LARGE, f"an event of {size} bytes")

    row: list[Any] = []
    for field in HEAD:
        try:
            row.append(_decoders[field.type].decode(fields.get(field.name, _NULL)))
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
_promoted_text: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_PromotedText)
_promoted_raw: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_PromotedRaw)
_text = msgspec.json.Decoder(str)
_decoders: dict[pa.DataType, msgspec.json.Decoder[Any]] = {
    pa.int64(): msgspec.json.Decoder(int | None),
    pa.string(): msgspec.json.Decoder(str | None),
}
_promoted_of = attrgetter(*PROMOTED)
