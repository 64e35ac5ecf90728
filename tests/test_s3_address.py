"""Addresses of S3 stores: what the address says goes first, then the environment."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from pyarrow import fs

from orchestration.addresses import public_address
from orchestration.s3_address import S3Address, s3_address

AWS = {"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "us-west-2"}
ELSEWHERE = {"AWS_ENDPOINT_URL": "http://10.0.0.7:9000", "AWS_DEFAULT_REGION": "garage"}


@pytest.mark.parametrize(
    ("address", "environment", "found"),
    [
        ("s3://b-1", {}, S3Address("b-1", "")),
        ("s3://b-1/x/y/", AWS, S3Address("b-1", "x/y", region="eu-north-1")),
        ("s3://b-1/x?region=eu-west-1", AWS, S3Address("b-1", "x", region="eu-west-1")),
        (
            "s3://K%2F:s%2F%40%2B+@b-1/x?endpoint_override=[::1]:9000&scheme=http",
            AWS,
            S3Address("b-1", "x", "K/", "s/@++", "eu-north-1", "[::1]:9000", "http"),
        ),
        (
            "s3://b-1/x",
            ELSEWHERE,
            S3Address("b-1", "x", region="garage", endpoint="10.0.0.7:9000", scheme="http"),
        ),
        (
            "s3://b-1/x?endpoint_override=https://s3.example.com/&force_virtual_addressing=true",
            {"AWS_ENDPOINT_URL": "http://10.0.0.7:9000"},
            S3Address(
                "b-1", "x", region="us-east-1", endpoint="s3.example.com", bucket_in_host=True
            ),
        ),
        (
            "s3://b-1/a b%20c?tls_ca_file_path=/etc/ca.pem&region=r",
            {"AWS_ENDPOINT_URL_S3": "https://s3:1", "AWS_ENDPOINT_URL": "https://all:1"},
            S3Address("b-1", "a b c", region="r", endpoint="s3:1", ca_file="/etc/ca.pem"),
        ),
    ],
)
def test_an_address_and_what_the_environment_says(
    address: str, environment: Mapping[str, str], found: S3Address
) -> None:
    """Path and keys are decoded: a / in a key would end it, a ? in a path would end that."""
    assert s3_address(address, environment) == found


@pytest.mark.parametrize(
    ("rest", "path"),
    [
        ("a%20b/c", "a b/c"),
        ("a@b/c", "a@b/c"),
        ("a%40b", "a@b"),
        ("a:b@c", "a:b@c"),
        ("a+b%2Bc%25d", "a+b+c%d"),
        ("a%2Fb%2F", "a/b"),
        ("a%3Fb", "a?b"),
    ],
)
@pytest.mark.parametrize("login", ["", "K:S@", "K%2F:s%40@"])
def test_a_path_is_read_as_arrow_reads_it(login: str, rest: str, path: str) -> None:
    """So a lake, or a file to import, is found where it always was."""
    address = f"s3://{login}bucket/{rest}?region=r"
    found = s3_address(address, {})
    assert (found.bucket, found.path) == ("bucket", path)
    assert fs.FileSystem.from_uri(address)[1] == found.full_path
    assert public_address(address) == f"s3://bucket/{rest}"


def test_keys_are_not_in_its_repr() -> None:
    """Which stands in the traces of errors."""
    assert "hunter" not in repr(s3_address("s3://hunter1:hunter2@bucket/x", {}))


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://", "no name of a bucket"),
        ("s3:///x", "no name of a bucket"),
        ("s3://b/x", "no name of a bucket"),  # two letters are too few
        ("s3://my_secret:key/x", "no name of a bucket"),
        ("s3://KEY@bucket/x", "KEY:SECRET"),
        ("s3://KEY:@bucket/x", "KEY:SECRET"),
        ("s3://KEY:my/secret@bucket/x", "%2F"),
        ("s3://@bucket/x", "KEY:SECRET"),
        ("s3://bucket/%ffsecret", "utf-8"),
        ("s3://bucket/x?secret=1", "an option"),
        ("s3://bucket/x?region=my secret", "AWS_REGION says is no region"),
        ("s3://bucket/x?endpoint_override=ftp://secret", "AWS_ENDPOINT_URL says is no end"),
        ("s3://bucket/x?scheme=secret", "http or https"),
    ],
)
def test_what_is_no_address_is_told_without_saying_it_back(address: str, told: str) -> None:
    """It may hold a key."""
    with pytest.raises(ValueError, match=told) as error:
        s3_address(address, {})
    assert "secret" not in str(error.value)
