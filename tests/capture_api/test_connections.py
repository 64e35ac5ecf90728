"""The connection level, byte by byte: what is on the wire, and who is cut off when."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

EVENT = {"event": "e", "distinct_id": "d"}
MAX_BODY = 64 << 10
PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def capture(kafka: str, new_capture: Callable[..., Any]) -> Any:
    """A capture API with short patience and small bodies."""
    return new_capture(
        kafka,
        TIDEMARK_CAPTURE_MAX_BODY_BYTES=str(MAX_BODY),
        TIDEMARK_CAPTURE_HEAD_TIMEOUT_SECONDS="0.4",
        TIDEMARK_CAPTURE_STALL_TIMEOUT_SECONDS="1",
    ).start()


class Answer:
    """One answer, as it stood on the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        status, *lines = head.decode().split("\r\n")
        self.status = int(status.split()[1])
        pairs = (line.split(": ", 1) for line in lines)
        self.headers = {name.lower(): value for name, value in pairs}
        self.body = body

    @property
    def code(self) -> str:
        """The code of a refusal."""
        code: str = json.loads(self.body)["code"]
        return code


class Wire:
    """A connection that sends and reads raw bytes."""

    def __init__(self, capture: Any) -> None:
        self.socket = socket.create_connection(("127.0.0.1", capture.port), PATIENCE_SECONDS)
        self._left = b""

    def send(self, *pieces: bytes) -> Wire:
        """Send these bytes; that the other side has hung up is no error."""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self.socket.sendall(piece)
        return self

    def answer(self) -> Answer:
        """The next answer."""
        while b"\r\n\r\n" not in self._left:
            self._more()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        answer = Answer(head, b"")
        length = int(answer.headers.get("content-length", 0))
        while len(self._left) < length:
            self._more()
        answer.body, self._left = self._left[:length], self._left[length:]
        return answer

    def last_answer(self) -> Answer | None:
        """The next answer; None where the other side hangs up without one."""
        if not self._left and self.ended():
            return None
        return self.answer()

    def ended(self) -> bool:
        """Whether the other side hangs up without another word."""
        with contextlib.suppress(ConnectionResetError):
            self._left += self.socket.recv(65536)
        return self._left == b""

    def _more(self) -> None:
        received = self.socket.recv(65536)
        assert received, f"hung up after {self._left!r}"
        self._left += received


@pytest.fixture
def wire(capture: Any) -> Iterator[Callable[[], Wire]]:
    """Makes connections to the capture API."""
    with contextlib.ExitStack() as stack:

        def connect() -> Wire:
            made = Wire(capture)
            stack.callback(made.socket.close)
            return made

        yield connect


def request(
    capture: Any, *lines: bytes, body: bytes | None = None, length: int | None = None
) -> bytes:
    """A good request, with further header lines; its Content-Length may lie."""
    if body is None:
        body = json.dumps(capture.batch(EVENT)).encode()
    declared = len(body) if length is None else length
    head = [b"POST /batch HTTP/1.1", b"Host: x", b"Content-Length: %d" % declared, *lines]
    return b"\r\n".join([*head, b"", body])


def chunked(capture: Any, *chunks: bytes) -> bytes:
    """The head of a chunked request, and these bytes."""
    head = b"POST /batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(chunks)


@pytest.mark.parametrize(
    "start", [b"POST /", b"POST /batch HTTP/1.1\r\nHost: x\r\nOrigin: http://a"]
)
def test_head_that_does_not_end_is_answered_408(wire: Any, start: bytes) -> None:
    """Bytes that trickle buy no time: the head as a whole has its seconds."""
    connection = wire()
    connection.socket.settimeout(0.05)
    connection.send(start)
    for _ in range(int(PATIENCE_SECONDS / 0.05)):
        connection.send(b"x")
        with contextlib.suppress(TimeoutError):
            answer = connection.answer()
            break
    assert (answer.status, answer.code) == (408, "head_stalled")
    assert answer.headers["connection"] == "close"
    assert connection.ended()


def test_next_head_on_a_connection_has_the_same_time(capture: Any, wire: Any) -> None:
    """Also after a good request."""
    connection = wire().send(request(capture), b"POST")
    assert connection.answer().status == 200
    assert connection.answer().status == 408


def test_connection_that_sends_nothing_is_closed(wire: Any) -> None:
    """Without an answer: there was no question."""
    assert wire().ended()


