"""Ports: which are free, and who has those that are not."""

from __future__ import annotations

import os
import socket

import psutil
import pytest

from local_stack.ports import PortTaken, free_port, port_holder, require_port_free


def test_a_taken_port_names_its_holder_and_the_setting() -> None:
    """One line: the port, the pid and name that has it, the setting to change."""
    holder = f"pid {os.getpid()} {psutil.Process().name()}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert port_holder(number) == holder
        with pytest.raises(PortTaken) as caught:
            require_port_free(number, "SOME_PORT")
    line = f"port {number} is taken (by {holder}): set SOME_PORT to a free one"
    assert str(caught.value) == line


def test_a_port_is_free_again_once_its_server_is_closed() -> None:
    """No holder is named, and a server may have it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    require_port_free(number, "SOME_PORT")
    assert port_holder(number) is None


def test_a_free_port_is_found_beside_a_taken_one() -> None:
    """The search starts at the wish and skips what is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert free_port(number) != number
    assert 0 < free_port(70_000) < 65_536
