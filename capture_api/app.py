"""The capture API as one FastAPI application.

Capture paths are answered before FastAPI's middleware stack, which costs as much as the rest of a
small request. Everything else is FastAPI's, but for the words of /docs and /openapi.json, which
`described/` has for all paths.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from capture_api.answers import (
    ACCEPTED,
    Receive,
    Scope,
    Send,
    as_response,
    cors_headers,
    refusal_answer,
    send_answer,
    with_headers,
)
from capture_api.described.document import TITLE, openapi_document
from capture_api.described.page import add_page
from capture_api.exposition import CONTENT_TYPE, Exposition
from capture_api.garbage import search_rarely
from capture_api.health import health_routes
from capture_api.ingest import INGEST_PATHS, Ingest
from capture_api.kafka.producer import RecordProducer
from capture_api.leaving import Leaving
from capture_api.metrics import Metrics
from capture_api.projects import Projects
from capture_api.protection.guard import Guard
from capture_api.readings import Worker
from capture_api.refusal import Refused
from capture_api.scripts import script_routes
from capture_api.stubs import stub_routes
from capture_api.v1.endpoint import V1_PATHS, V1Endpoint
from orchestration.settings import Settings


class CaptureApp(FastAPI):
    """FastAPI, with capture paths and CORS before it."""

    ingest: Ingest
    v1: V1Endpoint
    _v1_paths: frozenset[str]
    metrics: Metrics
    _ingest_paths: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif scope["path"] in self._ingest_paths:
            await self.ingest(scope, receive, send)
        elif scope["path"] in self._v1_paths:
            await self.v1(scope, receive, send)
        else:
            cors = cors_headers(dict(scope["headers"]))
            if scope["method"] == "OPTIONS":
                await send_answer(send, ACCEPTED, cors)
            else:
                await self._answer_slowly(scope, receive, with_headers(send, cors))

    def openapi(self) -> dict[str, Any]:
        """What /openapi.json says."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi_document()
        return self.openapi_schema

    async def _answer_slowly(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let FastAPI answer, and count it under its route."""
        started = time.perf_counter()
        status = 500

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await super().__call__(scope, receive, noting)
        except Exception:  # after the answer 500 the server logs it
            self.metrics.refused["internal_error"] += 1
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other").rstrip("/") or "/"
            self.metrics.answered(route, status, time.perf_counter() - started)


def create_app(settings: Settings, workers_folder: Path | None = None) -> CaptureApp:
    """The application. Threads and connections start and end with its lifespan.

    `workers_folder` is where workers that share a port leave their numbers for each other.
    """
    projects = Projects(settings)
    producer = RecordProducer(settings)
    guard = Guard(settings, projects)
    metrics = Metrics()
    ingest = Ingest(settings, projects, producer, guard, metrics)
    leaving = Leaving(settings.capture_leave_seconds)
    worker = Worker(metrics, projects, guard, producer, ingest.budget, ingest.turns, leaving)
    exposition = Exposition(worker.read, workers_folder)

    def admit(request: Request) -> None:
        sender = ingest.senders.of(request.scope, dict(request.scope["headers"]))
        guard.admit_request(sender.address)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        projects.start()
        producer.start()
        guard.start()
        exposition.start()
        search_rarely()
        leaving.watch()
        yield
        await producer.close()
        await guard.close()
        await projects.close()
        await exposition.close()

    app = CaptureApp(
        title=TITLE,
        lifespan=lifespan,
        redirect_slashes=False,  # SDKs do not follow redirects of a POST
        docs_url=None,
        redoc_url=None,
    )
    app.ingest = ingest
    app.metrics = metrics
    app._ingest_paths = _spellings(INGEST_PATHS)
    app.v1 = V1Endpoint(
        settings, projects, producer, guard, metrics, ingest.senders, ingest.budget, ingest.turns
    )
    app._v1_paths = _spellings(V1_PATHS)
    app.include_router(stub_routes(projects, ingest.budget, ingest.turns, admit))
    app.include_router(script_routes(settings, projects, admit))
    app.include_router(health_routes(worker))
    app.include_router(metrics_route(exposition))
    add_page(app)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _spellings(paths: tuple[str, ...]) -> frozenset[str]:
    """The paths with and without a slash at their end."""
    return frozenset(spelling for path in paths for spelling in (path, f"{path}/"))


def metrics_route(exposition: Exposition) -> APIRouter:
    """Where Prometheus looks."""
    routes = APIRouter(tags=["health"])

    @routes.get("/metrics", summary="Numbers for Prometheus, over all workers of this port.")
    async def metrics() -> Response:
        return Response(exposition.text(), media_type=CONTENT_TYPE)

    return routes


async def _http_error(_: Request, error: Exception) -> Response:
    """FastAPI's own refusals (no such path, wrong method) in the API's form."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        text = "no such path: send events to /batch; /docs lists everything"
        return as_response(refusal_answer(Refused(404, "no_such_path", text)))
    refused = Refused(error.status_code, "http_error", error.detail)
    response = as_response(refusal_answer(refused))
    response.headers.update(error.headers or {})  # Allow, for a wrong method
    return response
