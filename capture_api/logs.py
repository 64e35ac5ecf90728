"""The log of the capture API: lines for people, or JSON objects for machines.

Nothing that tells who a client's user is goes in: addresses are cut to their network, and of user
agents only the first word stands there.
"""

from __future__ import annotations

import ipaddress
import logging
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from orchestration.settings import LogFormat

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SOFTWARE_LENGTH = 60

FIELDS = "fields"
"""The attribute of a log record that holds what its line says, by name (`extra={FIELDS: …}`)."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of the line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def start_logging(form: LogFormat) -> None:
    """Send every log line to stderr in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


@lru_cache(maxsize=1024)
def network_of(address: str) -> str:
    """The network that an address lies in, in place of the address itself."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unknown" if address else ""
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))


def software_of(user_agent: str, sdk: str) -> str:
    """The client's software by name, without what tells devices apart."""
    return sdk or user_agent.partition(" ")[0][:_SOFTWARE_LENGTH]