def test_idle_connection_outlives_the_time_for_heads(capture: Any, wire: Any, until: Any) -> None:
    """Between requests it may be idle for longer."""
    idle, silent = wire(), wire()
    assert idle.send(request(capture)).answer().status == 200
    assert silent.ended()
    assert idle.send(request(capture)).answer().status == 200


def test_idle_connection_is_closed_in_the_end(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """After the keep-alive time."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_KEEP_ALIVE_SECONDS="0.4").start()
    connection = Wire(capture)
    assert connection.send(request(capture)).answer().status == 200
    assert connection.ended()


def test_client_that_does_not_read_is_cut_off(capture: Any, wire: Any, until: Any) -> None:
    """Answers that pile up are not kept for ever."""
    connection = wire()
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.socket.settimeout(0.5)
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"

    def cut_off() -> bool:
        try:
            connection.socket.sendall(ask * 100)
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return False

    until(cut_off, "the client that does not read is cut off")
    until(lambda: "1 unread_answers" in capture.log(), "the log tells")
    assert (
        'capture_connections_ended_total{cause="unread_answers"} 1'
        in capture.client.get("/metrics").text
    )


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_stalled_body_is_answered_408(capture: Any, wire: Any, framing: str) -> None:
    """And the connection is closed: what comes of the body later is no request."""
    whole = request(capture, b"Origin: https://shop.example", length=1_000)
    if framing == "chunked":
        whole = chunked(capture, b"2\r\n{}\r\n").replace(
            b"Host: x", b"Host: x\r\nOrigin: https://shop.example"
        )
    connection = wire().send(whole)
    answer = connection.answer()
    assert (answer.status, answer.code) == (408, "body_stalled")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["connection"] == "close"
    assert connection.ended()


@pytest.mark.parametrize("beyond", [1, MAX_BODY])
def test_refused_body_leaves_the_connection_usable(capture: Any, wire: Any, beyond: int) -> None:
    """413 by Content-Length or mid-stream: the rest is read and forgotten, the next is served."""
    body = b" " * (MAX_BODY + beyond)
    connection = wire().send(request(capture, body=body), request(capture))
    assert [connection.answer().status for _ in range(2)] == [413, 200]
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    connection.send(chunked(capture, chunk, b"0\r\n\r\n"), request(capture))
    assert [connection.answer().status for _ in range(2)] == [413, 200]


def test_refused_body_is_not_read_for_ever(capture: Any, wire: Any) -> None:
    """Beyond one more limit, the connection is closed; the refusal was there to be read."""
    connection = wire().send(request(capture, body=b"", length=10**15))
    assert connection.answer().status == 413
    connection.send(*(b" " * (1 << 20) for _ in range(64)))
    assert connection.ended()


def test_refused_body_that_stops_coming_is_given_up(capture: Any, wire: Any) -> None:
    """The connection does not wait for the rest for ever."""
    connection = wire().send(request(capture, body=b"", length=MAX_BODY + 1))
    assert connection.answer().status == 413
    assert connection.ended()


@pytest.mark.parametrize("extra", [b"xx", b"\0\0\0", b"GET\r\n", b"{}\r\n\r\n"])
def test_body_longer_than_declared(capture: Any, wire: Any, extra: bytes) -> None:
    """The request is what was declared, and answered; what follows is no request."""
    connection = wire().send(request(capture) + extra)
    assert connection.answer().status == 200
    last = connection.last_answer()
    assert last is None or last.status in (400, 408)
    assert connection.ended()


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}garbage",
        b"ffffffffffffffffff\r\n{}",
        b"2;\0\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_chunked_garbage_is_a_400(capture: Any, wire: Any, chunks: bytes) -> None:
    """In JSON and with CORS headers, and the end of the connection."""
    head = chunked(capture).replace(b"Host: x", b"Host: x\r\nOrigin: https://shop.example")
    answer = (connection := wire().send(head + chunks)).answer()
    assert (answer.status, answer.code) == (400, "bad_http")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["connection"] == "close"
    assert connection.ended()


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"X: y\nTransfer-Encoding: chunked",
        b"X: y\r\n Transfer-Encoding: chunked",
        b"Content-Length: 4\r\nContent-Length: 5",
        b"Content-Length: 4\r\nContent-Length: 4",
        b"Content-Length: 4, 4",
        b"Content-Length: +4",
        b"Content-Length: 0x4",
        b"Content-Length: -4",
        b"Content-Length: 99999999999999999999",
    ],
)
def test_ambiguous_framing_is_refused(capture: Any, wire: Any, framing: bytes) -> None:
    """Where two servers could disagree about the end of a request, nothing is served."""
    smuggled = request(capture)
    head = b"POST /batch HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n"
    connection = wire().send(head + b"0\r\n\r\n" + smuggled)
    assert connection.answer().status == 400
    assert connection.ended()


def test_pipelined_requests_are_answered_in_order(capture: Any, wire: Any) -> None:
    """Each with its own answer, good or bad."""
    good, bad = request(capture), request(capture, body=b"nonsense")
    connection = wire().send(good + bad + good + good + bad)
    assert [connection.answer().status for _ in range(5)] == [200, 400, 200, 200, 400]


def test_garbage_after_pipelined_requests_does_not_touch_their_answers(
    capture: Any, wire: Any
) -> None:
    """They were good, and are told so."""
    for garbage in (b"\0\0", chunked(capture, b"zz\r\n")):
        connection = wire().send(request(capture) * 3 + garbage)
        assert [connection.answer().status for _ in range(3)] == [200] * 3
        last = connection.last_answer()
        assert last is None or last.status == 400
        assert connection.ended()


@pytest.mark.parametrize("version", [b"", b"\r\nX: y"])
def test_expectation_is_met(capture: Any, wire: Any, version: bytes) -> None:
    """`Expect: 100-continue`: told to go on, then answered, and the connection lives."""
    whole = request(capture, b"Expect: 100-continue" + version)
    head, body = whole.split(b"\r\n\r\n", 1)
    connection = wire()
    for _ in range(2):
        assert connection.send(head + b"\r\n\r\n").answer().status == 100
        assert connection.send(body).answer().status == 200


def test_expectation_that_is_refused_ends_the_connection(capture: Any, wire: Any) -> None:
    """The client may or may not send the body now, so nothing after it could be understood."""
    whole = request(capture, b"Expect: 100-continue", body=b"", length=MAX_BODY + 1)
    connection = wire().send(whole)
    assert connection.answer().status == 413
    assert connection.ended()


def test_upgrade_is_declined_and_the_request_served(capture: Any, wire: Any) -> None:
    """Clients that would rather speak HTTP/2 in the clear lose nothing by asking."""
    lines = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    connection = wire().send(request(capture, *lines) + request(capture))
    assert [connection.answer().status for _ in range(2)] == [200, 200]
    whole = request(capture, *lines)
    at = whole.index(b"\r\n\r\n") + 9
    connection.send(whole[:at]).send(whole[at:])
    assert connection.answer().status == 200


def test_connect_is_refused(wire: Any) -> None:
    """This is no proxy."""
    connection = wire().send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert connection.answer().status == 400
    assert connection.ended()


def test_connections_over_the_limit_are_told_to_wait(
    kafka: str, new_capture: Callable[..., Any]
) -> None:
    """503 in JSON with Retry-After and CORS, also after a large body, instead of a hang."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_MAX_CONNECTIONS="3").start()
    capture.client.close()
    with contextlib.ExitStack() as stack:
        wires = [Wire(capture) for _ in range(3)]
        for wire in wires:
            stack.callback(wire.socket.close)
        for wire in wires:
            assert wire.send(request(capture)).answer().status == 200
        for padding in (0, 1 << 20):
            surplus = Wire(capture)
            body = json.dumps(capture.batch({**EVENT, "x": "y" * padding})).encode()
            answer = surplus.send(request(capture, b"Origin: http://a", body=body)).answer()
            assert (answer.status, answer.code) == (503, "too_many_connections")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["access-control-allow-origin"] == "http://a"
            assert surplus.ended()
        for wire in wires:
            assert wire.send(request(capture)).answer().status == 200


def test_request_on_its_way_while_the_server_ends_is_served(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """On a connection that was idle at SIGTERM; the answer says that the connection ends."""
    capture = new_capture(kafka).start()
    wires = [Wire(capture) for _ in range(2)]
    for wire in wires:
        assert wire.send(request(capture)).answer().status == 200
    capture.process.send_signal(signal.SIGTERM)
    until(lambda: "Shutting down" in capture.log(), "the server ends")
    answer = wires[0].send(request(capture)).answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert wires[0].ended()
    assert wires[1].ended()
    assert capture.stop() == 0
    assert len(capture.records()) == 3
