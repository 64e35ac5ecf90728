"""`tidemark explain`: what became of an event or a request, at every point of its way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from click.testing import CliRunner, Result

from assets.pipeline import topic as kafka_topic
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.redrive import Wanted, redrive
from assets.pipeline.staging import stage_batches
from capture_api.events.uuids import mint_uuid
from capture_api.kafka.spool_folder import Position, claim
from capture_api.kafka.spool_frames import SEGMENT_MAGIC, encode_frame
from orchestration.cli import tidemark
from orchestration.explain import explanation, in_kafka
from orchestration.explain.document import document
from orchestration.explain.in_clickhouse import search_clickhouse
from orchestration.explain.text import WIDTH
from orchestration.explain.wanted import wanted
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import create_project
from tests.capture_api.conftest import Capture
from tests.conftest import unused_port
from tests.records import Sent, too_large, uuid_of, value_of, value_with
from tests.stack import Stack

NewStack = Callable[..., Stack]


@pytest.fixture
def stack(new_stack: NewStack) -> Stack:
    """A stack with its three topics."""
    return new_stack().make_topics()


@pytest.fixture
def capture(stack: Stack) -> Iterator[Capture]:
    """A running capture API before it."""
    stack.settings.home.mkdir(parents=True, exist_ok=True)
    capture = Capture(stack.settings.home, stack.kafka, stack.settings.topic)
    try:
        yield capture.start()
    finally:
        capture.stop()


def run(stack: Stack, *arguments: str, **settings: str) -> Result:
    """The command, as it is typed."""
    given = stack.settings.environment() | {
        f"TIDEMARK_{name.upper()}": value for name, value in settings.items()
    }
    result = CliRunner().invoke(tidemark, ["explain", *arguments], env=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def explained(stack: Stack, id: str, **settings: str) -> dict[str, Any]:
    """What `--json` prints, which is one document; the other form is readable beside it."""
    shown = run(stack, id, **settings).output
    assert max(map(len, shown.splitlines())) <= WIDTH
    result = run(stack, id, "--json", **settings)
    document: dict[str, Any] = json.loads(result.output)
    assert result.exit_code == (0 if document["found"] else 1)
    return document


def verdicts(document: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Topic, offset and verdict of each record."""
    return [(at["topic"], at["offset"], at["verdict"]) for at in document["records"]]


def test_an_event_is_explained_all_the_way(stack: Stack, capture: Capture) -> None:
    """By its receipt and by its uuid alike: in Kafka, planned, staged, loaded, sent again."""
    uuid = str(uuid4())
    event = {"event": "order paid", "distinct_id": "ada", "uuid": uuid}
    topic = stack.settings.topic

    def send() -> str:
        answer = capture.client.post("/batch", json=capture.batch(event))
        assert answer.status_code == 200
        receipt: str = answer.headers["X-Request-Id"]
        return receipt

    def both(receipt: str) -> dict[str, Any]:
        by_receipt, by_uuid = explained(stack, receipt), explained(stack, uuid.upper())
        assert by_receipt["records"] == by_uuid["records"]
        assert by_receipt["batches"] == by_uuid["batches"]
        return by_receipt

    receipt = send()
    seen = both(receipt)
    assert verdicts(seen) == [(topic, 0, "waiting")]
    assert (seen["batches"], seen["records"][0]["batch_id"]) == ([], None)
    assert seen["requests"] == [
        {"receipt": receipt, "received_at": seen["records"][0]["received_at"], "records": 1}
    ]
    assert seen["records"][0]["seconds"].keys() == {"to_kafka"}

    planned = stack.plan()
    assert planned is not None
    seen = both(receipt)
    assert verdicts(seen) == [(topic, 0, "planned")]
    assert seen["records"][0]["batch_id"] == planned.batch_id
    assert seen["batches"][0]["state"] == "planned"

    stage_batches(stack.worker("staging"))
    seen = both(receipt)
    assert verdicts(seen) == [(topic, 0, "staged")]
    assert [file["kind"] for file in seen["batches"][0]["files"]] == ["events"]

    load_batches(stack.worker("loading"))
    load_dead_letters(stack.worker("loading"))
    seen = both(receipt)
    [record], [batch] = seen["records"], seen["batches"]
    assert verdicts(seen) == [(topic, 0, "loaded")]
    assert record["row"]["run_id"] == "loading"
    assert (record["event"], record["distinct_id"], record["uuid"]) == ("order paid", "ada", uuid)
    assert record["project_id"] == capture.project.project_id
    assert list(record["seconds"]) == [
        *("to_kafka", "until_planned", "to_stage", "to_load", "to_commit")
    ]
    assert (batch["state"], batch["ranges"], batch["balance"]["ok"]) == (
        "committed",
        [[0, 0, 1]],
        1,
    )
    assert [(try_["stage"], try_["run_id"], try_["outcome"]) for try_ in batch["attempts"]] == [
        ("stage", "staging", "ok"),
        ("load", "loading", "ok"),
    ]

    again = send()
    stack.run()
    seen = explained(stack, again)
    assert verdicts(seen) == [(topic, 1, "duplicate")]
    assert seen["records"][0]["duplicate_of"] == {
        "topic": topic,
        "partition": 0,
        "offset": 0,
        "batch_id": planned.batch_id,
    }
    seen = explained(stack, uuid)
    assert verdicts(seen) == [(topic, 0, "loaded"), (topic, 1, "duplicate")]
    assert [request["receipt"] for request in seen["requests"]] == [receipt, again]

    shown = run(stack, uuid).output
    for words in (
        f"REQUEST {receipt}: 1 record",
        f"RECORD {topic} 0:0",
        "verdict   loaded: it is a row of the table events",
        "by run loading",
        f"of        {topic} 0:0, batch {planned.batch_id}",
        f"BATCH {planned.batch_id} of {topic}",
        "attempt   load 1,",
    ):
        assert words in shown


