"""Starting with settings that make no sense ends in one line that names them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def start_fails(home: Path, **environment: str) -> str:
    """The one line that the start ends with, and exit code 1."""
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("TIDEMARK_")}
    done = subprocess.run(
        [sys.executable, "-m", "capture_api"],
        env={**inherited, "TIDEMARK_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("TIDEMARK_KAFKA_OPTIONS", "notjson", "TIDEMARK_KAFKA_OPTIONS is not JSON"),
        ("TIDEMARK_KAFKA_OPTIONS", '{"no.such": "setting"}', "no.such"),
        ("TIDEMARK_CAPTURE_LINGER_MS", "6000", "linger.ms"),
        ("TIDEMARK_CAPTURE_LINGER_MS", "-1", "TIDEMARK_CAPTURE_LINGER_MS"),
        ("TIDEMARK_CAPTURE_SPOOL_DIR", "/proc/nowhere", "TIDEMARK_CAPTURE_SPOOL_DIR"),
        ("TIDEMARK_CAPTURE_SCRIPTS_DIR", "/proc", "array.js'; name the dist folder of posthog-js"),
        ("TIDEMARK_CAPTURE_REDIS_URL", "nonsense", "redis://HOST:PORT"),
        ("TIDEMARK_CAPTURE_TRUSTED_PROXIES", "nonsense", "TIDEMARK_CAPTURE_TRUSTED_PROXIES"),
        ("TIDEMARK_CAPTURE_RATE_LIMITS", "maybe", "'enforce', 'dry_run' or 'off'"),
    ],
)
def test_bad_setting_is_one_line(tmp_path: Path, name: str, value: str, text: str) -> None:
    """Exit code 1, the setting's name, and no traceback."""
    assert text in start_fails(tmp_path, **{name: value})


def test_several_workers_are_not_started_with_options_that_kafka_refuses(tmp_path: Path) -> None:
    """They would die of them one after the other, and be started anew without an end."""
    options = {"TIDEMARK_KAFKA_OPTIONS": '{"no.such": "setting"}'}
    assert "no.such" in start_fails(tmp_path, TIDEMARK_CAPTURE_WORKERS="2", **options)
