"""What tests of imports go by: a stack with a project, and files to import."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from assets.pipeline.audit import reprove, unbalanced, untiled
from assets.pipeline.batch import Kind
from assets.pipeline.imports import Imported, import_file
from tests.exports import write_lines
from tests.stack import Stack

TODAY = datetime.now(UTC).date()
LONG_AGO = date(2024, 2, 29)


@dataclass(frozen=True)
class Scene:
    """A stack with a project, and a folder for files."""

    stack: Stack
    folder: Path

    def lines(self, name: str, *lines: bytes, compression: str | None = None) -> str:
        """A file of lines; gives its path."""
        return write_lines(self.folder / name, lines, compression)

    def take(self, uri: str, day: date | None = None, project: str = "1") -> Imported:
        """Import a file."""
        return import_file(self.stack.worker("importer"), uri, project, day)

    def rows(self, columns: str = "_topic, _offset, uuid") -> list[Any]:
        """What `events` has of imports, by line."""
        return self.stack.rows(
            f"SELECT {columns} FROM {{database}}.events WHERE _topic LIKE 'import:%' "
            "ORDER BY _topic, _offset"
        )

    def prove(self) -> None:
        """The audit finds nothing."""
        found = self.stack.batches()
        kinds = (Kind.EVENTS, Kind.DEAD_LETTERS)
        findings = unbalanced(found) + untiled(found)
        findings += reprove(self.stack.client, self.stack.database, found, kinds)
        assert findings == []
