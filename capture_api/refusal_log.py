"""The log of refusals: one line each, up to a number a second, and a count of the rest.

One client in a loop must not fill the disk. What the client wrote into its events is not quoted:
it may be personal data. Path, token and user agent may be, hence %r and lengths: a quoted line
break must not make a second line.
"""

from __future__ import annotations

import asyncio
import logging

from capture_api.answers import Scope
from capture_api.logs import FIELDS, network_of, software_of
from capture_api.refusal import Refused
from capture_api.wire.client_address import client_address
from capture_api.wire.client_software import client_software

LINES_PER_WINDOW = 10
WINDOW_SECONDS = 1.0

log = logging.getLogger("tidemark.capture")


class RefusalLog:
    """Writes the lines; on one event loop."""

    def __init__(self) -> None:
        self._refusals = 0  # in the present window

    def tell(
        self, scope: Scope, headers: dict[bytes, bytes], receipt: str, refused: Refused
    ) -> None:
        """Let an operator find the sender of what could not be taken in."""
        if refused.status == 503:
            return  # the producer and the projects say once what is wrong, not once a request
        if not self._refusals:
            asyncio.get_running_loop().call_later(WINDOW_SECONDS, self._end_window)
        self._refusals += 1
        if self._refusals > LINES_PER_WINDOW:
            return
        network = network_of(client_address(scope))
        software = software_of(*client_software(headers.get(b"user-agent")))
        log.info(
            "refused %s %.200r with %d %s: %.500r (receipt %s, network %s, software %r)",
            scope["method"],
            scope["path"],
            refused.status,
            refused.code,
            refused.for_log,
            receipt,
            network,
            software,
            extra={
                FIELDS: {
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": refused.status,
                    "code": refused.code,
                    "receipt": receipt,
                    "network": network,
                    "software": software,
                }
            },
        )

    def _end_window(self) -> None:
        more = self._refusals - LINES_PER_WINDOW
        if more > 0:
            log.info("refused %d more requests within %g s", more, WINDOW_SECONDS)
        self._refusals = 0
