"""Parse: the values of a chunk become typed columns.

    values ──all at once, by Arrow's JSON reader──▶ HEAD, text of `properties`, PROMOTED columns
                 │ for one odd value it refuses all
                 ▼
             one by one, by msgspec ──▶ the same columns
                 │ refuses the odd value
                 ▼
             patiently, field by field ──▶ the same columns, or a rejection

Arrow's reader takes the form that our edge writes, without the interpreter's lock, but cannot
skip a row; msgspec costs about the same for each row and can. The patient parser takes what is
fine but unexpected, such as a promoted property that is a number, and names what is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from assets.pipeline.columns import HEAD, PROMOTED
from assets.pipeline.reasons import Reason, Rejection
from capture_api.events.record import PROPERTIES_MARK
from capture_api.events.refused import TOO_LARGE

PARSED = pa.schema(
    [
        *HEAD,
        pa.field("properties", pa.string()),
        *(pa.field(column, pa.string()) for column in PROMOTED),
    ]
)
"""What parsing gives: the head, the client's text of `properties`, the promoted properties."""

_HEAD_OPTIONS = pj.ParseOptions(explicit_schema=HEAD, unexpected_field_behavior="error")
_PROMOTED_OPTIONS = pj.ParseOptions(
    explicit_schema=pa.schema([(name, pa.string()) for name in PROMOTED.values()]),
    unexpected_field_behavior="ignore",
)

# How every value begins and ends that our edge writes.
_OPENING = b'{"v":1,"uuid":"'
_CLOSING = b"}}"

# What Arrow's reader takes for a number and JSON does not; the text begins one character before.
_NOT_A_NUMBER = re.compile(rb"[^\w\"](?:NaN|Inf(?:inity)?)\b")

# What the edge writes in place of an event that is too large for a record says so in `refused`.
_TOO_LARGE = f'"{TOO_LARGE}"'.encode()

_INT64 = range(-(1 << 63), 1 << 63)


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
    # A value that does not even look right need not slow down its neighbours.
    form = pc.and_(pc.starts_with(values, _OPENING), pc.ends_with(values, _CLOSING))
    of_our_form = form.to_numpy(zero_copy_only=False)
    if of_our_form.all():
        together = _read_together(values)
        if together is not None:
            return Parsed(together, np.arange(len(values)), {})
        return _read_one_by_one(values, np.arange(len(values)))
    likely, odd = np.flatnonzero(of_our_form), np.flatnonzero(~of_our_form)
    together = _read_together(values.take(pa.array(likely)))
    if together is None:
        return _read_one_by_one(values, np.arange(len(values)))
    apart = _read_one_by_one(values, odd)
    columns, rows = together, likely
    if len(apart.rows):
        rows = np.concatenate([likely, apart.rows])
        order = np.argsort(rows)
        columns = pa.concat_tables([together, apart.columns]).take(pa.array(order))
        rows = rows[order]
    return Parsed(columns, rows, apart.rejections)


def _read_together(values: pa.BinaryArray) -> pa.Table | None:
    """All rows in one pass; None when some row is not as our edge writes it."""
    if not len(values):
        return PARSED.empty_table()
    try:
        values.cast(pa.string())  # the reader itself does not mind bytes that are not UTF-8
        halves = pc.split_pattern(values, PROPERTIES_MARK, max_splits=1)
        if pc.min(pc.list_value_length(halves)).as_py() != 2:
            return None
        properties = pc.binary_slice(pc.list_element(halves, 1), 0, -1)
        heads = _read_lines(pc.list_element(halves, 0), b"}\n", _HEAD_OPTIONS)
        promoted = _read_lines(properties, b"\n", _PROMOTED_OPTIONS)
    except pa.ArrowInvalid:
        return None
    if heads is None or promoted is None:
        return None
    return pa.table(
        [*heads.select(HEAD.names).columns, properties.cast(pa.string()), *promoted.columns],
        schema=PARSED,
    )


def _read_lines(texts: pa.BinaryArray, end: bytes, options: pj.ParseOptions) -> pa.Table | None:
    """Every text, once `end` is added, as the row of its one JSON object; None when one is not.

    `end` ends with a line break. No string may hold one, and after the text's last brace the
    next text's first is an error within an object: so no text swallows its neighbour, each
    gives a row at least, and as many rows as texts mean one of each.
    """
    lines = pc.binary_join_element_wise(texts, end, b"")
    offsets = np.frombuffer(lines.buffers()[1], np.int32)
    joined = lines.buffers()[2].slice(int(offsets[0]), int(offsets[len(lines)] - offsets[0]))
    if not _is_plain(joined):
        return None
    read = pj.read_json(
        pa.BufferReader(joined),
        read_options=pj.ReadOptions(use_threads=False, block_size=joined.size + 1),
        parse_options=options,
    )
    return read if len(read) == len(texts) else None


