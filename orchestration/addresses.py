"""Addresses that may hold secrets: checked before they are used, and shown without them.

Libraries say back what they cannot read, a password with a slash in it among it. So an address is
refused here, by a sentence that does not quote it, before any library is given it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from orchestration.s3_address import is_s3, login_and_place

HIDDEN = "********"

_LEAST_SECRET = 6
"""Characters: what is shorter is no secret, and would be hidden in every other word."""


class _Parts(NamedTuple):
    scheme: str  # with ://
    login: str
    place: str  # host and path
    query: str


def public_address(address: str) -> str:
    """An address without what is secret in it, for links, logs and errors; a folder as it is."""
    parts = _parts(address)
    return parts.scheme + parts.place.rstrip("/") if parts.scheme else address


def masked_address(address: str) -> str:
    """The same, and where something was left out."""
    scheme, login, place, query = _parts(address)
    return f"{scheme}{login and f'{HIDDEN}@'}{place}{query and f'?{HIDDEN}'}"


def masked_path(address: str) -> str:
    """Scheme and host of one that `is_http`: the path of a webhook is a password, @ and all."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{HIDDEN}"


def masked_values(options: Mapping[str, str]) -> str:
    """The names alone."""
    return str(dict.fromkeys(options, HIDDEN))


def without_secrets(text: str, *secrets: str) -> str:
    """What somebody says who was told secrets and may say them back, whole or in parts."""
    parts = {part for secret in secrets for part in (secret, *re.split(r"[/?&=@:\s]+", secret))}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _LEAST_SECRET:
            text = text.replace(part, HIDDEN)
    return text


def is_http(address: str) -> bool:
    """Whether it is an address that can be asked over HTTP."""
    return _is_of(address, "http", "https")


def is_redis(address: str) -> bool:
    """Whether it is one of Redis."""
    return address.startswith("unix://") or _is_of(address, "redis", "rediss")


def has_login(address: str) -> bool:
    """Whether one that `is_http` has a user or a password before its host."""
    return "@" in urlsplit(address).netloc


def _is_of(address: str, *schemes: str) -> bool:
    try:
        parts = urlsplit(address)
        named = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port, or half an IPv6 address
        return False
    return named and re.search(r"[\s\x00-\x1f\x7f]", address) is None


def _parts(address: str) -> _Parts:
    """A folder is all place. An @ behind a ? may be the password's: then nothing is the place."""
    scheme, there, rest = address.partition("://")
    if not there:
        return _Parts("", "", address, "")
    place, _, query = rest.partition("?")
    if place.startswith("/"):
        return _Parts(f"{scheme}://", "", place, query)
    if "@" in query:
        return _Parts(f"{scheme}://", rest, "", "")
    if is_s3(address):
        in_s3, place = login_and_place(place)
        return _Parts("s3://", in_s3 or "", place, query)
    login, _, place = place.rpartition("@")
    return _Parts(f"{scheme}://", login, place, query)
