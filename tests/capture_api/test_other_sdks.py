"""Requests as the SDKs of other languages write them, byte for byte where a byte matters.

Each row has what is peculiar to its SDK: how it spells times, numbers and letters, what it leaves
empty, and where it puts the token and the distinct id. docs/sdks.md tells which SDKs were run.
"""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

AT = round(datetime(2026, 1, 2, 3, 4, 5, 678000, UTC).timestamp() * 1_000_000)
LETTERS = "é\u2028😀\0<>'"


class Written(NamedTuple):
    """One event in the spelling of its SDK, and what the record must say."""

    sdk: str
    envelope: str
    event: str
    name: str
    distinct_id: str
    timestamp: int | None  # None: when it was received
    properties: dict[str, Any]
    path: str = "/batch/"
    user_agent: str = ""
    content_type: str = "application/json"
    packed: bool = False


BATCH_FIRST = '{"batch":[EVENT],"api_key":"TOKEN"}'
KEY_FIRST = '{"api_key":"TOKEN","batch":[EVENT]}'
RUST = (
    '{"api_key":"TOKEN","historical_migration":false,'
    '"sent_at":"2026-11-30T04:41:06.015258792+00:00","batch":[EVENT]}'
)
ID = "01980000-0000-7000-8000-0000000000aa"

