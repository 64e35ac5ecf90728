"""Answers that keep PostHog's SDKs quiet where Tidemark has nothing to offer.

SDKs ask the host they send events to for feature flags, remote configuration and surveys. They
are told, each in the form its generation expects, that there are none. Where a token is looked up,
the limit of the client's address comes first: SDKs do not ask again after a 429. What SDKs would
send elsewhere than to capture paths is refused (`not_served.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Request, Response

from capture_api.answers import Answer, as_response, json_answer, refusal_answer, text_answer
from capture_api.events.uuids import mint_uuid
from capture_api.not_served import not_served_routes
from capture_api.projects import Projects
from capture_api.refusal import Refused, bad_request
from capture_api.turns import TooMuch, Turns, at_once, in_turns
from capture_api.wire.body import Budget, Charge, read_body
from capture_api.wire.decoding import decode_payload
from capture_api.wire.payload import valid_token
from capture_api.wire.query import Query, parse_query
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
    "productTours": False,
    "conversations": False,
    "logs": {"captureConsoleLogs": False},
}
"""Remote configuration: compress, send events, and nothing else."""

_DECIDE_CONFIG = REMOTE_CONFIG | {
    # Generations before 2022 capture clicks only when told to.
    "config": {"enable_collect_everything": True},
    "editorParams": {},
}

NO_FLAG_DEFINITIONS: dict[str, object] = {"flags": [], "group_type_mapping": {}, "cohorts": {}}

NOTHING: dict[str, dict[str, object]] = {
    "/flags/definitions": NO_FLAG_DEFINITIONS,
    "/api/feature_flag/local_evaluation": NO_FLAG_DEFINITIONS,
    "/api/surveys": {"surveys": []},
    "/api/early_access_features": {"earlyAccessFeatures": []},
    "/api/web_experiments": {"experiments": []},
    "/api/product_tours": {"product_tours": []},
}
"""Lists that SDKs ask for, all empty; whose token it is does not matter."""


Admit = Callable[[Request], None]
"""Lets one more request of its address in, or raises Refused."""


class _TokenInBody(msgspec.Struct):
    token: str | None = None
    api_key: str | None = None


def stub_routes(projects: Projects, budget: Budget, turns: Turns, admit: Admit) -> APIRouter:
    """The routes, each with and without a slash at its end."""
    routes = APIRouter(tags=["stubs for SDKs"])

    async def flags(request: Request) -> Response:
        """No feature flags, in the form of /flags and /decide."""
        try:
            admit(request)
            await projects.find(await _token(request, budget, turns))
        except Refused as refused:
            return as_response(refusal_answer(refused))
        return as_response(json_answer(200, _no_flags(request)))

    async def nothing(request: Request) -> Response:
        """An empty list, in the form of what was asked for."""
        return as_response(json_answer(200, NOTHING[request.url.path.rstrip("/")]))

    async def flag_payload() -> Response:
        """The payload of a flag that is not there. posthog-node would take a refusal for it."""
        return as_response(json_answer(200, None))

    async def config(request: Request, token: str) -> Response:
        """Remote configuration of a project."""
        refusal = await token_refusal(projects, token, request, admit)
        return as_response(refusal or json_answer(200, REMOTE_CONFIG))

    async def config_script(request: Request, token: str) -> Response:
        """Remote configuration of a project as a script."""
        refusal = await token_refusal(projects, token, request, admit)
        return as_response(
            refusal or text_answer(config_script_text(token), "application/javascript")
        )

    for paths, endpoint, methods in (
        (("/flags", "/decide"), flags, ["GET", "POST"]),
        (tuple(NOTHING), nothing, ["GET"]),
        (("/api/projects/@current/feature_flags/{key}/remote_config",), flag_payload, ["GET"]),
        (("/array/{token}/config",), config, ["GET"]),
        (("/array/{token}/config.js",), config_script, ["GET"]),
    ):
        for path in paths:
            routes.add_api_route(path, endpoint, methods=methods)
            routes.add_api_route(f"{path}/", endpoint, methods=methods, include_in_schema=False)
    routes.include_router(not_served_routes())
    return routes


def _no_flags(request: Request) -> dict[str, object]:
    """No flags. Versions differ only for /decide: its first has a list of keys where later ones
    have objects, and all of its answers hold remote configuration, which /flags must be asked for.
    """
    parameters = request.query_params
    decide = request.url.path.startswith("/decide")
    keys_only = decide and parameters.get("v", "1") == "1"
    answer: dict[str, object] = {
        "flags": {},
        "featureFlags": [] if keys_only else {},
        "featureFlagPayloads": {},
        "errorsWhileComputingFlags": False,
        "requestId": mint_uuid(now_us()),
    }
    if decide:
        return _DECIDE_CONFIG | answer
    return REMOTE_CONFIG | answer if parameters.get("config") == "true" else answer


async def _token(request: Request, budget: Budget, turns: Turns) -> str:
    """The token of a /flags request: in its body, packed like events, or in the query."""
    query = parse_query(request.scope["query_string"])
    headers = dict(request.scope["headers"])
    if request.method == "GET" and not query.data:
        return valid_token(query.token)
    with Charge(budget) as charge:
        length = headers.get(b"content-length")
        body = await read_body(request.receive, length, STUB_BODY_BYTES, charge)
        try:
            return at_once(_token_in_body, body, query, headers)
        except TooMuch:
            async with turns.turn():
                return await in_turns(_token_in_body, body, query, headers)


def _token_in_body(body: bytes, query: Query, headers: dict[bytes, bytes]) -> str:
    text = decode_payload(body, path="/flags", query=query, headers=headers, limit=STUB_BODY_BYTES)
    try:
        found = msgspec.json.decode(text, type=_TokenInBody)
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(f"failed to parse the request: {error}", "bad_json") from None
    return valid_token(found.token or found.api_key or query.token)


async def token_refusal(
    projects: Projects, token: str, request: Request, admit: Admit
) -> Answer | None:
    """The refusal of a token that is not good, or of an address that asks too often, or nothing."""
    try:
        admit(request)
        await projects.find(valid_token(token))  # unknown ones are remembered: only short ones
    except Refused as refused:
        if refused.status == 401:
            refused = Refused(404, "unknown_token", refused.detail)
        return refusal_answer(refused)
    return None


def config_script_text(token: str) -> str:
    """Remote configuration where posthog-js looks for it in a page."""
    name = msgspec.json.encode(token).decode()
    content = msgspec.json.encode({"config": REMOTE_CONFIG, "siteApps": []}).decode()
    return (
        "window._POSTHOG_REMOTE_CONFIG=window._POSTHOG_REMOTE_CONFIG||{};"
        f"window._POSTHOG_REMOTE_CONFIG[{name}]={content};"
    )
