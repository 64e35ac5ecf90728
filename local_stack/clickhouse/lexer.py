"""ClickHouse's SQL cut into tokens: just enough to tell a keyword from a string, a comment or a
column.

Works on bytes, because what follows an INSERT's head is not text. Every byte belongs to exactly one
token or to the space and comments between them, so positions can be used to cut the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

_TOKEN = re.compile(
    rb"""
      (?P<blank>   \s+ | --[^\n]* | \#[\ !][^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<string>  '[^'\\]*(?:(?:\\.|'')[^'\\]*)*' | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<quoted>  `[^`\\]*(?:(?:\\.|``)[^`\\]*)*` | "[^"\\]*(?:(?:\\.|"")[^"\\]*)*" )
    | (?P<word>    [A-Za-z_\x80-\xff][\w$\x80-\xff]* )
    | (?P<number>  \d[\w.]* )
    | (?P<mark>    . )
    """,
    re.DOTALL | re.VERBOSE,
)


class Kind(Enum):
    """What a token is."""

    STRING = "string"
    QUOTED = "quoted"
    WORD = "word"
    NUMBER = "number"
    MARK = "mark"


_KINDS = {kind.value: kind for kind in Kind}
_OPENING = frozenset((b"(", b"[", b"{"))
_CLOSING = frozenset((b")", b"]", b"}"))


@dataclass(frozen=True, slots=True)
class Token:
    """One token; `depth` counts the brackets around it, and a bracket is outside of itself."""

    kind: Kind
    text: bytes
    start: int
    end: int
    depth: int

    def is_word(self, *words: bytes) -> bool:
        """Whether this is one of these keywords (given in upper case)."""
        return self.kind is Kind.WORD and self.text.upper() in words

    def is_mark(self, mark: bytes) -> bool:
        """Whether this is that punctuation mark."""
        return self.kind is Kind.MARK and self.text == mark


def tokens(text: bytes, start: int = 0) -> Iterator[Token]:
    """The tokens of the text from `start` on, without space and comments."""
    depth = 0
    for match in _TOKEN.finditer(text, start):
        group = match.lastgroup
        # The tag of a heredoc is a group inside the string's group.
        if group == "tag":
            group = "string"
        if group is None or group == "blank":
            continue
        body = match.group()
        if group == "mark" and body in _CLOSING:
            depth = max(0, depth - 1)
        yield Token(_KINDS[group], body, match.start(), match.end(), depth)
        if group == "mark" and body in _OPENING:
            depth += 1
