"""Whatever a payload is wrapped in, on every path: taken or refused as PostHog does.

A path of old undoes base64 once more than the others, so that forms of old clients work there.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.capture_rows import (
    FORM,
    JSON,
    NEW_PATHS,
    OLD_PATHS,
    TEXT,
    TOKEN,
    Outcome,
    Row,
    batch,
    check,
    event,
    in_base64,
    in_base64_form,
    in_form,
    in_gzip_form,
    in_lz64,
    in_lz64_form,
    send_all,
)

BASE64_PLUS = "é>>>~~~???"  # its base64 has + and /
TWO = batch(event(api_key=None), event(api_key=None, event="two"))
ONE = event(properties={"note": BASE64_PLUS})
SHAPES = {"event": (ONE, ("one",)), "batch": (TWO, ("one", "two"))}
PERSON = {"$token": TOKEN, "$distinct_id": "d", "$set": {"plan": "free"}}


def wrapping_rows() -> list[Row]:
    """Every wrapping, on every path, with every method that carries a body."""
    rows = []
    for path in (*OLD_PATHS, *NEW_PATHS, "/engage"):
        shapes = {"person": (PERSON, ("$identify",))} if path == "/engage" else SHAPES
        # PostHog takes base64 in a form on its old paths. /i/v0/e is where browsers' beacons go.
        old = path not in NEW_PATHS or path == "/i/v0/e"
        for method in ("POST", "GET"):
            for shape, (body, events) in shapes.items():
                for name, wrap, content_type, query, taken in (
                    ("plain", bytes, JSON, {}, True),
                    ("plain text", bytes, TEXT, {}, True),
                    ("no content type", bytes, None, {}, True),
                    ("base64", in_base64, JSON, {"compression": "base64"}, True),
                    ("base64 without hint", in_base64, TEXT, {}, True),
                    ("gzip", gzip.compress, JSON, {"compression": "gzip"}, True),
                    ("gzip-js", gzip.compress, TEXT, {"compression": "gzip-js"}, True),
                    ("gzip without hint", gzip.compress, TEXT, {}, True),
                    ("form", in_form, FORM, {}, True),
                    ("form of base64", in_base64_form, FORM, {}, old),
                    ("form of lz64", in_lz64_form, FORM, {}, True),
                    (
                        "form of lz64 by query",
                        lambda text: urlencode({"data": in_lz64(text)}).encode(),
                        FORM, {"compression": "lz-string"}, True,
                    ),
                    ("form of gzip", in_gzip_form, FORM, {"compression": "gzip-js"}, True),
                    ("form hinted gzip that is none", in_base64_form, FORM,
                     {"compression": "gzip-js"}, True),
                    ("JSON called a form", bytes, FORM, {}, False),
                    ("gzip called a form", gzip.compress, FORM, {}, False),
                    ("form not called one", in_form, JSON, {}, False),
                ):  # fmt: skip
                    rows.append(
                        Row(
                            f"{method} {path} {name}, {shape}",
                            path if method == "GET" else f"{path}/", body, wrap, query=query,
                            status=200 if taken else 400, events=events if taken else (),
                            content_type=content_type, method=method,
                        )
                    )  # fmt: skip
        for name, wrap, query in (
            ("plain", bytes, {}),
            ("base64", in_base64, {"compression": "base64"}),
        ):
            body, events = next(iter(shapes.values()))
            rows.append(
                Row(
                    f"GET {path} data in query, {name}", path, body, wrap, query=query,
                    events=events, content_type=TEXT, method="GET", in_query=True,
                )
            )  # fmt: skip
    return rows


def padded(body: dict[str, Any], looks_like_base64: bool) -> dict[str, Any]:
    """The body, with a property that makes its lz64 valid base64, or not."""
    for length in range(64):
        longer = {**body, "properties": {"x": "x" * length}}
        text = in_lz64(json.dumps(longer).encode())
        try:
            exact = base64.b64encode(base64.b64decode(text, validate=True)) == text
        except ValueError:
            exact = False
        if exact == looks_like_base64:
            return longer
    raise AssertionError("no padding helps")


def lz64_rows() -> list[Row]:
    """Bare lz64: by chance it is base64, too, and /engage then takes it for that, as PostHog does.

    The token in it is no project's, lest its length decide; unpacked well, it is a 401.
    """
    rows = []
    lz64 = {"compression": "lz64"}
    for path in (*OLD_PATHS, *NEW_PATHS, "/engage"):
        body = {**(PERSON if path == "/engage" else ONE), "$token": None, "api_key": "phc_nobody"}
        for chance in (False, True):
            good = path != "/engage" or not chance
            for where, in_query in (("query", True), ("body", False)):
                rows.append(
                    Row(
                        f"{path} lz64 in {where}, {'' if chance else 'not '}also base64", path,
                        padded(body, chance), in_lz64, status=401 if good else 400, query=lz64,
                        content_type=TEXT, method="GET" if in_query else "POST",
                        in_query=in_query,
                    )
                )  # fmt: skip
    return rows


ROWS = [*wrapping_rows(), *lz64_rows()]


@pytest.fixture(scope="module")
def outcomes(capture: Any) -> dict[str, Outcome]:
    """What became of every row."""
    return send_all(capture, ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(row: Row, outcomes: dict[str, Outcome]) -> None:
    """The answer is as it should be, and so is what is kept."""
    check(row, outcomes[row.id])


def test_rows_have_names_of_their_own() -> None:
    """No row hides another."""
    assert len({row.id for row in ROWS}) == len(ROWS)
