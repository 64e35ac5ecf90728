"""The version of the code that made a row, so that a change of enrichment can be told later."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

TRANSFORM_VERSION = "1"
"""Raised whenever the same records would come out as other rows."""


def code_version(root: Path) -> str:
    """The same, and of what size and time the files of the code are."""
    found = hashlib.sha256()
    for path in sorted([*(root / "assets").rglob("*.py"), *(root / "orchestration").rglob("*.py")]):
        with suppress(FileNotFoundError):  # somebody changes it just now
            about = path.stat()
            found.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return f"{TRANSFORM_VERSION}-{found.hexdigest()[:12]}"


CODE_VERSION = code_version(Path(__file__).resolve().parents[2])
"""Of the files as they were when this process began."""
