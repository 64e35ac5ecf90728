"""From the bytes of a request to JSON text in valid UTF-8, whatever the client wrapped it in.

    data= of the query or body → base64 → form field → gzip (hinted or sniffed) or lz64
      → base64 once more (old paths) → UTF-8

The order is PostHog's, for clients rely on its oddities: base64 of the whole payload is undone
wherever it shows, that of a form's field on old paths only. Browsers send gzip without saying so,
hence the sniffing. Invariant: what is returned is at most `limit` bytes of UTF-8; a wrapping that
cannot be undone is refused. What is long is done piece by piece, with pauses (`turns.py`).
"""

from __future__ import annotations

import binascii
import codecs
import re
from urllib.parse import unquote_to_bytes

from isal import isal_zlib

from capture_api.refusal import Refused, bad_request, too_large
from capture_api.turns import AT_ONCE_BYTES, pause
from capture_api.wire.lz64 import decode_lz64
from capture_api.wire.pieces import joined
from capture_api.wire.query import Query, known_compression
from capture_api.wire.utf8 import HINT, check_utf8

LEGACY_PATHS = frozenset({"/e", "/i/v0/e", "/capture", "/track", "/engage", "/flags"})
"""Paths whose decoded text may be base64 once more: those that clients send old forms to.
posthog-js sends them to /i/v0/e, too: the beacons of pages whose compression is switched off."""

GZIP_MEMBERS = 16
"""Streams that may stand one after the other: each costs a copy of all that follows it."""

_GZIP_MAGIC = b"\x1f\x8b\x08"
_GZIP_WINDOW = 31  # zlib's number for: 32 KiB window, gzip wrapping
_FORM_TYPE = b"application/x-www-form-urlencoded"
_FORM_START = (b"data=", b"ver=", b"_=", b"ip=", b"compression=")
_FORM_WITHIN = re.compile(rb"&(?:data|ver|_|ip|compression)=")
_FORM_SAMPLE = 128
_FORM_FIELDS = 16
_FORM_NAME_BYTES = 64
_UNQUOTED_AT_ONCE = 16 << 10
_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_BASE64_OR_BLANKS = re.compile(rb"[A-Za-z0-9+/ ]+={0,3}")
_BASE64_SAMPLE = 128
_BASE64_AT_ONCE = AT_ONCE_BYTES  # whole groups of four
_WORD_BYTES = 32
"""Less than any event in base64."""


def decode_payload(
    body: bytes, *, path: str, query: Query, headers: dict[bytes, bytes], limit: int
) -> bytes:
    """The JSON text of the request. `path` is without a trailing slash."""
    payload = query.data.encode() if query.data else body
    if not payload:
        raise bad_request("request missing data payload: put JSON into the body", "empty_payload")

    hint = query.compression
    unwrapped = payload
    if payload[:1] not in (b"{", b"["):  # nearly all of the rest is gzip
        unwrapped = _unwrap_base64(payload)
    content_type = headers.get(b"content-type")
    if content_type is not None and content_type.startswith(_FORM_TYPE):
        if _is_form(unwrapped):
            payload, form_compression = _form_data(unwrapped)
            hint = hint or form_compression
            if hint == "gzip":  # a field holds no such bytes: it is base64 of them, or not gzip
                payload, hint = _unwrap_base64(payload), "none"
            unwrapped = payload
        elif content_type == _FORM_TYPE:
            raise bad_request(
                "expected form data in POST request payload: the Content-Type says form; send "
                "JSON as application/json",
                "bad_form",
            )
    if not hint and b"content-encoding" in headers:
        hint = known_compression(headers[b"content-encoding"].decode("latin-1"))

    if unwrapped.startswith(_GZIP_MAGIC) or hint == "gzip":
        text = inflate(unwrapped, limit)
    elif hint == "lz64":
        text = _lz64(unwrapped, payload, path, limit)
    else:
        text = unwrapped
    if len(text) > limit:
        raise too_large(f"maximum event size exceeded: more than {limit} bytes")
    before = payload if text is unwrapped else text
    if path in LEGACY_PATHS and text[:1] not in (b"{", b"["):
        once_more = _unwrap_base64(text)
        if once_more is not text:
            before, text = text, once_more
    return _in_utf8(text, before)


def inflate(payload: bytes, limit: int) -> bytes:
    """The content of a gzip stream; never makes more than `limit` + 1 bytes of it."""
    parts: list[bytes] = []
    at = 0
    for _ in range(GZIP_MEMBERS):
        stream = isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
        try:
            at = inflate_stream(stream, payload, at, limit, parts)
        except isal_zlib.error:  # type: ignore[misc]  # its stub calls the class an instance
            raise _broken_gzip() from None
        if not stream.eof:
            raise _broken_gzip()
        if not payload.startswith(_GZIP_MAGIC, at):  # gzip streams may stand one after the other
            return joined(parts)
    raise bad_request(
        f"invalid gzip data: more than {GZIP_MEMBERS} streams; send the body as one", "bad_gzip"
    )


