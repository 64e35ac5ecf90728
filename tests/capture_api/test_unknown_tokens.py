"""Tokens that no project has: what is remembered of them, and how many are looked for at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from capture_api import projects as module
from capture_api.projects import Projects
from capture_api.refusal import Refused
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import create_project
from orchestration.settings import Mode, Settings


def with_projects(settings: Settings, body: Callable[[Projects], Awaitable[None]]) -> None:
    """Run the body with projects that have been read, and close them."""

    async def main() -> None:
        projects = Projects(settings)
        projects.start()
        async with asyncio.timeout(30):
            while projects.problem():
                await asyncio.sleep(0.005)
        await body(projects)
        await projects.close()

    asyncio.run(main())


async def status(projects: Projects, token: str) -> int:
    """What becomes of a request with that token."""
    try:
        await projects.find(token)
    except Refused as refused:
        return refused.status
    return 200


def test_a_token_that_was_missed_is_not_looked_for_again(
    settings: Callable[..., Settings],
) -> None:
    """For a while it is refused from memory, even without a ledger; a new one is then 503."""
    found = settings()

    async def body(projects: Projects) -> None:
        assert await status(projects, "phc_nobody") == 401
        ledger = Path(found.home) / "ledger.db"
        ledger.rename(found.home / "aside")
        ledger.mkdir()
        assert await status(projects, "phc_nobody") == 401
        assert await status(projects, "phc_somebody") == 503
        assert (projects.unknown_tokens, projects.unjudged_tokens) == (2, {"refused": 1})

    with_projects(found, body)


def test_the_memory_of_missed_tokens_is_bounded(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is forgotten when there are too many; each is refused all the same."""
    monkeypatch.setattr(module, "MAX_MISSES", 2)

    async def body(projects: Projects) -> None:
        for token in ("phc_1", "phc_2", "phc_3"):
            assert await status(projects, token) == 401
        assert list(projects._misses) == ["phc_2", "phc_3"]

    with_projects(settings(), body)


def test_missed_tokens_are_forgotten_when_their_time_is_over(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody needs to ask for them again: the next look at the ledger is enough."""
    monkeypatch.setattr(module, "MISS_SECONDS", 0.2)

    async def body(projects: Projects) -> None:
        assert await status(projects, "phc_nobody") == 401
        async with asyncio.timeout(30):
            while projects._misses:
                await asyncio.sleep(0.005)

    with_projects(settings(capture_project_refresh_seconds=0.05), body)


@pytest.mark.parametrize("mode", list(Mode))
def test_nobody_judges_before_projects_were_read(
    settings: Callable[..., Settings], mode: Mode
) -> None:
    """In no mode is a token taken in that may be good; later the mode decides; both are counted."""
    found = settings(capture_unknown_tokens=mode)
    ledger = Path(found.home) / "ledger.db"
    ledger.mkdir(parents=True)

    async def main() -> None:
        projects = Projects(found)
        projects.start()
        assert await status(projects, "phc_good") == 503
        assert projects.unjudged_tokens == {"refused": 1}
        ledger.rmdir()
        async with asyncio.timeout(30):
            while projects.problem():
                await asyncio.sleep(0.005)
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            (Path(found.home) / name).unlink(missing_ok=True)
        ledger.mkdir()
        enforced = mode is Mode.ENFORCE
        assert await status(projects, "phc_new") == (503 if enforced else 200)
        fate = {"refused": 2} if enforced else {"refused": 1, "taken_in": 1}
        assert projects.unjudged_tokens == fate
        await projects.close()

    asyncio.run(main())


def test_a_project_made_after_a_miss_is_found(settings: Callable[..., Settings]) -> None:
    """A token that is good by now is good, whatever was remembered of it."""
    found = settings(capture_project_refresh_seconds=0.05)
    ledger = open_ledger(found.ledger)

    async def body(projects: Projects) -> None:
        project = create_project(ledger, "shop")
        projects._remember_miss(project.token)
        async with asyncio.timeout(30):
            while await status(projects, project.token) != 200:
                await asyncio.sleep(0.005)
        assert await projects.find(project.token) == project.project_id

    with_projects(found, body)


def test_too_many_new_tokens_at_once_are_told_to_come_again(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as may wait are judged by one look; the others are 503, at once."""
    monkeypatch.setattr(module, "MAX_WAITING_TOKENS", 2)

    async def body(projects: Projects) -> None:
        tokens = [f"phc_{number}" for number in range(5)]
        statuses = await asyncio.gather(*(status(projects, token) for token in tokens))
        assert Counter(statuses) == {401: 2, 503: 3}
        same = await asyncio.gather(*(status(projects, "phc_same") for _ in range(5)))
        assert same == [401] * 5

    with_projects(settings(), body)


def test_a_ledger_that_hangs_holds_up_no_start(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start goes on with the copy when the ledger says nothing; new tokens wait, but not long."""
    monkeypatch.setattr(module, "COPY_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    found = settings()
    ledger = open_ledger(found.ledger)
    project = create_project(ledger, "shop")

    async def keep_a_copy(projects: Projects) -> None:
        assert await projects.find(project.token) == project.project_id

    with_projects(found, keep_a_copy)
    writer = ledger.connect()
    writer.exec_driver_sql("SELECT 1")  # which begins: whoever opens the ledger waits for it

    async def body(projects: Projects) -> None:
        assert projects.known(project.token) == project.project_id
        assert await status(projects, "phc_nobody") == 503
        assert projects.access.read_at > 0
        writer.close()
        async with asyncio.timeout(30):
            while await status(projects, "phc_nobody") != 401:
                await asyncio.sleep(0.005)

    with_projects(found, body)
