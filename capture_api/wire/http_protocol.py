"""uvicorn's HTTP/1.1 protocol with a limit on heads, which uvicorn itself does not have.

    bytes that came − progress the parser made = what it holds on to

The parser makes progress with a whole head, with bytes of a body, and with the end of a message;
a head that never ends makes none. Invariant: a connection holds at most MAX_HEAD_BYTES and one
read from the socket without progress.
"""

from __future__ import annotations

import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers, or trailers, that a client may send without completing them."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)

log = logging.getLogger("tidemark.capture")


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _without_progress = 0

    def data_received(self, data: bytes) -> None:
        """Bytes came; refuse (431) and hang up when they lead to nothing."""
        self._without_progress += len(data)
        super().data_received(data)
        if self._without_progress > MAX_HEAD_BYTES and not self.transport.is_closing():
            log.info("hung up on %s: headers of more than %d bytes", self.client, MAX_HEAD_BYTES)
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The parser has a whole head."""
        self._without_progress = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser has bytes of a body."""
        self._without_progress = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser is at the end of a message."""
        self._without_progress = 0
        super().on_message_complete()
