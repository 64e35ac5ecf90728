"""Answers that keep PostHog's SDKs quiet where Tidemark has nothing to offer.

SDKs ask the host they send events to for feature flags, remote configuration and surveys. They
are told, each in the form it expects, that there are none. Session replay, the newer capture API
and telemetry are refused in words.
"""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from capture_api.answers import Answer, as_response, json_answer, refusal_answer, text_answer
from capture_api.events.uuids import mint_uuid
from capture_api.projects import Projects
from capture_api.refusal import Refused, bad_request
from capture_api.wire.body import Budget, Charge, read_body
from capture_api.wire.decoding import decode_payload
from capture_api.wire.payload import valid_token
from capture_api.wire.query import parse_query
from orchestration.ledger.connection import now_us

STUB_BODY_BYTES = 1 << 20

REMOTE_CONFIG: dict[str, object] = {
    "supportedCompression": ["gzip", "gzip-js"],
    "hasFeatureFlags": False,
    "analytics": {"endpoint": "/i/v0/e/"},
    "autocapture_opt_out": False,
    "elementsChainAsString": True,
    "defaultIdentifiedOnly": True,
    "isAuthenticated": False,
    "toolbarParams": {},
    "siteApps": [],
    "capturePerformance": False,
    "captureDeadClicks": False,
    "errorTracking": {"autocaptureExceptions": False, "suppressionRules": []},
    "sessionRecording": False,
    "heatmaps": False,
    "surveys": False,
}
"""Remote configuration: compress, send events, and nothing else."""

NO_FLAG_DEFINITIONS: dict[str, object] = {"flags": [], "group_type_mapping": {}, "cohorts": {}}

NOT_SERVED = {
    "/s": "session replay is not taken in: switch session recording off",
    "/i/v1/analytics/events": "capture v1 is not taken in yet: use the SDK's default capture mode",
    "/i/v1/ai/events": "capture v1 is not taken in yet: use the SDK's default capture mode",
    "/i/v1/logs": "logs are not taken in",
    "/i/v1/traces": "traces are not taken in",
}


class _TokenInBody(msgspec.Struct):
    token: str | None = None
    api_key: str | None = None


def stub_routes(projects: Projects, budget: Budget) -> APIRouter:
    """The routes, each with and without a slash at its end."""
    routes = APIRouter(tags=["stubs for SDKs"])

    async def flags(request: Request) -> Response:
        """No feature flags, in the form of /flags and /decide."""
        try:
            await projects.find(await _token(request, budget))
        except Refused as refused:
            return as_response(refusal_answer(refused))
        answer = {
            "flags": {},
            "featureFlags": {},
            "featureFlagPayloads": {},
            "errorsWhileComputingFlags": False,
            "requestId": mint_uuid(now_us()),
        }
        if "/decide" in request.url.path:
            answer |= REMOTE_CONFIG
        return as_response(json_answer(200, answer))

    async def definitions() -> Response:
        """No definitions of feature flags for local evaluation."""
        return as_response(json_answer(200, NO_FLAG_DEFINITIONS))

    async def surveys() -> Response:
        """No surveys."""
        return as_response(json_answer(200, {"surveys": []}))

    async def early_access() -> Response:
        """No early access features."""
        return as_response(json_answer(200, {"earlyAccessFeatures": []}))

    async def config(token: str) -> Response:
        """Remote configuration of a project."""
        return as_response(await _config(projects, token) or json_answer(200, REMOTE_CONFIG))

    async def config_script(token: str) -> Response:
        """Remote configuration of a project as a script."""
        return as_response(await _config(projects, token) or _script_config(token))

    async def not_served(request: Request) -> Response:
        """What Tidemark does not take in, said in words."""
        text = NOT_SERVED[request.url.path.rstrip("/")]
        return as_response(refusal_answer(Refused(404, "not_served", text)))

    for paths, endpoint, methods in (
        (("/flags", "/decide"), flags, ["GET", "POST"]),
        (
            ("/flags/definitions", "/api/feature_flag/local_evaluation"),
            definitions,
            ["GET"],
        ),
        (("/api/surveys",), surveys, ["GET"]),
        (("/api/early_access_features",), early_access, ["GET"]),
        (("/array/{token}/config",), config, ["GET"]),
        (("/array/{token}/config.js",), config_script, ["GET"]),
        (tuple(NOT_SERVED), not_served, ["GET", "POST"]),
    ):
        for path in paths:
            routes.add_api_route(path, endpoint, methods=methods)
            routes.add_api_route(f"{path}/", endpoint, methods=methods, include_in_schema=False)
    return routes


async def _token(request: Request, budget: Budget) -> str:
    """The token of a /flags request: in its body, packed like events, or in the query."""
    query = parse_query(request.scope["query_string"])
    headers = dict(request.scope["headers"])
    if request.method == "GET" and not query.data:
        return valid_token(query.token)
    with Charge(budget) as charge:
        length = headers.get(b"content-length")
        body = await read_body(request.receive, length, STUB_BODY_BYTES, charge)
        text = decode_payload(
            body, path="/flags", query=query, headers=headers, limit=STUB_BODY_BYTES
        )
    try:
        found = msgspec.json.decode(text, type=_TokenInBody)
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(f"failed to parse the request: {error}", "bad_json") from None
    return valid_token(found.token or found.api_key or query.token)


async def _config(projects: Projects, token: str) -> Answer | None:
    """The refusal for a token that is not good, or nothing."""
    try:
        await projects.find(token)
    except Refused as refused:
        if refused.status == 401:
            refused = Refused(404, "unknown_token", refused.detail)
        return refusal_answer(refused)
    return None


def _script_config(token: str) -> Answer:
    name = msgspec.json.encode(token).decode()
    content = msgspec.json.encode({"config": REMOTE_CONFIG, "siteApps": []}).decode()
    return text_answer(
        "window._POSTHOG_REMOTE_CONFIG=window._POSTHOG_REMOTE_CONFIG||{};"
        f"window._POSTHOG_REMOTE_CONFIG[{name}]={content};",
        "application/javascript",
    )
