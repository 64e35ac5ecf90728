"""Liveness, readiness and the root: what load balancers and people ask first."""

from __future__ import annotations

from fastapi import APIRouter, Response

from capture_api.answers import as_response, json_answer, text_answer
from capture_api.readings import Worker


def health_routes(worker: Worker) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["health"])

    @routes.get("/_liveness", summary="The process works: 200, or 503 when only a new one helps.")
    async def liveness() -> Response:
        defect = worker.defect()
        if defect:
            return as_response(json_answer(503, {"status": "broken", "problems": [defect]}))
        return as_response(json_answer(200, {"status": "Ok"}))

    @routes.get("/_readiness", summary="Events can be taken in: 200, or 503 with the reasons.")
    async def readiness() -> Response:
        problems = worker.problems()
        if problems:
            return as_response(json_answer(503, {"status": "not ready", "problems": problems}))
        degraded = worker.producer.degraded()
        if degraded:
            return as_response(json_answer(200, {"status": "Ok", "degraded": degraded}))
        return as_response(json_answer(200, {"status": "Ok"}))

    @routes.get("/", summary="What this is.")
    async def root() -> Response:
        return as_response(text_answer("Tidemark capture API. Send events to /batch; see /docs.\n"))

    return routes