def inflate_stream(
    stream: isal_zlib.Decompress, payload: bytes, at: int, limit: int, parts: list[bytes]
) -> int:
    """Inflate what of the payload is the stream's, from `at` on; returns where that ends.

    The content is added to the parts. Refuses (413) when they are more than `limit` bytes.
    """
    room = limit + 1 - sum(map(len, parts))
    start = at
    while at < len(payload):
        if at > start:
            pause()
        piece = payload[at : at + AT_ONCE_BYTES]
        at += len(piece)
        while True:
            wanted = min(room, AT_ONCE_BYTES)
            part = stream.decompress(piece, wanted)
            parts.append(part)
            room -= len(part)
            if not room:
                raise too_large(
                    f"maximum event size exceeded: the body inflates to more than {limit} bytes; "
                    "send smaller batches"
                )
            if stream.eof:
                return at - len(stream.unused_data)
            piece = stream.unconsumed_tail
            if not piece and len(part) < wanted:
                break
            pause()
    return at


def _unwrap_base64(payload: bytes) -> bytes:
    """The decoded payload if it is base64 all through, else the payload."""
    sample = payload[:_BASE64_SAMPLE]
    if len(payload) % 4 or not _BASE64.fullmatch(sample):
        return payload
    parts = []
    for at in range(0, len(payload), _BASE64_AT_ONCE):
        if at:
            if payload[at - 1 : at] == b"=":  # its end, and more behind it
                return payload
            pause()
        try:
            parts.append(binascii.a2b_base64(payload[at : at + _BASE64_AT_ONCE], strict_mode=True))
        except binascii.Error:
            return payload
    last = parts[-1]
    # Bits that its last digit should not have: other things that look like base64 have some.
    if payload.endswith(b"=") and not payload.endswith(
        binascii.b2a_base64(last[len(last) // 3 * 3 :], newline=False)
    ):
        return payload
    return joined(parts)


def _lz64(unwrapped: bytes, payload: bytes, path: str, limit: int) -> bytes:
    """The content of lz64, whose text may have been taken for base64 and undone as that."""
    try:
        return decode_lz64(unwrapped, limit)
    except Refused as refused:
        # PostHog takes only text that is not valid base64 by chance; /engage is told of that.
        if payload is unwrapped or refused.status != 400 or path == "/engage":
            raise
        return decode_lz64(payload, limit)


def _is_form(payload: bytes) -> bool:
    return payload.startswith(_FORM_START) or bool(_FORM_WITHIN.search(payload[:_FORM_SAMPLE]))


def _form_data(payload: bytes) -> tuple[bytes, str]:
    """The `data` field of a form, and the `compression` it names."""
    parts = payload.split(b"&", _FORM_FIELDS)
    if len(parts) > _FORM_FIELDS:
        raise bad_request(
            f"the form has more than {_FORM_FIELDS} fields: URL-encode what is in them", "bad_form"
        )
    fields: dict[bytes, bytes] = {}
    for part in parts:
        name, _, value = part.partition(b"=")
        fields[_unquoted(name[:_FORM_NAME_BYTES])] = value
    data = _unquoted(fields.get(b"data", b""))
    if not data:
        raise bad_request("expected form data in POST request payload: field `data`", "bad_form")
    if _BASE64_OR_BLANKS.fullmatch(data[:_BASE64_SAMPLE]):
        data = data.replace(b" ", b"+")  # an unescaped + reads as a blank in a form
    compression = _unquoted(fields.get(b"compression", b"")[:_FORM_NAME_BYTES])
    return data, known_compression(compression.decode("latin-1"))


def _unquoted(value: bytes) -> bytes:
    """The value of a form's field, in valid UTF-8.

    Piece by piece: unquoting takes a hundred bytes of memory for each escape, and millions of them
    fit into a body.
    """
    value = value.replace(b"+", b" ")
    if b"%" not in value and value.isascii():
        return value
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    content = bytearray()
    start = 0
    while start < len(value):
        end = start + _UNQUOTED_AT_ONCE
        cut = value.find(b"%", end - 2, end)  # an escape that would be cut in two
        if cut >= 0:
            end = cut
        content += decoder.decode(unquote_to_bytes(value[start:end])).encode()
        start = end
        if len(value) > AT_ONCE_BYTES:
            pause()
    content += decoder.decode(b"", final=True).encode()
    return bytes(content)


def _in_utf8(text: bytes, before: bytes) -> bytes:
    """The text; or what it was `before` base64 was undone, if that was no base64 after all.

    As with `null` or `1234`: any four letters may be three bytes.
    """
    if text.isascii():
        return text
    try:
        check_utf8(text)
    except UnicodeDecodeError as error:
        if text is not before and len(before) <= _WORD_BYTES:
            return before
        undone = " once its base64 is undone" if text is not before else ""
        raise bad_request(
            f"the payload is not valid UTF-8{undone} (byte {error.start}); {HINT}", "not_utf8"
        ) from None
    return text


def _broken_gzip() -> Refused:
    return bad_request("invalid gzip data: the stream is damaged or ends too early", "bad_gzip")
