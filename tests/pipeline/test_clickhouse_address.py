"""ClickHouse by its address: TLS where it says so, and one line where nobody answers."""

from __future__ import annotations

import logging
import socket
from threading import Thread

import pytest

from assets.pipeline.clickhouse import connect
from assets.pipeline.errors import ClickHouseAway
from tests.conftest import unused_port

HOST = "127.0.0.1"
TLS_HANDSHAKE = b"\x16"


@pytest.mark.parametrize(("scheme", "first"), [("https", TLS_HANDSHAKE), ("http", b"P")])
def test_a_password_is_sent_as_the_address_says(scheme: str, first: bytes) -> None:
    """On whatever port: to https nothing is said before the handshake."""
    heard: list[bytes] = []
    server = socket.create_server((HOST, 0))

    def listen() -> None:
        with server, server.accept()[0] as connection:
            heard.append(connection.recv(1))

    listener = Thread(target=listen)
    listener.start()
    with pytest.raises(ClickHouseAway):
        connect(f"{scheme}://{HOST}:{server.getsockname()[1]}", "default", "secret")
    listener.join()
    assert heard == [first]


def test_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    """The error says where and why, the same words each time, and nothing else is logged."""
    address = f"http://{HOST}:{unused_port()}"
    with caplog.at_level(logging.WARNING), pytest.raises(ClickHouseAway) as told:
        connect(address, "default", "")
    assert str(told.value) == (
        f"ClickHouse, connecting: {address} does not answer: Connection refused"
    )
    assert [record for record in caplog.records if "clickhouse_connect" in record.name] == []
