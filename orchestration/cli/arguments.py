"""Kinds of arguments that commands have in common: a project, a span of time, words."""

from __future__ import annotations

import re
from typing import Any

import click

from orchestration.ledger.projects import MAX_PROJECT_ID

_SPAN = re.compile(r"(\d{1,9})\s*([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MAX_SPAN_DAYS = 3_650


class ProjectName(click.ParamType[str]):
    """A project's id, or one of its tokens: whichever is at hand."""

    name = "project"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it was given; refuses a number that no project can have."""
        text = str(value).strip()
        if text.isdecimal() and not 1 <= int(text) <= MAX_PROJECT_ID:
            self.fail(f"{text} is not in the range 1<=x<={MAX_PROJECT_ID}", param, ctx)
        if not text:
            self.fail("give a project's id or its token", param, ctx)
        return text


class Span(click.ParamType[int]):
    """A span of time such as 90s, 30m, 24h or 7d, in microseconds."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The microseconds."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        if text == "0":
            return 0
        span = _SPAN.fullmatch(text)
        if not span:
            self.fail(f"{text!r} is no span of time: write 90s, 30m, 24h, 7d or 0", param, ctx)
        seconds = int(span[1]) * _UNIT_SECONDS[span[2]]
        if seconds > MAX_SPAN_DAYS * _UNIT_SECONDS["d"]:
            self.fail(f"{text!r} is longer than {MAX_SPAN_DAYS}d", param, ctx)
        return seconds * 1_000_000


class Words(click.ParamType[str]):
    """A text that says something: a name, a reason."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text without the blanks around it; refuses one of nothing else."""
        text = str(value).strip()
        if not text:
            self.fail("it is empty", param, ctx)
        return text


PROJECT = ProjectName()
SPAN = Span()
WORDS = Words()
