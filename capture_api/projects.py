"""Who may send: a fresh copy of the ledger's projects, their limits and rules.

    ledger ──every 2 s──▶ `Projects.access`, replaced whole ──at a change──▶ a file (access_copy.py)

When the ledger cannot be read, the last good copy stays, and a process that starts takes it from
the file. A token that is not in the copy makes the thread look again at once (no more often than
every LOOK_AGAIN_SECONDS, for all who ask together, and with one cheap query), so that a new
project works from its first event. Retired tokens end at their time, whatever the ledger does.
What was read is put in place on the event loop alone, so it never changes under a request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from capture_api.access_copy import AccessCopy, BadCopy
from capture_api.daily_usage import DailyUsage
from capture_api.refusal import bad_token, try_later
from orchestration.ledger.access import NO_ACCESS, Access, any_good, read_access
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.ledger.errors import in_one_line
from orchestration.settings import Mode, Settings

UNKNOWN_PROJECT = 0
"""The project_id of events whose token no project has, where such are taken in."""

LOOK_AGAIN_SECONDS = 0.2
LOOK_AGAIN_AFTER_FAILURE_SECONDS = 1.0
PATIENCE_SECONDS = 3.0
"""How long a request with an unknown token waits for the look that decides about it."""
COPY_AFTER_SECONDS = 2.0
"""How long a start waits for a ledger that says nothing before it takes the file."""
MAX_WAITING_TOKENS = 256
"""Unknown tokens that are looked for at once; requests with more are told to come again."""
MISS_SECONDS = 10.0
MAX_MISSES = 10_000
"""How many tokens are remembered, and how long, as those of no project."""
WARN_SECONDS = 10.0
RETIREMENT_CHECK_SECONDS = 60.0
"""The end of a token is waited for in steps of this, in case the clock is set meanwhile."""

log = logging.getLogger("tidemark.capture.projects")

Waiting = dict[str, asyncio.Future[bool]]


class Projects:
    """What is known of projects; between `start` and `close`, on one event loop.

    `access` is a new object after every look; its parts stay the same objects until they change.
    """

    def __init__(self, settings: Settings) -> None:
        self._ledger_url = settings.ledger
        self._refresh_seconds = settings.capture_project_refresh_seconds
        self._mode = settings.capture_unknown_tokens
        self._usage = DailyUsage(settings.ledger)
        self._copy = AccessCopy(settings.home, settings.ledger)
        self._engine: Engine | None = None
        self.access: Access = NO_ACCESS
        self._loaded = False
        self._error = "the projects were not read yet"
        self._failed_at = float("-inf")
        self._read: Access | None = None  # what the ledger said last
        self._saved: Access | None = None  # what the file says
        self._unsaved = False
        self._copy_tried = False
        self._lock = threading.Lock()
        self._waiting: Waiting = {}
        self._wanted = threading.Event()
        self._stopping = False
        self._misses: dict[str, float] = {}  # token → when it is forgotten
        self._warned_at = float("-inf")
        self._unwarned = 0
        self._timer: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._run, name="projects", daemon=True)

        self.count = self._usage.count
        self.used_today = self._usage.used_today
        self.unknown_tokens = 0
        """Requests whose token no project has; `mode` says what became of them."""
        self.unjudged_tokens: Counter[str] = Counter()
        """Requests with a new token that came when nobody could tell whether it is good, by what
        became of them: refused, or taken_in."""
        self.refreshes_failed = 0

    @property
    def mode(self) -> Mode:
        """What is done with tokens that no project has."""
        return self._mode

    @property
    def usage_failures(self) -> int:
        """How often daily usage could not be shared."""
        return self._usage.failures

    def age_seconds(self) -> float | None:
        """How long ago the ledger said what is known; None if it never did."""
        return max(0.0, (now_us() - self.access.read_at) / 1e6) if self._loaded else None

    def start(self) -> None:
        """Start refreshing. Called on the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._late = self._loop.call_later(COPY_AFTER_SECONDS, self._use_copy)
        self._thread.start()
        self._usage.start()

    async def close(self) -> None:
        """Stop refreshing, and share what was counted."""
        self._stopping = True
        self._wanted.set()
        for timer in (self._timer, self._late):
            if timer:
                timer.cancel()
        # A look that hangs in the database must not hold up the end of the process.
        await asyncio.gather(asyncio.to_thread(self._thread.join, 1.0), self._usage.close())

    def known(self, token: str) -> int | None:
        """The project_id of a good token, as far as is known now."""
        return self.access.tokens.get(token)

    async def find(self, token: str) -> int:
        """The project_id of the token; UNKNOWN_PROJECT if none has it and the mode lets it pass.

        Otherwise refuses with 401, or 503 while nobody can tell. Where no project was ever read,
        any token may be good, so no mode lets it pass: its events would be nobody's for good.
        """
        project_id = self.access.tokens.get(token)
        if project_id is not None:
            return project_id
        missed = self._misses.get(token, 0.0) > time.monotonic()
        sure = missed or await self._look_for(token)
        project_id = self.access.tokens.get(token)
        if project_id is not None:
            return project_id
        if sure:
            if not missed:
                self._remember_miss(token)
            return self._unknown(token)
        if self._loaded and self._mode is not Mode.ENFORCE:
            self.unjudged_tokens["taken_in"] += 1
            return UNKNOWN_PROJECT
        self.unjudged_tokens["refused"] += 1
        raise try_later(
            "projects_away",
            "transient error, please retry: the token is new to this server, which cannot look it "
            "up at the moment",
            retry_after=2,
        )

    def defect(self) -> str | None:
        """What is wrong so that only a new process helps, or None."""
        if self._thread.ident is None or self._thread.is_alive() or self._stopping:
            return None
        return "the thread projects has died: restart the process; its log says why"

    def problem(self) -> str | None:
        """Why tokens cannot be judged, or None. An old copy is good enough."""
        return None if self._loaded else f"the projects cannot be read: {self._error}"

    def _unknown(self, token: str) -> int:
        """What becomes of a request whose token no project has."""
        self.unknown_tokens += 1
        if self._mode is Mode.ENFORCE:
            raise bad_token(
                f"API key is not valid: no project has the token {_shortened(token)}; see "
                "`tidemark projects list`, or make one with `tidemark projects create NAME`"
            )
        if self._mode is Mode.DRY_RUN:
            self._unwarned += 1
            if time.monotonic() >= self._warned_at + WARN_SECONDS:
                log.warning(
                    "%d requests would be refused with 401: no project has the token %.100r",
                    self._unwarned,
                    _shortened(token),
                )
                self._warned_at = time.monotonic()
                self._unwarned = 0
        return UNKNOWN_PROJECT

    def _remember_miss(self, token: str) -> None:
        self._misses.pop(token, None)  # so that the oldest stand first
        self._forget_misses()
        if len(self._misses) >= MAX_MISSES:
            del self._misses[next(iter(self._misses))]
        self._misses[token] = time.monotonic() + MISS_SECONDS

    def _forget_misses(self) -> None:
        """Forget those whose time is over: they stand first."""
        now = time.monotonic()
        while self._misses and self._misses[oldest := next(iter(self._misses))] <= now:
            del self._misses[oldest]

    async def _look_for(self, token: str) -> bool:
        """Wait for a look that starts from now on; whether the ledger has said what is true."""
        if time.monotonic() < self._failed_at + LOOK_AGAIN_AFTER_FAILURE_SECONDS:
            return False
        with self._lock:
            answer = self._waiting.get(token)
            if answer is None:
                if len(self._waiting) >= MAX_WAITING_TOKENS:
                    return False
                answer = self._waiting[token] = self._loop.create_future()
        self._wanted.set()
        try:
            return await asyncio.wait_for(asyncio.shield(answer), PATIENCE_SECONDS)
        except TimeoutError:
            self._failed_at = time.monotonic()  # it hangs: those who come now need not wait too
            return False

    # What follows runs on the event loop.

    def _put_in_place(self, access: Access) -> None:
        self.access = access
        self._loaded = True
        self._forget_misses()
        self._end_retired_tokens()

    def _end_retired_tokens(self) -> None:
        """Take out the tokens whose time is over, and come again when the next one's is."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        now = now_us()
        access = self.access
        over = {token for token, until in access.good_until.items() if until <= now}
        if over:
            self.access = access = replace(
                access,
                tokens={t: project_id for t, project_id in access.tokens.items() if t not in over},
                good_until={t: until for t, until in access.good_until.items() if t not in over},
            )
        if access.good_until:
            wait = (min(access.good_until.values()) - now) / 1e6
            self._timer = self._loop.call_later(
                min(wait, RETIREMENT_CHECK_SECONDS), self._end_retired_tokens
            )

    def _use_copy(self) -> None:
        """Go on with what the file says, unless the ledger has spoken."""
        if self._loaded or self._copy_tried:
            return
        self._copy_tried = True
        try:
            access = self._copy.load()
        except BadCopy as error:
            log.warning("no tokens are known: %s, and %s", self._error, error)
            return
        self._put_in_place(access)
        log.warning(
            "%s: going on with the copy in %s, which is %s old (%d tokens)",
            self._error,
            self._copy.path,
            _duration(self.age_seconds() or 0.0),
            len(access.tokens),
        )

    # What follows runs in the thread.

    def _run(self) -> None:
        next_refresh = time.monotonic()
        while not self._stopping:
            started = time.monotonic()
            self._wanted.clear()
            with self._lock:
                waiting, self._waiting = self._waiting, {}
            if waiting and self._read is not None and not self._error and started < next_refresh:
                succeeded = self._look(waiting)
            else:
                succeeded = self._look()
                next_refresh = started + self._refresh_seconds
            if waiting:
                self._on_loop(_answer, waiting, succeeded)
            if self._wanted.wait(max(0.0, next_refresh - time.monotonic())) and not self._stopping:
                time.sleep(max(0.0, started + LOOK_AGAIN_SECONDS - time.monotonic()))

    def _look(self, tokens: Iterable[str] | None = None) -> bool:
        """Read all anew, or only if one of the tokens is good by now; whether it succeeded."""
        try:
            if self._engine is None:
                self._engine = open_ledger(self._ledger_url)
            if tokens is not None and not any_good(self._engine, tokens):
                return True
            access = read_access(self._engine)
        except (SQLAlchemyError, OSError, ImportError) as error:
            self._fail(f"the projects cannot be read: {in_one_line(error)}")
            return False
        except Exception as error:  # the edge of the thread, which must go on
            log.exception("the projects cannot be read, in a way that was not foreseen")
            self._fail(f"the projects cannot be read: {error!r}")
            return False
        if self._error and self._loaded:
            log.info("the projects can be read again")
        self._error = ""
        self._read = access = _with_parts_of(self._read, access)
        self._on_loop(self._put_in_place, access)
        self._save(access)
        return True

    def _on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: a look that hung has outlived it
            if not self._stopping:
                raise

    def _fail(self, error: str) -> None:
        self.refreshes_failed += 1
        if self._loaded and not self._error:
            log.warning("going on with the projects that are known: %s", error)
        self._error = error
        self._failed_at = time.monotonic()
        if not self._loaded:
            self._on_loop(self._use_copy)

    def _save(self, access: Access) -> None:
        """Keep the file up to date: write it at a change, confirm it otherwise."""
        try:
            if self._saved is not None and _same(self._saved, access):
                try:
                    self._copy.confirm()
                    return
                except FileNotFoundError:
                    pass  # somebody has removed it
            self._copy.save(access)
            self._saved = access
            self._unsaved = False
        except OSError as error:
            if not self._unsaved:
                log.warning(
                    "no copy of the projects can be kept in %s, so a restart will need the "
                    "ledger: %s",
                    self._copy.path,
                    error,
                )
            self._unsaved = True


def _same(one: Access, other: Access) -> bool:
    return replace(one, read_at=other.read_at) == other


def _with_parts_of(before: Access | None, access: Access) -> Access:
    """What was read now, with the parts of before where they are equal."""
    if before is None:
        return access
    return Access(
        before.tokens if before.tokens == access.tokens else access.tokens,
        before.limits if before.limits == access.limits else access.limits,
        before.rules if before.rules == access.rules else access.rules,
        access.read_at,
        before.good_until if before.good_until == access.good_until else access.good_until,
    )


def _answer(waiting: Waiting, succeeded: bool) -> None:
    for answer in waiting.values():
        if not answer.done():
            answer.set_result(succeeded)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _shortened(token: str) -> str:
    return token if len(token) <= 12 else f"{token[:12]}…"
