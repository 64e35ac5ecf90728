"""Every other path: the stubs that SDKs ask for, what is not served, health and metrics."""

from __future__ import annotations

import re

from capture_api.described.parts import (
    ALLOW,
    RETRY_AFTER,
    TOKEN_EXAMPLE,
    UUID_EXAMPLE,
    Json,
    answer,
    obj,
    parameter,
    ref,
    refusal,
    text,
)
from capture_api.exposition import CONTENT_TYPE
from capture_api.not_served import NOT_SERVED, PAUSES
from capture_api.scripts import MEDIA_TYPES, NO_FOLDER
from capture_api.stubs import NOTHING, REMOTE_CONFIG

_FLAG_PAYLOAD = "/api/projects/@current/feature_flags/{key}/remote_config"

_SCRIPTS = "scripts for the HTML snippet"
_STUBS, _HEALTH, _NOT_SERVED = "stubs for SDKs", "health", "not served"

_FLAGS_EXAMPLE: Json = {
    "flags": {},
    "featureFlags": {},
    "featureFlagPayloads": {},
    "errorsWhileComputingFlags": False,
    "requestId": UUID_EXAMPLE,
}
_KINDS = {"type": "array", "items": text(), "description": "Kinds of data not to be sent for now."}

SCHEMAS: dict[str, Json] = {
    "NoFlags": obj(
        {
            "flags": {"type": "object", "maxProperties": 0},
            "featureFlags": {
                "anyOf": [
                    {"type": "object", "maxProperties": 0},
                    {"type": "array", "maxItems": 0},
                ],
                "description": "A list only for the first version of /decide.",
            },
            "featureFlagPayloads": {"type": "object", "maxProperties": 0},
            "errorsWhileComputingFlags": {"const": False},
            "requestId": text(format="uuid"),
        },
        sorted(_FLAGS_EXAMPLE),
        description="There are no flags; with remote configuration where it is asked for.",
    ),
    "RemoteConfig": obj({}, sorted(REMOTE_CONFIG), description="What SDKs are to do: send events."),
    "NotServed": obj(
        {
            "code": {"enum": ["not_served", "no_such_path"]},
            "detail": text(),
            "quota_limited": _KINDS,
        },
        ["code", "detail"],
    ),
    "NotReady": obj(
        {
            "status": {"enum": ["not ready", "broken"]},
            "problems": {"type": "array", "items": text()},
        },
        ["status", "problems"],
    ),
}

_WRONG_METHOD = refusal(
    "The path does not have this method.", "http_error", "Method Not Allowed", ALLOW
)
_UNKNOWN = refusal("There is no token, or no project has it.", "invalid_token", "API key is …")
_UNREADABLE = refusal("The question cannot be read.", "bad_json", "failed to parse the request: …")
_TOO_LARGE = refusal("The question is too large.", "too_large", "maximum event size exceeded: …")
_STALLED = refusal("The question stopped coming.", "body_stalled", "the body came too slowly: …")
_AWAY = refusal(
    "Nobody can tell now whether the token is good.", "projects_away", "transient …", RETRY_AFTER
)
_TOKEN = parameter(
    "path", "token", text(), "The project's token.", required=True, example=TOKEN_EXAMPLE
)
_VERSION = parameter("query", "v", text(), "Version of the answer's form.", example="2")
_QUERY_TOKEN = parameter("query", "token", text(), "The project's token.", example=TOKEN_EXAMPLE)


def paths() -> dict[str, Json]:
    """The descriptions, by path."""
    described = {path: _flags(path) for path in ("/flags", "/decide")}
    described |= {path: {"get": _nothing(path, content)} for path, content in NOTHING.items()}
    described |= {_FLAG_PAYLOAD: {"get": _flag_payload()}}
    described |= _configs()
    described |= _scripts()
    described |= {_plain(path): _not_served(path, why) for path, why in NOT_SERVED.items()}
    return described | _health()


def _operation(tag: str, name: str, summary: str, responses: Json, **more: object) -> Json:
    """An operation of a path; none of these reads a body unless `more` says so."""
    return {
        "operationId": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "tags": [tag],
        "summary": summary,
        "responses": {**responses, "405": _WRONG_METHOD},
        **more,
    }


