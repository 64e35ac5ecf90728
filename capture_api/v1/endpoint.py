"""The way of a v1 request: headers → token → body → batch → records → Kafka → results.

Served as raw ASGI before FastAPI's middleware, as `ingest.py` is. Unlike there, a request is not
one unit: each event has its own result, and only those that Kafka did not take are sent again. What
is too much to be done at once is done in turns with the event loop (`turns.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

from confluent_kafka import KafkaError

from capture_api.answers import (
    ACCEPTED,
    RECEIPT_HEADER,
    Answer,
    HeaderList,
    Receive,
    Scope,
    Send,
    cors_headers,
    send_answer,
)
from capture_api.events.uuids import mint_uuid
from capture_api.kafka.producer import RecordProducer
from capture_api.metrics import Metrics
from capture_api.projects import Projects
from capture_api.protection.guard import Guard, OverQuota
from capture_api.refusal import Refused, bad_request, internal_error
from capture_api.refusal_log import RefusalLog
from capture_api.turns import (
    AT_ONCE_BYTES,
    AT_ONCE_EVENTS,
    TooMuch,
    Turns,
    at_once,
    in_turns,
    pause,
)
from capture_api.v1.answers import error_answer, results_answer
from capture_api.v1.batch import Batch, event_uuids, parse_batch, read_rarities
from capture_api.v1.events import (
    NOT_PERSISTED,
    OVER_QUOTA,
    RULED_OUT,
    TOO_BIG,
    Request,
    Result,
    build_records,
)
from capture_api.v1.headers import REQUEST_ID_HEADER, RequestHead, read_headers
from capture_api.wire.body import Budget, Charge, read_body
from capture_api.wire.client_address import Sender, Senders
from capture_api.wire.inflate import inflate_as
from orchestration.settings import Settings

V1_PATHS = ("/i/v1/analytics/events", "/i/v1/ai/events")
"""Where protocol v1 is spoken; each also with a slash at its end."""

CORS_METHODS = b"POST, OPTIONS"

ECHOED_BYTES = 64
"""A longer PostHog-Request-Id is no UUID, and is not sent back."""

log = logging.getLogger("tidemark.capture")


class Pending(NamedTuple):
    """A batch whose records are on their way to Kafka."""

    project_id: int
    spellings: list[str]  # of the uuids, as the client wrote them
    uuids: list[str]
    results: list[Result]  # if Kafka takes all of them
    indices: list[int | None]  # the event of each record; None: of evidence
    delivery: asyncio.Future[list[KafkaError | None]] | None


class Read(NamedTuple):
    """What a body says."""

    text: bytes
    batch: Batch
    uuids: list[str]


class V1Endpoint:
    """Takes batches of protocol v1 in. One a process; it shares everything with `Ingest`."""

    def __init__(
        self,
        settings: Settings,
        projects: Projects,
        producer: RecordProducer,
        guard: Guard,
        metrics: Metrics,
        senders: Senders,
        budget: Budget,
        turns: Turns,
    ) -> None:
        self._max_compressed = settings.capture_v1_max_compressed_bytes
        # What could never be held is not to be tried again and again.
        self._max_decompressed = min(
            settings.capture_v1_max_decompressed_bytes, settings.capture_max_inflight_bytes
        )
        self._projects = projects
        self._producer = producer
        self._guard = guard
        self._metrics = metrics
        self._senders = senders
        self._refusals = RefusalLog()
        self._budget = budget
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        received_at = time.time_ns() // 1000
        started = time.perf_counter()
        headers = dict(scope["headers"])
        sender = self._senders.of(scope, headers)
        receipt = sender.request_id or mint_uuid(received_at)
        answer = await self._answer(scope, headers, receive, received_at, receipt, sender)
        extra: HeaderList = [(RECEIPT_HEADER, receipt.encode())]
        request_id = headers.get(REQUEST_ID_HEADER)
        if request_id and len(request_id) <= ECHOED_BYTES:
            extra.append((REQUEST_ID_HEADER, request_id))
        if b"origin" in headers:
            extra += cors_headers(headers, CORS_METHODS)
        await send_answer(send, answer, extra)
        self._metrics.answered(
            scope["path"].rstrip("/"), answer.status, time.perf_counter() - started
        )

    async def _answer(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
        received_at: int,
        receipt: str,
        sender: Sender,
    ) -> Answer:
        """The answer to one request; `ok` only for events that Kafka has."""
        method = scope["method"]
        if method == "OPTIONS":
            return ACCEPTED
        try:
            if method != "POST":
                raise Refused(405, "method_not_allowed", "send events with POST")
            pending = await self._send(headers, receive, received_at, receipt, sender)
            delivery = pending.delivery
            errors = await self._acknowledged(delivery) if delivery is not None else []
            if len(pending.results) > AT_ONCE_EVENTS:
                return await in_turns(self._results, pending, errors)
            return self._results(pending, errors)
        except Refused as refused:
            self._metrics.refused[refused.code] += 1
            self._refusals.tell(scope, headers, receipt, refused)
            return error_answer(refused)
        except Exception:  # the edge of the process: one request's bug must stay its own
            log.exception("request %s failed in a way that was not foreseen", receipt)
            self._metrics.refused["internal_error"] += 1
            return error_answer(internal_error(receipt))

    async def _send(
        self,
        headers: dict[bytes, bytes],
        receive: Receive,
        received_at: int,
        receipt: str,
        sender: Sender,
    ) -> Pending:
        """Everything up to producing."""
        self._guard.admit_request(sender.address)
        head = read_headers(headers)
        self._producer.check()
        project_id = self._projects.known(head.token)
        if project_id is None:
            project_id = await self._projects.find(head.token)
        with Charge(self._budget) as charge:
            length = headers.get(b"content-length")
            body = await read_body(receive, length, self._max_compressed, charge)
            if not body:
                raise bad_request("the request has no body: send a batch as JSON", "empty_body")
            try:
                read = at_once(self._read, body, head.encoding, charge)
            except TooMuch:
                charge.only(len(body))
                async with self._turns.turn():
                    read = await in_turns(self._read, body, head.encoding, charge)
                    return await in_turns(
                        self._produce, read, head, project_id, received_at, receipt, sender
                    )
            return self._produce(read, head, project_id, received_at, receipt, sender)

    def _read(self, body: bytes, encoding: str, charge: Charge) -> Read:
        """What the body says. Changes nothing but the charge."""
        if len(body) > AT_ONCE_BYTES:
            pause()
        text = body
        if encoding:
            text = inflate_as(encoding, body, self._max_decompressed)
            charge.only(len(text))  # nobody looks at the compressed body again
        batch = parse_batch(text)
        return Read(text, batch, event_uuids(batch.batch))

    def _produce(
        self,
        read: Read,
        head: RequestHead,
        project_id: int,
        received_at: int,
        receipt: str,
        sender: Sender,
    ) -> Pending:
        """From the events to the producer, as far as limits and rules let them."""
        text, batch, uuids = read
        spellings = [event.uuid for event in batch.batch]
        self._metrics.received += len(uuids)
        try:
            self._guard.admit_events(project_id, len(uuids), None)
        except OverQuota:
            return Pending(project_id, spellings, uuids, [OVER_QUOTA] * len(uuids), [], None)
        request = Request(
            token=head.token,
            received_at=received_at,
            request_id=receipt,
            request_time=head.request_time,
            ip=sender.address,
            user_agent=head.user_agent,
            sdk=head.sdk,
            library=head.library,
            rarities=read_rarities(text),
        )
        route = self._guard.route(project_id, bool(batch.historical_migration))
        records, indices, results, _ = build_records(batch, uuids, project_id, request, route)
        delivery = None
        if records:
            self._metrics.produce_bytes += sum([len(value) for _, value, _ in records])
            delivery = self._producer.send_each(records)
        return Pending(project_id, spellings, uuids, results, indices, delivery)

    async def _acknowledged(
        self, delivery: asyncio.Future[list[KafkaError | None]]
    ) -> list[KafkaError | None]:
        """Wait for Kafka, and give its errors, record by record."""
        started = time.perf_counter()
        errors = await delivery
        self._metrics.ack.observe(time.perf_counter() - started)
        return errors

    def _results(self, pending: Pending, errors: list[KafkaError | None]) -> Answer:
        """The answer, in which events whose records Kafka does not have are told from the rest."""
        found: dict[tuple[int, str], Result] = {}  # the producer takes note of each error once
        for index, error in zip(pending.indices, errors, strict=True):
            if error is None or index is None:
                continue
            kind = error.code(), error.str()
            if kind not in found:
                self._metrics.produce_errors[error.name()] += 1
                too_big = self._producer.refusal(error).status == 413
                found[kind] = TOO_BIG if too_big else NOT_PERSISTED
            pending.results[index] = found[kind]
        self._count(pending)
        return results_answer(pending.spellings, pending.uuids, pending.results)

    def _count(self, pending: Pending) -> None:
        """Enter the results into the metrics, and what was kept into the project's usage."""
        kept = 0
        for result in pending.results:
            if result.result == "drop":
                # Those of rules are counted by the router, dry runs apart.
                if result is not RULED_OUT:
                    self._metrics.dropped[_CAUSES.get(result, result.details)] += 1
            elif result is not NOT_PERSISTED:
                kept += 1
        if kept:
            self._metrics.ingested += kept
            self._projects.count(pending.project_id, kept)


_CAUSES = {OVER_QUOTA: "quota", TOO_BIG: "too_large"}
"""Causes of drops in metrics where protocol v0 has a name for them."""
