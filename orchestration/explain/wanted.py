"""What is looked for: an event's uuid or a request's receipt, and what its text tells by itself."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any
from uuid import UUID

from assets.pipeline.record_head import is_two_lines, read_head
from capture_api.events.uuids import normal_uuid

MOST_CHARACTERS = 200

_FIRST_MS = 1_577_836_800_000  # 2020: nobody made UUIDs of version 7 before
_CLOCKS_DIFFER_MS = 3_600_000


@dataclass(frozen=True)
class Wanted:
    """The text that was given, and the same in a UUID's usual form.

    An event's uuid stands in records in that form; a receipt as whoever made it spelled it. `day`
    is the arrival date that somebody has said to look at.
    """

    text: str
    given: str
    day: date | None = None

    @cached_property
    def spellings(self) -> tuple[str, ...]:
        """How records may spell it."""
        return tuple(dict.fromkeys((self.text, self.given)))

    @cached_property
    def uuid(self) -> UUID | None:
        """The text as a UUID, if it is one: only then can it be an event's."""
        return None if normal_uuid(self.text) is None else UUID(self.text)

    @cached_property
    def made_at_ms(self) -> int | None:
        """When a version-7 UUID was made, by the clock of its maker, in ms since 1970.

        None for a time that no right clock can have shown, which bounds no search.
        """
        if self.uuid is None or self.uuid.version != 7:
            return None
        made_at = self.uuid.int >> 80
        latest = time.time_ns() // 1_000_000 + _CLOCKS_DIFFER_MS
        return made_at if _FIRST_MS <= made_at <= latest else None

    def is_of(self, head: dict[str, Any]) -> bool:
        """Whether a record's head has it as its uuid or its receipt."""
        return (
            head.get("request_id") in self.spellings or str(head.get("uuid")).lower() == self.text
        )

    def head_of(self, value: bytes) -> dict[str, Any] | None:
        """The head of a record's value, if the record is one that is wanted.

        A broken value counts when it names the uuid or receipt as a record does.
        """
        head = read_head(value)
        if self.is_of(head.fields) or (head.broken and self._is_named_in(value)):
            return head.fields
        return None

    def _is_named_in(self, value: bytes) -> bool:
        """Whether a broken value has it, behind its fault, as a record has its uuid or receipt."""
        either = "|".join(map(re.escape, self.spellings))
        if is_two_lines(value):
            value, pattern = value.partition(b"\n")[0], rf'[\[,]"(?:{either})"(?=[,\]]|$)'
        else:
            pattern = rf'"(?:uuid|request_id)"\s*:\s*"(?:{either})"'
        return re.search(pattern.encode(), value, re.IGNORECASE) is not None


def wanted(text: str, day: date | None = None) -> Wanted:
    """What somebody typed. Raises ValueError for what can be neither a uuid nor a receipt."""
    text = text.strip()
    if not text or len(text) > MOST_CHARACTERS or not text.isprintable():
        raise ValueError("give an event's uuid, or the X-Request-Id of an answer")
    return Wanted(normal_uuid(text) or text, text, day)
