"""The lock file and the cache of jars, against a repository on this machine that can misbehave."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local_stack.kafka import jars
from local_stack.kafka.errors import JarError
from local_stack.kafka.jars import Jar, Lock, ensure_jars, read_lock

CONTENT = b"not really a jar" * 1000
JAR = Jar("org.example:thing:1.0", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
LOCK = Lock("0", (JAR,))


@dataclass
class Repository:
    """A Maven repository: what it answers next for each jar, and what it was asked."""

    address: str = ""
    statuses: list[int] = field(default_factory=list)
    content: bytes = CONTENT
    cut_short: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def repository() -> Iterator[Repository]:
    """A repository on a free port of the loopback address."""
    state = Repository()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.endswith(".jar"):
                self.send_error(404)
                return
            state.asked.append(self.path)
            status = state.statuses.pop(0) if state.statuses else 200
            if status != 200:
                self.send_error(status)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            half = len(state.content) // 2
            self.wfile.write(state.content[:half] if state.cut_short else state.content)
            state.cut_short = False

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "FETCH_PAUSES_S", (0.01, 0.01))


def test_every_jar_of_kafka_has_the_locked_version() -> None:
    """No dependency's own wishes have replaced a jar of Kafka by an older one."""
    lock = read_lock()
    versions = {
        j.coordinate.split(":")[2] for j in lock.jars if "org.apache.kafka:" in j.coordinate
    }
    assert versions == {lock.kafka_version}


def test_the_log4j_jars_share_one_version() -> None:
    """The link between SLF4J and log4j fits the log4j that Kafka brings."""
    log4j = [jar.coordinate.split(":") for jar in read_lock().jars if "log4j:" in jar.coordinate]
    assert {artifact for _, artifact, _ in log4j} == {"log4j-api", "log4j-core", "log4j-slf4j-impl"}
    assert len({version for *_, version in log4j}) == 1


def test_the_lock_file_has_sums_and_no_addresses() -> None:
    """Each locked jar has a SHA-256, and nothing in the file names a host."""
    assert "//" not in jars.LOCK_FILE.read_text()
    assert all(len(jar.sha256) == 64 and jar.size_bytes > 0 for jar in read_lock().jars)


def test_a_missing_jar_is_fetched_once(repository: Repository, tmp_path: Path) -> None:
    """The second start finds the jar in the cache and asks nobody."""
    first = ensure_jars(LOCK, tmp_path, repository=repository.address)
    second = ensure_jars(LOCK, tmp_path, repository=repository.address)
    assert first == second == [tmp_path / "thing-1.0.jar"]
    assert first[0].read_bytes() == CONTENT
    assert repository.asked == ["/org/example/thing/1.0/thing-1.0.jar"]


def test_a_full_cache_needs_no_network(repository: Repository, tmp_path: Path) -> None:
    """With all jars in the cache, a repository that is gone is not noticed."""
    ensure_jars(LOCK, tmp_path, repository=repository.address)
    assert ensure_jars(LOCK, tmp_path, repository="http://127.0.0.1:1")


def test_a_failed_fetch_is_tried_again(repository: Repository, tmp_path: Path) -> None:
    """A repository that answers 503 and 500 and then well is good enough."""
    repository.statuses = [503, 500]
    ensure_jars(LOCK, tmp_path, repository=repository.address)
    assert len(repository.asked) == 3


def test_a_broken_off_fetch_is_tried_again(repository: Repository, tmp_path: Path) -> None:
    """Half a jar is never taken for a jar."""
    repository.cut_short = True
    (path,) = ensure_jars(LOCK, tmp_path, repository=repository.address)
    assert path.read_bytes() == CONTENT
    assert len(repository.asked) == 2


def test_retries_are_bounded(repository: Repository, tmp_path: Path) -> None:
    """After the last try one line names the jar and what helps."""
    repository.statuses = [503] * 99
    with pytest.raises(JarError, match=r"cannot fetch thing-1\.0\.jar after 3 tries.*network"):
        ensure_jars(LOCK, tmp_path, repository=repository.address)
    assert len(repository.asked) == 3


def test_no_network_is_one_clear_line(tmp_path: Path) -> None:
    """Nobody at the address: the line says that the first start needs the network."""
    with pytest.raises(JarError, match="the first start needs the network") as caught:
        ensure_jars(LOCK, tmp_path, repository="http://127.0.0.1:1")
    assert "\n" not in str(caught.value)


def test_a_wrong_sum_is_refused(repository: Repository, tmp_path: Path) -> None:
    """A jar that is not the locked one is named, and nothing of it stays in the cache."""
    repository.content = CONTENT[:-1] + b"!"
    with pytest.raises(JarError, match=r"refused thing-1\.0\.jar: its SHA-256 is"):
        ensure_jars(LOCK, tmp_path, repository=repository.address)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_jar_in_the_cache_is_replaced(repository: Repository, tmp_path: Path) -> None:
    """A cached file of the right length and the wrong bytes is fetched anew."""
    (tmp_path / "thing-1.0.jar").write_bytes(b"x" * len(CONTENT))
    (path,) = ensure_jars(LOCK, tmp_path, repository=repository.address)
    assert path.read_bytes() == CONTENT


def test_what_a_killed_fetch_left_is_cleared(repository: Repository, tmp_path: Path) -> None:
    """An old staging folder goes; one that another start may be using stays."""
    old, young = tmp_path / "fetch-old", tmp_path / "fetch-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    ensure_jars(LOCK, tmp_path, repository=repository.address)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fetch-young", "thing-1.0.jar"]


def test_a_cache_that_cannot_be_written_is_named(repository: Repository, tmp_path: Path) -> None:
    """A cache path below a file is refused with the argument that names another."""
    (tmp_path / "file").touch()
    with pytest.raises(JarError, match="name another with --cache"):
        ensure_jars(LOCK, tmp_path / "file" / "cache", repository=repository.address)


def test_xdg_cache_home_moves_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's own cache folder is respected, and a relative one ignored."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jars.default_cache() == tmp_path / "tidemark" / "kafka"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert jars.default_cache() == Path.home() / ".cache" / "tidemark" / "kafka"
