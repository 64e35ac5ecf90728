"""The way of a capture request: body → JSON → token → records → Kafka → answer.

`Ingest` is served as raw ASGI before FastAPI's middleware (`app.py`). Nothing of the request is
kept while it waits for Kafka: producing has copied it. What is too much to be done at once is done
in turns with the event loop (`turns.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError

from capture_api.answers import (
    ACCEPTED,
    ACCEPTED_BEACON,
    OVER_QUOTA,
    RECEIPT_HEADER,
    Answer,
    Receive,
    Scope,
    Send,
    cors_headers,
    left_out_answer,
    refusal_answer,
    send_answer,
)
from capture_api.events.records import Request, build_records
from capture_api.events.refused import RefusedEvent
from capture_api.events.uuids import mint_uuid
from capture_api.kafka.producer import RecordProducer
from capture_api.metrics import Metrics
from capture_api.projects import Projects
from capture_api.protection.guard import Guard, OverQuota
from capture_api.refusal import Refused, internal_error, too_large
from capture_api.refusal_log import RefusalLog
from capture_api.turns import AT_ONCE_BYTES, TooMuch, Turns, at_once, in_turns, pause
from capture_api.wire.body import Budget, Charge, read_body
from capture_api.wire.client_address import Sender, Senders
from capture_api.wire.client_software import client_software
from capture_api.wire.decoding import decode_payload
from capture_api.wire.payload import Payload, parse_payload
from capture_api.wire.query import Query, parse_query
from orchestration.settings import Settings

INGEST_PATHS = ("/batch", "/e", "/i/v0/e", "/capture", "/track", "/engage", "/i/v0/ai/batch")
"""Where events are taken in; each also with a slash at its end."""

log = logging.getLogger("tidemark.capture")


class Ingest:
    """Takes events in. One a process."""

    def __init__(
        self,
        settings: Settings,
        projects: Projects,
        producer: RecordProducer,
        guard: Guard,
        metrics: Metrics,
    ) -> None:
        self._max_body = settings.capture_max_body_bytes
        self._max_text = min(
            max(settings.capture_max_decompressed_bytes, settings.capture_max_body_bytes),
            settings.capture_max_inflight_bytes,
        )
        self._projects = projects
        self._producer = producer
        self._guard = guard
        self._metrics = metrics
        self.senders = Senders(settings.trusted_proxies)
        self._refusals = RefusalLog()
        self.budget = Budget(
            settings.capture_max_inflight_bytes, settings.capture_stall_timeout_seconds
        )
        self.turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        received_at = time.time_ns() // 1000
        started = time.perf_counter()
        headers = dict(scope["headers"])
        sender = self.senders.of(scope, headers)
        receipt = sender.request_id or mint_uuid(received_at)
        answer = await self._answer(scope, headers, receive, received_at, receipt, sender)
        extra = [(RECEIPT_HEADER, receipt.encode())]
        if b"origin" in headers:
            extra += cors_headers(headers)
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
        """The answer to one request; 200 only when Kafka has every event of it."""
        method = scope["method"]
        if method == "OPTIONS":
            return ACCEPTED
        try:
            if method not in ("POST", "GET"):
                raise Refused(405, "wrong_method", "send events with POST")
            query = parse_query(scope["query_string"])
            sent = await self._send(scope, headers, query, receive, received_at, receipt, sender)
            if sent.acknowledged is not None:
                await self._acknowledged(sent)
            if sent.left_out:
                self._tell_left_out(scope, headers, receipt, sent.left_out)
                return ACCEPTED_BEACON if query.beacon else left_out_answer(sent.left_out)
            return ACCEPTED_BEACON if query.beacon else ACCEPTED
        except OverQuota:
            return OVER_QUOTA
        except Refused as refused:
            self._metrics.refused[refused.code] += 1
            self._refusals.tell(scope, headers, receipt, refused)
            return refusal_answer(refused)
        except Exception:  # the edge of the process: one request's bug must stay its own
            log.exception("request %s failed in a way that was not foreseen", receipt)
            self._metrics.refused["internal_error"] += 1
            return refusal_answer(internal_error(receipt))

    async def _send(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        query: Query,
        receive: Receive,
        received_at: int,
        receipt: str,
        sender: Sender,
    ) -> Sent:
        """Everything up to producing."""
        self._producer.check()
        self._guard.admit_request(sender.address)
        path = scope["path"].rstrip("/")
        user_agent, sdk = client_software(headers.get(b"user-agent"))
        request = Request(
            received_at=received_at,
            request_id=receipt,
            ip=sender.address,
            user_agent=user_agent,
            sdk=sdk,
            sent_at=query.sent_at,
            engage=path == "/engage",
            mint_seed=sender.mint_seed,
        )
        with Charge(self.budget) as charge:
            body = await read_body(receive, headers.get(b"content-length"), self._max_body, charge)
            try:
                payload = at_once(self._read, body, path, query, headers, charge)
            except TooMuch:
                charge.only(len(body))
                return await self._send_long(body, path, query, headers, charge, request)
            if not payload.events:
                return _NOTHING_SENT
            project_id = self._projects.known(payload.token)
            if project_id is None:
                project_id = await self._projects.find(payload.token)
            return self._produce(payload, project_id, request)

    async def _send_long(
        self,
        body: bytes,
        path: str,
        query: Query,
        headers: dict[bytes, bytes],
        charge: Charge,
        request: Request,
    ) -> Sent:
        """The same for a request that is too much to be done at once."""
        async with self.turns.turn():
            payload = await in_turns(self._read, body, path, query, headers, charge)
            if not payload.events:
                return _NOTHING_SENT
            project_id = self._projects.known(payload.token)
            if project_id is not None:
                return await in_turns(self._produce, payload, project_id, request)
        project_id = await self._projects.find(payload.token)  # others need not wait for that
        async with self.turns.turn():
            return await in_turns(self._produce, payload, project_id, request)

    def _read(
        self, body: bytes, path: str, query: Query, headers: dict[bytes, bytes], charge: Charge
    ) -> Payload:
        """What the body says. Changes nothing but the charge."""
        if len(body) > AT_ONCE_BYTES:
            pause()
        text = decode_payload(body, path=path, query=query, headers=headers, limit=self._max_text)
        if text is not body:
            charge.add(len(text))
        return parse_payload(text)

    def _produce(self, payload: Payload, project_id: int, request: Request) -> Sent:
        """From the events to the producer, as far as limits and rules let them."""
        count = len(payload.events)
        self._metrics.received += count
        try:
            self._guard.admit_events(project_id, count, request.user_agent)
        except OverQuota:
            self._metrics.dropped["quota"] += count
            raise
        route = self._guard.route(project_id, payload.historical)
        left_out: list[RefusedEvent] = []
        records = build_records(payload, project_id, request, route, left_out)
        if not records:
            return _NOTHING_SENT
        self._metrics.produce_bytes += sum([len(value) for _, value, _ in records])
        acknowledged = self._producer.send(records)
        kept = len(records) - len(left_out)
        if not kept:
            # What was sent is evidence; the client is told the same whether it arrives or not.
            self._metrics.dropped["too_large"] += len(left_out)
            raise too_large(left_out[0].detail)
        return Sent(project_id, kept, acknowledged, left_out)

    async def _acknowledged(self, sent: Sent) -> None:
        """Wait for Kafka. Refuses when it does not acknowledge everything."""
        started = time.perf_counter()
        assert sent.acknowledged is not None
        error = await sent.acknowledged
        self._metrics.ack.observe(time.perf_counter() - started)
        if error is not None:
            self._metrics.produce_errors[error.name()] += 1
            raise self._producer.refusal(error)
        self._metrics.ingested += sent.events
        self._projects.count(sent.project_id, sent.events)

    def _tell_left_out(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        receipt: str,
        left_out: Sequence[RefusedEvent],
    ) -> None:
        self._metrics.dropped["too_large"] += len(left_out)
        detail = f"{len(left_out)} events left out; the first: {left_out[0].detail}"
        self._refusals.tell(scope, headers, receipt, too_large(detail))


class Sent(NamedTuple):
    """What of a request is on its way to Kafka, and the future that tells whether it arrived."""

    project_id: int
    events: int
    acknowledged: asyncio.Future[KafkaError | None] | None
    left_out: Sequence[RefusedEvent] = ()


_NOTHING_SENT = Sent(0, 0, None)
