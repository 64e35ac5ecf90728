"""A process of the tests that can be hung and killed, as machines and networks do."""

from __future__ import annotations

import signal
import subprocess
from typing import Any


class Killable:
    """Whoever has the process; None when it is not there."""

    process: subprocess.Popen[Any] | None = None

    def hang(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `hang`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As the power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
