"""A request's line and headers: who asks, for which query, under which settings.

    scope (ASGI) ──▶ Asked

A name in the URL is the protocol's, a query parameter (`param_x`) or, failing both, a setting of
the engine; an unknown setting is the engine's to refuse.
"""

import base64
import binascii
import hmac
import ipaddress
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from local_stack.clickhouse.errors import ClickHouseError
from local_stack.clickhouse.statement import quote, quote_name

# Names of the protocol that are no settings.
_PROTOCOL = frozenset(
    (
        "buffer_size",
        "client_protocol_version",
        "close_session",
        "compress",
        "database",
        "decompress",
        "default_format",
        "password",
        "query",
        "query_id",
        "quota_key",
        "role",
        "session_check",
        "session_id",
        "session_timeout",
        "stacktrace",
        "user",
        "wait_end_of_query",
    )
)
_EXTERNAL = ("_format", "_structure", "_types")
_DEFAULT_BUFFER_BYTES = 1 << 20
_DEFAULT_SESSION_SECONDS = 60
_MAX_SESSION_SECONDS = 3600


@dataclass(frozen=True)
class Asked:
    """What the request asks for, the body apart."""

    method: str
    path: str
    headers: Mapping[str, str]
    url: Mapping[str, str]
    query: bytes
    query_id: str
    database: str
    default_format: str
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    external: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The Content-Type as it was sent."""
        return self.headers.get("content-type", "")

    @property
    def is_form(self) -> bool:
        """Whether the body is a form: external tables, or a query too long for a URL."""
        return self.content_type.lower().startswith("multipart/form-data")

    @property
    def readonly(self) -> bool:
        """A GET may only read."""
        return self.method in ("GET", "HEAD")

    @property
    def waits_for_end(self) -> bool:
        """Whether nothing may be answered before the query is over."""
        return _flag(self.url.get("wait_end_of_query")) or _flag(
            self.settings.get("http_wait_end_of_query")
        )

    @property
    def buffer_bytes(self) -> int:
        """How much of a result is held back, to be able to answer with an error instead."""
        return _number(self.url, "buffer_size", _DEFAULT_BUFFER_BYTES)

    @property
    def session_id(self) -> str:
        """The session the request belongs to, or the empty string."""
        return self.url.get("session_id", "")

    @property
    def session_seconds(self) -> int:
        """How long its session outlives this request."""
        seconds = _number(self.url, "session_timeout", _DEFAULT_SESSION_SECONDS)
        if seconds > _MAX_SESSION_SECONDS:
            raise ClickHouseError(
                374,
                "INVALID_SESSION_TIMEOUT",
                f"Session timeout '{seconds}' is larger than {_MAX_SESSION_SECONDS}",
            )
        return seconds

    def with_form(self, values: Mapping[str, str]) -> "Asked":
        """The same with what stood in a form: the query and its parameters."""
        query = values["query"].encode() if "query" in values else b""
        extra = {name[6:]: value for name, value in values.items() if name.startswith("param_")}
        return replace(self, query=self.query + query, parameters={**self.parameters, **extra})

    def prepare(self) -> tuple[bytes, ...]:
        """The statements that give a connection the request's database, parameters, settings."""
        statements = []
        if self.database:
            statements.append(f"USE {quote_name(self.database)}".encode())
        changes = [f"param_{name} = {quote(value)}" for name, value in self.parameters.items()]
        changes += [f"{name} = {quote(value)}" for name, value in self.settings.items()]
        if changes:
            text = "SET " + ", ".join(changes)
            statements.append(text.encode("utf-8", "surrogateescape"))
        return tuple(statements)


