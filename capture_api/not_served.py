"""What SDKs would send or load that Tidemark does not have, refused in the way that stops them.

Every SDK and every OTLP exporter drops what is answered 404 and sends the next of its kind, so
nothing is sent twice. posthog-js moreover reads `quota_limited` from any answer and keeps quiet
about the kinds named there for a minute. Bodies are not read: the server throws the bytes away as
they come, and the connection stays good for events.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from fastapi import APIRouter, Response

from capture_api.answers import Answer, as_response, json_answer

_TELEMETRY = "are not taken in: send them to a telemetry backend of their own"
_AI = "is not taken in: send $ai_… events to /batch, /i/v0/ai/batch or /i/v1/ai/events"

NOT_SERVED = {
    "/s": "session replay is not taken in: switch session recording off",
    "/i/v0/ai": f"the multipart form of AI events {_AI}",
    "/i/v0/ai/otel": f"OpenTelemetry about AI {_AI}",
    "/i/v0/ai/otel/v1/traces": f"OpenTelemetry about AI {_AI}",
    "/i/v1/logs": f"logs {_TELEMETRY}",
    "/i/v1/traces": f"traces {_TELEMETRY}",
    "/i/v1/metrics": f"metrics {_TELEMETRY}",
    "/api/push_subscriptions": "push notifications are not sent from here",
}
"""Path and the text of its refusal."""

PAUSES = {"/s": ["recordings"]}
"""The kinds of data that posthog-js stops sending for a minute after this path's refusal."""

Endpoint = Callable[[], Coroutine[None, None, Response]]


def not_served_routes() -> APIRouter:
    """The routes, each with and without a slash at its end."""
    routes = APIRouter()
    for path, text in NOT_SERVED.items():
        endpoint = _refusing(_refusal(path, text))
        for spelling in (path, f"{path}/"):
            routes.add_api_route(
                spelling,
                endpoint,
                methods=["GET", "POST", "DELETE"],
                status_code=404,
                summary="Not served",
                description=text,
                include_in_schema=spelling == path,
                name=f"not served {path}",
            )
    return routes


def _refusal(path: str, text: str) -> Answer:
    content: dict[str, object] = {"code": "not_served", "detail": text}
    if path in PAUSES:
        content["quota_limited"] = PAUSES[path]
    return json_answer(404, content)


def _refusing(answer: Answer) -> Endpoint:
    async def not_served() -> Response:
        return as_response(answer)

    return not_served
