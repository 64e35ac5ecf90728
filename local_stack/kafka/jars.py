"""The class path: every jar that the lock file names, fetched once a user, checked at each start.

Data flow: `jars.lock.toml` → the cache folder, shared by all homes → a class path. What is missing
is fetched by jgo into a staging folder beside it, checked, and moved in with one rename.
Invariant: a path that `ensure_jars` returns holds a file of the locked SHA-256.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from local_stack.kafka.errors import JarError

LOCK_FILE = Path(__file__).with_name("jars.lock.toml")
FETCH_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # a fetch is tried once more after each of them
FETCH_TIMEOUT_S = 30
PARALLEL_FETCHES = 6
STAGING_PREFIX = "fetch-"
STAGING_KEPT_S = 3600  # an older staging folder belongs to nobody: its start was killed


@dataclass(frozen=True)
class Jar:
    """One locked jar: `group:artifact:version`, its length and its sum."""

    coordinate: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


@dataclass(frozen=True)
class Lock:
    """The locked Kafka version and its jars, in class path order."""

    kafka_version: str
    jars: tuple[Jar, ...]


def read_lock(path: Path = LOCK_FILE) -> Lock:
    """Read a lock file."""
    document = tomllib.loads(path.read_text())
    jars = tuple(Jar(e["coordinate"], e["size_bytes"], e["sha256"]) for e in document["jars"])
    return Lock(document["kafka_version"], jars)


def default_cache() -> Path:
    """The user's cache folder for jars; XDG_CACHE_HOME moves it."""
    # The XDG rule: a relative value is to be ignored.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = named if named.is_absolute() else Path.home() / ".cache"
    return base / "tidemark" / "kafka"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ensure_jars(
    lock: Lock,
    cache: Path,
    *,
    repository: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Return the paths of all locked jars, fetching what the cache lacks or holds damaged.

    `repository` is the address of another Maven repository, a company's mirror for instance; jgo's
    own default otherwise.
    """
    missing = [jar for jar in lock.jars if not _is_cached(jar, cache / jar.file_name)]
    if missing:
        megabytes = sum(jar.size_bytes for jar in missing) / 1e6
        say(f"fetching {len(missing)} jars ({megabytes:.0f} MB) into {cache}, once for this user")
        started = time.monotonic()
        _fetch_all(missing, cache, repository)
        say(f"fetched and checked in {time.monotonic() - started:.0f} s")
    return [cache / jar.file_name for jar in lock.jars]


def _is_cached(jar: Jar, path: Path) -> bool:
    try:
        return path.stat().st_size == jar.size_bytes and sha256_of(path) == jar.sha256
    except OSError:
        return False  # fetching it tells what is wrong with the folder


def _fetch_all(jars: list[Jar], cache: Path, repository: str | None) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=cache))
    except OSError as error:
        raise JarError(
            f"cannot write to the jar cache {cache} ({error.strerror}): name another with --cache"
        ) from error
    _clear_left_over(cache)
    pool = ThreadPoolExecutor(PARALLEL_FETCHES)
    over = threading.Event()
    try:
        fetches = [pool.submit(_fetch, jar, cache, staging, repository, over) for jar in jars]
        for fetch in as_completed(fetches):
            fetch.result()
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(staging, ignore_errors=True)


def _clear_left_over(cache: Path) -> None:
    for folder in cache.glob(f"{STAGING_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another start may be at it, too
            if folder.stat().st_mtime < time.time() - STAGING_KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


def _fetch(
    jar: Jar, cache: Path, staging: Path, repository: str | None, over: threading.Event
) -> None:
    fetched = _fetch_with_retries(jar, staging, repository, over)
    found = sha256_of(fetched)
    if found != jar.sha256:
        raise JarError(
            f"refused {jar.file_name}: its SHA-256 is {found}, the lock file says {jar.sha256};"
            " something between here and the repository changes files"
        )
    fetched.replace(cache / jar.file_name)


def _fetch_with_retries(
    jar: Jar, staging: Path, repository: str | None, over: threading.Event
) -> Path:
    # Imported here because a start from a full cache needs none of it.
    from jgo.maven import MavenContext

    remotes = None if repository is None else {"given": repository.rstrip("/")}
    for pause_s in (*FETCH_PAUSES_S, None):
        # jgo writes a file in place, so that what a broken fetch leaves looks whole: each try has
        # a folder of its own.
        folder = Path(tempfile.mkdtemp(dir=staging))
        context = MavenContext(repo_cache=folder, remote_repos=remotes, timeout=FETCH_TIMEOUT_S)
        try:
            path: Path = context.create_dependency(jar.coordinate).artifact.resolve()
            return path
        except (OSError, RuntimeError) as error:
            # Network errors of requests are OSErrors; jgo says RuntimeError for any HTTP status.
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise JarError(f"no space left for the jars in {staging.parent}") from error
            # Another jar's last try may have failed meanwhile; then this one has no use either.
            if pause_s is None or over.wait(pause_s):
                raise JarError(
                    f"cannot fetch {jar.file_name} after {len(FETCH_PAUSES_S) + 1} tries: the first"
                    " start needs the network (or --repository with the address of a mirror);"
                    f" later starts do not. It failed with {_cause(error)}"
                ) from error
    raise AssertionError("unreachable: the last try returns or raises")


def _cause(error: BaseException) -> str:
    """The innermost reason in a few words: behind a proxy it is often a certificate."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
