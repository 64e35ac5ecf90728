"""Which tokens are good: a copy of the ledger's projects, kept fresh by a thread.

The copy is replaced whole at every refresh. When the ledger cannot be read, the last good copy
stays. A token that is not in it makes the thread look again at once (no more often than every
LOOK_AGAIN_SECONDS, for all who ask together), so that a new project works from its first event.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from datetime import UTC, date, datetime

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from capture_api.refusal import bad_token, try_later
from orchestration.ledger.access import NO_ACCESS, read_access
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings

LOOK_AGAIN_SECONDS = 0.2
PATIENCE_SECONDS = 3.0
"""How long a request with an unknown token waits for the look that decides about it."""

log = logging.getLogger("tidemark.capture.projects")

Waiter = asyncio.Future[bool]


class Projects:
    """The good tokens; between `start` and `close`, on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._ledger_url = settings.ledger
        self._refresh_seconds = settings.capture_project_refresh_seconds
        self._engine: Engine | None = None
        self.access = NO_ACCESS
        self._used: Counter[tuple[date, int]] = Counter()
        self._loaded = False
        self._error = "the projects were not read yet"
        self._lock = threading.Lock()
        self._waiters: list[Waiter] = []
        self._wanted = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="projects", daemon=True)

    def start(self) -> None:
        """Start refreshing. Called on the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Stop refreshing."""
        self._stopping = True
        self._wanted.set()
        # A look that hangs in the database must not hold up the end of the process.
        await asyncio.to_thread(self._thread.join, 1.0)

    def known(self, token: str) -> int | None:
        """The project_id of a good token, as far as is known now."""
        return self.access.tokens.get(token)

    def count(self, project_id: int, events: int) -> None:
        """The project has sent so many events more."""
        self._used[datetime.now(UTC).date(), project_id] += events

    def used_today(self, project_id: int) -> int:
        """The events that the project has sent on this UTC day."""
        return self._used[datetime.now(UTC).date(), project_id]

    async def find(self, token: str) -> int:
        """The project_id of the token. Refuses with 401, or 503 while nobody can tell."""
        project_id = self.access.tokens.get(token)
        if project_id is not None:
            return project_id
        if await self._look_again():
            project_id = self.access.tokens.get(token)
            if project_id is not None:
                return project_id
            raise bad_token(
                f"API key is not valid: no project has the token {_shortened(token)}; see "
                "`tidemark projects list`, or make one with `tidemark projects create NAME`"
            )
        raise try_later(
            "projects_away",
            "transient error, please retry: the token is new to this server, and the list of "
            "projects cannot be read at the moment",
            retry_after=2,
        )

    def problem(self) -> str | None:
        """Why tokens cannot be judged, or None. An old copy is good enough."""
        return None if self._loaded else f"the projects cannot be read: {self._error}"

    async def _look_again(self) -> bool:
        """Wait for a look that starts from now on; whether it succeeded."""
        waiter = self._loop.create_future()
        with self._lock:
            self._waiters.append(waiter)
        self._wanted.set()
        try:
            return await asyncio.wait_for(waiter, PATIENCE_SECONDS)
        except TimeoutError:
            return False

    def _run(self) -> None:
        while not self._stopping:
            started = time.monotonic()
            self._wanted.clear()
            with self._lock:
                waiters, self._waiters = self._waiters, []
            succeeded = self._refresh()
            if waiters:
                self._loop.call_soon_threadsafe(_answer, waiters, succeeded)
            if self._wanted.wait(self._refresh_seconds) and not self._stopping:
                time.sleep(max(0.0, started + LOOK_AGAIN_SECONDS - time.monotonic()))

    def _refresh(self) -> bool:
        try:
            if self._engine is None:
                self._engine = open_ledger(self._ledger_url)
            self.access = read_access(self._engine)
        except (SQLAlchemyError, OSError) as error:
            if not self._error:
                log.warning("the projects cannot be read, going on with those known: %s", error)
            self._error = str(error)
            return False
        if self._loaded and self._error:
            log.info("the projects can be read again")
        self._error = ""
        self._loaded = True
        return True


def _answer(waiters: list[Waiter], succeeded: bool) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(succeeded)


def _shortened(token: str) -> str:
    return token if len(token) <= 12 else f"{token[:12]}…"
