"""The signals that end a stack: Ctrl-C, SIGTERM and a closed terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """A handler: unwind this process, so that what it began is undone."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Let each ending signal unwind this process, instead of ending it where it stands."""
    with contextlib.ExitStack() as undo:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING_SIGNALS:
                before = signal.getsignal(number)
                if number != signal.SIGHUP or before != signal.SIG_IGN:  # nohup stays nohup
                    signal.signal(number, leave)
                    undo.callback(signal.signal, number, before)
        yield


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Put off what would end this process, so that what is begun is also written down."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reset() -> None:
    """In the child: a shell may have ignored signals for us, and a service must hear them all."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
