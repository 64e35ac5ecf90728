"""The guard: what a client and a project may send now, and where their events go.

    before the body is read   the address's bucket of requests      → 429
    once the token is known   the project's bucket of events        → 429, and a turn (waiting.py)
                              the project's events of today (UTC)   → over quota

Limits are the project's own (`tidemark projects limit`) or the deployment's (settings). Everything
fails open: what cannot be known (Redis away, the ledger away) refuses nobody.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from capture_api.projects import Projects
from capture_api.protection.buckets import Buckets, retry_after
from capture_api.protection.hot_keys import HotKeys
from capture_api.protection.routing import Route, Router, RuleBook, Topics
from capture_api.protection.waiting import Waiting
from capture_api.refusal import Refused
from orchestration.ledger.projects import Limits
from orchestration.settings import Mode, Settings

_BURST_SECONDS = 10
"""A burst that nobody has set is what the rate allows in this time."""
if TYPE_CHECKING:
    from capture_api.protection.shared import Shareable, SharedBuckets

_NEWS_SECONDS = 60.0

_BROWSER = "Mozilla/"
"""How browsers name themselves; what runs in them drops what is answered 429."""

log = logging.getLogger("tidemark.capture.limits")


class Limit(StrEnum):
    """The limits. Names of metrics' labels."""

    ADDRESS = "address"
    PROJECT = "project"
    QUOTA = "quota"


class OverQuota(Exception):
    """The project has sent its events of today; these are not kept, and the answer says so."""


class Guard:
    """Protects one worker; between `start` and `close`, on one event loop.

    `reached` counts how often each limit was reached, dry runs apart.
    """

    def __init__(
        self,
        settings: Settings,
        projects: Projects,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._projects = projects
        self._access = projects.access
        self._rates = settings.capture_rate_limits
        self._quotas = settings.capture_quotas
        shared = bool(settings.capture_redis_url) and self._rates is not Mode.OFF
        self._of_projects = Buckets("project", shared, clock)
        self._of_addresses = Buckets("address", shared, clock)
        self._waiting = Waiting("waiting", shared, clock)
        self._shared = (
            _share(
                settings.capture_redis_url,
                [self._of_projects, self._of_addresses, self._waiting],
            )
            if shared
            else None
        )
        self._told_at: dict[tuple[Limit, str], float] = {}
        self.reached: Counter[tuple[Limit, bool]] = Counter()
        self.router = Router(
            Topics(*settings.topics),
            HotKeys(settings.capture_overflow_events_per_second)
            if settings.capture_overflow is not Mode.OFF
            else None,
            settings.capture_overflow,
            settings.capture_overflow_keeps_key,
            RuleBook(self._access.rules),
        )

    @property
    def sharing_fails(self) -> bool:
        """Whether rate limits should be shared with other workers, and are not for now."""
        return self._shared is not None and self._shared.away

    def start(self) -> None:
        """Start sharing, where that is wanted. Called on the event loop."""
        if self._shared is not None:
            self._shared.start()

    async def close(self) -> None:
        """Stop sharing."""
        if self._shared is not None:
            await self._shared.close()

    def admit_request(self, address: str) -> None:
        """Let one more request of the address in. Refuses with 429."""
        rate = self._settings.capture_address_requests_per_second
        if not rate or self._rates is Mode.OFF:
            return
        if ":" in address:
            address = _network(address)
        burst = self._settings.capture_address_burst_requests or rate * _BURST_SECONDS
        seconds = self._of_addresses.take(address, 1, rate, burst)
        if seconds and self._reached(Limit.ADDRESS, address, self._rates):
            raise _too_many("requests from this address", rate, "requests", retry_after(seconds))

    def admit_events(self, project_id: int, count: int, user_agent: str | None) -> None:
        """Let so many more events of the project in. Refuses with 429; raises OverQuota.

        `user_agent` tells who would come back; None: nobody does after a 429 of this protocol.
        """
        limits = self._projects.access.limits.get(project_id) or _NO_LIMITS
        settings = self._settings
        rate = _own(limits.events_per_second, settings.capture_project_events_per_second)
        if rate and self._rates is not Mode.OFF:
            burst = _own(limits.burst, settings.capture_project_burst_events)
            key = str(project_id)
            seconds = self._of_projects.take(key, count, rate, burst or rate * _BURST_SECONDS)
            if seconds and self._reached(Limit.PROJECT, key, self._rates):
                comes_back = user_agent is not None and not user_agent.startswith(_BROWSER)
                turn = self._waiting.turn(key, count, rate, seconds, comes_back)
                raise _too_many("events of this project", rate, "events", turn)
        quota = _own(limits.daily_quota, settings.capture_daily_quota)
        if (
            quota
            and self._quotas is not Mode.OFF
            and self._projects.used_today(project_id) >= quota
            and self._reached(Limit.QUOTA, str(project_id), self._quotas)
        ):
            raise OverQuota

    def route(self, project_id: int, historical: bool) -> Route:
        """The routing of one request's events."""
        access = self._projects.access
        if access is not self._access:  # read anew
            self._access = access
            if access.rules != self.router.book.rules:
                self.router.book = RuleBook(access.rules)
        return self.router.route(project_id, historical)

    def _reached(self, limit: Limit, key: str, mode: Mode) -> bool:
        """Count that a limit was reached; whether that refuses."""
        enforced = mode is Mode.ENFORCE
        self.reached[limit, not enforced] += 1
        if limit is not Limit.ADDRESS and self._is_news(limit, key):
            log.info(
                "project %s has reached its %s%s",
                key,
                "daily quota" if limit is Limit.QUOTA else "events a second",
                "" if enforced else " (dry run: nothing is refused)",
            )
        return enforced

    def _is_news(self, limit: Limit, key: str) -> bool:
        """Whether the log is to say so: once in a while, not for every request."""
        now = time.monotonic()
        if now - self._told_at.get((limit, key), -_NEWS_SECONDS) < _NEWS_SECONDS:
            return False
        self._told_at[limit, key] = now
        return True


def _share(url: str, kinds: Sequence[Shareable]) -> SharedBuckets:
    # Imported where it is wanted: Redis' client takes 6 MB of memory.
    from capture_api.protection.shared import SharedBuckets

    return SharedBuckets(url, kinds)


_NO_LIMITS = Limits(None, None, None)


@lru_cache(16_384)
def _network(address: str) -> str:
    """The /64 of an IPv6 address: whoever has one, has all of it to send from."""
    try:
        return str(IPv6Network((IPv6Address(address).packed[:8] + bytes(8), 64)))
    except ValueError:  # what a server says that knows no address
        return address


def _own(own: float | None, default: float) -> float:
    return default if own is None else own


def _too_many(what: str, rate: float, unit: str, seconds: int) -> Refused:
    return Refused(
        429,
        "rate_limited",
        f"too many {what}: at most {rate:g} {unit} a second; send them again in {seconds} s",
        retry_after=seconds,
    )
