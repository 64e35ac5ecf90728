"""A lake in a bucket of a real S3 store: whole files or none, an end to every wait, clear words."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date

import pytest

from assets.pipeline import lake as lake_module
from assets.pipeline import object_store
from assets.pipeline.batch import Kind, StagedFile
from assets.pipeline.errors import BatchError, LakeTrouble, StagedFileDamaged, TransientError
from assets.pipeline.lake import Lake, lake_path
from assets.pipeline.row_hashes import columns_of
from tests.faulty_proxy import Canned, Exchange, Fault, FaultyProxy
from tests.object_store import BUCKET, KEY, ObjectStore
from tests.stack import ROOT

PATH = lake_path("events", date(2026, 3, 5), "one.parquet")
OTHER = PATH.replace("one", "other")
SMALL, LARGE = b"some bytes", os.urandom(1 << 20) * 25
DENIED = Canned(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>", "text/xml")


def write(lake: Lake, data: bytes, path: str = PATH) -> tuple[int, str]:
    """Write a file in pieces; gives what would be registered."""
    with lake.create(path) as sink:
        for at in range(0, len(data), 3 << 20):
            sink.write(data[at : at + (3 << 20)])
    return sink.bytes, sink.sha256


def names(store: ObjectStore, lake: Lake) -> set[str]:
    """The objects of a lake."""
    root = lake.full_path("").removeprefix(f"{BUCKET}/")
    return {name.removeprefix(root) for name in store.objects(root)}


@pytest.fixture
def lake(bucket: ObjectStore) -> Lake:
    """A lake of a test's own."""
    return Lake(bucket.lake_uri())


