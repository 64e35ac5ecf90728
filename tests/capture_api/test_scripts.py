"""posthog-js for the HTML snippet: files of one folder, and nothing from anywhere else."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ORIGIN = {"Origin": "https://shop.example"}
SCRIPT = "window.posthog = 'é'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dist` folder, with what must not be served in it and around it."""
    outside = tmp_path_factory.mktemp("package")
    (outside / "secret.js").write_text("secret")
    folder = outside / "dist"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "inner.js").write_text("secret")
    (folder / "folder.js").mkdir()
    (folder / "link.js").symlink_to(outside / "secret.js")
    (folder / "array.d.ts").write_text("secret")
    (folder / "array.js").write_text(SCRIPT)
    (folder / "array.js.map").write_text("{}")
    (folder / "toolbar.css").write_text("a {}")
    return folder


@pytest.fixture(scope="module")
def serving(kafka: str, new_capture: Callable[..., Any], folder: Path) -> Any:
    """A capture API with that folder."""
    return new_capture(kafka, TIDEMARK_CAPTURE_SCRIPTS_DIR=str(folder)).start()


@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        ("/static/array.js", SCRIPT, "text/javascript; charset=utf-8"),
        ("/static/array.js?v=1.449.2", SCRIPT, "text/javascript; charset=utf-8"),
        ("/static/array.js.map", "{}", "application/json"),
        ("/static/toolbar.css", "a {}", "text/css; charset=utf-8"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_files_are_served(serving: Any, path: str, content: str, kind: str, method: str) -> None:
    """With their types, for five minutes, to pages of any origin; a HEAD has no body."""
    response = serving.client.request(method, path, headers=ORIGIN)
    assert response.status_code == 200
    assert response.text == (content if method == "GET" else "")
    assert response.headers["Content-Length"] == str(len(content.encode()))
    assert response.headers["Content-Type"] == kind
    assert response.headers["Cache-Control"] == "public, max-age=300"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]


def test_array_script_begins_with_the_configuration(serving: Any) -> None:
    """What config.js says, and then array.js."""
    address = f"/array/{serving.token}"
    response = serving.client.get(f"{address}/array.js", headers=ORIGIN)
    assert response.text == serving.client.get(f"{address}/config.js").text + "\n" + SCRIPT
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    head = serving.client.head(f"{address}/array.js")
    assert (head.status_code, head.content) == (200, b"")
    unknown = serving.client.get("/array/phc_nobody/array.js")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_token")


@pytest.mark.parametrize("path", ["/static/array.js", "/array/{token}/array.js"])
def test_a_browser_that_has_it_is_told_so(serving: Any, path: str) -> None:
    """304 without a body for its ETag, and the whole file for another."""
    path = path.format(token=serving.token)
    etag = serving.client.get(path).headers["ETag"]
    known = serving.client.get(path, headers={"If-None-Match": etag, **ORIGIN})
    assert (known.status_code, known.content) == (304, b"")
    assert known.headers["ETag"] == etag
    assert known.headers["Cache-Control"] == "public, max-age=300"
    assert known.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert serving.client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "absent.js",
        "array.d.ts",
        "src/inner.js",
        "folder.js",
        "link.js",
        "array.js/",
        "1.449.2/array.js",
        "../secret.js",
        "..%2fsecret.js",
        "%2e%2e/secret.js",
        "..%5csecret.js",
        "%2fetc/passwd",
        "//etc/passwd",
        "array.js%00",
        "%c3%a9.js",
        "a" * 300 + ".js",
        "..",
        "",
    ],
)
def test_nothing_else_is_served(serving: Any, name: str) -> None:
    """404 in words, whatever the path is made of; sent raw, for clients tidy paths up."""
    with socket.create_connection(("127.0.0.1", serving.port)) as connection:
        head = f"GET /static/{name} HTTP/1.1\r\nHost: tidemark\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"no_such_script"' in answer
    assert b"secret" not in answer.replace(name.encode() or b"\0", b"")


@pytest.mark.parametrize("path", ["/static/array.js", "/array/{token}/array.js"])
def test_without_a_folder_the_refusal_says_what_to_do(capture: Any, path: str) -> None:
    """As a 404 that a page may read."""
    response = capture.client.get(path.format(token=capture.token), headers=ORIGIN)
    assert (response.status_code, response.json()["code"]) == (404, "not_served")
    assert "TIDEMARK_CAPTURE_SCRIPTS_DIR" in response.json()["detail"]
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]


@pytest.mark.parametrize("path", ["/static/array.js", "/array/{token}/array.js"])
def test_a_folder_that_goes_away_is_a_404(
    kafka: str, new_capture: Callable[..., Any], tmp_path: Path, path: str
) -> None:
    """While the API runs: scripts are missed, and nothing breaks."""
    (tmp_path / "array.js").write_text(SCRIPT)
    capture = new_capture(kafka, TIDEMARK_CAPTURE_SCRIPTS_DIR=str(tmp_path)).start()
    tmp_path.rename(f"{tmp_path}-gone")
    response = capture.client.get(path.format(token=capture.token))
    assert (response.status_code, response.json()["code"]) == (404, "no_such_script")
