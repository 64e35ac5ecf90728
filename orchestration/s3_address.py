"""What an s3:// address says, and what the environment says where it does not.

    s3://BUCKET/PATH                       keys, region and endpoint from the environment, as AWS's
    s3://BUCKET/PATH?region=eu-west-1      own tools read it
    s3://KEY:SECRET@BUCKET/PATH?endpoint_override=http://HOST:PORT

Keys and paths are decoded: %20 is a space, %25 a %. Nothing is asked of a store here. What cannot
be read is refused by sentences that quote nothing: an address may hold a secret key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REGION = re.compile(r"[A-Za-z0-9-]+")
_ENDPOINT = re.compile(r"(?:(https?)://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?/?")
_OPTIONS = ("region", "endpoint_override", "scheme", "tls_ca_file_path", "force_virtual_addressing")


@dataclass(frozen=True)
class S3Address:
    """A place in a bucket, and how to get there. What is empty is for the SDK to find out."""

    bucket: str
    path: str  # below the bucket, without slashes at its ends
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    region: str = ""
    endpoint: str = ""  # host and port
    scheme: str = "https"
    ca_file: str = ""
    bucket_in_host: bool = False

    @property
    def full_path(self) -> str:
        """Bucket and path."""
        return f"{self.bucket}/{self.path}".rstrip("/")


def is_s3(address: str) -> bool:
    """Whether an address is of an S3 store."""
    return address.startswith("s3://")


def login_and_place(rest: str) -> tuple[str | None, str]:
    """KEY:SECRET, if it is there, and bucket and path, of what follows s3://.

    An @ behind the bucket is the path's. But where a secret has a / in it, as it may not, all of it
    is the login: nobody shows that.
    """
    authority = rest.partition("/")[0]
    in_path = ":" in authority and "@" not in authority
    login, at, place = (rest if in_path else authority).rpartition("@")
    if not at:
        return None, rest
    return login, place if in_path else rest.removeprefix(f"{login}@")


def s3_address(address: str, environment: Mapping[str, str]) -> S3Address:
    """Read one that `is_s3`. Raises ValueError, which quotes nothing of it."""
    place, _, query = address.removeprefix("s3://").partition("?")
    login, place = login_and_place(place)
    bucket, _, path = place.partition("/")
    key, _, secret = (login or "").partition(":")
    if login is not None and ("/" in login or not (key and secret)):
        raise ValueError(
            "before the @ stand KEY:SECRET, each / in them as %2F, + as %2B, @ as %40; better "
            "leave them to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ValueError("that is no name of a bucket: write s3://BUCKET/PATH")
    options = _options(query)
    endpoint, scheme = _endpoint(
        options.get("endpoint_override")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or "",
        options.get("scheme", ""),
    )
    region = (
        options.get("region")
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
        or ("us-east-1" if endpoint else "")
    )
    if region and not _REGION.fullmatch(region):
        raise ValueError("what ?region= or AWS_REGION says is no region: write one as eu-west-1")
    return S3Address(
        bucket,
        unquote(path, errors="strict").strip("/"),
        unquote(key),
        unquote(secret),
        region,
        endpoint,
        scheme,
        options.get("tls_ca_file_path", ""),
        options.get("force_virtual_addressing", "").lower() == "true",
    )


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not set(options) <= set(_OPTIONS):
        raise ValueError(f"an option behind the ? is none of {', '.join(_OPTIONS)}")
    return options


def _endpoint(text: str, scheme: str) -> tuple[str, str]:
    """Host and port, and how to talk to it."""
    if scheme not in ("", "http", "https"):
        raise ValueError("scheme is http or https")
    if not text:
        return "", scheme or "https"
    found = _ENDPOINT.fullmatch(text)
    if found is None:
        raise ValueError(
            "what ?endpoint_override= or AWS_ENDPOINT_URL says is no endpoint: write one as "
            "https://HOST:PORT"
        )
    return found[2] + (found[3] or ""), found[1] or scheme or "https"