def read(scope: Mapping[str, Any]) -> Asked:
    """What an ASGI scope asks for."""
    headers = _headers(scope["headers"])
    url = _url(scope["query_string"])
    is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
    settings: dict[str, str] = {}
    parameters: dict[str, str] = {}
    external: dict[str, str] = {}
    for name, value in url.items():
        if name in _PROTOCOL or not name:
            continue
        if name.startswith("param_"):
            parameters[_plain(name[6:])] = value
        elif is_form and name.endswith(_EXTERNAL):
            external[name] = value
        else:
            settings[_plain(name)] = value
    for name in ("compress", "decompress"):
        if _flag(url.get(name)):
            raise ClickHouseError(
                48,
                "NOT_IMPLEMENTED",
                f"{name}=1 is not supported by this server: compress with Accept-Encoding and "
                "enable_http_compression=1, or Content-Encoding",
            )
    query_id = url.get("query_id") or headers.get("x-clickhouse-query-id") or str(uuid.uuid4())
    return Asked(
        method=scope["method"],
        path=scope["path"],
        headers=headers,
        url=url,
        query=url.get("query", "").encode("utf-8", "surrogateescape"),
        query_id="".join(c for c in query_id if c.isprintable() and c not in "*/\\'%"),
        database=headers.get("x-clickhouse-database") or url.get("database", ""),
        default_format=format_name(
            headers.get("x-clickhouse-format") or url.get("default_format", "")
        ),
        settings=settings,
        parameters=parameters,
        external=external,
    )


def refuse_foreign_pages(asked: Asked) -> None:
    """A web page from elsewhere must not use the browser of this machine's user to get in here."""
    origin = asked.headers.get("origin", "")
    if not origin:
        return
    host = urlsplit(origin).hostname or ""
    if host != "localhost" and not host.endswith(".localhost"):
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if not local:
            raise ClickHouseError(
                497,
                "ACCESS_DENIED",
                f"Pages from {origin} may not query the server of this machine",
            )


def authenticate(asked: Asked, user: str, password: str) -> None:
    """Refuse whoever is not the one user."""
    name, secret = _credentials(asked)
    right_name = hmac.compare_digest(name.encode(), user.encode())
    right_secret = hmac.compare_digest(secret.encode(), password.encode())
    if not (right_name and right_secret):
        raise ClickHouseError(
            516,
            "AUTHENTICATION_FAILED",
            f"{name}: Authentication failed: password is incorrect, or there is no user with such"
            " name.",
        )


def _credentials(asked: Asked) -> tuple[str, str]:
    headers = asked.headers
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user", "default"), headers.get("x-clickhouse-key", "")
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise ClickHouseError(
                516,
                "AUTHENTICATION_FAILED",
                "Invalid authentication: the Basic credentials are unreadable",
            ) from None
        return name or "default", secret
    if scheme:
        raise ClickHouseError(
            516,
            "AUTHENTICATION_FAILED",
            f"Invalid authentication: '{scheme}' is not supported, use Basic",
        )
    return asked.url.get("user", "default"), asked.url.get("password", "")


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}


def _url(query_string: bytes) -> dict[str, str]:
    pairs = parse_qsl(
        query_string.decode("latin-1"), keep_blank_values=True, errors="surrogateescape"
    )
    return dict(pairs)


def _plain(name: str) -> str:
    """A setting's name stands in a statement, so it must be nothing but a name."""
    if not name.replace("_", "").isascii() or not name.replace("_", "a").isalnum():
        raise ClickHouseError(115, "UNKNOWN_SETTING", f"Unknown setting '{name}'")
    return name


def format_name(name: str) -> str:
    """A format's name stands in a statement and in a header, so it must be nothing but a name."""
    if name and not (name.isascii() and name.replace("_", "a").isalnum()):
        raise ClickHouseError(73, "UNKNOWN_FORMAT", f"Unknown format {name!r}.")
    return name


def _flag(value: str | None) -> bool:
    return value is not None and value.strip().lower() in ("1", "true", "yes", "on")


def _number(url: Mapping[str, str], name: str, fallback: int) -> int:
    value = url.get(name, "")
    if not value:
        return fallback
    if not value.isdecimal():
        raise ClickHouseError(36, "BAD_ARGUMENTS", f"{name} must be a whole number, not '{value}'")
    return int(value)