@pytest.mark.parametrize("loaded", [False, True], ids=["staged", "loaded"])
def test_a_dead_letter_is_explained_with_its_reason(stack: Stack, loaded: bool) -> None:
    """By the uuid and the receipt that its bytes name, from the lake or from ClickHouse."""
    broken = value_of(3)[:-20]
    stack.send(too_large(1), value_of(2, project_id=0), broken, value_of(4))
    if loaded:
        stack.run()
    else:
        stage_batches(stack.worker())
    for number, reason in ((1, "too_large"), (2, "unknown_project"), (3, "not_json")):
        for id in (uuid_of(number), f"request-{number}"):
            [record] = explained(stack, id)["records"]
            assert (record["verdict"], record["reason"]) == ("dead_letter", reason)
            assert (record["row"] is not None) is loaded
            assert bool(record["note"]) is not loaded
    assert "The event was larger than a record may be" in run(stack, uuid_of(1)).output


def test_a_redriven_event_is_explained_with_its_past(stack: Stack) -> None:
    """While it is a dead letter, its tries; as a row, why it was rejected and what mended it."""
    project = create_project(stack.ledger, "shop")
    key = f"{project.token}:person".encode()
    stack.send(value_with(7, v=3), Sent(value_of(8, project_id=0), key=key))
    [old] = stack.run()
    again = redrive(stack.worker(), Wanted())
    [batch] = again.batches
    [failed] = explained(stack, uuid_of(7))["records"]
    assert (failed["verdict"], failed["batch_id"]) == ("dead_letter", old.batch_id)
    assert (
        f"redrive {batch.batch_id} rejected it again (unknown_version), at try 1"
        in (failed["note"])
    )
    document = explained(stack, uuid_of(8))
    [record] = document["records"]
    assert (record["verdict"], record["batch_id"]) == ("loaded", batch.batch_id)
    assert record["note"] == (
        f"rejected at first (unknown_project) by batch {old.batch_id}; redrive {batch.batch_id} "
        "made it an event, at try 1"
    )
    assert [(one["batch_id"], one["letters"]) for one in document["batches"]] == [
        (batch.batch_id, 2)
    ]
    assert "redrive   of 2 dead letters" in run(stack, uuid_of(8)).output

    stack.delete_topic()
    stack.make_topic()
    stack.send(value_of(70), value_of(71))  # at the places of those before
    stack.run()
    assert [explained(stack, uuid_of(n))["records"][0]["note"] for n in (70, 71)] == ["", ""]