def _flags(path: str) -> Json:
    responses = {
        "200": answer("There are none.", ref("NoFlags"), {"none": _FLAGS_EXAMPLE}),
        "400": _UNREADABLE,
        "401": _UNKNOWN,
        "408": _STALLED,
        "413": _TOO_LARGE,
        "503": _AWAY,
    }
    body: Json = {
        "description": "Packed in any way that events may be.",
        "content": {
            "application/json": {
                "schema": obj({"token": text(), "api_key": text(), "distinct_id": text()}),
                "examples": {"question": {"value": {"token": TOKEN_EXAMPLE, "distinct_id": "d"}}},
            }
        },
    }
    parameters = [
        _VERSION,
        _QUERY_TOKEN,
        parameter("query", "config", text(), "`true`: with remote configuration."),
    ]
    summary = "Feature flags: none"
    return {
        "post": _operation(
            _STUBS, f"post {path}", summary, responses, parameters=parameters, requestBody=body
        ),
        "get": _operation(_STUBS, f"get {path}", summary, responses, parameters=parameters),
    }


def _nothing(path: str, content: dict[str, object]) -> Json:
    schema = obj({}, sorted(content))
    responses = {"200": answer("Nothing.", schema, {"nothing": content})}
    return _operation(_STUBS, f"get {path}", "An empty list", responses, parameters=[_QUERY_TOKEN])


def _flag_payload() -> Json:
    parameters = [
        parameter("path", "key", text(), "A flag's key.", required=True, example="a-flag"),
        _QUERY_TOKEN,
    ]
    responses = {"200": answer("There is none.", {"type": "null"}, {"none": None})}
    return _operation(
        _STUBS, "get flag payload", "A flag's payload: none", responses, parameters=parameters
    )


def _configs() -> dict[str, Json]:
    gone = refusal("No project has the token.", "unknown_token", "API key is not valid: …")
    refusals = {"404": gone, "503": _AWAY}
    config = answer("As JSON.", ref("RemoteConfig"), {"events and nothing else": REMOTE_CONFIG})
    script = {
        "description": "As a script for a page.",
        "content": {"application/javascript": {"schema": text()}},
    }
    return {
        f"/array/{{token}}/{name}": {
            "get": _operation(
                _STUBS,
                f"get {name}",
                "Remote configuration: events and nothing else",
                {"200": found, **refusals},
                parameters=[_TOKEN],
            )
        }
        for name, found in (("config", config), ("config.js", script))
    }


def _scripts() -> dict[str, Json]:
    examples = {"no folder is set": {"code": "not_served", "detail": NO_FOLDER}}
    name = parameter("path", "script", text(), "A file.", required=True, example="array.js")
    found = {
        "/static/{script}": ("A file of posthog-js", name, MEDIA_TYPES.values(), {}),
        "/array/{token}/array.js": (
            "posthog-js after the project's remote configuration",
            _TOKEN,
            [MEDIA_TYPES["js"]],
            {"503": _AWAY},
        ),
    }
    return {
        path: {
            "get": _operation(
                _SCRIPTS,
                f"get {path}",
                summary,
                {
                    "200": {
                        "description": "The file.",
                        "content": {kind: {"schema": text()} for kind in kinds},
                    },
                    "304": {"description": "It is the one that the browser has."},
                    "404": answer("There is none, and why.", ref("Refusal"), examples),
                    **more,
                },
                parameters=[place],
            )
        }
        for path, (summary, place, kinds, more) in found.items()
    }


def _not_served(path: str, why: str) -> Json:
    content: Json = {"code": "not_served", "detail": why}
    if path in PAUSES:
        content["quota_limited"] = PAUSES[path]
    responses = {"404": answer(why, ref("NotServed"), {"not served": content})}
    parameters = [
        parameter("path", name, text(), "Anything.", required=True)
        for name in re.findall(r"\{(\w+)", path)
    ]
    return {
        method: _operation(
            _NOT_SERVED, f"{method} {path}", "Not served", responses, parameters=parameters
        )
        for method in ("get", "post", "delete")
    }


def _health() -> dict[str, Json]:
    fine = answer("It is so.", ref("Ok"), {"fine": {"status": "Ok"}})
    example = {"status": "not ready", "problems": ["Kafka does not answer: no broker is up"]}
    not_ready = answer("It is not, and why.", ref("NotReady"), {"Kafka is away": example})
    words = {"200": {"description": "Words.", "content": {"text/plain": {"schema": text()}}}}
    numbers: Json = {
        "200": {"description": "Prometheus' text.", "content": {CONTENT_TYPE: {"schema": text()}}}
    }
    found = {
        "/": ("What this is", words),
        "/_liveness": ("Whether the process is of use", {"200": fine, "503": not_ready}),
        "/_readiness": ("Whether events can be taken in", {"200": fine, "503": not_ready}),
        "/metrics": ("Numbers for Prometheus, over all workers of this port", numbers),
    }
    return {
        path: {"get": _operation(_HEALTH, f"get {path} health", summary, responses)}
        for path, (summary, responses) in found.items()
    }


def _plain(path: str) -> str:
    """The path without what FastAPI says about its parameters."""
    return re.sub(r":\w+\}", "}", path)
