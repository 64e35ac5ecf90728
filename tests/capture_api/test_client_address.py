"""Forwarding headers are believed as far as trusted proxies wrote them, and not a word further."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from capture_api.events.uuids import mint_uuids
from capture_api.wire.client_address import (
    CACHED_HEADER_BYTES,
    Sender,
    Senders,
    client_address,
    parse_address,
)

PROXY = "10.0.0.1"
TRUSTED = ("10.0.0.0/8", "fd00::/8")
ID = "0192c3d4e5f60718293a4b5c6d7e8f90"
ID_36 = "0192c3d4-e5f6-0718-293a-4b5c6d7e8f90"


def sender(peer: str | None, *headers: tuple[str, str], trusted: Any = TRUSTED) -> Sender:
    """The sender of a request from this peer with these headers."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"client": None if peer is None else (peer, 4711), "headers": pairs}
    return Senders(map(ip_network, trusted)).of(scope, dict(pairs))


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9 ", "203.0.113.9"),
        ("203.0.113.9:51000", "203.0.113.9"),
        ('"203.0.113.9:51000"', "203.0.113.9"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:443", "203.0.113.9"),
        # What the client itself wrote stands on the left of what the proxy saw.
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.9.9.9, 203.0.113.9", "203.0.113.9"),
        # Through several trusted proxies.
        ("198.51.100.1, 203.0.113.9, 10.2.2.2", "203.0.113.9"),
        ("203.0.113.9,10.2.2.2,fd00::5,::ffff:10.3.3.3", "203.0.113.9"),
        # A client inside the trusted network.
        ("10.7.7.7", "10.7.7.7"),
        ("10.7.7.7, 10.2.2.2", "10.7.7.7"),
        # What is no address ends the chain at the last one that is vouched for.
        ("unknown", PROXY),
        ("_hidden, 10.2.2.2", "10.2.2.2"),
        ("203.0.113.9, nonsense", PROXY),
        ("203.0.113.9, 10.2.2.2\x00", PROXY),
        ("1.2.3.4.5", PROXY),
        ("256.1.1.1", PROXY),
        ("[", PROXY),
        ("", PROXY),
        (" , ,", PROXY),
        ("203.0.113.9, , ", "203.0.113.9"),
    ],
)
def test_chain_is_read_from_the_right(chain: str, address: str) -> None:
    """Past trusted proxies up to the first address that is not one."""
    assert sender(PROXY, ("X-Forwarded-For", chain)).address == address
    # A chain too long for the cache is read in the same way.
    padded = f"{'198.51.100.1, ' * CACHED_HEADER_BYTES}{chain}"
    if address not in (PROXY, "10.2.2.2", "10.7.7.7"):
        assert sender(PROXY, ("X-Forwarded-For", padded)).address == address


def test_headers_given_twice_are_one_chain() -> None:
    """A proxy may add a line of its own instead of adding to the line that was there."""
    lines = [("X-Forwarded-For", text) for text in ("198.51.100.1, 203.0.113.9", "10.2.2.2")]
    assert sender(PROXY, *lines).address == "203.0.113.9"


def test_address_is_told_to_whoever_asks_for_it_later() -> None:
    """The log of refusals and everything else that is given the request finds the client's."""
    headers = [(b"x-forwarded-for", b"203.0.113.9")]
    scope = {"client": (PROXY, 4711), "headers": headers}
    Senders(map(ip_network, TRUSTED)).of(scope, dict(headers))
    assert client_address(scope) == "203.0.113.9"


@pytest.mark.parametrize("peer", ["203.0.113.1", "2001:db8::1", "::ffff:203.0.113.1"])
def test_strangers_are_not_believed(peer: str) -> None:
    """From anyone else the headers are nothing but text."""
    said = sender(
        peer,
        ("X-Forwarded-For", "198.51.100.1"),
        ("X-Request-Id", ID),
        ("X-Request-Start", "t=1700000000.123"),
    )
    assert said == Sender(peer.removeprefix("::ffff:"))
    assert sender(PROXY, ("X-Forwarded-For", "198.51.100.1"), trusted=()) == Sender(PROXY)


def test_peer_that_is_no_address() -> None:
    """A Unix socket has none; it is nobody's proxy."""
    assert sender(None, ("X-Forwarded-For", "198.51.100.1")) == Sender("")
    assert sender("testclient") == Sender("testclient")


@pytest.mark.parametrize("given", [ID, ID.upper(), ID_36])
def test_request_id_becomes_a_uuid(given: str) -> None:
    """nginx writes 32 digits, others 36 characters; the receipt is one form of both."""
    assert sender(PROXY, ("X-Request-Id", given)) == Sender(PROXY, ID_36)


@pytest.mark.parametrize("given", ["", "7", "x" * 32, ID * 2, ID[:-1], "é" * 32])
def test_other_request_ids_are_ignored(given: str) -> None:
    """What cannot be a UUID is not taken."""
    start = ("X-Request-Start", "t=1700000000.123")
    assert sender(PROXY, ("X-Request-Id", given), start) == Sender(PROXY)


@pytest.mark.parametrize(
    ("start", "at_us"),
    [
        ("t=1700000000.123", 1_700_000_000_123_000),
        ("1700000000.123", 1_700_000_000_123_000),
        ("t=1700000000123", 1_700_000_000_123_000),
        ("t=1700000000.123456", 1_700_000_000_123_000),
        ("t=1700000000", None),
        ("t=17000000001234567", None),
        ("t=-700000000.123", None),
        ("soon", None),
        ("", None),
    ],
)
def test_uuids_are_seeded_only_with_a_time(start: str, at_us: int | None) -> None:
    """The time of the UUIDs must be the same on every server: without it there is no seed."""
    seed = sender(PROXY, ("X-Request-Id", ID), ("X-Request-Start", start)).mint_seed
    assert (seed.at_us if seed else None) == at_us


def test_seed_gives_the_same_uuids_everywhere() -> None:
    """Position n has UUID n, however many there are; other ids and times have others."""
    mark = [("X-Request-Id", ID), ("X-Request-Start", "t=1700000000.123")]
    seed = sender(PROXY, *mark).mint_seed
    uuids = mint_uuids(0, 100, seed)
    assert len(set(uuids)) == 100
    assert mint_uuids(999, 7, seed) == uuids[:7]
    assert {uuid[:13] for uuid in uuids} == {"018bcfe5-687b"}
    assert {uuid[14] for uuid in uuids} == {"7"}
    for other in (
        [("X-Request-Id", ID[::-1]), mark[1]],
        [mark[0], ("X-Request-Start", "t=1700000000.124")],
    ):
        assert not set(uuids) & set(mint_uuids(0, 100, sender(PROXY, *other).mint_seed))


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/8", "proxy.example", "10.0.0.0-9"])
def test_setting_that_is_no_network_is_refused(settings: Any, text: str) -> None:
    """With a text that shows what would be accepted."""
    with pytest.raises(ValidationError, match=r"such as 10\.0\.0\.0/8"):
        settings(capture_trusted_proxies=text)


def test_setting_lists_networks(settings: Any) -> None:
    """Addresses and networks of both kinds, separated by commas or spaces."""
    found = settings(capture_trusted_proxies="127.0.0.1, 10.0.0.0/8 2001:db8::/32").trusted_proxies
    assert list(map(str, found)) == ["127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32"]
    assert settings().trusted_proxies == ()


def test_parse_address_refuses_numbers() -> None:
    """A bare number is an address to Python, and to nobody else."""
    assert parse_address("3405803785") is None
