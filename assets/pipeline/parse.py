"""Parse: the values of a chunk become typed columns.

    values ──all at once, by Arrow's JSON reader──▶ HEAD, text of `properties`, PROMOTED columns
                 │ refuses the chunk for one odd row
                 ▼
             one by one, by msgspec ──▶ the same columns
                 │ refuses the odd row
                 ▼
             patiently, field by field ──▶ the same columns, or a rejection

Arrow's reader takes the form that our edge writes, without the interpreter's lock, but cannot
skip a row; msgspec costs about the same for each row and can. The patient parser takes what is
fine but unexpected, such as a promoted property that is a number, and names what is wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from assets.pipeline.columns import HEAD, PROMOTED
from assets.pipeline.reasons import Reason, Rejection
from capture_api.record import PROPERTIES_MARK

PARSED = pa.schema(
    [
        *HEAD,
        pa.field("properties", pa.string()),
        *(pa.field(column, pa.string()) for column in PROMOTED),
    ]
)
"""What parsing gives: the head, the client's text of `properties`, the promoted properties."""

_PROMOTED_STRUCT = pa.struct([(name, pa.string()) for name in PROMOTED.values()])
_WIRE = pa.schema([*HEAD, pa.field("properties", _PROMOTED_STRUCT)])
_OPTIONS = pj.ParseOptions(explicit_schema=_WIRE, unexpected_field_behavior="ignore")

# How every value begins and ends that our edge writes, and where the uuid's 36 characters stand.
_OPENING = b'{"v":1,"uuid":"'
_CLOSING = b"}}"
_UUID_AT = slice(len(_OPENING), len(_OPENING) + 36)

_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class Parsed:
    """A row of PARSED for every value, nulls where it was rejected; rejections by row number."""

    columns: pa.Table
    rejections: dict[int, Rejection]


def parse_values(values: pa.BinaryArray) -> Parsed:
    """Parse record values, none of them null."""
    together = _read_together(values)
    if together is not None:
        return Parsed(together, {})
    return _read_one_by_one(values.to_pylist())


def _read_together(values: pa.BinaryArray) -> pa.Table | None:
    """All rows in one pass; None when some row is not as our edge writes it."""
    form = pc.and_(pc.starts_with(values, _OPENING), pc.ends_with(values, _CLOSING))
    if not pc.all(form).as_py():
        return None
    # The values stand end to end in one buffer, which the reader takes as it is.
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset :][: len(values) + 1]
    joined = values.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    try:
        values.cast(pa.string())  # the reader itself does not mind bytes that are not UTF-8
        read = pj.read_json(
            pa.BufferReader(joined),
            read_options=pj.ReadOptions(use_threads=False, block_size=joined.size + 1),
            parse_options=_OPTIONS,
        )
    except pa.ArrowInvalid:
        return None
    # Each row must be the one of its value: a cut-off value could swallow its neighbour.
    uuids = pc.binary_slice(values, _UUID_AT.start, _UUID_AT.stop)
    if (
        len(read) != len(values)
        or not pc.all(
            pc.equal(read.column("uuid").cast(pa.binary()), uuids), skip_nulls=False
        ).as_py()
    ):
        return None
    halves = pc.split_pattern(values, PROPERTIES_MARK, max_splits=1)
    promoted = read.column("properties").combine_chunks()
    if promoted.null_count or pc.min(pc.list_value_length(halves)).as_py() < 2:
        return None
    properties = pc.binary_slice(pc.list_element(halves, 1), 0, -1).cast(pa.string())
    return pa.table(
        [*(read.column(name) for name in HEAD.names), properties, *promoted.flatten()],
        schema=PARSED,
    )


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
    [(field.name, _TYPES[field.type], None) for field in HEAD] + [("properties", _PromotedText)],
    gc=False,
    kw_only=True,
)
_record: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Record)
_head_of = attrgetter(*HEAD.names)
_promoted_of = attrgetter(*PROMOTED)
_NOTHING = (None,) * len(PARSED)


def _read_one_by_one(values: list[bytes]) -> Parsed:
    rows: list[tuple[Any, ...]] = []
    rejections: dict[int, Rejection] = {}
    for number, value in enumerate(values):
        outcome = _read_as_written(value) or parse_one(value)
        if isinstance(outcome, Rejection):
            rejections[number] = outcome
            outcome = _NOTHING
        rows.append(outcome)
    columns = zip(*rows, strict=True) if rows else [()] * len(PARSED)
    return Parsed(
        pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, PARSED, strict=True)],
            schema=PARSED,
        ),
        rejections,
    )


def _read_as_written(value: bytes) -> tuple[Any, ...] | None:
    """A value of our edge's form as a row of PARSED; None when it is anything else."""
    head, mark, properties = value.partition(PROPERTIES_MARK)
    if not (mark and head.startswith(_OPENING) and value.endswith(_CLOSING)):
        return None
    try:
        record = _record.decode(value)
        row = (*_head_of(record), properties[:-1].decode(), *_promoted_of(record.properties))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
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
    + [("properties", msgspec.Raw, msgspec.Raw(b"{}"))],
    gc=False,
)
_wire: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Wire)
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

    row: list[Any] = []
    for field in HEAD:
        try:
            row.append(_decoders[field.type].decode(getattr(wire, field.name)))
        except (msgspec.DecodeError, RecursionError):
            return Rejection(Reason.WRONG_TYPE, f"{field.name} is not {field.type}")
        if not _fits_64_bits((row[-1],)):
            return Rejection(Reason.NUMBER_OUT_OF_RANGE, f"{field.name} does not fit 64 bits")
    try:
        properties = msgspec.json.decode(wire.properties)
    except (msgspec.DecodeError, RecursionError) as error:
        return Rejection(Reason.NOT_JSON, f"properties: {error}")
    if not isinstance(properties, dict):
        return Rejection(Reason.NOT_AN_OBJECT, "properties is not an object")
    row.append(bytes(wire.properties).decode())
    row.extend(_as_text(properties.get(name)) for name in PROMOTED.values())
    return tuple(row)


def _as_text(value: Any) -> str | None:
    """A promoted property as text: scalars as JSON writes them, null for anything deeper."""
    if value is None or isinstance(value, dict | list):
        return None
    return value if isinstance(value, str) else json.dumps(value)
