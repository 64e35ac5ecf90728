"""posthog-js for PostHog's HTML snippet, out of a folder: `dist` of the package from npm.

    /static/NAME            a file of the folder
    /array/TOKEN/array.js   remote configuration of the project, and array.js after it

Invariant: nothing is served but files that lie in the folder itself and are named like scripts;
where a link leads out of it, there is no such file. Without a folder the paths are refused in
words that say how to set one up.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import NotModifiedResponse, StaticFiles

from capture_api.answers import as_response, refusal_answer
from capture_api.projects import Projects
from capture_api.refusal import Refused
from capture_api.stubs import Admit, config_script_text, token_refusal
from orchestration.settings import Settings

MAIN_SCRIPT = "array.js"
NO_FOLDER = (
    "PostHog's scripts are not served here: copy the dist folder of posthog-js (npm pack "
    "posthog-js) to the server and name it in TIDEMARK_CAPTURE_SCRIPTS_DIR; or bundle posthog-js "
    "from npm"
)

_NAME = re.compile(r"[\w.-]+\.(js|map|css)", re.ASCII)
MEDIA_TYPES = {
    "js": "text/javascript; charset=utf-8",
    "map": "application/json",
    "css": "text/css; charset=utf-8",
}
_HEADERS = {"Cache-Control": "public, max-age=300", "X-Content-Type-Options": "nosniff"}


def check_scripts_dir(settings: Settings) -> None:
    """Raise OSError when the folder cannot be what the setting promises."""
    if settings.capture_scripts_dir:
        with (Path(settings.capture_scripts_dir) / MAIN_SCRIPT).open("rb"):
            pass


def script_routes(settings: Settings, projects: Projects, admit: Admit) -> APIRouter:
    """The routes, as the setting has them."""
    routes = APIRouter(tags=["scripts for the HTML snippet"])
    folder = settings.capture_scripts_dir
    files = StaticFiles(directory=folder, check_dir=False) if folder else None

    async def script(request: Request, script: str) -> Response:
        """A file of the folder."""
        if files is None:
            return _refused("not_served", NO_FOLDER)
        name = _NAME.fullmatch(script)
        if name is None:
            return _refused("no_such_script", "a script is named like array.js, without a folder")
        try:
            response = await files.get_response(script, request.scope)
        except HTTPException:
            return _no_such(script)
        if not isinstance(response, NotModifiedResponse):
            response.headers["Content-Type"] = MEDIA_TYPES[name[1]]
        response.headers.update(_HEADERS)
        return response

    async def array_script(request: Request, token: str) -> Response:
        """Remote configuration of a project, and the SDK that finds it there."""
        if files is None:
            return _refused("not_served", NO_FOLDER)
        refusal = await token_refusal(projects, token, request, admit)
        if refusal is not None:
            return as_response(refusal)
        try:
            main = await asyncio.to_thread(_content, files, MAIN_SCRIPT)
        except OSError:
            return _no_such(MAIN_SCRIPT)
        body = config_script_text(token).encode() + b"\n" + main
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        response = Response(body, headers={**_HEADERS, "ETag": etag}, media_type=MEDIA_TYPES["js"])
        if files.is_not_modified(response.headers, request.headers):
            return NotModifiedResponse(response.headers)
        return response

    # A name may hold slashes here, so that the refusal of such a one is ours.
    for path, endpoint in (
        ("/static/{script:path}", script),
        ("/array/{token}/array.js", array_script),
        ("/array/{token}/array.js/", array_script),
    ):
        routes.add_api_route(
            path, endpoint, methods=["GET", "HEAD"], include_in_schema=not path.endswith("/")
        )
    return routes


def _content(files: StaticFiles, name: str) -> bytes:
    """The bytes of a file of the folder."""
    path, _ = files.lookup_path(name)
    return Path(path).read_bytes()


def _refused(code: str, text: str) -> Response:
    return as_response(refusal_answer(Refused(404, code, text)))


def _no_such(name: str) -> Response:
    return _refused("no_such_script", f"TIDEMARK_CAPTURE_SCRIPTS_DIR has no {name}")