def test_every_project_and_topic_that_has_the_uuid_is_shown(stack: Stack) -> None:
    """The same uuid of two projects is two events; one sent over two topics is one of them."""
    overflow = stack.settings.overflow_topic
    stack.send(value_of(1), value_of(1, project_id=2), value_of(2, b'{"of":"%s"}' % UUID_1))
    stack.send(value_of(1), topic=overflow)
    stack.run()
    seen = explained(stack, uuid_of(1))
    assert sorted((at["topic"], at["project_id"], at["verdict"]) for at in seen["records"]) == [
        (stack.settings.topic, 1, "loaded"),
        (stack.settings.topic, 2, "loaded"),
        (overflow, 1, "duplicate"),
    ]
    assert {batch["topic"] for batch in seen["batches"]} == {stack.settings.topic, overflow}


UUID_1 = uuid_of(1).encode()


def test_what_is_not_found_says_where_was_looked(stack: Stack) -> None:
    """Nothing anywhere is exit code 1, with every place that was looked at."""
    stack.send_numbers(range(3))
    stack.run()
    stack.send_numbers(range(3, 5))
    for id in (str(uuid4()), mint_uuid(time.time_ns() // 1000), "no uuid at all"):
        result = run(stack, id)
        assert result.exit_code == 1
        assert f"{id} was not found" in result.output
        for place in (".events: 0 found", ".dead_letters", "lake, ", "2 records not staged yet: 0"):
            assert place in " ".join(result.output.split())
    assert run(stack, "").exit_code == 2


def test_what_arrived_long_ago_is_found_by_its_date(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A uuid that tells no time is looked for around today; the answer says how to look farther."""
    uuid = str(uuid4())
    stack.send(value_of(1, uuid=uuid))
    [batch] = stack.run()
    day = batch.arrival_date
    stack.client.command(f"TRUNCATE TABLE {stack.database}.events")
    later = time.time_ns() + 40 * 86_400 * 10**9
    monkeypatch.setattr(explanation.time, "time_ns", lambda: later)
    told = " ".join(run(stack, uuid).output.split())
    assert f"`tidemark explain {uuid} --date YYYY-MM-DD`" in told
    assert f"there are batches of {day} to {day}" in told
    monkeypatch.setattr(explanation, "MOST_FILES", 0)  # who names a day wants all of it
    result = run(stack, uuid, "--date", day.isoformat(), "--json")
    [record] = json.loads(result.output)["records"]
    assert (record["verdict"], record["batch_id"]) == ("missing", batch.batch_id)
    for path in stack.lake_file("events").rglob("*.parquet"):
        path.unlink()
    result = run(stack, uuid, "--date", day.isoformat(), "--json")
    [record] = json.loads(result.output)["records"]  # of what is staged, from Kafka
    assert (record["verdict"], record["batch_id"]) == ("staged", batch.batch_id)
    assert run(stack, uuid, "--date", "2020-02-30").exit_code == 2
    for far in ("0001-01-01", "9999-12-31"):  # the first and the last that a date can be
        result = run(stack, uuid, "--date", far)
        assert result.exit_code == 1
        assert f"{uuid} was not found" in result.output


def test_without_clickhouse_the_lake_and_the_ledger_answer(stack: Stack) -> None:
    """Rows that cannot be asked for are told of by the lake; what is missing is said."""
    uuid = mint_uuid(time.time_ns() // 1000)
    stack.send(value_of(1, uuid=uuid))
    stack.run()
    away = f"http://127.0.0.1:{unused_port()}"
    seen = explained(stack, uuid, clickhouse_url=away)
    assert verdicts(seen) == [(stack.settings.topic, 0, "loaded")]
    assert seen["records"][0]["note"] == "the ledger says so; ClickHouse could not be asked"
    assert list(seen["away"]) == ["ClickHouse"]
    assert "AWAY: ClickHouse" in run(stack, uuid, clickhouse_url=away).output


def test_without_kafka_the_rest_answers(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is staged or loaded is explained without Kafka; what it alone knows is not found."""
    stack.send(value_of(1))
    stack.run()
    stack.send(value_of(2))
    away = f"127.0.0.1:{unused_port()}"
    monkeypatch.setattr(kafka_topic, "_METADATA_TIMEOUT_S", 1.0)
    seen = explained(stack, uuid_of(1), kafka_bootstrap_servers=away)
    assert verdicts(seen) == [(stack.settings.topic, 0, "loaded")]
    assert list(seen["away"]) == ["Kafka"]
    result = run(stack, uuid_of(2), kafka_bootstrap_servers=away)
    assert result.exit_code == 1
    assert "AWAY: Kafka could not be asked" in result.output


def test_what_the_capture_api_has_spooled_is_found(stack: Stack, tmp_path: Path) -> None:
    """Acknowledged while Kafka was away, it is on disk; what Kafka has meanwhile is shown there."""
    topic = stack.settings.topic
    folder = tmp_path / "worker-a"
    folder.mkdir()

    def frame(*numbers: int) -> bytes:
        return encode_frame([(topic, value_of(n), b"token:ada") for n in numbers], time.time())

    drained = frame(1)
    (folder / "00000001.segment").write_bytes(SEGMENT_MAGIC + drained + frame(2, 3) + b"torn")
    (folder / "refused.segment").write_bytes(frame(4))
    claimed = claim(folder, 1 << 20)
    assert claimed is not None
    claimed.mark(Position(1, len(SEGMENT_MAGIC + drained)), ())
    spool = {"capture_spool_dir": str(tmp_path)}
    stack.send(value_of(3))
    found = {n: explained(stack, uuid_of(n), **spool) for n in (1, 2, 3, 4)}
    claimed.close()
    seen = {n: [each["verdict"] for each in found[n]["records"]] for n in found}
    assert seen == {1: [], 2: ["spooled"], 3: ["waiting"], 4: ["spooled"]}
    [record] = found[2]["records"]
    assert (record["topic"], record["partition"], record["offset"]) == (topic, None, None)
    assert "Kafka has refused it for good" in found[4]["records"][0]["note"]


def test_a_row_that_somebody_deleted_is_missing(stack: Stack) -> None:
    """The lake has it and its batch is committed, but ClickHouse does not: that is said."""
    uuid = mint_uuid(time.time_ns() // 1000)
    stack.send(value_of(1, uuid=uuid))
    stack.run()
    stack.client.command(f"TRUNCATE TABLE {stack.database}.events")
    [record] = explained(stack, uuid)["records"]
    assert record["verdict"] == "missing"
    assert "ClickHouse has no such row" in record["note"]


def test_a_record_that_only_kafka_still_has_is_missing(stack: Stack) -> None:
    """Gone from ClickHouse and from the lake: the record of that time in Kafka tells of it."""
    uuid = mint_uuid(time.time_ns() // 1000)
    stack.send(value_of(1, uuid=uuid))
    stack.run()
    stack.client.command(f"TRUNCATE TABLE {stack.database}.events")
    for path in stack.lake_file("events").rglob("*.parquet"):
        path.unlink()
    seen = explained(stack, uuid)
    [record] = seen["records"]
    assert (record["verdict"], record["batch_state"]) == ("staged", "committed")
    assert "unreadable" in record["note"]
    assert any(
        "1 records of that time that are staged already: 1 found" in line
        for line in seen["looked_at"]
    )


def test_a_bounded_search_says_so(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """When not all of Kafka is read, the answer says how much was, and from when on."""
    monkeypatch.setattr(in_kafka, "MOST_RECORDS_READ", 4)
    stack.send(*(Sent(value_of(number)) for number in range(10)))
    seen = explained(stack, uuid_of(9))
    assert not seen["found"]
    assert [line for line in seen["bounded"] if "4 of 10 records were read" in line]
    today = time.strftime("%Y-%m-%d", time.gmtime())
    told = " ".join(run(stack, uuid_of(9), "--date", today).output.split())
    assert "4 of 10 records were read" in told
    assert "Kafka within bounds" in " ".join(run(stack, "--help").output.split())
    late = mint_uuid(time.time_ns() // 1000 + 3_600_000_000)
    seen = explained(stack, late)
    assert [line for line in seen["bounded"] if "was read from" in line]


def test_a_large_request_is_shown_in_part(stack: Stack) -> None:
    """A request of many events is counted by verdict, and its first records are shown."""
    stack.send(*(value_of(number, request_id="bulk") for number in range(60)), value_of(3))
    stack.run()
    assert len(explained(stack, "bulk")["records"]) == 60
    shown = run(stack, "bulk").output
    assert "REQUEST bulk: 60 records" in shown
    assert "… and 40 more" in shown


def test_a_receipt_is_found_as_its_maker_spelled_it(stack: Stack) -> None:
    """A receipt that is a UUID without hyphens is found by that text, in every place."""
    receipt = uuid4().hex
    stack.send(value_of(1, request_id=receipt), value_of(1, request_id=receipt))
    stack.send(value_of(2, request_id=receipt)[:-9])
    assert [verdict for _, _, verdict in verdicts(explained(stack, receipt))] == ["waiting"] * 3
    stack.run()
    found = [verdict for _, _, verdict in verdicts(explained(stack, receipt))]
    assert found == ["loaded", "duplicate", "dead_letter"]


def test_the_answer_of_an_unknown_request_is_calm(stack: Stack, capture: Capture) -> None:
    """A receipt of a refused request is found nowhere: nothing of it was taken."""
    answer: httpx.Response = capture.client.post("/batch", content=b"no json")
    assert answer.status_code == 400
    result = run(stack, answer.headers["X-Request-Id"])
    assert result.exit_code == 1
    assert UUID(answer.headers["X-Request-Id"]).version == 7
    assert "made" in result.output


def test_what_is_loaded_meanwhile_is_not_missing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that is loaded after ClickHouse was asked is a row; it is asked once more."""
    stack.send(value_of(1))
    stage_batches(stack.worker())
    asked: list[None] = []

    def ask(*arguments: Any) -> None:
        search_clickhouse(*arguments)
        if not asked:
            load_batches(stack.worker())
        asked.append(None)

    monkeypatch.setattr(explanation, "search_clickhouse", ask)
    seen = document(
        explanation.explain(stack.settings, open_ledger(stack.settings.ledger), wanted(uuid_of(1)))
    )
    assert verdicts(seen) == [(stack.settings.topic, 0, "loaded")]
    assert len(asked) == 2
    assert [line for line in seen["looked_at"] if "1 found when asked again" in line]


def test_odd_records_are_found(stack: Stack) -> None:
    """A uuid with a time that cannot be; one in capitals; dead letters that nothing can decode."""
    days = 400 * 86_400_000_000
    odd = {
        "no clock": "00000000-0000-7000-8000-000000000001",
        "year 10889": "ffffffff-ffff-7fff-bfff-ffffffffffff",
        "ahead": mint_uuid(time.time_ns() // 1000 + days),
    }
    capitals, bytes_, numbers = str(uuid4()), str(uuid4()), str(uuid4())
    stack.send(
        *(value_of(n, uuid=uuid, project_id=0) for n, uuid in enumerate(odd.values(), 1)),
        value_of(4, uuid=capitals.upper(), project_id=0),
        value_of(5, uuid=capitals.upper())[:-9],
        value_with(6, uuid=bytes_).replace(b'"event":"', b'"event":"\xff'),
        value_of(7, uuid=numbers, received_at=1 << 62),
        value_of(8, request_id="receipt").replace(b'"page viewed"', b'"\xff"'),
        value_of(9, request_id="far").replace(b'"page viewed"', b"page viewed"),
    )
    ids = {**odd, "capitals": capitals, "bytes": bytes_, "numbers": numbers}
    ids |= {"receipt": "receipt", "far": "far"}
    counts = {name: 2 if name == "capitals" else 1 for name in ids}
    steps: list[tuple[Callable[[], object], str]] = [
        (lambda: None, "waiting"),
        (lambda: stage_batches(stack.worker()), "dead_letter"),
        (stack.run, "dead_letter"),
    ]
    for step, verdict in steps:
        step()
        found = {name: explained(stack, id)["records"] for name, id in ids.items()}
        assert {name: len(records) for name, records in found.items()} == counts
        assert {record["verdict"] for records in found.values() for record in records} == {verdict}
    assert all(record["row"] for records in found.values() for record in records)
    assert run(stack, "fffffffe-ffff-7fff-bfff-ffffffffffff").exit_code == 1
