"""ClickHouse is away, or answers with an error: what waits, what goes on, and who is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from assets.pipeline.batch import State
from assets.pipeline.codes import CLICKHOUSE, Remedy
from assets.pipeline.errors import BatchError, ClickHouseAway, LoadingPaused
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import retry_batch
from assets.pipeline.worker import Worker
from orchestration.ledger.attempts import Attempt, attempts_of
from orchestration.ledger.backoffs import backoffs_now
from orchestration.ledger.connection import now_us
from orchestration.ledger.tables import backoffs
from tests.faults.conftest import Scene, is_insert
from tests.faults.run_worker import AGAIN
from tests.faulty_proxy import Canned, Exchange, FaultyProxy
from tests.stack import ClickHouseServer

NewScene = Callable[..., Scene]


@pytest.fixture
def staged(proxy: FaultyProxy, new_scene: NewScene) -> Scene:
    """Several batches that are staged, before a ClickHouse whose answers can be chosen."""
    scene = new_scene(
        batch_max_records=120, clickhouse_url=proxy.url, load_attempts=1, unknown_error_tries=2
    )
    stage_batches(scene.stack.worker())
    assert len(scene.stack.batches()) == 3
    return scene


def answer_inserts(proxy: FaultyProxy, code: int, of_batch: str = "") -> None:
    """Let inserts, or those of one batch, be answered with an error."""
    name = CLICKHOUSE.get(code, ("NEVER_HEARD_OF", Remedy.UNKNOWN))[0]
    canned = Canned(
        500,
        f"Code: {code}. DB::Exception: made up. ({name})\n".encode(),
        "text/plain",
        {"X-ClickHouse-Exception-Code": str(code)},
    )

    def answer(exchange: Exchange) -> Canned | None:
        return canned if is_insert(exchange) and of_batch in exchange.target else None

    proxy.answers = answer


def load(scene: Scene, *, insists: bool = False) -> list[BatchError]:
    """Load what is due, as a micro-batch does; gives what it tells of."""
    told: list[BatchError] = []
    stack = scene.stack
    load_batches(Worker(stack.settings, stack.ledger, "run", lambda _: None, insists), told)
    return told


def states(scene: Scene) -> list[State]:
    """The states of all batches, in order."""
    return [batch.state for batch in scene.stack.batches()]


def loads_of(scene: Scene, number: int) -> list[Attempt]:
    """The attempts at loading a batch."""
    batch = scene.stack.batches()[number]
    return [one for one in attempts_of(scene.stack.ledger, batch.batch_id) if one.stage == "load"]


def not_due(scene: Scene) -> None:
    """Let nothing that is waited for be due, however slow the machine is."""
    with scene.stack.ledger.begin() as connection:
        connection.execute(backoffs.update().values(next_try_at=now_us() + 3_600_000_000))


def inserts(proxy: FaultyProxy) -> int:
    """How many inserts of events were sent so far."""
    return sum(map(is_insert, proxy.exchanges))


@pytest.mark.matrix("a batch is too much for ClickHouse")
def test_a_batch_in_trouble_by_itself_holds_up_no_other(staged: Scene, proxy: FaultyProxy) -> None:
    """It is tried ever more rarely and never given up; those behind it are loaded at once."""
    first = staged.stack.batches()[0]
    code = 241
    answer_inserts(proxy, code, first.batch_id)
    (told,) = load(staged)
    assert (told.code, isinstance(told, ClickHouseAway)) == (code, True)
    assert states(staged) == [State.LOADING, State.COMMITTED, State.COMMITTED]
    (failed,) = loads_of(staged, 0)
    assert (failed.error_code, failed.remedy, failed.retriable) == (code, "alone", True)
    assert failed.next_try_at is not None
    assert failed.next_try_at > now_us()
    sent = inserts(proxy)
    not_due(staged)
    assert load(staged) == []
    assert inserts(proxy) == sent, "tried before it was due"
    waits = [failed.next_try_at - (failed.ended_at or 0)]
    for _ in range(3):
        load(staged, insists=True)
        last = loads_of(staged, 0)[-1]
        waits.append((last.next_try_at or 0) - (last.ended_at or 0))
    assert waits[-1] > waits[0]
    proxy.answers = lambda exchange: None
    load(staged, insists=True)
    assert backoffs_now(staged.stack.ledger) == {}
    assert staged.work() == 0
    staged.prove()


@pytest.mark.matrix("a batch never gets through to ClickHouse")
def test_a_batch_that_never_gets_through_pauses_no_table(staged: Scene, proxy: FaultyProxy) -> None:
    """A proxy's 413 has no code of ClickHouse: another batch is the probe, and ends the pause."""
    poison = staged.stack.batches()[0]
    too_large = Canned(413, b"too large", "text/plain")
    proxy.answers = lambda exchange: (
        too_large if is_insert(exchange) and poison.batch_id in exchange.target else None
    )
    for _ in range(2):
        (told,) = load(staged, insists=True)
        assert isinstance(told, LoadingPaused)
        assert states(staged)[1:] == [State.STAGED] * 2
    (told,) = load(staged, insists=True)
    assert "413" in str(told)
    assert states(staged) == [State.LOADING, State.COMMITTED, State.COMMITTED]
    assert loads_of(staged, 0)[-1].remedy == "alone"
    not_due(staged)
    staged.send_more(20)
    stage_batches(staged.stack.worker())
    assert load(staged) == [], "tried before it was due"
    assert states(staged)[-1] is State.COMMITTED
    proxy.answers = lambda exchange: None
    assert load(staged, insists=True) == []
    assert staged.work() == 0
    assert backoffs_now(staged.stack.ledger) == {}
    staged.prove()


