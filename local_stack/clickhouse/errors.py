"""What can go wrong, as ClickHouse says it: a code, a name, a text, and the HTTP status that goes
with the name.

The engine's messages carry all of them: `Code: 60. DB::Exception: ... (UNKNOWN_TABLE)`. Errors of
this server's own are put into the same shape, so a client needs one way of reading them.
"""

import re

_CODE = re.compile(r"Code: (\d+)\. DB::Exception: ")
_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)")
_VERSION = re.compile(r" ?\(version [^()]*(?:\([^()]*\))?\)$")

UNKNOWN_EXCEPTION = 1002

_STATUS = {
    401: ("REQUIRED_PASSWORD",),
    403: (
        "ACCESS_DENIED",
        "AUTHENTICATION_FAILED",
        "SET_NON_GRANTED_ROLE",
        "UNKNOWN_USER",
        "WRONG_PASSWORD",
    ),
    404: (
        "UNKNOWN_AGGREGATE_FUNCTION",
        "UNKNOWN_DATABASE",
        "UNKNOWN_DATABASE_ENGINE",
        "UNKNOWN_DIRECTION_OF_SORTING",
        "UNKNOWN_FORMAT",
        "UNKNOWN_FUNCTION",
        "UNKNOWN_IDENTIFIER",
        "UNKNOWN_ROLE",
        "UNKNOWN_SETTING",
        "UNKNOWN_STORAGE",
        "UNKNOWN_TABLE",
        "UNKNOWN_TYPE",
        "UNKNOWN_TYPE_OF_QUERY",
    ),
    400: (
        "BAD_ARGUMENTS",
        "CANNOT_COMPILE_REGEXP",
        "CANNOT_PARSE_DATE",
        "CANNOT_PARSE_DATETIME",
        "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING",
        "CANNOT_PARSE_ESCAPE_SEQUENCE",
        "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
        "CANNOT_PARSE_IPV4",
        "CANNOT_PARSE_IPV6",
        "CANNOT_PARSE_NUMBER",
        "CANNOT_PARSE_QUOTED_STRING",
        "CANNOT_PARSE_TEXT",
        "CANNOT_PARSE_UUID",
        "DUPLICATE_COLUMN",
        "ILLEGAL_COLUMN",
        "INCORRECT_DATA",
        "SYNTAX_ERROR",
        "THERE_IS_NO_COLUMN",
        "TOO_BIG_AST",
        "TOO_DEEP_AST",
        "TYPE_MISMATCH",
        "UNEXPECTED_AST_STRUCTURE",
        "UNKNOWN_ELEMENT_IN_AST",
        "UNKNOWN_TYPE_OF_AST_NODE",
        "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    ),
    408: ("TIMEOUT_EXCEEDED",),
    411: ("HTTP_LENGTH_REQUIRED",),
    413: ("QUERY_IS_TOO_LARGE",),
    415: ("UNSUPPORTED_MEDIA_TYPE",),
    501: ("NOT_IMPLEMENTED",),
    503: (
        "CANNOT_OPEN_FILE",
        "CANNOT_SCHEDULE_TASK",
        "SOCKET_TIMEOUT",
        "TOO_MANY_SIMULTANEOUS_QUERIES",
    ),
}
_STATUS_OF = {name: status for status, names in _STATUS.items() for name in names}


class StartError(Exception):
    """The server cannot start; the text is the one line to tell the person who started it."""


class ClickHouseError(Exception):
    """A request failed: what ClickHouse would answer."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status of this error."""
        return _STATUS_OF.get(self.name, 500)

    def text(self, version: str) -> str:
        """The body of the answer, as a server of that version writes it."""
        return (
            f"Code: {self.code}. DB::Exception: {self.message} ({self.name}) (version {version})\n"
        )


def from_engine(text: str) -> ClickHouseError:
    """The error that the engine's message tells of; wrappers around it are taken off."""
    codes = list(_CODE.finditer(text))
    if not codes:
        return ClickHouseError(UNKNOWN_EXCEPTION, "UNKNOWN_EXCEPTION", text.strip())
    code = int(codes[0].group(1))
    message = text[codes[0].end() :].strip()
    names = _NAME.findall(message)
    name = names[-1] if names else "UNKNOWN_EXCEPTION"
    message = message.removesuffix(f"({name})").rstrip()
    # An error of a reader thread is wrapped: "Code: 27. DB::Exception: Code: 27. ... (NAME)
    # (version x). (NAME)"
    while (inner := _CODE.match(message)) and int(inner.group(1)) == code:
        message = message[inner.end() :].rstrip().removesuffix(".")
        message = _VERSION.sub("", message).rstrip().removesuffix(f"({name})").rstrip()
    return ClickHouseError(code, name, message)
