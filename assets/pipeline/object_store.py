"""An S3 store as a filesystem, with an end to every wait; and what its errors mean.

    s3://… ─▶ s3_address ─▶ filesystem_in_s3 ─▶ pyarrow's S3FileSystem
    an error of it ─▶ told ─▶ one line: what the store says, and what to do about it

A store that says nothing is given up: a connection that is not made within CONNECT_S, or on which
nothing moves for SILENT_S, has failed, and a request is tried TRIES times in all. So no single
request takes longer than two minutes or so of silence; what moves, however slowly, goes on.
"""

from __future__ import annotations

import re

from pyarrow import fs

from orchestration.s3_address import S3Address

CONNECT_S = 5.0
SILENT_S = 20.0
"""Without a byte in either direction. The SDK's own 3 s are less than a busy store may take, or one
that copies a large object."""
TRIES = 3

_HINTS = {
    "NO_SUCH_BUCKET": "there is no such bucket at that endpoint: see TIDEMARK_LAKE_URI",
    "INVALID_ACCESS_KEY_ID": "the store does not know this key: see AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the secret is not this key's: see AWS_SECRET_ACCESS_KEY",
    "EXPIRED_TOKEN": "the credentials have expired: see AWS_SESSION_TOKEN",
    "ACCESS_DENIED": "the store does not let these credentials do that (docs/object-store.md)",
    "NETWORK_CONNECTION": "the store does not answer: see region, endpoint and network",
}
"""What to do about errors that are about all files, not about one."""

_ERROR = re.compile(
    r".*AWS Error (?P<name>\w+)(?P<status> \([^)]*\))? during (?P<operation>\w+) operation:"
    r"(?P<text>.*)"
)
_MORE = re.compile(r"(; Details: .*| \(Request ID: [^)]*\))$")


def filesystem_in_s3(address: S3Address) -> fs.FileSystem:
    """The store. Asks it only for the bucket's region, and only when nobody says that.

    Raises OSError and what Arrow raises.
    """
    region = address.region or fs.resolve_s3_region(address.bucket)
    return fs.S3FileSystem(
        access_key=address.access_key or None,
        secret_key=address.secret_key or None,
        region=region,
        endpoint_override=address.endpoint or None,
        scheme=address.scheme,
        tls_ca_file_path=address.ca_file or None,
        force_virtual_addressing=address.bucket_in_host,
        connect_timeout=CONNECT_S,
        request_timeout=SILENT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
        allow_delayed_open=True,  # a small file is one request then, and not three
        background_writes=True,
    )


def told(error: Exception) -> str:
    """An error of a filesystem in one line, with what to do where that is known."""
    text = " ".join(str(error).split())
    found = _ERROR.fullmatch(text)
    if found is None:
        return text
    name, status, operation, said = found.group("name", "status", "operation", "text")
    said = f"{name}{status or ''} at {operation}:{_MORE.sub('', said)}".removesuffix(":")
    return f"{_HINTS[name]} ({said})" if name in _HINTS else f"the store says {said}"


def is_of_a_store(error: OSError) -> bool:
    """Whether a store, or nobody in its place, has answered so; it was tried again already."""
    return _ERROR.fullmatch(" ".join(str(error).split())) is not None


def is_silence(error: OSError) -> bool:
    """Whether there was no answer: who asks for another file would wait as long."""
    return "AWS Error NETWORK_CONNECTION" in str(error)


def is_missing(error: OSError) -> bool:
    """Whether an object is not there."""
    return isinstance(error, FileNotFoundError) or "AWS Error NO_SUCH_KEY" in str(error)
