"""What SDKs ask for beside capture: empty answers in each one's form, and refusals that stop it."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any
from urllib.parse import urlencode

import httpx
import psutil
import pytest

from capture_api.not_served import NOT_SERVED

EVENT = {"event": "e", "distinct_id": "d"}
ORIGIN = {"Origin": "https://shop.example"}
NO_DEFINITIONS = {"flags": [], "group_type_mapping": {}, "cohorts": {}}

SDK_CONFIG = {"sessionRecording": False, "surveys": False, "hasFeatureFlags": False}


def has(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether the answer holds these, whatever else it holds."""
    return answer | expected == answer


@pytest.mark.parametrize(
    ("path", "featureFlags", "with_config"),
    [
        ("/flags/?v=4", {}, False),
        ("/flags/?v=2", {}, False),
        ("/flags?v=2&config=true", {}, True),
        ("/flags", {}, False),
        ("/decide/?v=4", {}, True),
        ("/decide/?v=3", {}, True),
        ("/decide/?v=2", {}, True),
        ("/decide/?v=1", [], True),
        ("/decide/", [], True),
    ],
)
def test_flags_are_answered_with_none(
    capture: Any, path: str, featureFlags: Any, with_config: bool
) -> None:
    """In the form of the version; with remote configuration where that version has it."""
    response = capture.client.post(path, json={"token": capture.token, "distinct_id": "d"})
    assert response.status_code == 200
    answer = response.json()
    assert answer["featureFlags"] == featureFlags
    assert has(answer, {"flags": {}, "featureFlagPayloads": {}, "errorsWhileComputingFlags": False})
    assert has(answer, SDK_CONFIG) == with_config


def packed(token: str) -> list[dict[str, Any]]:
    """The same question in the ways in which SDKs have sent it over the years."""
    question = json.dumps({"token": token, "distinct_id": "d"}).encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    data = base64.b64encode(question).decode()
    return [
        {"content": question},
        {"content": gzip.compress(question)},
        {"content": gzip.compress(question), "headers": {"Content-Encoding": "gzip"}},
        {"content": urlencode({"data": data}).encode(), "headers": form},
        {"content": base64.b64encode(question), "params": {"compression": "base64"}},
        {"json": {"api_key": token, "distinct_id": "d"}},
        {"params": {"token": token}, "json": {}},
    ]


@pytest.mark.parametrize("path", ["/flags/", "/decide/"])
@pytest.mark.parametrize("way", range(7))
def test_the_token_of_a_question_is_found_however_it_is_packed(
    capture: Any, path: str, way: int
) -> None:
    """Plain, gzip, base64, form, query: a good token is a 200, an unknown one a 401."""
    assert capture.client.post(path, **packed(capture.token)[way]).status_code == 200
    assert capture.client.post(path, **packed("phc_nobody")[way]).status_code == 401


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"token": 1}', b"[" * 100_000])
def test_a_question_that_cannot_be_read_is_the_clients_mistake(capture: Any, body: bytes) -> None:
    """400 or 401, which no SDK asks again."""
    assert capture.client.post("/flags/", content=body).status_code in (400, 401)


def test_remote_config(capture: Any) -> None:
    """As JSON and as a script; an unknown token is a 404."""
    config = capture.client.get(f"/array/{capture.token}/config").json()
    assert config["supportedCompression"] == ["gzip", "gzip-js"]
    assert has(config, SDK_CONFIG)
    script = capture.client.get(f"/array/{capture.token}/config.js")
    assert f'_POSTHOG_REMOTE_CONFIG["{capture.token}"]=' in script.text
    assert script.headers["Content-Type"] == "application/javascript"
    assert capture.client.get("/array/phc_nobody/config").status_code == 404
    assert capture.client.get("/array/phc_nobody/config.js").status_code == 404


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/flags/definitions?token=x&send_cohorts", NO_DEFINITIONS),
        ("/api/feature_flag/local_evaluation/?token=x&send_cohorts", NO_DEFINITIONS),
        ("/api/surveys/?token=x", {"surveys": []}),
        ("/api/early_access_features/?token=x", {"earlyAccessFeatures": []}),
        ("/api/web_experiments/?token=x", {"experiments": []}),
        ("/api/product_tours/?token=x", {"product_tours": []}),
        ("/api/projects/@current/feature_flags/a-flag/remote_config?token=x", None),
    ],
)
def test_lists_are_empty(capture: Any, path: str, answer: Any) -> None:
    """Nothing there, in the form that SDKs expect, for browsers too."""
    response = capture.client.get(path, headers=ORIGIN)
    assert (response.status_code, response.json()) == (200, answer)
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]


PATHS_NOT_SERVED = [*NOT_SERVED]


@pytest.mark.parametrize("path", [*PATHS_NOT_SERVED, "/nowhere"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_served_is_refused_in_words(capture: Any, path: str, method: str) -> None:
    """A 404 in JSON, with CORS headers and no Retry-After, with and without a slash."""
    for spelling in (path, f"{path}/"):
        response = capture.client.request(method, spelling, content=b"\x0a\x00", headers=ORIGIN)
        assert response.status_code == 404
        assert response.json()["detail"]
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
        assert "Retry-After" not in response.headers
        preflight = {**ORIGIN, "Access-Control-Request-Method": method}
        assert capture.client.options(spelling, headers=preflight).status_code == 200


def test_replay_alone_is_paused_in_browsers(capture: Any) -> None:
    """The refusal of replay names its kind as posthog-js reads it, and never that of events."""
    assert capture.client.post("/s/").json()["quota_limited"] == ["recordings"]
    others = [path for path in PATHS_NOT_SERVED if path != "/s"]
    assert [p for p in others if "quota_limited" in capture.client.post(p).json()] == []


def test_bodies_of_what_is_not_served_are_thrown_away(capture: Any) -> None:
    """A large replay costs the server no memory, and its connection goes on to carry events."""
    memory = psutil.Process(capture.process.pid).memory_info().rss
    with httpx.Client(base_url=capture.url, limits=httpx.Limits(max_connections=1)) as client:
        for _ in range(3):
            refused = client.post("/s/", content=bytes(40 << 20))
            assert refused.status_code == 404
            assert client.post("/e/", json=capture.batch(EVENT)).status_code == 200
    assert psutil.Process(capture.process.pid).memory_info().rss - memory < 20 << 20


def test_a_token_that_cannot_be_one_is_not_looked_up(capture: Any) -> None:
    """A long path is a 404 in the API's form, and nothing of it is remembered."""
    response = capture.client.get(f"/array/{'x' * 10_000}/config")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_token")
    assert "too_long" in response.json()["detail"]