@pytest.mark.matrix("ClickHouse refuses what is in a batch", "an error that nobody knows")
@pytest.mark.parametrize(("code", "tries"), [(27, 1), (98_765, 2)])
def test_what_is_refused_waits_for_a_person(
    staged: Scene, proxy: FaultyProxy, code: int, tries: int
) -> None:
    """Data errors are not tried again, unknown ones a few times; `retry` begins anew."""
    batch = staged.stack.batches()[1]
    answer_inserts(proxy, code, batch.batch_id)
    for left in reversed(range(tries)):
        (told,) = load(staged, insists=True)
        assert told.code == code
        waits = State.LOADING if left else State.FAILED
        assert states(staged) == [State.COMMITTED, waits, State.COMMITTED]
    sent = inserts(proxy)
    assert load(staged, insists=True) == []
    assert inserts(proxy) == sent
    assert len(loads_of(staged, 1)) == tries
    assert f"Code: {code}" in staged.stack.batches()[1].note
    proxy.answers = lambda exchange: None
    assert retry_batch(staged.stack.worker(), batch.batch_id) is State.LOADING
    assert backoffs_now(staged.stack.ledger).keys() == set()
    assert staged.work() == 0
    staged.prove()


@pytest.mark.matrix("an error that nobody knows")
def test_what_was_waited_for_does_not_count_as_unknown(staged: Scene, proxy: FaultyProxy) -> None:
    """However often the table took nothing, an unknown error is tried again as often as ever."""
    batch = staged.stack.batches()[0]
    for code, tries in ((252, 3), (98_765, 2)):
        assert states(staged)[0] is not State.FAILED
        answer_inserts(proxy, code, batch.batch_id)
        for _ in range(tries):
            assert states(staged)[0] in (State.STAGED, State.LOADING)
            assert load(staged, insists=True) != []
    assert states(staged)[0] is State.FAILED
    proxy.answers = lambda exchange: None
    retry_batch(staged.stack.worker(), batch.batch_id)
    assert staged.work() == 0
    staged.prove()


@pytest.mark.matrix("too many parts")
@pytest.mark.parametrize("code", [252, 999, 60])
def test_a_table_that_takes_nothing_is_probed_once_an_interval(
    staged: Scene, proxy: FaultyProxy, code: int
) -> None:
    """One insert, of the oldest batch, an interval; no batch is given up, and all catch up."""
    answer_inserts(proxy, code)
    (told,) = load(staged)
    assert isinstance(told, LoadingPaused)
    assert CLICKHOUSE[code][0] in str(told)
    assert inserts(proxy) == 1
    not_due(staged)
    assert load(staged) != []
    assert inserts(proxy) == 1, "tried before it was due"
    load(staged, insists=True)
    assert [len(loads_of(staged, n)) for n in range(3)] == [2, 0, 0]
    assert loads_of(staged, 0)[0].error_code == code
    proxy.answers = lambda exchange: None
    assert load(staged, insists=True) == []
    assert states(staged) == [State.COMMITTED] * 3
    assert backoffs_now(staged.stack.ledger) == {}


def test_batch_after_batch_in_trouble_is_the_table_s(staged: Scene, proxy: FaultyProxy) -> None:
    """Two in a row end the run: a server without memory is not sent one batch after the other."""
    answer_inserts(proxy, 241)
    told = load(staged)
    assert [type(one) for one in told] == [ClickHouseAway, ClickHouseAway, LoadingPaused]
    assert inserts(proxy) == 2
    assert states(staged) == [State.LOADING, State.LOADING, State.STAGED]


def test_the_mirror_ends_the_pause_of_dead_letters(staged: Scene, proxy: FaultyProxy) -> None:
    """It fails on that table's account, so it ends the wait for it, though nothing is rejected."""
    assert staged.work() == 0
    staged.send_more(20)
    stage_batches(staged.stack.worker())
    assert load(staged) == []
    away = Canned(503, b"away", "text/plain")
    proxy.answers = lambda exchange: away
    told: list[BatchError] = []
    load_dead_letters(staged.stack.worker(), told)
    assert [type(one) for one in told] == [LoadingPaused]
    assert len(backoffs_now(staged.stack.ledger)) == 1
    proxy.answers = lambda exchange: None
    assert staged.tidemark("batch") == 0
    assert backoffs_now(staged.stack.ledger) == {}
    staged.prove()


@pytest.mark.matrix("ClickHouse away for long", "as much is staged as may wait")
def test_clickhouse_is_away_for_long(
    new_scene: NewScene, new_clickhouse: Callable[[], ClickHouseServer]
) -> None:
    """Staging goes on up to the budget, no batch is tried in vain, and all is loaded in order."""
    server = new_clickhouse().start()
    scene = new_scene(clickhouse_url=server.address, load_attempts=2, table_backoff_max_seconds=600)
    assert scene.work() == 0
    server.kill()
    scene.send_more(20)
    assert scene.work() == AGAIN
    for number in range(2):
        scene.send_more(20)
        assert scene.work() == AGAIN
        assert states(scene)[1:] == [State.STAGED] * (2 + number)
        not_due(scene)
    (backoff,) = backoffs_now(scene.stack.ledger).values()
    assert backoff.failures == 2, "asked before it was due"
    scene.send_more(20)
    assert scene.work(staged_max_bytes=1) == AGAIN
    assert len(states(scene)) == 4, "planned beyond the budget"
    server.start()
    told = load(scene, insists=True)
    assert told == []
    loaded = [loads_of(scene, n)[-1].started_at for n in range(1, 4)]
    assert loaded == sorted(loaded)
    assert scene.work() == 0
    scene.prove()
