"""Who sent a request: the one place that decides whom to believe about it.

    peer of the connection ──not trusted──▶ its address, and nothing that its headers say
              └─trusted proxy─▶ X-Forwarded-For from the right, past trusted proxies
                                X-Request-Id and X-Request-Start: the mark of the request

Invariant: a header is believed only as far as trusted proxies wrote it, so a client cannot choose
the address that it is recorded under. The header `Forwarded` (RFC 7239) is not read: a proxy that
overwrites one of two headers would let clients speak through the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from capture_api.answers import Scope
from capture_api.events.uuids import MintSeed, normal_uuid

CACHED_ADDRESSES = 16_384
CACHED_HEADER_BYTES = 128
"""Longer X-Forwarded-For headers are read each time, lest strangers fill the memory with them."""

_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d*)?|([\d.]+):\d*")
_REQUEST_START = re.compile(rb"(?:t=)?(\d{10})(?:\.(\d{3})\d*|(\d{3}))")


class Sender(NamedTuple):
    """What is known about the sender of a request, besides its body."""

    address: str  # empty when the server does not know it
    request_id: str | None = None  # a UUID that a trusted proxy gave the request
    mint_seed: MintSeed | None = None  # the same whenever the proxy tries this request again


class Senders:
    """Tells who sent a request. One a process."""

    def __init__(self, trusted: Iterable[IPv4Network | IPv6Network]) -> None:
        self._trusted = tuple(trusted)
        self._peer = lru_cache(CACHED_ADDRESSES)(self._judge)
        self._known = lru_cache(CACHED_ADDRESSES)(self._read)

    def of(self, scope: Scope, headers: dict[bytes, bytes]) -> Sender:
        """The sender of the request with these headers; also `client_address`'s from now on."""
        client = scope["client"]
        sender, trusted = self._peer(client[0] if client else "")
        if trusted:
            sender = self._behind(sender.address, scope, headers)
            scope["client"] = (sender.address, 0)
        return sender

    def _judge(self, peer: str) -> tuple[Sender, bool]:
        """The sender when nothing else is known, and whether it is a proxy to be believed."""
        address = parse_address(peer)
        if address is None:
            return Sender(peer), False
        return Sender(str(address)), self._trusts(address)

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)

    def _behind(self, proxy: str, scope: Scope, headers: dict[bytes, bytes]) -> Sender:
        """The sender as the trusted proxy describes it."""
        address = proxy
        chain = headers.get(b"x-forwarded-for")
        if chain is not None:
            read = self._known if len(chain) <= CACHED_HEADER_BYTES else self._read
            address, ended = read(proxy, chain)
            if not ended:  # trusted proxies throughout: the header may stand there more than once
                lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
                if len(lines) > 1:
                    address, _ = self._read(proxy, b",".join(lines))
        given = headers.get(b"x-request-id", b"")
        request_id = normal_uuid(given.decode("latin-1")) if len(given) <= 45 else None
        if request_id is None:
            return Sender(address)
        started = _REQUEST_START.fullmatch(headers.get(b"x-request-start", b""))
        if started is None:
            return Sender(address, request_id)
        seconds, fraction, rest = started.groups()
        milliseconds = int(seconds + (fraction or rest))
        return Sender(address, request_id, MintSeed(milliseconds * 1000, request_id.encode()))

    def _read(self, proxy: str, chain: bytes) -> tuple[str, bool]:
        """The furthest address that trusted proxies vouch for, and whether reading ended there.

        What is no address ends it: nobody vouches for what stands on its left.
        """
        nearest = proxy
        rest = chain.decode("latin-1")
        while rest:
            rest, _, text = rest.rpartition(",")
            if not text.strip():
                continue
            address = parse_address(text)
            if address is None:
                return nearest, True
            nearest = str(address)
            if not self._trusts(address):
                return nearest, True
        return nearest, False


def client_address(scope: Scope) -> str:
    """The address in text, or an empty string when the server does not know it."""
    client = scope.get("client")
    return client[0] if client else ""


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in any form that proxies write: with a port, in brackets, with a zone.

    An IPv4 address mapped into IPv6 is the IPv4 address.
    """
    text = text.strip().strip('"')
    form = _WITH_PORT.fullmatch(text)
    if form is not None:
        text = form[1] or form[2] or ""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