def _is_plain(joined: pa.Buffer) -> bool:
    """Whether a text is free of what Arrow's reader takes and JSON does not: NUL, NaN, Infinity."""
    text = np.frombuffer(joined, np.uint8)
    if not text.min(initial=1):
        return False
    for first, second, third in (b"NaN", b"Inf"):
        places = np.flatnonzero(text[:-2] == first)
        places = places[text[places + 1] == second]
        places = places[text[places + 2] == third]
        for place in places.tolist():
            if _NOT_A_NUMBER.match(text[max(place - 1, 0) : place + 9].tobytes()):
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
_TYPES = {pa.int64(): int | None, pa.string(): str | None}
_Record = msgspec.defstruct(
    "_Record",
    [(field.name, _TYPES[field.type], None) for field in HEAD],
    gc=False,
    forbid_unknown_fields=True,
)
_record: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Record)
_promoted_text: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_PromotedText)
_head_of = attrgetter(*HEAD.names)
_promoted_of = attrgetter(*PROMOTED)


def _read_one_by_one(values: pa.BinaryArray, numbers: npt.NDArray[np.int64]) -> Parsed:
    rows: list[tuple[Any, ...]] = []
    of_value: list[int] = []
    rejections: dict[int, Rejection] = {}
    for number in numbers.tolist():
        value = values[number].as_py()
        outcome = _read_as_written(value) or parse_one(value)
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


def _read_as_written(value: bytes) -> tuple[Any, ...] | None:
    """A value of our edge's form as a row of PARSED; None when it is anything else."""
    head, mark, properties = value.partition(PROPERTIES_MARK)
    if not (mark and head.startswith(_OPENING) and value.endswith(_CLOSING)):
        return None
    properties = properties[:-1]
    try:
        record = _record.decode(head + b"}")
        promoted = _promoted_text.decode(properties)
        row = (*_head_of(record), properties.decode(), *_promoted_of(promoted))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    except RecursionError:
        # Arrow's reader does not recurse; what a value gives must not hang on its neighbours.
        alone = _read_together(pa.array([value], pa.binary()))
        return None if alone is None else tuple(column[0].as_py() for column in alone.columns)
    return row if _fits_64_bits(row) else None


def _fits_64_bits(row: tuple[Any, ...]) -> bool:
    return all(not isinstance(field, int) or field in _INT64 for field in row[: len(HEAD)])


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


_Wire = msgspec.defstruct(
    "_Wire",
    [(name, msgspec.Raw, msgspec.Raw(b"null")) for name in HEAD.names]
    + [
        ("properties", msgspec.Raw, msgspec.Raw(b"{}")),
        ("refused", msgspec.Raw, msgspec.Raw(b"null")),
        ("bytes", msgspec.Raw, msgspec.Raw(b"null")),
    ],
    gc=False,
)
_wire: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Wire)
_PromotedRaw = msgspec.defstruct(
    "_PromotedRaw",
    [
        (column, msgspec.Raw, msgspec.field(name=name, default=msgspec.Raw(b"null")))
        for column, name in PROMOTED.items()
    ],
    gc=False,
)
_promoted_raw: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_PromotedRaw)
_text = msgspec.json.Decoder(str)
_decoders = {kind: msgspec.json.Decoder(type_) for kind, type_ in _TYPES.items()}


def parse_one(value: bytes) -> tuple[Any, ...] | Rejection:
    """One value as a row of PARSED, field by field, or why it cannot be one."""
    if not _is_utf8(value):
        return Rejection(Reason.NOT_UTF8, f"{len(value)} bytes")
    try:
        wire = _wire.decode(value)
    except msgspec.ValidationError as error:
        return Rejection(Reason.NOT_AN_OBJECT, str(error))
    except (msgspec.DecodeError, RecursionError) as error:
        return Rejection(Reason.NOT_JSON, str(error))

    if bytes(wire.refused) == _TOO_LARGE:
        return Rejection(Reason.TOO_LARGE, f"an event of {bytes(wire.bytes).decode()[:20]} bytes")

    row: list[Any] = []
    for field in HEAD:
        try:
            row.append(_decoders[field.type].decode(getattr(wire, field.name)))
        except (msgspec.DecodeError, RecursionError):
            return Rejection(Reason.WRONG_TYPE, f"{field.name} is not {field.type}")
        if not _fits_64_bits((row[-1],)):
            return Rejection(Reason.NUMBER_OUT_OF_RANGE, f"{field.name} does not fit 64 bits")
    try:
        promoted = _promoted_raw.decode(wire.properties)
        texts = [_as_text(raw) for raw in _promoted_of(promoted)]
    except msgspec.ValidationError:
        return Rejection(Reason.NOT_AN_OBJECT, "properties is not an object")
    except (msgspec.DecodeError, RecursionError) as error:
        return Rejection(Reason.NOT_JSON, f"properties: {error}")
    return (*row, bytes(wire.properties).decode(), *texts)


def _as_text(raw: msgspec.Raw) -> str | None:
    """A promoted property as text: scalars as the client wrote them, null for anything deeper."""
    written = bytes(raw).strip()
    if written.startswith(b'"'):
        return _text.decode(written)
    return None if written == b"null" or written[:1] in b"{[" else written.decode()
