"""The one way in which the edge says no: a status, a code for programs and a text for people."""

from __future__ import annotations


class Refused(Exception):
    """The request is not accepted, and nothing of it is kept, or not all of it for certain (503).

    `detail` says what is wrong and what to do, and may quote the client; `for_log` is the same
    without the quotation, which may be personal data. `retry_after` (seconds) is set where the
    same request may succeed later.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        retry_after: int | None = None,
        *,
        for_log: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after
        self.for_log = detail if for_log is None else for_log

    def of_event(self, index: int) -> Refused:
        """The same, where it concerns one event of several."""
        event = f"event {index}: "
        return Refused(
            self.status,
            self.code,
            event + self.detail,
            self.retry_after,
            for_log=event + self.for_log,
        )


def internal_error(receipt: str) -> Refused:
    """500: a bug of ours, whose traceback the log has under the receipt."""
    return Refused(500, "internal_error", f"internal error; report the receipt {receipt}")


def bad_request(
    detail: str, code: str = "invalid_request", *, for_log: str | None = None
) -> Refused:
    """400: the client must change the request."""
    return Refused(400, code, detail, for_log=for_log)


def bad_token(detail: str, code: str = "invalid_token") -> Refused:
    """401: the token is missing, malformed or unknown."""
    return Refused(401, code, detail)


def too_large(detail: str) -> Refused:
    """413: some clients halve their batch and try again."""
    return Refused(413, "too_large", detail)


def try_later(code: str, detail: str, retry_after: int = 1) -> Refused:
    """503: nothing is wrong with the request."""
    return Refused(503, code, detail, retry_after)
