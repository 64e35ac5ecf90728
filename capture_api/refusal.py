"""The one way in which the edge says no: a status, a code for programs and a text for people."""

from __future__ import annotations


class Refused(Exception):
    """The request is not accepted, and nothing of it is kept, or not all of it for certain (503).

    `detail` says what is wrong and what to do; `retry_after` (seconds) is set where the same
    request may succeed later.
    """

    def __init__(self, status: int, code: str, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after


def bad_request(detail: str, code: str = "invalid_request") -> Refused:
    """400: the client must change the request."""
    return Refused(400, code, detail)


def bad_token(detail: str, code: str = "invalid_token") -> Refused:
    """401: the token is missing, malformed or unknown."""
    return Refused(401, code, detail)


def too_large(detail: str) -> Refused:
    """413: some clients halve their batch and try again."""
    return Refused(413, "too_large", detail)


def try_later(code: str, detail: str, retry_after: int = 1) -> Refused:
    """503: nothing is wrong with the request."""
    return Refused(503, code, detail, retry_after)
