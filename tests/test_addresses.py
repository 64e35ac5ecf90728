"""Addresses: which ones make sense, and what is shown of those that hold secrets."""

from __future__ import annotations

import pytest

from orchestration.addresses import (
    HIDDEN,
    has_login,
    is_http,
    is_redis,
    masked_address,
    masked_path,
    public_address,
    without_secrets,
)


@pytest.mark.parametrize(
    ("address", "public", "masked"),
    [
        ("/data/l@ke?", "/data/l@ke?", "/data/l@ke?"),
        ("https://db:8443/", "https://db:8443", "https://db:8443/"),
        ("https://me:pw@db:8443/", "https://db:8443", f"https://{HIDDEN}@db:8443/"),
        ("https://token@db", "https://db", f"https://{HIDDEN}@db"),
        ("redis://:p/w@db/0", "redis://db/0", f"redis://{HIDDEN}@db/0"),
        ("redis://:p#w@db/0", "redis://db/0", f"redis://{HIDDEN}@db/0"),
        ("s3://key:s@cret@b/x?region=r", "s3://b/x", f"s3://{HIDDEN}@b/x?{HIDDEN}"),
        ("s3://b/x@y?region=r", "s3://b/x@y", f"s3://b/x@y?{HIDDEN}"),
        ("s3://key:s/cret@b/x", "s3://b/x", f"s3://{HIDDEN}@b/x"),
        ("postgresql://me:p?w@db/x", "postgresql://", f"postgresql://{HIDDEN}@"),
        ("postgresql://db/x?password=a@b", "postgresql://", f"postgresql://{HIDDEN}@"),
        ("postgresql://db/x?password=pw", "postgresql://db/x", f"postgresql://db/x?{HIDDEN}"),
        ("sqlite:////home/m@e/l.db", "sqlite:////home/m@e/l.db", "sqlite:////home/m@e/l.db"),
    ],
)
def test_no_login_and_no_option_is_shown(address: str, public: str, masked: str) -> None:
    """However the password is written; where it cannot be told from the host, neither is shown."""
    assert public_address(address) == public
    assert masked_address(address) == masked


def test_of_a_webhook_only_the_host_is_shown() -> None:
    """Its path is all that it takes to post there."""
    shown = f"https://hooks.example.com:8443/{HIDDEN}"
    for path in ("services/T0/B0/secret?x=secret", "webhook/one@two/secret", ""):
        assert masked_path(f"https://hooks.example.com:8443/{path}") == shown


def test_what_is_said_back_is_hidden_whole_and_in_parts() -> None:
    """Short words stay: nobody could read the rest without them."""
    said = "POST /hooks/a0b1c2d3 with token a0b1c2d3 and Bearer deadbeef: no such hook"
    assert without_secrets(said, "/hooks/a0b1c2d3", "Bearer deadbeef") == (
        f"POST {HIDDEN} with token {HIDDEN} and {HIDDEN}: no such hook"
    )


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("http://127.0.0.1:8123", True),
        ("https://me:pw@[::1]:8443/x?y=z", True),
        ("ch:8123", False),
        ("me:pw@ch:8123", False),
        ("http://", False),
        ("http://ch:port", False),
        ("http://ch:0", False),
        ("http://ch:70000", False),
        ("http://[::1", False),
        ("http://me:p/w@ch:8123", False),
        ("http://ch:8123/a b", False),
        ("http://ch\n:8123", False),
        ("ftp://ch", False),
    ],
)
def test_what_can_be_asked_over_http(address: str, good: bool) -> None:
    """A host, and a port that exists, and nothing that a client would stumble over."""
    assert is_http(address) is good


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("redis://:pw@r:6379/0", True),
        ("rediss://r", True),
        ("unix:///run/redis.sock", True),
        ("redis://:p/w@r:6379/0", False),
        ("http://r", False),
    ],
)
def test_what_is_an_address_of_redis(address: str, good: bool) -> None:
    """The same, of its own schemes."""
    assert is_redis(address) is good


def test_a_login_is_seen() -> None:
    """With a password or without."""
    assert has_login("https://me:pw@h/p")
    assert has_login("https://token@h")
    assert not has_login("https://h/one@two?x=a@b")
