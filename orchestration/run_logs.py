"""What a run's process prints, as the UI shows it: in files, written by the process itself.

Dagster's own class copies each line at once to where the process printed before, which takes four
more processes a run. Here it is copied when the capture ends: with the run, whose steps share it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import (
    IO_TYPE_EXTENSION,
    LocalComputeLogManager,
)
from dagster._serdes import ConfigurableClassData

_FOLDER = "storage"  # below Dagster's home, where its own class has them
_COPIED_BYTES = 1 << 20  # of each stream, the end of it


class RunLogs(LocalComputeLogManager):
    """Dagster's files, without its processes."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> RunLogs:
        """As Dagster makes it from dagster.yaml."""
        folder = Path(config_value["base_dir"]) / _FOLDER
        return cls(**{**config_value, "base_dir": str(folder)}, inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        """Have what is printed meanwhile in the files."""
        try:
            with contextlib.ExitStack() as stack:
                for stream, kind in (
                    (sys.stdout, ComputeIOType.STDOUT),
                    (sys.stderr, ComputeIOType.STDERR),
                ):
                    path = self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind])
                    stack.enter_context(_captured(stream, Path(path)))
                yield CapturedLogContext(log_key)
        finally:
            Path(self.complete_artifact_path(log_key)).touch()  # type: ignore[no-untyped-call]


@contextmanager
def _captured(stream: TextIO, path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    start = path.stat().st_size
    try:
        with redirect_to_file(stream, str(path)):
            yield
    finally:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - _COPIED_BYTES))
            said = file.read()
        if hasattr(stream, "buffer"):
            stream.buffer.write(said)
        else:
            stream.write(said.decode(errors="replace"))
        stream.flush()
