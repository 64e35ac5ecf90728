"""The page that shows the API's description, with scripts of its own.

FastAPI's page loads Swagger UI from a host on the internet. Here it comes from a package, so that
the page works where there is no internet and tells nobody who looked.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

PAGE = "/docs"
_SCRIPTS = f"{PAGE}/static"


def add_page(app: FastAPI) -> None:
    """Serve the page, and what it loads, with the application."""

    async def page(_: Request) -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/static/swagger-ui-bundle.js",
            swagger_css_url="docs/static/swagger-ui.css",
            swagger_favicon_url="docs/static/favicon.png",
        )

    app.add_route(PAGE, page, include_in_schema=False)
    app.mount(_SCRIPTS, StaticFiles(directory=_folder()), name="scripts of the page")


def _folder() -> Path:
    """Where the package has Swagger UI's files."""
    found = find_spec("fastapi_offline")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "static"
