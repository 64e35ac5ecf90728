"""The body of a request on its way to the engine: decoded as it comes, on disk, never in memory as
a whole.

    receive() ──▶ chunks() ──▶ decode ──▶ take(): Load + file   (an INSERT with data)
                                     └──▶ take(): text          (any other query)

A spool file lives as long as its request.
"""

import asyncio
import bz2
import lzma
import os
import tempfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import lz4.frame  # type: ignore[import-untyped]
import zstandard

from local_stack.clickhouse import statement
from local_stack.clickhouse.errors import ClickHouseError
from local_stack.clickhouse.statement import Load

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
MakeFile = Callable[[], tuple[BinaryIO, Path]]

# The head of an INSERT must end within so many bytes; a query without data may be as long as
# MAX_QUERY_BYTES.
MAX_HEAD_BYTES = 1 << 20
MAX_QUERY_BYTES = 16 << 20
# A query of megabytes takes seconds to cut into tokens; a longer one is cut in a thread.
LONG_BYTES = 1 << 16
# Encodings that the engine reads but Python's library does not: the query must then stand in the
# URL.
_ENGINE_ONLY = {"br": "br", "snappy": "snappy"}


class Disconnected(Exception):
    """The client went away before its request was whole."""


@dataclass(frozen=True)
class Taken:
    """A request's query with its data, if it brought any, in `file`."""

    text: bytes
    load: Load | None = None
    file: Path | None = None
    compression: str = "none"


class Decoder(Protocol):
    """Decodes a body piece by piece."""

    def feed(self, data: bytes) -> bytes:
        """The bytes that this piece adds."""
        ...

    def finish(self) -> bytes:
        """The last bytes; fails if the body was cut short."""
        ...


class _Plain:
    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class _Inflate:
    """A decompressor of Python's kind, over as many frames as the body has."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make
        self._frame = make()
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        out = []
        while data:
            if getattr(self._frame, "eof", False):
                self._frame = self._make()
            out.append(self._frame.decompress(data))  # type: ignore[attr-defined]
            self._begun = True
            data = getattr(self._frame, "unused_data", b"") or b""
        return b"".join(out)

    def finish(self) -> bytes:
        if self._begun and not getattr(self._frame, "eof", True):
            raise EOFError("the compressed body ends too early")
        return b""


_DECODERS: dict[str, Callable[[], Decoder]] = {
    "": _Plain,
    "identity": _Plain,
    "gzip": lambda: _Inflate(lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
    "x-gzip": lambda: _Inflate(lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
    "deflate": lambda: _Inflate(zlib.decompressobj),
    "lz4": lambda: _Inflate(lz4.frame.LZ4FrameDecompressor),
    "zstd": lambda: _Inflate(lambda: zstandard.ZstdDecompressor().decompressobj()),
    "xz": lambda: _Inflate(lzma.LZMADecompressor),
    "bz2": lambda: _Inflate(bz2.BZ2Decompressor),
}
_BROKEN = (zlib.error, lzma.LZMAError, zstandard.ZstdError, RuntimeError, OSError, EOFError)


async def body(receive: Receive) -> AsyncIterator[bytes]:
    """The pieces of a request's body, as they were sent."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        piece = cast(bytes, message.get("body", b""))
        if piece:
            yield piece
        if not message.get("more_body", False):
            return


async def decoded(pieces: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """The pieces of a body without its Content-Encoding."""
    make = _DECODERS.get(encoding.strip().lower())
    if make is None:
        known = ", ".join(sorted({name for name in _DECODERS if name} | set(_ENGINE_ONLY)))
        raise ClickHouseError(
            48, "NOT_IMPLEMENTED", f"Unknown Content-Encoding '{encoding}'; known are {known}"
        )
    decoder = make()
    try:
        async for piece in pieces:
            if out := decoder.feed(piece):
                yield out
        if out := decoder.finish():
            yield out
    except _BROKEN as error:
        raise ClickHouseError(
            271, "CANNOT_DECOMPRESS", f"The body is not valid {encoding}: {error}"
        ) from None


@contextmanager
def scratch(folder: Path) -> Iterator[MakeFile]:
    """Makes files in the spool folder; all are gone at the end."""
    made: list[tuple[BinaryIO, Path]] = []

    def make() -> tuple[BinaryIO, Path]:
        handle, name = tempfile.mkstemp(dir=folder)
        file = os.fdopen(handle, "wb")
        made.append((file, Path(name)))
        return made[-1]

    try:
        yield make
    finally:
        for file, path in made:
            path.unlink(missing_ok=True)
            # On a full disk what is still buffered cannot be written; nobody wants it any more.
            with suppress(OSError):
                file.close()


async def take(
    prefix: bytes,
    pieces: AsyncIterator[bytes],
    encoding: str,
    make: MakeFile,
) -> Taken:
    """Split the URL's query and the body behind it into a query and its data."""
    # The two are one text, as on a server; a line's end between them lets data begin at the body's
    # first byte.
    head = bytearray(prefix + b"\n" if prefix else b"")
    if encoding.strip().lower() in _ENGINE_ONLY:
        return await _take_raw(bytes(head), pieces, _ENGINE_ONLY[encoding.strip().lower()], make)
    stream = decoded(pieces, encoding)
    looked_at = 0
    async for piece in stream:
        head += piece
        # Looked at again only when it has doubled, so that a long head is not read over and over.
        if len(head) <= MAX_HEAD_BYTES and len(head) >= 2 * looked_at:
            looked_at = len(head)
            found = await _load(bytes(head))
            if found is not None and found.data_at < len(head):
                return await _spool(found, head, stream, make)
        if len(head) > MAX_QUERY_BYTES:
            raise ClickHouseError(
                295, "QUERY_IS_TOO_LARGE", f"The query is longer than {MAX_QUERY_BYTES} bytes"
            )
    found = await _load(bytes(head))
    if found is not None:
        return await _spool(found, head, stream, make)
    return Taken(bytes(head))


async def _load(text: bytes) -> Load | None:
    # As with any long query: not in the event loop's thread.
    if len(text) > LONG_BYTES:
        return await asyncio.to_thread(statement.load, text)
    return statement.load(text)


async def _spool(
    found: Load,
    head: bytearray,
    rest: AsyncIterator[bytes],
    make: MakeFile,
) -> Taken:
    file, path = make()
    text = bytes(head[: found.data_at])
    file.write(head[found.data_at :])
    head.clear()
    async for piece in rest:
        file.write(piece)
    file.close()
    return Taken(text, found, path)


async def _take_raw(
    head: bytes,
    pieces: AsyncIterator[bytes],
    compression: str,
    make: MakeFile,
) -> Taken:
    found = await _load(head)
    if found is None or found.data_at != len(head):
        raise ClickHouseError(
            48,
            "NOT_IMPLEMENTED",
            f"With Content-Encoding: {compression} the INSERT up to FORMAT must be in the URL",
        )
    file, path = make()
    async for piece in pieces:
        file.write(piece)
    file.close()
    return Taken(head, found, path, compression)