WRITTEN = [
    Written(
        "posthog-php/4.13.2",
        BATCH_FIRST,
        r'{"event":"plain","properties":{"text":"\u00e9\u2028\ud83d\ude00\u0000<>'
        r"'"
        r'","path":"a\/b","list":[],"map":{},"small":1.0e-7,"one":1},"distinct_id":"ada",'
        r'"groups":[],"timestamp":"2026-01-02T03:04:05.678000+00:00","uuid":"UUID"}',
        "plain",
        "ada",
        AT,
        {"text": LETTERS, "path": "a/b", "list": [], "map": {}, "small": 1e-7, "one": 1},
    ),
    Written(
        "posthog-php/4.13.2",
        BATCH_FIRST,
        '{"distinct_id":42,"properties":{"plan":"free"},"$set":{"plan":"free"},"groups":[],'
        '"timestamp":"2026-01-02T03:04:05.678000+00:00","event":"$identify"}',
        "$identify",
        "42",
        AT,
        {"plan": "free", "$set": {"plan": "free"}},
        packed=True,
    ),
    Written(  # identify with an empty array of properties
        "posthog-php/4.13.2",
        BATCH_FIRST,
        '{"distinct_id":"ada","properties":{"$is_server":true},"$set":[],"groups":[],'
        '"timestamp":"2026-01-02T03:04:05.678000+00:00","event":"$identify"}',
        "$identify",
        "ada",
        AT,
        {"$is_server": True},
    ),
    Written(  # raw() with an empty array of properties
        "posthog-php/4.13.2",
        BATCH_FIRST,
        '{"event":"raw","distinct_id":"ada","properties":[],"uuid":"UUID"}',
        "raw",
        "ada",
        None,
        {},
    ),
    Written(
        "posthog-php/4.13.2",
        BATCH_FIRST,
        '{"distinct_id":null,"properties":{"distinct_id":"ada","alias":"a1"},"groups":[],'
        '"timestamp":"2026-01-02T03:04:05.678000+00:00","event":"$create_alias"}',
        "$create_alias",
        "ada",
        AT,
        {"distinct_id": "ada", "alias": "a1"},
    ),
    Written(
        "posthog-ruby/3.23.2",
        KEY_FIRST,
        '{"timestamp":"2026-01-02T03:04:05.678Z","distinct_id":"ada","properties":{"text":'
        '"é\u2028😀\\u0000<>\'","huge":1208925819614629174706176,"small":1.0e-07,"one":1.0},'
        '"uuid":"UUID","type":"capture","event":"plain"}',
        "plain",
        "ada",
        AT,
        {"text": LETTERS, "huge": 2**80, "small": 1e-7, "one": 1.0},
        packed=True,
    ),
    Written(
        "posthog-go/1.23.1",
        '{"api_key":"TOKEN","historical_migration":false,"batch":[EVENT]}',
        '{"uuid":"UUID","timestamp":"2026-01-02T03:04:05.678000123Z","distinct_id":"ada","event":'
        '"plain","properties":{"bad":"\\ufffd","huge":18446744073709551615,"nothing":null,"text":'
        '"é\\u2028😀\\u0000\\u003c\\u003e\'"}}',
        "plain",
        "ada",
        AT,
        {"bad": "\ufffd", "huge": 2**64 - 1, "nothing": None, "text": LETTERS},
        path="/batch/?compression=gzip",
        packed=True,
    ),
    Written(  # identify with nil properties
        "posthog-go/1.23.1",
        KEY_FIRST,
        '{"type":"identify","uuid":"UUID","library":"posthog-go","library_version":"1.23.1",'
        '"timestamp":"2026-01-02T03:04:05.678Z","event":"$identify","distinct_id":"ada",'
        '"properties":{"$is_server":true},"$set":null}',
        "$identify",
        "ada",
        AT,
        {"$is_server": True},
    ),
    Written(  # no uuid, and the distinct id of an alias only among its properties
        "posthog-go/1.5.2",
        KEY_FIRST,
        '{"type":"alias","uuid":"","library":"posthog-go","library_version":"1.5.2","timestamp":'
        '"2026-01-02T03:04:05.678Z","properties":{"distinct_id":"ada","alias":"a1"},"event":'
        '"$create_alias"}',
        "$create_alias",
        "ada",
        AT,
        {"distinct_id": "ada", "alias": "a1"},
    ),
    Written(  # a time without a zone, in UTC, which is not corrected by so little a skew
        "posthog-rs/0.30.0",
        RUST.replace("2026-11-30T04:41:06.015258792+00:00", "NOW"),
        '{"uuid":"UUID","event":"plain","distinct_id":"ada","properties":{"small":1e-7,"text":'
        '"é\u2028😀\\u0000<>\'"},"timestamp":"2026-01-02T03:04:05.678000123"}',
        "plain",
        "ada",
        AT,
        {"small": 1e-7, "text": LETTERS},
    ),
    Written(
        "posthog-rs/0.30.0",
        RUST.replace("2026-11-30T04:41:06.015258792+00:00", "NOW"),
        '{"uuid":"UUID","event":"plain","distinct_id":"ada","properties":{},"timestamp":null}',
        "plain",
        "ada",
        None,
        {},
        path="/batch/?compression=gzip",
        packed=True,
    ),
    Written(
        "posthog-server/2.3.3",
        '{"api_key":"TOKEN","batch":[EVENT],"sent_at":"NOW"}',
        '{"event":"plain","distinct_id":"ada","properties":{"text":"é\\u2028😀\\u0000\\u003c\\u003e'
        '\\u0027","small":1.0E-7,"one":1.0},"timestamp":"2026-01-02T03:04:05.678Z","uuid":"UUID"}',
        "plain",
        "ada",
        AT,
        {"text": LETTERS, "small": 1e-7, "one": 1.0},
        path="/batch",
        content_type="application/json; charset=utf-8",
        packed=True,
    ),
    Written(
        "posthog-dotnet/2.13.3",
        '{"api_key":"TOKEN","historical_migration":false,"batch":[EVENT]}',
        r'{"uuid":"UUID","event":"plain","distinct_id":"ada","properties":{"distinct_id":"ada",'
        r'"text":"\u00E9\u2028\uD83D\uDE00\u0000\u003C\u003E\u0027"},'
        r'"timestamp":"2026-01-02T03:04:05.678+00:00"}',
        "plain",
        "ada",
        AT,
        {"distinct_id": "ada", "text": LETTERS},
        path="/batch",
        user_agent="posthog-dotnet/2.13.3 (.NET 8.0.11; Debian GNU/Linux 12 (bookworm); X64)",
        packed=True,
    ),
    Written(  # one that does not wait for a batch: no uuid, and the token last
        "posthog-dotnet/2.13.3",
        "EVENT",
        '{"event":"$identify","distinct_id":"ada","properties":{"$set":{"plan":"free"},'
        '"$set_once":{}},"api_key":"TOKEN","timestamp":"2026-01-02T03:04:05.678+00:00"}',
        "$identify",
        "ada",
        AT,
        {"$set": {"plan": "free"}, "$set_once": {}},
        path="/capture",
        user_agent="posthog-dotnet/2.13.3 (.NET 8.0.11; Debian GNU/Linux 12 (bookworm); X64)",
        content_type="application/json; charset=utf-8",
    ),
    Written(
        "posthog-elixir/2.14.1",
        '{"batch":[EVENT],"api_key":"TOKEN"}',
        '{"event":"plain","timestamp":"2026-01-02T03:04:05.678000Z","uuid":"UUID",'
        '"distinct_id":"ada","properties":{"text":"é\u2028😀\\u0000<>\'"}}',
        "plain",
        "ada",
        AT,
        {"text": LETTERS},
        path="/batch",
        packed=True,
    ),
]


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: f"{written.sdk} {written.name}")
def test_events_in_the_spelling_of_each_sdk(capture: Any, written: Written) -> None:
    """They are taken, and mean what their SDK meant."""
    text = written.envelope.replace("EVENT", written.event).replace("TOKEN", capture.token)
    text = text.replace("UUID", ID).replace("NOW", datetime.now(UTC).isoformat())
    body = gzip.compress(text.encode()) if written.packed else text.encode()
    headers = {
        "User-Agent": written.user_agent or written.sdk,
        "Content-Type": written.content_type,
        **({"Content-Encoding": "gzip"} if written.packed else {}),
    }
    response = capture.client.post(written.path, content=body, headers=headers)
    assert (response.status_code, response.json()) == (200, {"status": "Ok"})
    [record] = [found.value for found in capture.records_of(response)]
    assert (record["event"], record["distinct_id"]) == (written.name, written.distinct_id)
    assert record["timestamp"] == (written.timestamp or record["received_at"])
    assert record["properties"] == written.properties
    assert record["sdk"] == written.sdk
    if ID in text:
        assert record["uuid"] == ID


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/flags/definitions?send_cohorts&token=TOKEN"),  # PHP, .NET
        ("GET", "/flags/definitions?token=TOKEN&send_cohorts=true"),  # Ruby, Go
        ("GET", "/flags/definitions/?send_cohorts"),  # Rust
        ("GET", "/api/feature_flag/local_evaluation/?token=TOKEN&send_cohorts"),  # Java
        ("GET", "/api/feature_flag/local_evaluation?send_cohorts=true&token=TOKEN"),  # Go of 2025
        ("GET", "/api/projects/@current/feature_flags/f/remote_config/"),  # Go of 2025
        ("GET", "/api/projects/@current/feature_flags/f/remote_config?token=TOKEN"),  # the others
        ("GET", "/array/TOKEN/config"),  # Java
        ("POST", "/flags/?v=2"),  # all of them
        ("POST", "/flags?v=2"),  # Elixir
    ],
)
def test_questions_are_answered_without_a_cause_to_ask_again(
    capture: Any, method: str, target: str
) -> None:
    """Each is JSON and 200: anything else is logged by some SDK at each of its polls."""
    body = {"api_key": capture.token, "distinct_id": "ada", "groups": {}}
    response = capture.client.request(
        method,
        target.replace("TOKEN", capture.token),
        json=body if method == "POST" else None,
        headers={"Authorization": "Bearer phx_of_somebody"},
    )
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/json")
