"""Nobody knows whether an insert arrived, or how: the proof finds out, nothing comes in twice."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable

import pytest

from assets.pipeline import load as load_module
from assets.pipeline.audit import Trouble, reprove
from assets.pipeline.batch import Kind, State
from assets.pipeline.clickhouse import make_tables
from assets.pipeline.load import one_block
from assets.pipeline.mirror import mirrored_states
from assets.pipeline.waiting import retry_batch
from orchestration.cli import EXIT_NOT_BALANCED
from tests.faults.conftest import Scene, is_insert
from tests.faults.run_worker import AGAIN, STOPPED
from tests.faulty_proxy import Exchange, Fault, FaultyProxy
from tests.stack import ClickHouseServer

NewScene = Callable[..., Scene]


@pytest.mark.matrix("insert sent, connection lost")
@pytest.mark.parametrize("fault", [Fault.RESET_BEFORE, Fault.RESET_DURING, Fault.RESET_AFTER])
def test_the_connection_is_cut_before_the_answer(
    proxy: FaultyProxy, new_scene: NewScene, fault: Fault
) -> None:
    """Cut before, while or after the server takes it: the worker ends, the next one finds out."""
    scene = new_scene(batch_max_records=150, clickhouse_url=proxy.url)

    def cut_all_inserts(exchange: Exchange) -> Fault:
        return fault if is_insert(exchange) else Fault.NONE

    proxy.plan = cut_all_inserts
    assert scene.work() == AGAIN
    assert any(exchange.fault is fault for exchange in proxy.exchanges)
    proxy.plan = lambda exchange: Fault.NONE
    assert scene.work() == 0
    scene.prove()


def forget_tokens(scene: Scene) -> None:
    """Make the server remember one insert, and let that be another one."""
    table = f"{scene.stack.database}.events"
    scene.stack.client.command(
        f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 1"
    )
    day = scene.stack.batches()[0].arrival_date
    for number in range(3):
        scene.stack.client.command(
            f"INSERT INTO {table} (project_id, arrival_date, _topic) "
            f"VALUES (9, '{day}', 'other-{number}')"
        )


@pytest.mark.matrix("deduplication window gone")
@pytest.mark.parametrize("point", ["after-send", "after-insert"])
def test_the_server_has_forgotten_the_insert(new_scene: NewScene, point: str) -> None:
    """With a window of one insert, long gone, the rows are found by the proof."""
    scene = new_scene(batch_max_records=150)
    scene.kill_at(point)
    forget_tokens(scene)
    assert scene.work() == 0
    scene.stack.client.command(
        f"ALTER TABLE {scene.stack.database}.events DELETE WHERE project_id = 9 "
        "SETTINGS mutations_sync = 2"
    )
    scene.prove()


@pytest.mark.matrix("settings changed between attempts")
@pytest.mark.parametrize("point", ["after-plan", "after-register", "after-send"])
def test_another_deployment_carries_on(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Other sizes of batches and of blocks change nothing about a batch that was begun."""
    scene = new_scene(batch_max_records=150)
    scene.kill_at(point)
    (begun,) = scene.stack.batches()[:1]
    small = {"max_insert_block_size": "7", "min_insert_block_size_rows": "7"}
    small |= {"input_format_parquet_max_block_size": "7"}
    monkeypatch.setattr(load_module, "one_block", lambda rows: one_block(rows) | small)
    monkeypatch.setattr(scene.stack.settings, "batch_max_records", 40)
    scene.stack.run()
    assert scene.stack.batches()[0].ranges == begun.ranges
    scene.prove()


@pytest.mark.matrix("too many parts")
def test_clickhouse_takes_no_more_parts(new_scene: NewScene) -> None:
    """An error that passes by itself leaves the batch to the next run."""
    scene = new_scene(batch_max_records=150)
    table = f"{scene.stack.database}.events"
    make_tables(scene.stack.client, scene.stack.database)
    scene.stack.client.command(f"SYSTEM STOP MERGES {table}")
    scene.stack.client.command(
        f"ALTER TABLE {table} MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1"
    )
    assert scene.work() == AGAIN
    scene.stack.client.command(
        f"ALTER TABLE {table} RESET SETTING parts_to_throw_insert, parts_to_delay_insert"
    )
    scene.stack.client.command(f"SYSTEM START MERGES {table}")
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("the proof finds something else")
def test_somebody_deleted_half_of_a_batch(new_scene: NewScene) -> None:
    """Half a batch is neither loaded on top of nor taken for whole; a person clears it."""
    scene = new_scene()
    scene.kill_at("after-send")
    (batch,) = scene.stack.batches()
    delete = f"ALTER TABLE {scene.stack.database}.events DELETE WHERE "
    scene.stack.client.command(f"{delete} _offset % 2 SETTINGS mutations_sync = 2")
    assert scene.work() == STOPPED
    (batch,) = scene.stack.batches()
    assert batch.state is State.SUSPECT
    assert "does not balance in events before the insert" in batch.note
    scene.stack.client.command(f"{delete} 1 SETTINGS mutations_sync = 2")
    retry_batch(scene.stack.worker(), batch.batch_id)
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("ClickHouse restored from an older state")
def test_clickhouse_is_restored_from_an_older_state(
    new_scene: NewScene, new_clickhouse: Callable[[], ClickHouseServer]
) -> None:
    """The audit names batches whose rows are gone; a repair, itself killed, brings them back."""
    server = new_clickhouse().start()
    scene = new_scene(clickhouse_url=server.address)
    assert scene.work() == 0
    backup = server.data.with_name(f"{server.data.name}-backup")
    server.kill()
    shutil.copytree(server.data, backup, symlinks=True)
    server.start()
    kept = len(scene.stack.batches())
    for _ in range(2):
        scene.send_more(40)
        assert scene.work() == 0
    lost = [batch.batch_id for batch in scene.stack.batches()[kept:]]
    server.kill()
    shutil.rmtree(server.data)
    backup.rename(server.data)
    server.start()
    scene.send_more(30)
    assert scene.work() == 0  # what comes after is loaded
    stack = scene.stack
    kinds = (Kind.EVENTS, Kind.DEAD_LETTERS)
    findings = reprove(stack.client, stack.database, stack.batches(), kinds)
    assert [(each.batch_id, each.trouble) for each in findings] == [
        (batch_id, Trouble.MISSING) for batch_id in lost
    ]
    assert scene.tidemark("reconcile", "--all") == EXIT_NOT_BALANCED
    repair = ("reconcile", "--all", "--rows", "--repair")
    assert scene.tidemark(*repair, failpoint="after-send") == -signal.SIGKILL
    assert scene.work() == 0
    assert scene.tidemark(*repair) == 0
    scene.prove()
    known = mirrored_states(stack.client, stack.database, [b.batch_id for b in stack.batches()])
    assert set(known.values()) == {State.COMMITTED}
    assert len(known) == len(stack.batches())
