"""The API does what /openapi.json says: every path, every answer, whatever is sent."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from fastapi.openapi.utils import get_openapi
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from schemathesis.specs.openapi import checks

from capture_api.app import create_app
from capture_api.described.document import openapi_document
from capture_api.ingest import INGEST_PATHS
from capture_api.v1.endpoint import V1_PATHS

EXAMPLES = 12
"""Requests that are made up for each operation, besides those of the document."""
METHODS = ("get", "post", "put", "delete", "patch")

CONFORMANCE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]

DOCUMENT = openapi_document()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [
    (path, method) for path, operations in DOCUMENT["paths"].items() for method in operations
]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_described(capture: Any, path: str, method: str) -> None:
    """Status, type, headers and content of each answer stand in the document; none is a 500."""

    @given(SCHEMA[path][method].as_strategy(), st.booleans())
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any, with_token: bool) -> None:
        headers = {}
        if with_token:
            headers["Authorization"] = f"Bearer {capture.token}"
            if isinstance(case.body, dict):
                case.body["api_key"] = capture.token
        response = case.call(capture.url, headers=headers)
        assert response.status_code != 500
        case.validate_response(response, checks=CONFORMANCE)

    check()


@pytest.mark.parametrize("path", sorted(DOCUMENT["paths"]))
def test_methods_that_are_not_described_are_refused(capture: Any, path: str) -> None:
    """With 405, and those in Allow that are."""
    described = DOCUMENT["paths"][path]
    for method in METHODS:
        if method not in described:
            response = capture.client.request(method, re.sub(r"\{\w+\}", "x", path))
            assert response.status_code == 405, (method, response.text)
            allowed = set(response.headers["Allow"].lower().split(", ")) - {"options", "head"}
            assert allowed == set(described)


@pytest.mark.filterwarnings("ignore:Duplicate Operation ID")  # of spellings with a slash
def test_every_path_is_described(new_settings: Any) -> None:
    """What the application serves, and nothing else."""
    served = get_openapi(title="", version="", routes=create_app(new_settings()).routes)["paths"]
    assert set(DOCUMENT["paths"]) == {*served, *INGEST_PATHS, *V1_PATHS}


@pytest.fixture(name="new_settings")
def new_settings_fixture(request: pytest.FixtureRequest) -> Any:
    """The fixture `settings`, whose name is hypothesis's here."""
    return request.getfixturevalue("settings")


def examples_of(content: dict[str, Any]) -> list[tuple[dict[str, Any], Any]]:
    """The schema and the value of each example of a body or an answer."""
    return [
        (body["schema"], example["value"])
        for body in content.values()
        for example in body.get("examples", {}).values()
    ]


def test_every_example_fits_its_schema() -> None:
    """Those of requests and of answers; and every operation has a name of its own."""
    names = []
    found = []
    for operations in DOCUMENT["paths"].values():
        for operation in operations.values():
            names.append(operation["operationId"])
            found += examples_of(operation.get("requestBody", {}).get("content", {}))
            for answer in operation["responses"].values():
                found += examples_of(answer.get("content", {}))
    assert len(set(names)) == len(names)
    assert len(found) > 100
    for schema, value in found:
        Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def test_the_examples_work(capture: Any) -> None:
    """Each request that the document shows is accepted, once the token is a good one."""
    for path in (*INGEST_PATHS, *V1_PATHS):
        operation = DOCUMENT["paths"][path]["post"]
        headers = {
            parameter["name"]: str(parameter["example"])
            for parameter in operation["parameters"]
            if parameter["in"] == "header" and "example" in parameter
        }
        headers["Authorization"] = f"Bearer {capture.token}"
        for _, value in examples_of(operation["requestBody"]["content"]):
            for part in value if isinstance(value, list) else [value]:
                if path not in V1_PATHS:
                    part["api_key"] = capture.token
            response = capture.client.post(path, json=value, headers=headers)
            assert response.status_code == 200, (path, response.text)


def test_docs_are_served(capture: Any) -> None:
    """A page that shows the document."""
    page = capture.client.get("/docs").text
    assert "openapi.json" in page
    assert "http" not in page.replace("http-equiv", ""), "it loads nothing from elsewhere"
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        loaded = capture.client.get(f"/{name}")
        assert loaded.status_code == 200, name
        assert len(loaded.content) > 100