@pytest.fixture
def between(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A way to the store that a test may break."""
    with FaultyProxy(bucket.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_file_is_written_read_copied_and_deleted(
    bucket: ObjectStore, lake: Lake, data: bytes
) -> None:
    """Byte for byte; what is deleted twice, or is not there, is told from what is."""
    size, sha256 = write(lake, data)
    assert size == len(data)
    lake.check(PATH, size, sha256)
    lake.copy(PATH, OTHER)
    lake.check(OTHER, size, sha256)
    assert lake.there([PATH, OTHER, PATH.replace("one", "two"), "remade/no.parquet"]) == {
        PATH,
        OTHER,
    }
    for _ in range(2):
        lake.delete(PATH)
    assert names(bucket, lake) == {OTHER}
    with pytest.raises(StagedFileDamaged, match=r"one\.parquet is not in the lake"):
        lake.check(PATH, size, sha256)
    with pytest.raises(StagedFileDamaged, match=r"one\.parquet is not in the lake"):
        lake.copy(PATH, "replaced/one.parquet")


def test_what_fails_before_it_is_whole_is_never_sent(bucket: ObjectStore, lake: Lake) -> None:
    """And what stood there before stays."""
    before = write(lake, SMALL)
    with pytest.raises(TypeError), lake.create(PATH) as sink:
        sink.write("no bytes")
    lake.check(PATH, *before)
    assert names(bucket, lake) == {PATH}


def is_part(number: int) -> Callable[[Exchange], bool]:
    """Whether a request brings that part of a file."""
    return lambda exchange: f"partNumber={number}&" in exchange.target


def test_a_store_that_refuses_a_part_shows_nothing(
    bucket: ObjectStore, between: FaultyProxy
) -> None:
    """The error says which file, what the store said, and where to look; in one line."""
    lake, is_second = Lake(bucket.lake_uri()), is_part(2)
    between.answers = lambda exchange: DENIED if is_second(exchange) else None
    with pytest.raises(TransientError) as told:
        write(lake, LARGE)
    assert str(told.value) == (
        f"writing {PATH} in the lake failed: the store does not let these credentials do that "
        "(docs/object-store.md) (ACCESS_DENIED at UploadPart: no)"
    )
    assert not [e for e in between.exchanges if e.method == "DELETE"], "there is nothing to delete"
    assert names(bucket, lake) == set()
    between.answers = lambda exchange: None
    lake.check(PATH, *write(lake, LARGE))


def test_a_writer_killed_while_it_sends_shows_nothing(
    bucket: ObjectStore, between: FaultyProxy
) -> None:
    """Of a file of several parts the first are there, and nobody sees them."""
    lake, is_last = Lake(bucket.lake_uri()), is_part(3)
    between.plan = lambda exchange: Fault.HOLD if is_last(exchange) else Fault.NONE
    code = (
        "import sys; from assets.pipeline.lake import Lake\n"
        "with Lake(sys.argv[1]).create(sys.argv[2]) as sink: sink.write(bytes(25 << 20))"
    )
    uri = f"s3://{lake.full_path('').rstrip('/')}"
    writer = subprocess.Popen([sys.executable, "-c", code, uri, PATH], cwd=ROOT)
    while not between.held():
        assert writer.poll() is None
    writer.kill()
    assert writer.wait() == -signal.SIGKILL
    between.let_go()
    assert names(bucket, lake) == set()
    lake.check(PATH, *write(lake, LARGE))


class Interrupted(io.BytesIO):
    """A large file that somebody stops being read, after two pieces."""

    pieces = 2

    def read(self, size: int | None = -1) -> bytes:
        """The next piece."""
        self.pieces -= 1
        if self.pieces < 0:
            raise KeyboardInterrupt
        return super().read(size)


def test_who_is_interrupted_while_it_sends_leaves_nothing(bucket: ObjectStore, lake: Lake) -> None:
    """Leaving a stream completes its object: what came of that is deleted."""
    with pytest.raises(KeyboardInterrupt):
        lake._send(Interrupted(LARGE), PATH)
    assert names(bucket, lake) == set()


@pytest.mark.parametrize("fault", [Fault.HOLD, Fault.RESET_BEFORE, Fault.UNAVAILABLE])
def test_a_store_that_is_away_is_not_waited_for_without_end(
    bucket: ObjectStore, between: FaultyProxy, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """Silent or gone: who reads, deletes or writes is told so, and the next one at once."""
    monkeypatch.setattr(object_store, "SILENT_S", 1.0)
    monkeypatch.setattr(object_store, "TRIES", 2)
    uri = bucket.lake_uri()
    before = write(Lake(uri), SMALL)
    between.exchanges.clear()
    between.plan = lambda exchange: fault
    tries: list[tuple[str, Callable[[Lake], object]]] = [
        ("reading", lambda lake: lake.check(PATH, *before)),
        ("deleting", lambda lake: lake.delete(PATH)),
        ("writing", lambda lake: write(lake, SMALL)),
    ]
    if fault is Fault.HOLD:
        tries.pop()  # the SDK takes seconds to see that: tests/faults has it
    for doing, attempt in tries:
        with pytest.raises(TransientError, match=f"{doing} {PATH} in the lake failed: ") as told:
            attempt(lake := Lake(uri))
        assert isinstance(told.value, LakeTrouble) == (doing == "reading")
        assert len(str(told.value).splitlines()) == 1
        if fault is Fault.UNAVAILABLE:
            continue
        assert "the store does not answer: see region, endpoint" in str(told.value)
        asked = len(between.exchanges)
        with pytest.raises(TransientError, match="the store does not answer"):
            lake.check(OTHER, 1, "")
        with pytest.raises(LakeTrouble, match="the store does not answer"):
            columns_of(lake, StagedFile(Kind.EVENTS, OTHER, 1, 1, ""))
        assert len(between.exchanges) == asked, "it was waited for just now"
    puts = [exchange for exchange in between.exchanges if exchange.method == "PUT"]
    assert len(puts) == 2 * (len(tries) - 2), "it is tried twice"
    assert between.exchanges[-1].method == (puts[-1].method if puts else "HEAD"), "and then left"
    between.plan = lambda exchange: Fault.NONE
    between.let_go()
    Lake(uri).check(PATH, *before)


def test_a_store_that_answers_again_is_asked_again(
    bucket: ObjectStore, between: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same lake, after a while."""
    monkeypatch.setattr(lake_module, "ASKED_AGAIN_S", 0.0)
    monkeypatch.setattr(object_store, "TRIES", 1)
    lake = Lake(bucket.lake_uri())
    before = write(lake, SMALL)
    between.plan = lambda exchange: Fault.RESET_BEFORE
    with pytest.raises(LakeTrouble):
        lake.check(PATH, *before)
    between.plan = lambda exchange: Fault.NONE
    lake.check(PATH, *before)


@pytest.mark.parametrize(
    ("environment", "uri", "written", "read"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "AKIDNOBODY"},
            "s3://lake/x",
            "the store does not know this key: see AWS_ACCESS_KEY_ID",
            "the store does not let these credentials do that",
        ),
        (
            {"AWS_SECRET_ACCESS_KEY": "hunter2-hunter2"},
            "s3://lake/x",
            "the secret is not this key's: see AWS_SECRET_ACCESS_KEY",
            "the store does not let these credentials do that",
        ),
        (
            {},
            f"s3://{KEY}:hunter2@lake/x",
            "the secret is not this key's",
            "the store does not let these credentials do that",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "AKIDOWNER", "AWS_SECRET_ACCESS_KEY": "of-the-whole-store"},
            "s3://nowhere/x",
            "there is no such bucket at that endpoint: see TIDEMARK_LAKE_URI",
            "there is no bucket nowhere: see TIDEMARK_LAKE_URI and the endpoint",
        ),
    ],
    ids=["key", "secret", "secret in the address", "bucket"],
)
def test_what_is_wrong_with_the_address_is_told(
    bucket: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    uri: str,
    written: str,
    read: str,
) -> None:
    """In one line without a secret; and never as a file that is lost, which would be made anew."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lake = Lake(uri)
    tries: list[tuple[str, Callable[[], object]]] = [
        (written, lambda: write(lake, SMALL)),
        (read, lambda: lake.check(PATH, 1, "")),
        (read, lambda: lake.delete(PATH)),
    ]
    for text, attempt in tries:
        with pytest.raises(BatchError) as told:
            attempt()
        assert isinstance(told.value, TransientError)
        assert text in str(told.value)
        assert "hunter" not in str(told.value)
        assert len(str(told.value).splitlines()) == 1
