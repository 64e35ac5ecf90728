"""The copy of what the ledger said last, in a file: with it a restart needs no ledger.

Written whole after each change (a new file, then a rename), so a reader finds an old copy or a new
one and never half of one. Its time of modification is when the ledger last said the same. It holds
tokens, hence the mode 0600.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import msgspec
from sqlalchemy.engine import make_url

from orchestration.ledger.access import Access

VERSION = 1
"""To be raised whenever a reader of the version before would misread the file."""


class BadCopy(Exception):
    """The file cannot be used; the text says why."""


class _Version(msgspec.Struct):
    version: int


class _Copy(msgspec.Struct):
    version: int
    ledger: str  # which ledger it is of
    access: Access


class AccessCopy:
    """The file `<home>/capture/access.json` of one ledger."""

    def __init__(self, home: Path, ledger_url: str) -> None:
        self.path = home / "capture" / "access.json"
        self._ledger = _fingerprint(ledger_url)

    def save(self, access: Access) -> None:
        """Write the file. Raises OSError."""
        content = msgspec.json.encode(_Copy(VERSION, self._ledger, access))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Several workers may write at once, each its own file; the last rename stays.
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def confirm(self) -> None:
        """Note that the ledger still says the same. Raises FileNotFoundError without a file."""
        os.utime(self.path)

    def load(self) -> Access:
        """What the file says, as read when it was last confirmed. Raises BadCopy."""
        try:
            content = self.path.read_bytes()
            confirmed_at = self.path.stat().st_mtime_ns // 1000
            version = msgspec.json.decode(content, type=_Version).version
            if version != VERSION:
                raise BadCopy(f"{self.path} is of version {version}, and this is {VERSION}")
            copy = msgspec.json.decode(content, type=_Copy)
        except FileNotFoundError:
            raise BadCopy(f"there is no copy yet in {self.path}") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise BadCopy(f"{self.path} cannot be read: {error}") from None
        if copy.ledger != self._ledger:
            raise BadCopy(f"{self.path} is the copy of another ledger")
        return replace(copy.access, read_at=confirmed_at)


def _fingerprint(ledger_url: str) -> str:
    """Tells ledgers apart; a changed password makes no other ledger."""
    known_as = make_url(ledger_url).render_as_string(hide_password=True)
    return hashlib.sha256(known_as.encode()).hexdigest()
